"""A learner in torch: on a GPU, or as one of several that average their gradients."""

from __future__ import annotations

import datetime
import os
import socket
from typing import Any

import numpy as np
import torch
from shoal.util import get_node_ip_address
from torch import distributed

from ..errors import ConfigError, LearnerLostError
from .adam import Adam, clip_gradient
from .learner import GROUP_TIMEOUT_S, Learner, LearnerPlan
from .torch_network import TorchNetwork


class TorchLearner(Learner):
    q_values = False

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        if plan.gpu and not torch.cuda.is_available():
            raise ConfigError("num_gpus_per_learner > 0, but torch finds no GPU in the learner's process")
        self.device = "cuda" if plan.gpu else "cpu"
        self.network: TorchNetwork = self.new_network()
        self.optimizer: Adam = Adam(self.network.theta, epsilon=float(self.settings.get("adam_epsilon", 1e-8)))
        self._grouped = False

    def new_network(self) -> TorchNetwork:
        # A critic of a network of action values is the state value of a duelling one.
        duelling = self.q_values and bool(self.plan.spec.critic)
        return TorchNetwork(self.plan.spec, self.plan.theta, self.device, duelling=duelling, q_values=self.q_values)

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

    def leave(self) -> None:
        if self._grouped:
            distributed.destroy_process_group()
            self._grouped = False

    def _reduce(self, values: torch.Tensor, how: Any = distributed.ReduceOp.SUM) -> torch.Tensor:
        """In place, over all learners."""
        try:
            distributed.all_reduce(values, how)
        except RuntimeError as error:
            raise LearnerLostError(f"learner {self.rank} of {self.world} lost another one ({error}); restore from the last checkpoint") from error
        return values

    def agree_least(self, count: int) -> int:
        return int(self._reduce(torch.tensor([count]), distributed.ReduceOp.MIN).item()) if self._grouped else count

    def average(self, values: dict[str, float]) -> dict[str, float]:
        if not self._grouped:
            return values
        vector = self._reduce(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (vector / self.world).tolist(), strict=True))

    def apply(self, lr: float) -> None:
        """Averages the gradient over the learners first."""
        gradient = self.network.gradient
        if self._grouped:
            shared = self._reduce(gradient if self.device == "cpu" else gradient.cpu())
            gradient.copy_(shared.div_(self.world))
        clip_gradient(gradient, self.plan.spec, self.settings["grad_clip"], self.settings["grad_clip_by"])
        self.optimizer.step(gradient, lr)
        gradient.zero_()

    def tensor(self, array: Any) -> torch.Tensor:
        # What came from another process lies in shared memory and is read-only; torch wants none of that.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)
