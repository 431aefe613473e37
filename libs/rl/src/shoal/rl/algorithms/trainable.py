"""The life of a class trainable."""

from __future__ import annotations

import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Any


class Trainable(ABC):
    """`setup`, then `step` again and again; `train()` adds what every result has."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self._iteration = 0
        self._time_total_s = 0.0
        self._since_restore = 0
        self._time_since_restore = 0.0
        self._stopped = False
        self.setup(self.config)

    @property
    def training_iteration(self) -> int:
        return self._iteration

    iteration = training_iteration

    @property
    def time_total_s(self) -> float:
        return self._time_total_s

    def set_progress(self, iteration: int, time_total_s: float) -> None:
        self._iteration, self._time_total_s = iteration, time_total_s
        self._since_restore, self._time_since_restore = 0, 0.0

    @abstractmethod
    def setup(self, config: Mapping[str, Any]) -> None: ...
    @abstractmethod
    def step(self) -> dict[str, Any]: ...
    @abstractmethod
    def cleanup(self) -> None: ...

    def train(self) -> dict[str, Any]:
        """One iteration."""
        started = time.perf_counter()
        result = self.step()
        took = time.perf_counter() - started
        self._iteration += 1
        self._since_restore += 1
        self._time_total_s += took
        self._time_since_restore += took
        now = datetime.now()
        return {
            **result, "training_iteration": self._iteration, "time_this_iter_s": took, "time_total_s": self._time_total_s,
            "time_since_restore": self._time_since_restore, "iterations_since_restore": self._since_restore, "done": False, "trial_id": "default",
            "date": now.strftime("%Y-%m-%d_%H-%M-%S"), "timestamp": int(now.timestamp()), "pid": os.getpid(), "hostname": platform.node(),
        }  # fmt: skip

    def stop(self) -> None:
        """Ends everything that was started; may be called twice."""
        if not self._stopped:
            self._stopped = True
            self.cleanup()
