"""Trains a network: in the algorithm's process, or as one of several actors. Knows neither numpy's nor torch's networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .networks import Floats, NetworkSpec

# How long a learner waits for the others before it gives up.
GROUP_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class LearnerPlan:
    """What a learner needs: the settings as a dict (without the environment), the network and where it begins."""

    settings: dict[str, Any]
    spec: NetworkSpec
    theta: Floats
    discrete: bool
    gpu: bool
    seed: int | None


class Network(Protocol):
    def get(self) -> Floats: ...
    def set(self, theta: Floats) -> None: ...


class Optimizer(Protocol):
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Learner(ABC):
    """A network, its optimiser, and what an algorithm does with a batch."""

    network: Network
    optimizer: Optimizer

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.settings = plan.settings
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(plan.seed, spawn_key=(1 << 20, rank))))

    @abstractmethod
    def update(self, batch: Any, timestep: int) -> tuple[Floats, dict[str, Any], Any]:
        """Learns from a batch; the new parameters, what to report, and what the algorithm wants back."""

    @abstractmethod
    def apply(self, lr: float) -> None:
        """Bounds the gradient, takes a step, and forgets the gradient."""

    def agree_least(self, count: int) -> int:
        """The least of what the learners say: their batches may differ by a few rows, their steps may not."""
        return count

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Over all learners, so that what is adapted to them (a coefficient) stays equal in all."""
        return values

    def get_state(self) -> dict[str, Any]:
        return {"theta": self.network.get(), "optimizer": self.optimizer.get_state(), "rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.network.set(state["theta"])
        self.optimizer.set_state(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]

    def leave(self) -> None:  # noqa: B027  (alone there is nothing to leave)
        """Ends what binds it to other learners."""
