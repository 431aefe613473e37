"""A binary tree of sums: drawing in proportion to priorities in logarithmic time, many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """`capacity` priorities >= 0; every inner node holds the sum of its two children.

    All operations take arrays and go level by level, so that a batch costs as many numpy calls as one element.

    >>> tree = SumTree(4)
    >>> tree.set(np.array([0, 2]), np.array([1.0, 3.0]))
    >>> tree.total, tree.find(np.array([0.5, 1.5, 3.9])).tolist()
    (4.0, [0, 2, 2])
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._levels = max(1, (capacity - 1).bit_length())
        self._leaves = 1 << self._levels
        self._sums = np.zeros(2 * self._leaves)

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._sums[indices + self._leaves]

    def set(self, indices: NDArray[np.int64], priorities: NDArray[Any]) -> None:
        """An index that occurs twice takes its last priority."""
        nodes = indices + self._leaves
        self._sums[nodes] = priorities
        for _ in range(self._levels):
            nodes = nodes >> 1
            # The same parent may come up several times: it is computed from its children, not added to, so that it is right each time.
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, masses: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each mass in [0, total) the first index whose running sum exceeds it."""
        nodes = np.ones(len(masses), np.int64)
        left_over = np.array(masses, np.float64)
        for _ in range(self._levels):
            nodes *= 2
            left = self._sums[nodes]
            # An empty right half is never entered, also where rounding leaves a mass of just the left half's sum.
            right = (left_over >= left) & (self._sums[nodes + 1] > 0)
            left_over -= np.where(right, left, 0.0)
            nodes += right
        return nodes - self._leaves
