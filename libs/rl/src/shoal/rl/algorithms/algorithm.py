"""What all algorithms have in common: runners, learners, results, evaluation, checkpoints."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from shoal.tune.registry import publish_env
from shoal.tune.trainable import Trainable

from .. import checkpoints
from ..callbacks.hooks import Hooks
from ..connectors.running_stats import RunningStats
from ..core.networks import Floats
from ..core.policies import POLICIES
from ..env.fragment import Fragment
from ..env.runner import EnvRunner, RunnerPlan, Spaces
from ..env.runner_group import EnvRunnerGroup
from ..env.spaces import ActionCodec, ObservationCodec, require_same
from ..errors import CheckpointError, ConfigError
from ..metrics import EpisodeWindow, MetricsLogger, episode_summary
from .algorithm_config import AlgorithmConfig

if TYPE_CHECKING:
    from typing import Self

# Spawn keys of the seed's streams, beyond any number of runners.
_INITIAL, _ACTIONS = 1 << 21, 1 << 22


class Algorithm(Trainable):
    """Learns to act in an environment. Built by `AlgorithmConfig.build_algo()`, or by `shoal.tune` from a dict of settings.

    >>> from shoal.rl.algorithms.ppo import PPOConfig
    >>> algo = PPOConfig().environment("CartPole-v1").training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1).build_algo()
    >>> result = algo.train()
    >>> result["training_iteration"], result["num_env_steps_sampled_lifetime"] <= 64
    (1, True)
    >>> algo.stop()
    """

    config_class: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig

    # -- life ------------------------------------------------------------------------------------------------

    def __init__(self, config: AlgorithmConfig | Mapping[str, Any] | None = None, *, env: Any = None, **trial: Any) -> None:
        settings = config.copy(copy_frozen=False) if isinstance(config, AlgorithmConfig) else self.get_default_config().update_from_dict(config or {})
        if env is not None:
            settings.env = env
        settings.algo_class = type(self)
        self.algo_config = settings
        self._iterations_since_restore, self._time_since_restore, self._stopped = 0, 0.0, False
        super().__init__(settings.to_dict(), **trial)

    @classmethod
    def default_resource_request(cls, config: Mapping[str, Any]) -> Any:
        """What a trial of `shoal.tune` holds: the algorithm itself, its env runners and its learners."""
        from shoal.tune import PlacementGroupFactory

        settings = cls.get_default_config().update_from_dict(config)
        # Asked for by the process that registered the environment, before the trial looks for it elsewhere.
        publish_env(settings.env)
        runner = {"CPU": settings.num_cpus_per_env_runner, **settings.custom_resources_per_env_runner}
        bundles = [{"CPU": settings.num_cpus_for_main_process, **settings.custom_resources_for_main_process}]
        bundles += [runner] * (int(settings.num_env_runners) + int(settings.evaluation_num_env_runners))
        learners = int(settings.get("num_learners", 0))
        if learners:
            cpus = 1 if settings.num_cpus_per_learner == "auto" else settings.num_cpus_per_learner
            bundles += [{"CPU": cpus, "GPU": settings.num_gpus_per_learner, **settings.custom_resources_per_learner}] * learners
        elif settings.get("num_gpus_per_learner"):
            bundles[0]["GPU"] = settings.num_gpus_per_learner
        return PlacementGroupFactory(bundles, strategy=settings.placement_strategy)

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """The algorithm's settings, with nothing changed."""
        return cls.config_class()

    def setup(self, config: Mapping[str, Any]) -> None:
        self.algo_config.validate()
        # The settings are a mapping too: `algo.config["lr"]` and `algo.config.lr`.
        self.config = self.algo_config  # type: ignore[assignment]
        config_object = self.algo_config.freeze()
        publish_env(config_object.env)
        self.metrics = MetricsLogger()
        self.hooks = Hooks.of(config_object)
        self._episodes = EpisodeWindow(int(config_object.metrics_num_episodes_for_smoothing))
        self._sampled = self._trained = self._evaluations = 0
        self._timers = {"env_runner_sampling_timer": 0.0, "learner_update_timer": 0.0}
        self._iteration_episodes: list[Any] = []
        self._evaluation_group: EnvRunnerGroup | None = None
        self._actor: Any = None
        self.env_runner_group = EnvRunnerGroup(self._runner_plan(config_object), config_object, int(config_object.num_env_runners), self._on_recreated(False))
        try:
            self._build_learning()
        except BaseException:
            # Nothing that was started stays behind a build that failed.
            self.env_runner_group.stop()
            raise
        self.hooks.call("on_algorithm_init", algorithm=self, metrics_logger=self.metrics)

    def _build_learning(self) -> None:
        observation, action = self.env_runner_group.wait_ready()
        config = self.algo_config
        self.spaces = Spaces(observation, action, ObservationCodec.of(observation), ActionCodec.of(action, config.normalize_actions, config.clip_actions))
        self.spec = self._runner_plan(config).network(self.spaces)
        self.theta: Floats = self.spec.initial(self._generator(_INITIAL))
        self._action_rng = self._generator(_ACTIONS)
        filtered = self.env_runner_group.plan.observation_filter
        self.statistics = RunningStats.empty(self.spaces.observations.size) if filtered else None
        self.start_learning()

    def _generator(self, key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.algo_config.seed, spawn_key=(key,))))

    def _on_recreated(self, is_evaluation: bool) -> Any:
        def told(indices: list[int]) -> None:
            group = self._evaluation_group if is_evaluation else self.env_runner_group
            self.hooks.call(
                "on_env_runners_recreated", algorithm=self, env_runner_group=group, env_runner_indices=indices, is_evaluation=is_evaluation,
                metrics_logger=self.metrics,
            )  # fmt: skip

        return told

    # -- what an algorithm says ------------------------------------------------------------------------------

    @abstractmethod
    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        """What the env runners play with."""

    @abstractmethod
    def start_learning(self) -> None:
        """Makes the learners, from `spec`, `spaces` and `theta`."""

    @abstractmethod
    def training_step(self) -> dict[str, Any]:
        """Samples and learns once; what the learners report."""

    @abstractmethod
    def network(self) -> Any:
        """The network with its present parameters, a torch module."""

    def get_module(self, module_id: str = "default_policy") -> Any:
        """The network with its present parameters, as a torch module: `forward_inference({"obs": …})`. There is one; `module_id` is for RLlib's programs."""
        if module_id != "default_policy":
            raise ConfigError(f"get_module({module_id!r}): there is only 'default_policy'")
        return self.network()

    def learning_state(self) -> dict[str, Any]:
        """What the continuation depends on beyond parameters and counters, by the name of its file."""
        return {}

    def set_learning_state(self, parts: dict[str, Any]) -> None:
        """Takes what `learning_state` gave."""

    def stop_learning(self) -> None:
        """Ends the learners."""

    # -- training --------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """One iteration: samples and learns at least once, evaluates where `evaluation_interval` says so; the result.

        Its parts: `env_runners` (`episode_return_mean` over the last episodes, …), `learners`, `evaluation`, `timers`, `fault_tolerance`, and
        `num_env_steps_sampled_lifetime`, `training_iteration`, `time_total_s`.

        Raises:
            EnvError: an environment raised.
            EnvRunnersLostError, LearnerLostError: actors that ended and may not be replaced, or did not answer in time.
        """
        result = super().train()
        self._iterations_since_restore += 1
        self._time_since_restore += result["time_this_iter_s"]
        now = datetime.now()
        return {
            **result, "time_since_restore": self._time_since_restore, "iterations_since_restore": self._iterations_since_restore, "done": False,
            "trial_id": self.trial_id or "default", "date": now.strftime("%Y-%m-%d_%H-%M-%S"), "timestamp": int(now.timestamp()), "pid": os.getpid(),
            "hostname": platform.node(),
        }  # fmt: skip

    def step(self) -> dict[str, Any]:
        """One iteration, as `train()` reports it."""
        started, sampled_before, trained_before = time.perf_counter(), self._sampled, self._trained
        self._timers = dict.fromkeys(self._timers, 0.0)
        self._iteration_episodes = []
        config = self.algo_config
        due = config.evaluation_interval is not None and (self.training_iteration + 1) % int(config.evaluation_interval) == 0
        with ThreadPoolExecutor(max_workers=1) as beside:
            evaluating: Future[dict[str, Any]] | None = beside.submit(self.evaluate) if due and config.evaluation_parallel_to_training else None
            calls = 0
            while True:
                reported = self.training_step()
                calls += 1
                enough_s = config.min_time_s_per_iteration is None or time.perf_counter() - started >= config.min_time_s_per_iteration
                if enough_s and self._sampled - sampled_before >= config.min_sample_timesteps_per_iteration:
                    break
            evaluation = evaluating.result() if evaluating is not None else self.evaluate() if due else None
        result: dict[str, Any] = {
            "env_runners": {
                **self._episodes.summary(),
                "num_episodes": len(self._iteration_episodes),
                "num_env_steps_sampled": self._sampled - sampled_before,
                "num_env_steps_sampled_lifetime": self._sampled,
            },
            "learners": {
                "__all_modules__": {"num_env_steps_trained": self._trained - trained_before, "num_env_steps_trained_lifetime": self._trained},
                "default_policy": reported,
            },
            "num_env_steps_sampled_lifetime": self._sampled,
            "num_training_step_calls_per_iteration": calls,
            "timers": {**self._timers, "training_iteration": time.perf_counter() - started},
            "fault_tolerance": self.env_runner_group.healthy(),
        }
        for logged in self.env_runner_group.get_metrics():
            result["env_runners"].update(logged)
        if evaluation is not None:
            result["evaluation"] = evaluation
        self.hooks.call("on_train_result", algorithm=self, metrics_logger=self.metrics, result=result)
        result.update(self.metrics.take())
        return result

    def count_samples(self, gathered: list[tuple[Fragment, RunningStats | None]]) -> list[Fragment]:
        """The fragments, once their steps, episodes and statistics are counted."""
        for fragment, fresh in gathered:
            self._sampled += fragment.env_steps
            self.add_episodes(fragment.episodes)
            if self.statistics is not None and fresh is not None:
                # A new object: runners in this process hold the one before.
                self.statistics = self.statistics.copy()
                self.statistics.merge(fresh)
        return [fragment for fragment, _ in gathered]

    def add_episodes(self, episodes: list[Any]) -> None:
        self._episodes.add(episodes)
        self._iteration_episodes.extend(episodes)

    # -- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Plays new episodes with the policy as it is (`evaluation_…` settings) and learns nothing from them: `["env_runners"]["episode_return_mean"]`, …

        Raises:
            EnvRunnersLostError: it took longer than `evaluation_sample_timeout_s`.
        """
        config = self.algo_config
        theta, statistics = self.theta.copy(), self.statistics
        self.hooks.call("on_evaluate_start", algorithm=self, metrics_logger=self.metrics)
        if self._evaluation_group is None:
            own = config.get_evaluation_config_object()
            self._evaluation_group = EnvRunnerGroup(self._runner_plan(own), own, int(own.num_env_runners), self._on_recreated(True))
        if config.custom_evaluation_function is not None:
            metrics = config.custom_evaluation_function(self, self._evaluation_group)
            if not isinstance(metrics, dict):
                raise ConfigError(f"custom_evaluation_function returned {type(metrics).__name__}, it must return a dict of metrics")
        else:
            episodes = self._evaluation_group.play(int(config.evaluation_duration), config.evaluation_duration_unit, theta, statistics)
            steps = sum(episode.length for episode in episodes)
            metrics = {"env_runners": {**episode_summary(episodes), "num_episodes": len(episodes), "num_env_steps_sampled": steps}}
            for logged in self._evaluation_group.get_metrics():
                metrics["env_runners"].update(logged)
        self.hooks.call("on_evaluate_end", algorithm=self, metrics_logger=self.metrics, evaluation_metrics=metrics)
        return metrics

    def compute_single_action(self, observation: Any, *, explore: bool | None = None) -> Any:
        """The policy's action for one observation, as the environment takes it. `explore`: draw it; None: as the settings say.

        Raises:
            SpaceError: the observation is not of the observation space.
        """
        rows = np.asarray(observation)[None]
        if self._actor is None:
            self._actor = POLICIES[self._runner_plan(self.algo_config).policy(self.spaces)](self.spec)
        encoded = self._encode_one(rows)
        self._actor.actor.load(self.theta)
        self._actor.begin(self._action_rng, 1, 1, self.algo_config.explore if explore is None else explore, self.epsilon())
        actions, _ = self._actor.act(0, encoded)
        action = self.spaces.actions.to_env(actions)[0]
        return int(action) if self.spaces.actions.discrete else action

    def _encode_one(self, rows: np.ndarray) -> Floats:
        from ..env.spaces import require_contains

        shape = getattr(self.spaces.observation, "shape", ())
        if rows.shape[1:] != shape:
            require_contains("compute_single_action()", "the argument", self.spaces.observation, rows[0])
        encoded = self.spaces.observations.encode(rows)
        return encoded if self.statistics is None else self.statistics.normalize(encoded)

    def epsilon(self) -> float:
        """How often exploration now takes any action; 0 where it does not."""
        return 0.0

    @property
    def env_runner(self) -> EnvRunner | None:
        """The runner in this process, if there is one."""
        return self.env_runner_group.local

    @property
    def eval_env_runner_group(self) -> EnvRunnerGroup | None:
        return self._evaluation_group

    # -- checkpoints -----------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """All that the continuation depends on, by part."""
        counters = {"sampled": self._sampled, "trained": self._trained, "iteration": self.training_iteration, "time_total_s": self._time_total}
        return {
            "state": {
                "counters": counters, "theta": self.theta, "statistics": self.statistics, "episodes": self._episodes,
                "actions_rng": self._action_rng.bit_generator.state,
                "observation_space": self.spaces.observation, "action_space": self.spaces.action, "runner": self.env_runner_group.get_state(),
            },
            **self.learning_state(),
        }  # fmt: skip

    def set_state(self, parts: dict[str, Any]) -> None:
        """Takes what `get_state` gave.

        Raises:
            SpaceError: it is of an environment with other spaces.
            ConfigError: it is of a network of another shape.
        """
        state = parts["state"]
        require_same("observation_space", state["observation_space"], self.spaces.observation, f"environment {self.env_runner_group.plan.env}")
        require_same("action_space", state["action_space"], self.spaces.action, f"environment {self.env_runner_group.plan.env}")
        if state["theta"].shape != self.theta.shape:
            raise ConfigError(f"the checkpoint's network has {len(state['theta'])} parameters, this one {len(self.theta)}: their model_config differ")
        counters = state["counters"]
        self._sampled, self._trained = counters["sampled"], counters["trained"]
        self._iteration, self._time_total = counters["iteration"], counters["time_total_s"]
        self._iterations_since_restore, self._time_since_restore = 0, 0.0
        self.theta, self.statistics, self._episodes = state["theta"].copy(), state["statistics"], state["episodes"]
        self._action_rng.bit_generator.state = state["actions_rng"]
        local = self.env_runner_group.local
        if local is not None and state["runner"] is not None and len(state["runner"].returns) == local.plan.num_envs:
            local.set_state(state["runner"])
        self.set_learning_state(parts)
        self.hooks.call("on_checkpoint_loaded", algorithm=self)

    def save_to_path(self, path: str | Path | None = None) -> str:
        """Writes a checkpoint into the folder `path` (a new temporary one without), and returns its path.

        With `num_env_runners=0` the continuation from it is that of the uninterrupted run, where the environments can be pickled (else new episodes begin).
        """
        folder = Path(path) if path is not None else Path(tempfile.mkdtemp(prefix="shoal_rl_"))
        parts = {"config": self.algo_config.copy(copy_frozen=False), **self.get_state()}
        env = self.algo_config.env
        facts = {
            "algorithm": f"{type(self).__module__}:{type(self).__qualname__}", "env": env if isinstance(env, str) else getattr(env, "__qualname__", str(env)),
            "training_iteration": self.training_iteration, "num_env_steps_sampled_lifetime": self._sampled,
        }  # fmt: skip
        checkpoints.write(folder, parts, facts)
        return str(folder)

    def restore_from_path(self, path: str | Path) -> None:
        """Continues from the checkpoint at `path`, with this algorithm's own settings.

        Raises:
            CheckpointError: it is missing, damaged or of another algorithm.
            SpaceError: it is of an environment with other spaces.
        """
        folder = Path(path)
        index = checkpoints.read_index(folder)
        ours = f"{type(self).__module__}:{type(self).__qualname__}"
        if index["algorithm"] != ours:
            raise CheckpointError(f"{folder} is a checkpoint of {index['algorithm']}, not of {ours}; Algorithm.from_checkpoint(path) takes any")
        self.set_state({name: checkpoints.read(folder, name) for name in index["files"] if name != "config"})

    @classmethod
    def from_checkpoint(cls, path: str | Path | Any) -> Self:
        """The algorithm that was saved at `path` (a folder, or an object with such a `path`), with its settings.

        Raises:
            CheckpointError: it is missing or damaged, or no `cls`.
        """
        folder = Path(getattr(path, "path", path))
        config: AlgorithmConfig = checkpoints.read(folder, "config")
        if config.algo_class is None or not issubclass(config.algo_class, cls):
            raise CheckpointError(f"{folder} is a checkpoint of {config.algo_class}, not of {cls.__name__}")
        algorithm = config.algo_class(config)
        try:
            algorithm.restore_from_path(folder)
        except BaseException:
            algorithm.stop()
            raise
        return algorithm  # type: ignore[return-value]

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.save_to_path(checkpoint_dir)

    def load_checkpoint(self, checkpoint: str) -> None:
        self.restore_from_path(checkpoint)

    def stop(self) -> None:
        """Ends the runners and learners; may be called twice."""
        if not self._stopped:
            self._stopped = True
            super().stop()

    def cleanup(self) -> None:
        """Ends the runners and learners."""
        for group in (getattr(self, "env_runner_group", None), getattr(self, "_evaluation_group", None)):
            if group is not None:
                group.stop()
        self.stop_learning()
