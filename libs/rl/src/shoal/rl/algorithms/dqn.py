"""Deep Q-networks: Mnih et al. 2015, doi:10.1038/nature14236.

Double: van Hasselt, Guez, Silver 2016, arXiv:1509.06461. Duelling: Wang et al. 2016, arXiv:1511.06581. Prioritised replay: Schaul et al. 2016,
arXiv:1511.05952.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..core.learner_group import LearnerGroup, learner_group
from ..core.networks import NetworkSpec, build_spec
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..env.runner import RunnerPlan, Spaces
from ..env.runner_group import quota
from ..errors import ConfigError, SpaceError
from ..replay.buffers import check_buffer_config
from ..replay.transitions import Transitions
from ..settings import NotProvided, Setting, flag, integer, mapping, number, one_of, schedule, value_at
from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig
from .off_policy import OffPolicy

__all__ = ["DQN", "DQNConfig"]


def buffer_config(value: Any) -> str | None:
    """What is wrong with a `replay_buffer_config`."""
    return mapping(value) or check_buffer_config(value)


_NUMPY, _TORCH = "shoal.rl.algorithms.dqn_learner:NumpyDQNLearner", "shoal.rl.algorithms.dqn_torch:TorchDQNLearner"


class DQNConfig(AlgorithmConfig):
    """Settings of DQN.

    >>> DQNConfig().environment("CartPole-v1").training(n_step=3, replay_buffer_config={"type": "ReplayBuffer", "capacity": 10_000}).n_step
    3
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "lr": Setting("training", 5e-4, schedule(number(above=0.0))),
        "grad_clip": Setting("training", 40.0, number(above=0.0, optional=True)),
        "train_batch_size_per_learner": Setting("training", 32, integer(1)),
        "target_network_update_freq": Setting("training", 500, integer(1)),
        "tau": Setting("training", 1.0, number(0, 1, above=0.0)),
        "num_steps_sampled_before_learning_starts": Setting("training", 1000, integer(0)),
        "replay_buffer_config": Setting("training", {"type": "PrioritizedReplayBuffer", "capacity": 50_000, "alpha": 0.6, "beta": 0.4}, buffer_config),
        "store_buffer_in_checkpoints": Setting("training", False, flag),
        "epsilon": Setting("training", [(0, 1.0), (10_000, 0.05)], schedule(number(0, 1))),
        "adam_epsilon": Setting("training", 1e-8, number(above=0.0)),
        "double_q": Setting("training", True, flag),
        "dueling": Setting("training", True, flag),
        "n_step": Setting("training", 1, integer(1)),
        "training_intensity": Setting("training", None, number(above=0.0, optional=True)),
        "td_error_loss_fn": Setting("training", "huber", one_of("huber", "mse")),
        "min_sample_timesteps_per_iteration": Setting("reporting", 1000, integer(0)),
    }

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or DQN)

    def training(
        self,
        *,
        target_network_update_freq: Any = NotProvided,
        tau: Any = NotProvided,
        num_steps_sampled_before_learning_starts: Any = NotProvided,
        replay_buffer_config: Any = NotProvided,
        store_buffer_in_checkpoints: Any = NotProvided,
        epsilon: Any = NotProvided,
        adam_epsilon: Any = NotProvided,
        double_q: Any = NotProvided,
        dueling: Any = NotProvided,
        n_step: Any = NotProvided,
        training_intensity: Any = NotProvided,
        td_error_loss_fn: Any = NotProvided,
        **others: Any,
    ) -> DQNConfig:
        """Besides those of every algorithm (gamma, lr, grad_clip, train_batch_size_per_learner):

        Args:
            target_network_update_freq, tau: every so many environment steps the target network goes this part of the way to the network.
            num_steps_sampled_before_learning_starts: steps that only fill the buffer.
            replay_buffer_config: `type` (`PrioritizedReplayBuffer` or `ReplayBuffer`), `capacity` in transitions, and for priorities `alpha`, `beta`.
            store_buffer_in_checkpoints: else a restored algorithm begins with an empty buffer.
            epsilon: how often any action is taken; a number or a schedule.
            double_q, dueling, n_step: the variants; n_step sums the rewards of so many steps.
            training_intensity: rows learnt from for each step sampled; None: one batch for each fragment.
            td_error_loss_fn: `huber` or `mse`.
        """
        own = {name: value for name, value in locals().items() if name in DQNConfig.SETTINGS}
        super().training(**others)
        self._set("training", own, {})
        return self

    def get_rollout_fragment_length(self) -> int:
        return max(1, int(self.n_step)) if self.rollout_fragment_length == "auto" else int(self.rollout_fragment_length)

    def validate(self) -> None:
        super().validate()
        if int(self.replay_buffer_config.get("capacity", 50_000)) < self.total_train_batch_size:
            raise ConfigError(f"DQNConfig: the replay buffer's capacity is smaller than one batch of {self.total_train_batch_size}")


def _network(model: DefaultModelConfig, duelling: bool, spaces: Spaces) -> NetworkSpec:
    if not spaces.actions.discrete:
        raise SpaceError(
            f"DQN chooses among a Discrete action space's actions; this environment's action_space is {spaces.action}. PPO and ES take Box actions"
        )
    return build_spec(model, spaces.observations.size, spaces.actions.size, critic=duelling, actor_gain=1.0)


def _policy(_spaces: Spaces) -> str:
    return "epsilon_greedy"


class DQN(OffPolicy):
    """Plays epsilon-greedily, remembers, and learns from what it remembers. Off-policy: with env runners of their own they play while it learns."""

    config_class = DQNConfig

    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        return RunnerPlan.of(config, partial(_network, config.get_model_config(), config.dueling), _policy)

    def make_learners(self) -> LearnerGroup:
        self._target_renewed = 0
        return learner_group(_NUMPY, _TORCH, self.algo_config, self.spec, self.theta, self.spaces.actions.discrete)

    def epsilon(self) -> float:
        return value_at(self.algo_config.epsilon, self._sampled)

    def parts_of(self, rows: Transitions, weights: NDArray[np.float32]) -> list[Any]:
        from .dqn_learner import WeightedBatch

        renew = self._sampled - self._target_renewed >= self.algo_config.target_network_update_freq
        if renew:
            self._target_renewed = self._sampled
        bounds = np.cumsum([0, *quota(len(rows), self.learner_group.count)])
        return [WeightedBatch(rows.rows(slice(a, b)), weights[a:b], renew) for a, b in pairwise(bounds)]

    def network(self) -> Any:
        from ..core.torch_network import TorchNetwork

        return TorchNetwork(self.spec, self.theta, duelling=bool(self.spec.critic), q_values=True)

    def own_state(self) -> dict[str, Any]:
        return {"target_renewed": self._target_renewed}

    def set_own_state(self, state: dict[str, Any]) -> None:
        self._target_renewed = state["target_renewed"]
