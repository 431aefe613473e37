"""A learner alone, on the CPU, in numpy."""

from __future__ import annotations

from .learner import Learner, LearnerPlan
from .numpy_network import NumpyAdam, NumpyNetwork, clip_gradient


class NumpyLearner(Learner):
    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.network: NumpyNetwork = NumpyNetwork(plan.spec, plan.theta)
        self.optimizer: NumpyAdam = NumpyAdam(self.network.theta, epsilon=float(self.settings.get("adam_epsilon", 1e-8)))

    def apply(self, lr: float) -> None:
        gradient = self.network.gradient
        clip_gradient(gradient, self.plan.spec, self.settings["grad_clip"], self.settings["grad_clip_by"])
        self.optimizer.step(gradient, lr)
        gradient[:] = 0.0
