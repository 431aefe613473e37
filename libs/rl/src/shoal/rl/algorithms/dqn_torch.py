"""The gradient of DQN in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..core.learner import LearnerPlan
from ..core.networks import Floats
from ..core.torch_learner import TorchLearner
from ..core.torch_network import TorchNetwork, one_thread
from ..replay.transitions import Transitions
from .dqn_learner import DQNLearner, WeightedBatch


class TorchDQNLearner(DQNLearner, TorchLearner):
    q_values = True

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.target: TorchNetwork = self.new_network()

    def update(self, batch: WeightedBatch, timestep: int) -> tuple[Floats, dict[str, Any], Floats]:
        with one_thread():
            stats, errors = self.learn(batch, timestep)
        return self.network.get(), stats, errors

    def add_gradient(self, rows: Transitions, weights: Floats) -> tuple[Floats, float, float]:
        following = self.tensor(rows.next_observations)
        with torch.no_grad():
            later = self.target.action_values(following)
            best = self.network.action_values(following).argmax(dim=1) if self.settings["double_q"] else later.argmax(dim=1)
            wanted = self.tensor(rows.rewards) + self.tensor(rows.discounts) * later.gather(1, best.unsqueeze(1)).squeeze(1)
        values = self.network.action_values(self.tensor(rows.observations))
        taken = values.gather(1, self.tensor(rows.actions).unsqueeze(1)).squeeze(1)
        loss_of = functional.smooth_l1_loss if self.settings["td_error_loss_fn"] == "huber" else functional.mse_loss
        loss = (self.tensor(weights) * loss_of(taken, wanted, reduction="none")).mean()
        loss.backward()
        errors: Floats = (taken.detach() - wanted).cpu().numpy()
        return errors, loss.item(), float(values.detach().mean())

    def follow(self, tau: float) -> None:
        with torch.no_grad():
            self.target.theta.lerp_(self.network.theta, tau)
