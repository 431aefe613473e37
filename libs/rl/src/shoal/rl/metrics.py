"""Numbers of a run: what callbacks log, and the episodes that means are taken over."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from .env.fragment import Episode
from .errors import ConfigError

_REDUCTIONS: dict[str, Any] = {"mean": np.mean, "sum": np.sum, "min": np.min, "max": np.max}


class MetricsLogger:
    """Values by name until they are taken: `log_value("height", 3.2)` gives the mean over one call of `train()`.

    >>> logger = MetricsLogger()
    >>> logger.log_value("jumps", 2, reduce="sum"); logger.log_value("jumps", 3, reduce="sum"); logger.take()
    {'jumps': 5.0}
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._reduce: dict[str, str] = {}

    def log_value(self, key: str, value: float, *, reduce: str = "mean") -> None:
        """`reduce`: `mean`, `sum`, `min` or `max` of what is logged under `key`."""
        if reduce not in _REDUCTIONS:
            raise ConfigError(f"log_value({key!r}): reduce={reduce!r} must be one of {', '.join(_REDUCTIONS)}")
        self._values.setdefault(key, []).append(float(value))
        self._reduce[key] = reduce

    def log_dict(self, values: dict[str, float], *, reduce: str = "mean") -> None:
        for key, value in values.items():
            self.log_value(key, value, reduce=reduce)

    def peek(self, key: str, default: float | None = None) -> float | None:
        values = self._values.get(key)
        return float(_REDUCTIONS[self._reduce[key]](values)) if values else default

    def take(self) -> dict[str, Any]:
        """What was logged, reduced; afterwards nothing is."""
        taken = {key: float(_REDUCTIONS[self._reduce[key]](values)) for key, values in self._values.items()}
        self._values.clear()
        return taken


class EpisodeWindow:
    """The last episodes, and how many there were."""

    def __init__(self, size: int) -> None:
        self.last: deque[Episode] = deque(maxlen=size)
        self.lifetime = 0

    def add(self, episodes: list[Episode]) -> None:
        self.last.extend(episodes)
        self.lifetime += len(episodes)

    def summary(self) -> dict[str, Any]:
        return {**episode_summary(list(self.last)), "num_episodes_lifetime": self.lifetime}


def episode_summary(episodes: list[Episode]) -> dict[str, Any]:
    """Means, least and greatest of returns and lengths; nan where there is no episode."""
    returns = np.array([episode.total_reward for episode in episodes]) if episodes else np.array([np.nan])
    lengths = np.array([episode.length for episode in episodes]) if episodes else np.array([np.nan])
    return {
        "episode_return_mean": float(returns.mean()), "episode_return_min": float(returns.min()), "episode_return_max": float(returns.max()),
        "episode_len_mean": float(lengths.mean()), "episode_len_min": float(lengths.min()), "episode_len_max": float(lengths.max()),
    }  # fmt: skip
