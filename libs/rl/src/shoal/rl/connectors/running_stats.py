"""Mean and deviation of all that was seen, merged from many places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CLIP = 10.0
_EPSILON = 1e-8


@dataclass
class RunningStats:
    """Count, mean and sum of squared deviations of rows, mergeable (Chan, Golub, LeVeque 1979).

    >>> stats = RunningStats.empty(1)
    >>> stats.add(np.array([[1.0], [3.0]])); float(stats.mean[0]), float(stats.deviation[0])
    (2.0, 1.0)
    """

    count: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> RunningStats:
        return cls(0.0, np.zeros(size), np.zeros(size))

    def add(self, rows: NDArray[np.float32] | NDArray[np.float64]) -> None:
        if len(rows):
            mean = rows.mean(axis=0, dtype=np.float64)
            self.merge(RunningStats(len(rows), mean, ((rows - mean) ** 2).sum(axis=0, dtype=np.float64)))

    def merge(self, other: RunningStats) -> None:
        if not other.count:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / total)
        self.squares = self.squares + other.squares + delta**2 * (self.count * other.count / total)
        self.count = total

    @property
    def deviation(self) -> NDArray[np.float64]:
        return np.sqrt(self.squares / self.count) if self.count else np.ones_like(self.mean)

    def normalize(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """To mean 0 and deviation 1, cut to [-10, 10]; as they are while nothing was seen."""
        if self.count < 2:
            return rows
        return np.clip((rows - self.mean) / (self.deviation + _EPSILON), -_CLIP, _CLIP).astype(np.float32)

    def copy(self) -> RunningStats:
        return RunningStats(self.count, self.mean.copy(), self.squares.copy())
