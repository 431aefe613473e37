"""The learning half of DQN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..core.learner import Learner, LearnerPlan
from ..core.networks import Floats
from ..core.torch_network import TorchNetwork
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

    q_values = True

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        # A critic in the spec is the state value of a duelling network.
        self.duelling = bool(plan.spec.critic)
        super().__init__(plan, rank, world)
        self.target = TorchNetwork(plan.spec, plan.theta, self.device, duelling=self.duelling, q_values=True)
        self.trained = 0

    def _learn(self, batch: WeightedBatch, timestep: int) -> tuple[dict[str, Any], Any]:
        settings, rows = self.settings, batch.rows
        weights = self.tensor(batch.weights)
        following = self.tensor(rows.next_observations)
        with torch.no_grad():
            later = self.target.action_values(following)
            best = self.network.action_values(following).argmax(dim=1) if settings["double_q"] else later.argmax(dim=1)
            wanted = self.tensor(rows.rewards) + self.tensor(rows.discounts) * later.gather(1, best.unsqueeze(1)).squeeze(1)
        values = self.network.action_values(self.tensor(rows.observations))
        taken = values.gather(1, self.tensor(rows.actions).unsqueeze(1)).squeeze(1)
        loss_of = functional.smooth_l1_loss if settings["td_error_loss_fn"] == "huber" else functional.mse_loss
        loss = (weights * loss_of(taken, wanted, reduction="none")).mean()
        loss.backward()
        lr = value_at(settings["lr"], timestep)
        self.apply(lr)
        if batch.renew_target:
            tau = float(settings["tau"])
            with torch.no_grad():
                self.target.theta.lerp_(self.network.theta, tau)
        self.trained += 1
        errors = (taken.detach() - wanted).cpu().numpy()
        stats = {
            "qf_loss": loss.item(), "td_error_mean": float(np.abs(errors).mean()), "qf_mean": float(values.detach().mean()),
            "default_optimizer_learning_rate": lr, "num_module_steps_trained": len(rows), "num_gradient_updates_lifetime": self.trained,
        }  # fmt: skip
        return stats, errors

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "target": self.target.get(), "trained": self.trained}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.target.set(state["target"])
        self.trained = state["trained"]

    def target_theta(self) -> Floats:
        return self.target.get()
