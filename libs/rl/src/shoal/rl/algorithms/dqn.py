"""Deep Q-networks: Mnih et al. 2015, doi:10.1038/nature14236.

Double: van Hasselt, Guez, Silver 2016, arXiv:1509.06461. Duelling: Wang et al. 2016, arXiv:1511.06581. Prioritised replay: Schaul et al. 2016,
arXiv:1511.05952.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from shoal.tune.registry import register_trainable

from ..core.networks import NetworkSpec, build_spec
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..env.fragment import Fragment
from ..env.runner import RunnerPlan, Spaces
from ..env.runner_group import quota
from ..errors import ConfigError, SpaceError
from ..replay.buffers import check_buffer_config, make_buffer
from ..replay.transitions import NStep
from ..settings import NotProvided, Setting, flag, integer, mapping, number, one_of, schedule, value_at
from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig

__all__ = ["DQN", "DQNConfig"]

_BUFFERS = 1 << 23


def _buffer(value: Any) -> str | None:
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
        "replay_buffer_config": Setting("training", {"type": "PrioritizedReplayBuffer", "capacity": 50_000, "alpha": 0.6, "beta": 0.4}, _buffer),
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


class DQN(Algorithm):
    """Plays epsilon-greedily, remembers, and learns from what it remembers. Off-policy: with env runners of their own they play while it learns."""

    config_class = DQNConfig

    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        return RunnerPlan.of(config, partial(_network, config.get_model_config(), config.dueling), _policy)

    def start_learning(self) -> None:
        from ..core.learner_group import learner_group

        self.buffer = make_buffer(self.algo_config.replay_buffer_config)
        self._n_step: dict[int, NStep] = {}
        self._draws = self._generator(_BUFFERS)
        self._owed = 0.0
        self._target_renewed = 0
        self.learner_group = learner_group(_NUMPY, _TORCH, self.algo_config, self.spec, self.theta, self.spaces.actions.discrete)

    def epsilon(self) -> float:
        return value_at(self.algo_config.epsilon, self._sampled)

    def training_step(self) -> dict[str, Any]:
        config = self.algo_config
        started, before = time.perf_counter(), self._sampled
        gathered = self.env_runner_group.sample_next(config.get_rollout_fragment_length(), self.theta, self.epsilon(), self.statistics)
        self._remember(self.count_samples(gathered))
        between = time.perf_counter()
        self._timers["env_runner_sampling_timer"] += between - started
        reported: dict[str, Any] = {"epsilon": self.epsilon()}
        if self._sampled < config.num_steps_sampled_before_learning_starts or len(self.buffer) < config.total_train_batch_size:
            return reported
        intensity = config.training_intensity
        self._owed += len(gathered) if intensity is None else intensity * (self._sampled - before) / config.total_train_batch_size
        while self._owed >= 1.0:
            self._owed -= 1.0
            reported |= self._learn_once()
        self._timers["learner_update_timer"] += time.perf_counter() - between
        return reported

    def _remember(self, fragments: list[Fragment]) -> None:
        config = self.algo_config
        for fragment in fragments:
            steps = self._n_step.setdefault(fragment.runner, NStep(int(config.n_step), float(config.gamma)))
            self.buffer.add(steps.take(fragment))

    def _learn_once(self) -> dict[str, Any]:
        from .dqn_learner import WeightedBatch

        config, learners = self.algo_config, self.learner_group.count
        renew = self._sampled - self._target_renewed >= config.target_network_update_freq
        if renew:
            self._target_renewed = self._sampled
        rows, weights, places = self.buffer.sample(config.total_train_batch_size, self._draws)
        bounds = np.cumsum([0, *quota(len(rows), learners)])
        parts = [WeightedBatch(rows.rows(slice(a, b)), weights[a:b], renew) for a, b in pairwise(bounds)]
        self.theta, reported, errors = self.learner_group.update(parts, self._sampled)
        self.buffer.update_priorities(places, np.concatenate(errors))
        self._trained += len(rows)
        return reported

    def get_module(self) -> Any:
        from ..core.torch_network import TorchNetwork

        return TorchNetwork(self.spec, self.theta, duelling=bool(self.spec.critic), q_values=True)

    def learning_state(self) -> dict[str, Any]:
        own = {"draws": self._draws.bit_generator.state, "owed": self._owed, "target_renewed": self._target_renewed, "n_step": self._n_step}
        parts: dict[str, Any] = {"learner": self.learner_group.get_state(), "dqn": own}
        return parts | ({"replay": self.buffer.get_state()} if self.algo_config.store_buffer_in_checkpoints else {})

    def set_learning_state(self, parts: dict[str, Any]) -> None:
        own = parts["dqn"]
        self._draws.bit_generator.state = own["draws"]
        self._owed, self._target_renewed, self._n_step = own["owed"], own["target_renewed"], own["n_step"]
        self.learner_group.set_state(parts["learner"])
        if "replay" in parts:
            self.buffer.set_state(parts["replay"])

    def stop_learning(self) -> None:
        if hasattr(self, "learner_group"):
            self.learner_group.stop()


register_trainable("DQN", DQN)
