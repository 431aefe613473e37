"""What algorithms have in common that learn from what they remember."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.learner_group import LearnerGroup
from ..env.fragment import Fragment
from ..replay.buffers import make_buffer
from ..replay.transitions import NStep, Transitions
from .algorithm import Algorithm

_BUFFERS = 1 << 23


class OffPolicy(Algorithm):
    """Plays, remembers, and learns from batches of what it remembers. Env runners that are actors play on meanwhile."""

    learner_group: LearnerGroup

    @abstractmethod
    def make_learners(self) -> LearnerGroup:
        """From `spec`, `spaces` and `theta`."""

    @abstractmethod
    def parts_of(self, rows: Transitions, weights: NDArray[np.float32]) -> list[Any]:
        """A batch as each learner wants its part."""

    def own_state(self) -> dict[str, Any]:
        """What else the continuation depends on."""
        return {}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Takes what `own_state` gave."""

    def start_learning(self) -> None:
        self.buffer = make_buffer(self.algo_config.replay_buffer_config)
        self._n_step: dict[int, NStep] = {}
        self._draws = self._generator(_BUFFERS)
        self._owed = 0.0
        self.learner_group = self.make_learners()

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
        rows, weights, places = self.buffer.sample(self.algo_config.total_train_batch_size, self._draws)
        self.theta, reported, errors = self.learner_group.update(self.parts_of(rows, weights), self._sampled)
        self.buffer.update_priorities(places, np.concatenate(errors))
        self._trained += len(rows)
        return reported

    def learning_state(self) -> dict[str, Any]:
        own = {"draws": self._draws.bit_generator.state, "owed": self._owed, "n_step": self._n_step, **self.own_state()}
        parts: dict[str, Any] = {"learner": self.learner_group.get_state(), "off_policy": own}
        return parts | ({"replay": self.buffer.get_state()} if self.algo_config.store_buffer_in_checkpoints else {})

    def set_learning_state(self, parts: dict[str, Any]) -> None:
        own = parts["off_policy"]
        self._draws.bit_generator.state = own["draws"]
        self._owed, self._n_step = own["owed"], own["n_step"]
        self.set_own_state(own)
        self.learner_group.set_state(parts["learner"])
        if "replay" in parts:
            self.buffer.set_state(parts["replay"])

    def stop_learning(self) -> None:
        if hasattr(self, "learner_group"):
            self.learner_group.stop()
