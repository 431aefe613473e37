"""Soft actor-critic: Haarnoja et al. 2018, arXiv:1812.05905, with the temperature that adapts."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..core.learner_group import LearnerGroup, learner_group
from ..core.networks import NetworkSpec, build_spec
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..env.runner import RunnerPlan, Spaces
from ..errors import ConfigError, SpaceError
from ..replay.transitions import Transitions
from ..settings import NotProvided, Setting, flag, integer, number, schedule
from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig
from .dqn import buffer_config
from .off_policy import OffPolicy

__all__ = ["SAC", "SACConfig"]

_LEARNER = "shoal.rl.algorithms.sac_learner:SACLearner"
_ALONE = "SAC learns in the algorithm's own process, on the CPU"


def _entropy(value: Any) -> str | None:
    return None if value == "auto" or number()(value) is None else "must be a number or 'auto'"


class SACConfig(AlgorithmConfig):
    """Settings of SAC.

    >>> SACConfig().environment("Pendulum-v1").training(actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3).tau
    0.005
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "actor_lr": Setting("training", 3e-5, schedule(number(above=0.0))),
        "critic_lr": Setting("training", 3e-4, schedule(number(above=0.0))),
        "alpha_lr": Setting("training", 3e-4, schedule(number(above=0.0))),
        "twin_q": Setting("training", True, flag),
        "tau": Setting("training", 5e-3, number(0, 1, above=0.0)),
        "initial_alpha": Setting("training", 1.0, number(above=0.0)),
        "target_entropy": Setting("training", "auto", _entropy),
        "n_step": Setting("training", 1, integer(1)),
        "train_batch_size_per_learner": Setting("training", 256, integer(1)),
        "num_steps_sampled_before_learning_starts": Setting("training", 1500, integer(0)),
        "replay_buffer_config": Setting("training", {"type": "PrioritizedReplayBuffer", "capacity": 1_000_000, "alpha": 0.6, "beta": 0.4}, buffer_config),
        "store_buffer_in_checkpoints": Setting("training", False, flag),
        "training_intensity": Setting("training", None, number(above=0.0, optional=True)),
        "min_sample_timesteps_per_iteration": Setting("reporting", 100, integer(0)),
    }
    WITHOUT: ClassVar[dict[str, str]] = {
        "lr": "it has actor_lr, critic_lr and alpha_lr",
        "num_learners": _ALONE,
        "num_cpus_per_learner": _ALONE,
        "num_gpus_per_learner": _ALONE,
        "custom_resources_per_learner": _ALONE,
    }
    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = {"fcnet_activation": "relu"}

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or SAC)

    def training(
        self,
        *,
        actor_lr: Any = NotProvided,
        critic_lr: Any = NotProvided,
        alpha_lr: Any = NotProvided,
        twin_q: Any = NotProvided,
        tau: Any = NotProvided,
        initial_alpha: Any = NotProvided,
        target_entropy: Any = NotProvided,
        n_step: Any = NotProvided,
        num_steps_sampled_before_learning_starts: Any = NotProvided,
        replay_buffer_config: Any = NotProvided,
        store_buffer_in_checkpoints: Any = NotProvided,
        training_intensity: Any = NotProvided,
        **others: Any,
    ) -> SACConfig:
        """Besides those of every algorithm (gamma, grad_clip, train_batch_size_per_learner):

        Args:
            actor_lr, critic_lr, alpha_lr: Adam's step sizes of policy, critics and temperature; also schedules.
            twin_q: two critics, of which the lesser counts.
            tau: with each step the target critics go this part of the way to the critics.
            initial_alpha, target_entropy: the temperature at first, and the entropy that it is to hold; `auto`: minus the numbers of an action.
            n_step: rewards of so many steps are summed up.
            num_steps_sampled_before_learning_starts: steps that only fill the buffer.
            replay_buffer_config: `type`, `capacity` in transitions, and for priorities `alpha`, `beta`.
            store_buffer_in_checkpoints: else a restored algorithm begins with an empty buffer.
            training_intensity: rows learnt from for each step sampled; None: one batch for each fragment.
        """
        own = {name: value for name, value in locals().items() if name in SACConfig.SETTINGS}
        super().training(**others)
        self._set("training", own, {})
        return self

    @property
    def total_train_batch_size(self) -> int:
        return int(self.train_batch_size_per_learner)

    def get_rollout_fragment_length(self) -> int:
        return max(1, int(self.n_step)) if self.rollout_fragment_length == "auto" else int(self.rollout_fragment_length)

    def validate(self) -> None:
        super().validate()
        if self.get_model_config().free_log_std:
            raise ConfigError("SACConfig: free_log_std=True has no use: SAC's deviations depend on the observation")
        if int(self.replay_buffer_config.get("capacity", 50_000)) < self.total_train_batch_size:
            raise ConfigError(f"SACConfig: the replay buffer's capacity is smaller than one batch of {self.total_train_batch_size}")


def _network(model: DefaultModelConfig, spaces: Spaces) -> NetworkSpec:
    bounds = None if spaces.actions.discrete else (spaces.action.low, spaces.action.high)
    if bounds is None or not np.isfinite(bounds).all():
        raise SpaceError(f"SAC needs a Box action space with finite bounds; this environment's action_space is {spaces.action}. DQN takes Discrete actions")
    return build_spec(model, spaces.observations.size, spaces.actions.size, gaussian=True)


def _policy(_spaces: Spaces) -> str:
    return "squashed"


class SAC(OffPolicy):
    """Learns a policy that is as random as it can afford to be, and the values of its actions, from what it remembers."""

    config_class = SACConfig

    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        if not config.normalize_actions:
            raise ConfigError("SACConfig: normalize_actions=False cannot be: its actions are within [-1, 1], and are stretched to the bounds")
        return RunnerPlan.of(config, partial(_network, config.get_model_config()), _policy)

    def make_learners(self) -> LearnerGroup:
        from .sac_learner import SACPlan

        shape = SACPlan(self.algo_config.get_model_config(), self.spaces.observations.size, self.spaces.actions.size)
        return learner_group(_LEARNER, _LEARNER, self.algo_config, self.spec, self.theta, False, {"sac": shape})

    def parts_of(self, rows: Transitions, weights: NDArray[np.float32]) -> list[Any]:
        return [(rows, weights)]

    def network(self) -> Any:
        from ..core.torch_network import TorchNetwork

        return TorchNetwork(self.spec, self.theta)
