"""Adam over one flat vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .networks import NetworkSpec


class Adam:
    """Kingma and Ba 2015 (arXiv:1412.6980), over one vector: six operations a step. `torch.optim` would import its compiler first, which takes seconds."""

    def __init__(self, theta: Tensor, epsilon: float = 1e-8, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.theta, self.epsilon, self.beta1, self.beta2 = theta, epsilon, beta1, beta2
        self.mean, self.square = torch.zeros_like(theta), torch.zeros_like(theta)
        self.steps = 0

    def step(self, gradient: Tensor, lr: float) -> None:
        self.steps += 1
        with torch.no_grad():
            self.mean.lerp_(gradient, 1 - self.beta1)
            self.square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            correction = math.sqrt(1 - self.beta2**self.steps)
            size = lr * correction / (1 - self.beta1**self.steps)
            self.theta.addcdiv_(self.mean, self.square.sqrt().add_(self.epsilon * correction), value=-size)

    def get_state(self) -> dict[str, Any]:
        return {"mean": self.mean.cpu().numpy().copy(), "square": self.square.cpu().numpy().copy(), "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.mean.copy_(torch.from_numpy(state["mean"]))
        self.square.copy_(torch.from_numpy(state["square"]))
        self.steps = state["steps"]


def clip_gradient(gradient: Tensor, spec: NetworkSpec, bound: float | None, by: str) -> None:
    """In place. `by`: `global_norm`, `norm` (of each parameter) or `value`."""
    if bound is None:
        return
    if by == "value":
        gradient.clamp_(-bound, bound)
        return
    for part in [gradient] if by == "global_norm" else spec.parameters(gradient):
        part.mul_((bound / (part.norm() + 1e-6)).clamp_(max=1.0))
