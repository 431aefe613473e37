"""The settings of an algorithm, set group by group."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.rl_module.default_model_config import DefaultModelConfig
from ..errors import ConfigError, UnknownSettingError, nearest
from ..settings import (
    NotProvided,
    Setting,
    anything,
    flag,
    function,
    integer,
    is_search_space,
    mapping,
    number,
    one_of,
    resources,
    schedule,
)

if TYPE_CHECKING:
    from typing import Self

    from .algorithm import Algorithm

CALLBACKS = (
    "on_algorithm_init", "on_train_result", "on_evaluate_start", "on_evaluate_end", "on_env_runners_recreated", "on_checkpoint_loaded",
    "on_environment_created", "on_episode_start", "on_episode_end", "on_sample_end",
)  # fmt: skip


def _model_config(value: Any) -> str | None:
    if not isinstance(value, (Mapping, DefaultModelConfig)):
        return "must be a dict or a DefaultModelConfig"
    if not is_search_space(value):
        DefaultModelConfig.of(value)
    return None


def _clip_rewards(value: Any) -> str | None:
    return None if value is None or isinstance(value, bool) or number(above=0.0)(value) is None else "must be None, True (to the sign) or a number > 0"


def _space(value: Any) -> str | None:
    return None if value is None or hasattr(value, "contains") else "must be a gymnasium space or None"


def _evaluation_config(value: Any) -> str | None:
    return None if value is None or isinstance(value, (Mapping, AlgorithmConfig)) else "must be a dict, an AlgorithmConfig or None"


def _settings(group: str, **settings: tuple[Any, Callable[[Any], str | None]]) -> dict[str, Setting]:
    return {name: Setting(group, default, check) for name, (default, check) in settings.items()}


class AlgorithmConfig(Mapping[str, Any]):
    """The settings of an algorithm. Each method sets one group and returns the configuration itself.

    Every setting is also an attribute (`config.lr`) and an item (`config["lr"]`). What is given is checked at once, what must fit together by
    `validate()`, which `build_algo()` calls. A value may be a search space of `shoal.tune`; it is checked when one value has been chosen.

    Raises (each method):
        UnknownSettingError: there is no such setting; names the nearest.
        ConfigError: a value that cannot be.

    >>> from shoal.rl.algorithms.ppo import PPOConfig
    >>> config = PPOConfig().environment("CartPole-v1").env_runners(num_envs_per_env_runner=8).training(lr=3e-4).debugging(seed=0)
    >>> config.lr, config["num_envs_per_env_runner"]
    (0.0003, 8)
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        **_settings(
            "environment",
            env=(None, lambda value: None if value is None or isinstance(value, str) or callable(value) else "must be a name, a class or a function"),
            env_config=({}, mapping),
            observation_space=(None, _space),
            action_space=(None, _space),
            normalize_actions=(True, flag),
            clip_actions=(False, flag),
            clip_rewards=(None, _clip_rewards),
            disable_env_checking=(False, flag),
        ),
        **_settings(
            "env_runners",
            num_env_runners=(0, integer(0)),
            num_envs_per_env_runner=(1, integer(1)),
            gym_env_vectorize_mode=("auto", one_of("auto", "sync", "async", "vector_entry_point")),
            num_cpus_per_env_runner=(1, number(0)),
            custom_resources_per_env_runner=({}, resources),
            sample_timeout_s=(60.0, number(above=0.0)),
            rollout_fragment_length=("auto", integer(1, also=("auto",))),
            explore=(True, flag),
            observation_filter=("NoFilter", one_of("NoFilter", "MeanStdFilter")),
            env_to_module_connector=(None, function),
        ),
        **_settings(
            "learners",
            num_learners=(0, integer(0)),
            num_cpus_per_learner=("auto", integer(0, also=("auto",))),
            num_gpus_per_learner=(0, number(0)),
            custom_resources_per_learner=({}, resources),
        ),
        **_settings(
            "training",
            gamma=(0.99, number(0, 1)),
            lr=(0.001, schedule(number(above=0.0))),
            grad_clip=(None, number(above=0.0, optional=True)),
            grad_clip_by=("global_norm", one_of("global_norm", "norm", "value")),
            train_batch_size_per_learner=(32, integer(1)),
        ),
        **_settings("rl_module", model_config=({}, _model_config)),
        **_settings(
            "evaluation",
            evaluation_interval=(None, integer(1, optional=True)),
            evaluation_duration=(10, integer(1)),
            evaluation_duration_unit=("episodes", one_of("episodes", "timesteps")),
            evaluation_sample_timeout_s=(120.0, number(above=0.0)),
            evaluation_parallel_to_training=(False, flag),
            evaluation_config=({"explore": False}, _evaluation_config),
            evaluation_num_env_runners=(0, integer(0)),
            custom_evaluation_function=(None, function),
        ),
        **_settings(
            "callbacks",
            callbacks_class=(None, anything),
            **{f"callbacks_{hook}": (None, function) for hook in CALLBACKS},
        ),
        **_settings(
            "reporting",
            metrics_num_episodes_for_smoothing=(100, integer(1)),
            min_time_s_per_iteration=(None, number(0, optional=True)),
            min_sample_timesteps_per_iteration=(0, integer(0)),
        ),
        **_settings(
            "fault_tolerance",
            restart_failed_env_runners=(True, flag),
            ignore_env_runner_failures=(False, flag),
            max_num_env_runner_restarts=(1000, integer(0)),
            env_runner_restore_timeout_s=(60.0, number(above=0.0)),
        ),
        **_settings(
            "resources",
            num_cpus_for_main_process=(1, number(0)),
            custom_resources_for_main_process=({}, resources),
            placement_strategy=("PACK", one_of("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")),
        ),
        **_settings("framework", framework=("torch", one_of("torch"))),
        **_settings("debugging", seed=(None, integer(0, optional=True))),
    }
    # Settings of the base that an algorithm has no use for, each with what to do instead.
    WITHOUT: ClassVar[dict[str, str]] = {}
    # What `model_config` says where the user says nothing.
    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = {}

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        own = self.__dict__
        own["algo_class"] = algo_class
        own["_is_frozen"] = False
        own["_values"] = {name: copy.copy(setting.default) for name, setting in self._known().items()}

    @classmethod
    def _known(cls) -> dict[str, Setting]:
        known: dict[str, Setting] = {}
        for base in reversed(cls.__mro__):
            known.update(vars(base).get("SETTINGS", {}))
        return {name: setting for name, setting in known.items() if name not in cls.WITHOUT}

    # -- the groups ------------------------------------------------------------------------------------------

    def environment(
        self,
        env: Any = NotProvided,
        *,
        env_config: Any = NotProvided,
        observation_space: Any = NotProvided,
        action_space: Any = NotProvided,
        normalize_actions: Any = NotProvided,
        clip_actions: Any = NotProvided,
        clip_rewards: Any = NotProvided,
        disable_env_checking: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """What is played.

        Args:
            env: a name (of `register_env` or of Gymnasium), a class that takes its configuration, or a function of it that returns an environment.
            env_config: goes to the class or function as an `EnvContext`, to a Gymnasium name as keyword arguments.
            observation_space, action_space: what the environment must have; it is checked when it is made.
            normalize_actions: for bounded Box actions the policy works in [-1, 1], and its actions are stretched to the bounds.
            clip_actions: Box actions that are not normalised are cut to the bounds.
            clip_rewards: True: to their sign; a number c: to [-c, c]; only for learning, the reported returns stay.
            disable_env_checking: no step is tried and compared with the spaces when the environment is made.
        """
        return self._set("environment", locals(), unknown)

    def env_runners(
        self,
        *,
        num_env_runners: Any = NotProvided,
        num_envs_per_env_runner: Any = NotProvided,
        gym_env_vectorize_mode: Any = NotProvided,
        num_cpus_per_env_runner: Any = NotProvided,
        custom_resources_per_env_runner: Any = NotProvided,
        sample_timeout_s: Any = NotProvided,
        rollout_fragment_length: Any = NotProvided,
        explore: Any = NotProvided,
        observation_filter: Any = NotProvided,
        env_to_module_connector: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """How experience is gathered.

        Args:
            num_env_runners: actors that play; 0: this process plays.
            num_envs_per_env_runner: environments in each, stepped together.
            gym_env_vectorize_mode: `sync` (one after the other), `async` (a process each), `vector_entry_point` (an environment's own vector form),
                `auto`: the own form where there is one, else `sync`.
            num_cpus_per_env_runner, custom_resources_per_env_runner: what each actor asks of the cluster.
            sample_timeout_s: how long a runner may take for one fragment.
            rollout_fragment_length: steps of each environment in one fragment; `auto`: what makes one batch.
            explore: actions are drawn, not the best ones taken.
            observation_filter: `MeanStdFilter` brings observations to mean 0 and deviation 1, over all that all runners have seen.
            env_to_module_connector: `lambda env, spaces, device: MeanStdFilter()` says the same.
        """
        return self._set("env_runners", locals(), unknown)

    def learners(
        self,
        *,
        num_learners: Any = NotProvided,
        num_cpus_per_learner: Any = NotProvided,
        num_gpus_per_learner: Any = NotProvided,
        custom_resources_per_learner: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """How it is learnt from.

        Args:
            num_learners: actors that each take gradients of their part of the batch and average them; 0: this process learns.
            num_cpus_per_learner, num_gpus_per_learner, custom_resources_per_learner: what each asks of the cluster. With a GPU the network lies there;
                with `num_learners=0` a GPU of this process is used.
        """
        return self._set("learners", locals(), unknown)

    def training(
        self,
        *,
        gamma: Any = NotProvided,
        lr: Any = NotProvided,
        grad_clip: Any = NotProvided,
        grad_clip_by: Any = NotProvided,
        train_batch_size_per_learner: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """How the network is trained.

        Args:
            gamma: discount of a step.
            lr: Adam's step size; also a schedule `[[0, value], [timestep, value], …]`.
            grad_clip, grad_clip_by: the gradient's bound: of the norm of all of it (`global_norm`), of each parameter's (`norm`), of each element (`value`).
            train_batch_size_per_learner: rows of one batch.
        """
        return self._set("training", locals(), unknown)

    def rl_module(self, *, model_config: Any = NotProvided, **unknown: Any) -> Self:
        """`model_config`: the shape of the network, a `DefaultModelConfig` or a dict of its fields."""
        return self._set("rl_module", locals(), unknown)

    def evaluation(
        self,
        *,
        evaluation_interval: Any = NotProvided,
        evaluation_duration: Any = NotProvided,
        evaluation_duration_unit: Any = NotProvided,
        evaluation_sample_timeout_s: Any = NotProvided,
        evaluation_parallel_to_training: Any = NotProvided,
        evaluation_config: Any = NotProvided,
        evaluation_num_env_runners: Any = NotProvided,
        custom_evaluation_function: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """How the policy is judged, apart from training.

        Args:
            evaluation_interval: every so many calls of `train()`; None: only by `evaluate()`.
            evaluation_duration, evaluation_duration_unit: so many `episodes` or `timesteps`.
            evaluation_sample_timeout_s: how long it may take.
            evaluation_parallel_to_training: while the next training step runs; needs `evaluation_num_env_runners` > 0.
            evaluation_config: settings that differ here; `{"explore": False}` unless it says otherwise.
            evaluation_num_env_runners: actors for it; 0: this process.
            custom_evaluation_function: `f(algorithm, env_runner_group)` that returns the metrics itself.
        """
        return self._set("evaluation", locals(), unknown)

    def callbacks(self, callbacks_class: Any = NotProvided, **hooks: Any) -> Self:
        """What is called at events: a subclass of `RLlibCallback`, or functions by the names of its methods (`on_train_result=…`)."""
        for name in hooks:
            if name not in CALLBACKS:
                raise UnknownSettingError(f"callbacks() has no {name!r}{nearest(name, CALLBACKS)}")
        return self._set("callbacks", {"callbacks_class": callbacks_class, **{f"callbacks_{name}": hook for name, hook in hooks.items()}}, {})

    def reporting(
        self,
        *,
        metrics_num_episodes_for_smoothing: Any = NotProvided,
        min_time_s_per_iteration: Any = NotProvided,
        min_sample_timesteps_per_iteration: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """What one call of `train()` covers: at least so many seconds and steps; and over how many of the last episodes means are taken."""
        return self._set("reporting", locals(), unknown)

    def fault_tolerance(
        self,
        *,
        restart_failed_env_runners: Any = NotProvided,
        ignore_env_runner_failures: Any = NotProvided,
        max_num_env_runner_restarts: Any = NotProvided,
        env_runner_restore_timeout_s: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """When an env runner's process ends: it is replaced (at most so many times in all), or done without (`ignore_env_runner_failures`)."""
        return self._set("fault_tolerance", locals(), unknown)

    def resources(
        self,
        *,
        num_cpus_for_main_process: Any = NotProvided,
        custom_resources_for_main_process: Any = NotProvided,
        placement_strategy: Any = NotProvided,
        **unknown: Any,
    ) -> Self:
        """What a trial of `shoal.tune` asks of the cluster for the algorithm itself, and how its actors are placed."""
        return self._set("resources", locals(), unknown)

    def framework(self, framework: Any = NotProvided, **unknown: Any) -> Self:
        """`torch` is the only one."""
        return self._set("framework", locals(), unknown)

    def debugging(self, *, seed: Any = NotProvided, **unknown: Any) -> Self:
        """`seed`: of everything that is drawn. With `num_env_runners=0` and `num_learners=0` the same seed gives the same run."""
        return self._set("debugging", locals(), unknown)

    def api_stack(self, *, enable_rl_module_and_learner: bool = True, enable_env_runner_and_connector_v2: bool = True) -> Self:
        """There is one stack only; both must be True."""
        if not (enable_rl_module_and_learner and enable_env_runner_and_connector_v2):
            raise ConfigError("api_stack(): there is no old API stack; leave both switches True")
        return self

    # -- as values -------------------------------------------------------------------------------------------

    def _set(self, group: str, given: Mapping[str, Any], unknown: Mapping[str, Any]) -> Self:
        if unknown:
            name = next(iter(unknown))
            raise self._unknown(name, f"{type(self).__name__}.{group}()", group)
        for name, value in given.items():
            if name in self.WITHOUT and value is not NotProvided:
                raise self._unknown(name, f"{type(self).__name__}.{group}()", group)
            if name not in ("self", "unknown", "group", "__class__") and value is not NotProvided:
                setattr(self, name, value)
        return self

    def _unknown(self, name: str, where: str, group: str | None = None) -> UnknownSettingError:
        if name in self.WITHOUT:
            return UnknownSettingError(f"{where} has no {name!r}: {self.WITHOUT[name]}")
        known = self._known()
        if name in known and known[name].group != group:
            return UnknownSettingError(f"{where} has no {name!r}; it is set by .{known[name].group}()")
        in_group = [known_name for known_name, setting in known.items() if setting.group == group]
        near = nearest(name, known)
        return UnknownSettingError(f"{where} has no {name!r}{near if 'did you mean' in near or not in_group else nearest(name, in_group)}")

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        if name.startswith("__") or not values:
            raise AttributeError(name)
        raise AttributeError(str(self._unknown(name, type(self).__name__)))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_frozen:
            raise AttributeError(f"{type(self).__name__} is frozen, {name!r} cannot be set: copy() it first (copy(copy_frozen=False))")
        if name == "algo_class":
            self.__dict__[name] = value
            return
        known = self._known()
        if name not in known:
            raise self._unknown(name, type(self).__name__)
        if not is_search_space(value) and (wrong := known[name].check(value)):
            raise ConfigError(f"{type(self).__name__}: {name}={value!r} {wrong}")
        self._values[name] = value

    def __getitem__(self, name: str) -> Any:
        # Not the attribute: `framework` is a method there.
        if name not in self._values:
            raise KeyError(str(self._unknown(name, type(self).__name__)))
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__["_values"] == self._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        known = self._known()
        changed = {name: value for name, value in self._values.items() if value != known[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def copy(self, copy_frozen: bool | None = None) -> Self:
        """A copy of its own. `copy_frozen`: whether it is frozen; None: as this one is."""
        other = type(self).__new__(type(self))
        # Not deep: environments, functions and spaces are shared, the containers that hold settings are not.
        values = {name: copy.deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in self._values.items()}
        other.__dict__.update(algo_class=self.algo_class, _values=values, _is_frozen=self._is_frozen if copy_frozen is None else copy_frozen)
        return other

    def freeze(self) -> Self:
        """No setting can be changed any more."""
        self.__dict__["_is_frozen"] = True
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dict(self.copy(copy_frozen=False)._values)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The defaults, changed by `config_dict`."""
        return cls().update_from_dict(config_dict)

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Changes the settings that `config_dict` names; `{}` changes none."""
        for name, value in config_dict.items():
            setattr(self, name, value)
        return self

    @classmethod
    def overrides(cls, **settings: Any) -> dict[str, Any]:
        """Settings for `evaluation_config`, checked: `PPOConfig.overrides(explore=False)`."""
        cls.from_dict(settings)
        return settings

    # -- what follows from them ------------------------------------------------------------------------------

    @property
    def total_train_batch_size(self) -> int:
        """Rows of one batch over all learners."""
        return int(self.train_batch_size_per_learner) * max(1, int(self.num_learners))

    def get_rollout_fragment_length(self) -> int:
        """Steps of each environment in one fragment, with `auto` resolved."""
        if self.rollout_fragment_length != "auto":
            return int(self.rollout_fragment_length)
        envs = int(self.num_envs_per_env_runner) * max(1, int(self.num_env_runners))
        return math.ceil(self.total_train_batch_size / envs)

    def get_model_config(self) -> DefaultModelConfig:
        return DefaultModelConfig.of(self.model_config, **self.MODEL_DEFAULTS)

    def get_evaluation_config_object(self) -> Self:
        """These settings as evaluation has them."""
        overrides = self.evaluation_config
        if isinstance(overrides, AlgorithmConfig):
            overrides = overrides.to_dict()
        config = self.copy(copy_frozen=False).update_from_dict({"explore": False, **(overrides or {})})
        config.num_env_runners = self.evaluation_num_env_runners
        config.sample_timeout_s = self.evaluation_sample_timeout_s
        return config

    def validate(self) -> None:
        """Everything that must fit together.

        Raises:
            ConfigError: names the settings that do not.
        """
        for name, value in self._values.items():
            if is_search_space(value):
                raise ConfigError(f"{type(self).__name__}: {name}={value!r} is a search space; hand the configuration to shoal.tune.Tuner(param_space=…)")
        if self.env is None:
            raise ConfigError(f"{type(self).__name__}: no environment; set it with .environment('CartPole-v1') or another name, class or function")
        if self.evaluation_parallel_to_training and not self.evaluation_num_env_runners:
            raise ConfigError("evaluation_parallel_to_training=True needs evaluation_num_env_runners > 0: this process cannot do both at once")
        self.get_evaluation_config_object()
        self.get_model_config()

    def build_algo(self, env: Any = None, use_copy: bool = True) -> Algorithm:
        """The algorithm, ready for `train()`. `env`: instead of the one that was set. `use_copy`: later changes of this object do not reach it.

        Raises:
            ConfigError: settings that do not fit together, or not the environment's spaces.
            EnvError: the environment cannot be made.
        """
        config = self.copy(copy_frozen=False) if use_copy else self
        if env is not None:
            config.env = env
        if self.algo_class is None:
            raise ConfigError("this AlgorithmConfig is of no algorithm; use PPOConfig, DQNConfig, SACConfig or ESConfig")
        return self.algo_class(config)
