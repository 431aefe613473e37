"""What a policy's numbers mean, in torch: log-probabilities, entropy and divergence, row by row."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    def logp(self, actions: Tensor) -> Tensor:
        """`[N]`, of `actions` `[N, A]`."""

    def entropy(self) -> Tensor: ...
    def divergence_from(self, outputs: Tensor) -> Tensor:
        """`[N]`: KL(old || this), the old one by its numbers."""


class Categorical:
    """Over `[N, K]` logits; actions are one column."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probabilities = torch.log_softmax(logits, dim=1)

    def logp(self, actions: Tensor) -> Tensor:
        return self.log_probabilities.gather(1, actions.long()).squeeze(1)

    def entropy(self) -> Tensor:
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(dim=1)

    def divergence_from(self, outputs: Tensor) -> Tensor:
        old = torch.log_softmax(outputs, dim=1)
        return (old.exp() * (old - self.log_probabilities)).sum(dim=1)


class Gaussian:
    """Independent normal distributions; `[N, 2A]`: means, log deviations."""

    def __init__(self, outputs: Tensor, clip: float) -> None:
        self.clip = clip
        self.mean, self.log_std = self._split(outputs)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, dim=1)
        return mean, log_std.clamp(-self.clip, self.clip)

    def logp(self, actions: Tensor) -> Tensor:
        return (-0.5 * ((actions - self.mean) / self.log_std.exp()) ** 2 - self.log_std - _HALF_LOG_2PI).sum(dim=1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 + _HALF_LOG_2PI).sum(dim=1)

    def divergence_from(self, outputs: Tensor) -> Tensor:
        mean, log_std = self._split(outputs)
        ratio = torch.exp(2 * (log_std - self.log_std))
        return (self.log_std - log_std + 0.5 * (ratio + ((mean - self.mean) / self.log_std.exp()) ** 2) - 0.5).sum(dim=1)


def distribution(outputs: Tensor, discrete: bool, clip: float) -> Distribution:
    return Categorical(outputs) if discrete else Gaussian(outputs, clip)
