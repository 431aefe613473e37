"""The learning half of DQN, and its gradient in numpy."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.blas import one_blas_thread
from ..core.learner import Learner, LearnerPlan
from ..core.networks import Floats
from ..core.numpy_learner import NumpyLearner
from ..core.numpy_network import NumpyNetwork
from ..replay.transitions import Transitions
from ..settings import value_at


@dataclass
class WeightedBatch:
    """Transitions and the weight of each in the loss; `renew_target`: the target network then follows."""

    rows: Transitions
    weights: NDArray[np.float32]
    renew_target: bool


class DQNLearner(Learner):
    """One step on the temporal-difference error of a batch: Mnih et al. 2015 (doi:10.1038/nature14236), with the next action chosen by the network itself
    and valued by the target network (van Hasselt et al. 2016, arXiv:1509.06461)."""

    target: Any

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.trained = 0

    @abstractmethod
    def add_gradient(self, rows: Transitions, weights: Floats) -> tuple[Floats, float, float]:
        """Adds the gradient of the loss to the network's; the errors `[B]`, the loss, and the mean value."""

    @abstractmethod
    def follow(self, tau: float) -> None:
        """The target network goes this part of the way to the network."""

    def learn(self, batch: WeightedBatch, timestep: int) -> tuple[dict[str, Any], Floats]:
        errors, loss, mean = self.add_gradient(batch.rows, batch.weights)
        lr = value_at(self.settings["lr"], timestep)
        self.apply(lr)
        if batch.renew_target:
            self.follow(float(self.settings["tau"]))
        self.trained += 1
        stats = {
            "qf_loss": loss, "td_error_mean": float(np.abs(errors).mean()), "qf_mean": mean, "default_optimizer_learning_rate": lr,
            "num_module_steps_trained": len(batch.rows), "num_gradient_updates_lifetime": self.trained,
        }  # fmt: skip
        return stats, errors

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "target": self.target.get(), "trained": self.trained}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.target.set(state["target"])
        self.trained = state["trained"]


class NumpyDQNLearner(DQNLearner, NumpyLearner):
    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.target: NumpyNetwork = NumpyNetwork(plan.spec, plan.theta)

    def update(self, batch: WeightedBatch, timestep: int) -> tuple[Floats, dict[str, Any], Floats]:
        with one_blas_thread(len(batch.rows) * self.network.widest):
            stats, errors = self.learn(batch, timestep)
        return self.network.get(), stats, errors

    def add_gradient(self, rows: Transitions, weights: Floats) -> tuple[Floats, float, float]:
        each = np.arange(len(rows))
        later, _ = self.target.action_values(rows.next_observations)
        best = (self.network.action_values(rows.next_observations)[0] if self.settings["double_q"] else later).argmax(axis=1)
        wanted = rows.rewards + rows.discounts * later[each, best]
        values, tapes = self.network.action_values(rows.observations)
        errors = values[each, rows.actions] - wanted
        size = np.abs(errors)
        if self.settings["td_error_loss_fn"] == "huber":
            slopes, losses = np.clip(errors, -1.0, 1.0), np.where(size < 1.0, 0.5 * errors * errors, size - 0.5)
        else:
            slopes, losses = 2.0 * errors, errors * errors
        by_value = np.zeros_like(values)
        by_value[each, rows.actions] = weights * slopes / len(rows)
        self.network.backward_values(tapes, by_value)
        return errors, float((weights * losses).mean()), float(values.mean())

    def follow(self, tau: float) -> None:
        self.target.theta += tau * (self.network.theta - self.target.theta)
