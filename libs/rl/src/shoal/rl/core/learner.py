"""Trains a network: in the algorithm's process, or as one of several actors that average their gradients."""

from __future__ import annotations

import datetime
import os
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from shoal.util import get_node_ip_address
from torch import distributed

from ..errors import ConfigError, LearnerLostError
from .adam import Adam, clip_gradient
from .networks import Floats, NetworkSpec
from .torch_network import TorchNetwork, one_thread

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


class Learner(ABC):
    """A network, its optimiser, and what an algorithm does with a batch (`_learn`)."""

    duelling = False
    q_values = False

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.settings = plan.settings
        if plan.gpu and not torch.cuda.is_available():
            raise ConfigError("num_gpus_per_learner > 0, but torch finds no GPU in the learner's process")
        self.device = "cuda" if plan.gpu else "cpu"
        self.network = TorchNetwork(plan.spec, plan.theta, self.device, duelling=self.duelling, q_values=self.q_values)
        self.optimizer = Adam(self.network.theta, epsilon=float(self.settings.get("adam_epsilon", 1e-8)))
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(plan.seed, spawn_key=(1 << 20, rank))))
        self._grouped = False

    # -- several learners ------------------------------------------------------------------------------------

    def offer_rendezvous(self) -> str:
        """Where the others can meet this one: an address that is free now."""
        host = get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def join(self, address: str) -> int:
        """Waits for the other learners; the process id."""
        distributed.init_process_group("gloo", init_method=address, rank=self.rank, world_size=self.world, timeout=datetime.timedelta(seconds=GROUP_TIMEOUT_S))
        self._grouped = True
        return os.getpid()

    def _reduce(self, values: torch.Tensor, how: Any = distributed.ReduceOp.SUM) -> torch.Tensor:
        """In place, over all learners."""
        try:
            distributed.all_reduce(values, how)
        except RuntimeError as error:
            raise LearnerLostError(f"learner {self.rank} of {self.world} lost another one ({error}); restore from the last checkpoint") from error
        return values

    def agree_least(self, count: int) -> int:
        """The least of what the learners say: their batches may differ by a few rows, their steps may not."""
        if not self._grouped:
            return count
        return int(self._reduce(torch.tensor([count]), distributed.ReduceOp.MIN).item())

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Over all learners, so that what is adapted to them (a coefficient) stays equal in all."""
        if not self._grouped:
            return values
        vector = self._reduce(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (vector / self.world).tolist(), strict=True))

    def apply(self, lr: float) -> None:
        """Averages the gradient over the learners, bounds it, and takes a step."""
        gradient = self.network.gradient
        if self._grouped:
            shared = self._reduce(gradient if self.device == "cpu" else gradient.cpu())
            gradient.copy_(shared.div_(self.world))
        clip_gradient(gradient, self.plan.spec, self.settings["grad_clip"], self.settings["grad_clip_by"])
        self.optimizer.step(gradient, lr)
        gradient.zero_()

    # -- learning --------------------------------------------------------------------------------------------

    def update(self, batch: Any, timestep: int) -> tuple[Floats, dict[str, Any], Any]:
        """Learns from a batch; the new parameters, what to report, and what the algorithm wants back."""
        with one_thread():
            stats, back = self._learn(batch, timestep)
        return self.network.get(), stats, back

    @abstractmethod
    def _learn(self, batch: Any, timestep: int) -> tuple[dict[str, Any], Any]:
        """What to report, and what the algorithm wants back."""

    def tensor(self, array: Any) -> torch.Tensor:
        # What came from another process lies in shared memory and is read-only; torch wants none of that.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)

    def get_state(self) -> dict[str, Any]:
        return {"theta": self.network.get(), "optimizer": self.optimizer.get_state(), "rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.network.set(state["theta"])
        self.optimizer.set_state(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]

    def leave(self) -> None:
        if self._grouped:
            distributed.destroy_process_group()
            self._grouped = False
