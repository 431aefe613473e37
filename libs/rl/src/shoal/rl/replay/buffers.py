"""Replay buffers: rings of transitions, drawn from uniformly or by priority."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..settings import integer, number
from .sum_tree import SumTree
from .transitions import Transitions

__all__ = ["PrioritizedReplayBuffer", "ReplayBuffer", "make_buffer"]


class ReplayBuffer:
    """The last `capacity` transitions, drawn uniformly with replacement (Lin 1992; Mnih et al. 2015).

    >>> buffer = ReplayBuffer(capacity=2)
    >>> column = np.ones((3, 1), np.float32)
    >>> buffer.add(Transitions(column, np.arange(3), column[:, 0], column, column[:, 0]))
    >>> len(buffer), sorted(set(buffer.sample(50, np.random.default_rng(0))[0].actions.tolist()))
    (2, [1, 2])
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self.capacity = capacity
        self.next = 0
        self.size = 0
        self._columns: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return self.size

    def add(self, rows: Transitions) -> None:
        """The oldest make room."""
        rows = rows.rows(slice(max(0, len(rows) - self.capacity), None))
        count = len(rows)
        if not count:
            return
        if not self._columns:
            self._columns = [np.zeros((self.capacity, *column.shape[1:]), column.dtype) for column in rows.columns()]
        places = (self.next + np.arange(count)) % self.capacity
        for ring, column in zip(self._columns, rows.columns(), strict=True):
            ring[places] = column
        self.next = int((self.next + count) % self.capacity)
        self.size = min(self.capacity, self.size + count)
        self.on_added(places)

    def on_added(self, places: NDArray[np.int64]) -> None:
        """Where new rows lie."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Transitions, NDArray[np.float32], NDArray[np.int64]]:
        """`count` transitions, their weights in the loss, and where they lie."""
        places = rng.integers(self.size, size=count)
        return self.at(places), np.ones(count, np.float32), places

    def at(self, places: NDArray[np.int64]) -> Transitions:
        return Transitions(*(ring[places] for ring in self._columns))

    def update_priorities(self, places: NDArray[np.int64], errors: NDArray[Any]) -> None:
        """How wrong the values of these rows were."""

    def get_state(self) -> dict[str, Any]:
        return {"next": self.next, "size": self.size, "capacity": self.capacity, "columns": [ring[: self.size].copy() for ring in self._columns]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises ConfigError: of another capacity."""
        if state["capacity"] != self.capacity:
            raise ConfigError(f"the checkpoint's replay buffer has a capacity of {state['capacity']}, replay_buffer_config says {self.capacity}")
        self.next, self.size = state["next"], state["size"]
        self._columns = [np.zeros((self.capacity, *column.shape[1:]), column.dtype) for column in state["columns"]]
        for ring, column in zip(self._columns, state["columns"], strict=True):
            ring[: self.size] = column


class PrioritizedReplayBuffer(ReplayBuffer):
    """Drawn in proportion to |error|^alpha, the loss weighted by (size * probability)^-beta over the batch's greatest: Schaul et al. 2016 (arXiv:1511.05952).

    New rows have the greatest priority so far, so that each is seen soon. Draws are stratified: one from each of `count` equal parts of the sum.
    """

    # Rows whose error was 0 keep a chance.
    EPSILON = 1e-6

    def __init__(self, capacity: int = 50_000, alpha: float = 0.6, beta: float = 0.4) -> None:
        super().__init__(capacity)
        self.alpha, self.beta = alpha, beta
        self.greatest = 1.0
        self.tree = SumTree(capacity)

    def on_added(self, places: NDArray[np.int64]) -> None:
        self.tree.set(places, np.full(len(places), self.greatest**self.alpha))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Transitions, NDArray[np.float32], NDArray[np.int64]]:
        total = self.tree.total
        masses = (np.arange(count) + rng.random(count)) * (total / count)
        places = self.tree.find(masses)
        weights = (self.size * self.tree.get(places) / total) ** -self.beta
        return self.at(places), (weights / weights.max()).astype(np.float32), places

    def update_priorities(self, places: NDArray[np.int64], errors: NDArray[Any]) -> None:
        priorities = np.abs(errors.astype(np.float64)) + self.EPSILON
        self.greatest = max(self.greatest, float(priorities.max()))
        self.tree.set(places, priorities**self.alpha)

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "greatest": self.greatest, "priorities": self.tree.get(np.arange(self.size))}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "priorities" in state:
            self.greatest = state["greatest"]
            self.tree.set(np.arange(self.size), state["priorities"])


_UNIFORM = ("ReplayBuffer", "EpisodeReplayBuffer")
_PRIORITIZED = ("PrioritizedReplayBuffer", "PrioritizedEpisodeReplayBuffer")
_NUMBERS = {"capacity": integer(1), "alpha": number(0), "beta": number(0)}


def check_buffer_config(config: dict[str, Any]) -> str | None:
    """What is wrong with a `replay_buffer_config`."""
    kind = config.get("type", _PRIORITIZED[0])
    if kind not in (*_UNIFORM, *_PRIORITIZED):
        return f"has type {kind!r}; there are {', '.join((*_UNIFORM, *_PRIORITIZED))}"
    known = {"type", "capacity"} | ({"alpha", "beta"} if kind in _PRIORITIZED else set())
    for name, value in config.items():
        if name not in known:
            return f"has {name!r}; {kind} knows {', '.join(sorted(known))}"
        if name in _NUMBERS and (wrong := _NUMBERS[name](value)):
            return f"has {name}={value!r}, which {wrong}"
    return None


def make_buffer(config: dict[str, Any]) -> ReplayBuffer:
    """From a `replay_buffer_config`.

    Raises:
        ConfigError: an unknown type or key.
    """
    if wrong := check_buffer_config(config):
        raise ConfigError(f"replay_buffer_config {wrong}")
    settings = {name: value for name, value in config.items() if name != "type"}
    return ReplayBuffer(**settings) if config.get("type") in _UNIFORM else PrioritizedReplayBuffer(**settings)
