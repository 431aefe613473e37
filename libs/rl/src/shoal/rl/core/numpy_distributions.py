"""What a policy's numbers mean, in numpy, with slopes: the counterpart of `distributions.py`."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from .networks import Floats

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class NumpyDistribution(Protocol):
    def logp(self, actions: Floats) -> Floats:
        """`[N]`, of `actions` `[N, A]`."""

    def entropy(self) -> Floats: ...
    def divergence_from(self, outputs: Floats) -> Floats:
        """`[N]`: KL(old || this), the old one by its numbers."""

    def slopes(self, actions: Floats, logp: Floats, entropy: float, divergence: float, old: Floats) -> Floats:
        """`[N, K]`: by the network's numbers, given the slope by each row's log-probability `[N]`, and those by each row's entropy and divergence."""


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


class Categorical:
    """Over `[N, K]` logits; actions are one column."""

    def __init__(self, logits: Floats) -> None:
        self.log_probabilities = _log_softmax(logits)
        self.probabilities = np.exp(self.log_probabilities)
        self._rows = np.arange(len(logits))

    def logp(self, actions: Floats) -> Floats:
        return self.log_probabilities[self._rows, actions[:, 0].astype(np.int64)]

    def entropy(self) -> Floats:
        return -(self.probabilities * self.log_probabilities).sum(axis=1)

    def divergence_from(self, outputs: Floats) -> Floats:
        old = _log_softmax(outputs)
        return (np.exp(old) * (old - self.log_probabilities)).sum(axis=1)

    def slopes(self, actions: Floats, logp: Floats, entropy: float, divergence: float, old: Floats) -> Floats:
        found = self.probabilities * -logp[:, None]
        found[self._rows, actions[:, 0].astype(np.int64)] += logp
        if entropy:
            found -= entropy * self.probabilities * (self.log_probabilities + self.entropy()[:, None])
        if divergence:
            found += divergence * (self.probabilities - np.exp(_log_softmax(old)))
        return found


class Gaussian:
    """Independent normal distributions; `[N, 2A]`: means, log deviations."""

    def __init__(self, outputs: Floats, clip: float) -> None:
        self.clip = clip
        self.mean, self.log_std = self._split(outputs)
        self._inside = np.abs(outputs[:, self.mean.shape[1] :]) <= clip
        self.std = np.exp(self.log_std)

    def _split(self, outputs: Floats) -> tuple[Floats, Floats]:
        mean, log_std = np.split(outputs, 2, axis=1)
        return mean, np.clip(log_std, -self.clip, self.clip)

    def logp(self, actions: Floats) -> Floats:
        return (-0.5 * ((actions - self.mean) / self.std) ** 2 - self.log_std - _HALF_LOG_2PI).sum(axis=1)

    def entropy(self) -> Floats:
        return (self.log_std + 0.5 + _HALF_LOG_2PI).sum(axis=1)

    def divergence_from(self, outputs: Floats) -> Floats:
        mean, log_std = self._split(outputs)
        ratio = np.exp(2 * (log_std - self.log_std))
        return (self.log_std - log_std + 0.5 * (ratio + ((mean - self.mean) / self.std) ** 2) - 0.5).sum(axis=1)

    def slopes(self, actions: Floats, logp: Floats, entropy: float, divergence: float, old: Floats) -> Floats:
        off = (actions - self.mean) / self.std
        by_mean = logp[:, None] * off / self.std
        by_log_std = logp[:, None] * (off * off - 1.0) + entropy
        if divergence:
            mean, log_std = self._split(old)
            apart = (self.mean - mean) / self.std
            by_mean = by_mean + divergence * apart / self.std
            by_log_std = by_log_std + divergence * (1.0 - np.exp(2 * (log_std - self.log_std)) - apart * apart)
        return np.concatenate([by_mean, by_log_std * self._inside], axis=1).astype(np.float32, copy=False)


def distribution(outputs: Floats, discrete: bool, clip: float) -> NumpyDistribution:
    return Categorical(outputs) if discrete else Gaussian(outputs, clip)
