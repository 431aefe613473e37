"""When a trial, or the whole experiment, has done enough."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from .trial import lookup

__all__ = [
    "CombinedStopper", "ExperimentPlateauStopper", "FunctionStopper", "MaximumIterationStopper", "NoopStopper", "Stopper", "TimeoutStopper",
    "TrialPlateauStopper", "as_stopper",
]  # fmt: skip


class Stopper:
    """Called with each report: whether the trial stops. `stop_all`: whether all do. To be subclassed.

    Stoppers are pickled with the experiment's state.

    Example::

        class GoodEnough(Stopper):
            def __call__(self, trial_id, result):
                return result["accuracy"] > 0.95
            def stop_all(self):
                return False
    """

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial stops."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(trial_id, result)")

    def stop_all(self) -> bool:
        """Whether all trials stop, and no new ones start. Asked after each report."""
        raise NotImplementedError(f"{type(self).__name__} must define stop_all()")

    def remaining_s(self) -> float | None:
        """After so many seconds `stop_all` is to be asked even without a report; None: never."""
        return None


class NoopStopper(Stopper):
    """Never stops."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return False


class CombinedStopper(Stopper):
    """Stops when any of the others does."""

    def __init__(self, *stoppers: Stopper) -> None:
        self._stoppers = stoppers

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        # All are called: they count what they see.
        answers = [stopper(trial_id, result) for stopper in self._stoppers]
        return any(answers)

    def stop_all(self) -> bool:
        return any(stopper.stop_all() for stopper in self._stoppers)

    def remaining_s(self) -> float | None:
        known = [left for stopper in self._stoppers if (left := stopper.remaining_s()) is not None]
        return min(known) if known else None


class MaximumIterationStopper(Stopper):
    """Each trial after so many reports.

    >>> stop = MaximumIterationStopper(2)
    >>> stop("a", {}), stop("a", {}), stop("b", {})
    (False, True, False)
    """

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter
        self._count: dict[str, int] = defaultdict(int)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._count[trial_id] += 1
        return self._count[trial_id] >= self._max_iter

    def stop_all(self) -> bool:
        return False


class FunctionStopper(Stopper):
    """What `function(trial_id, result)` says."""

    def __init__(self, function: Callable[[str, dict[str, Any]], bool]) -> None:
        self._function = function

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return bool(self._function(trial_id, result))

    def stop_all(self) -> bool:
        return False


class DictStopper(Stopper):
    """When a metric reaches a value: what `stop={"training_iteration": 10}` becomes."""

    def __init__(self, criteria: Mapping[str, float]) -> None:
        self.criteria = dict(criteria)
        for name, value in self.criteria.items():
            if isinstance(value, bool) and name != "done":
                continue
            if not isinstance(value, int | float):
                raise ValueError(f"stop[{name!r}]={value!r}: a number is wanted; a trial stops when the metric reaches it")

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        for name, value in self.criteria.items():
            found = lookup(result, name)
            if found is not None and found >= value:
                return True
        return False

    def stop_all(self) -> bool:
        return False


class TimeoutStopper(Stopper):
    """All trials after so many seconds since the experiment began; the time between an experiment's runs does not count.

    Args:
        timeout: seconds, or a timedelta.
    """

    def __init__(self, timeout: float | timedelta) -> None:
        if isinstance(timeout, timedelta):
            timeout = timeout.total_seconds()
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0:
            raise ValueError(f"timeout must be a number of seconds or a timedelta, got {timeout!r}")
        self._budget = float(timeout)
        self._since: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        left = self.remaining_s()
        return left is not None and left <= 0

    def remaining_s(self) -> float | None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return self._budget - (now - self._since)

    def __getstate__(self) -> dict[str, float]:
        left = self._budget if self._since is None else self._budget - (time.monotonic() - self._since)
        return {"budget": max(0.0, left)}

    def __setstate__(self, state: dict[str, float]) -> None:
        self._budget, self._since = state["budget"], None


class TrialPlateauStopper(Stopper):
    """A trial whose metric does not move any more.

    Args:
        metric: its name.
        std: the standard deviation of the last `num_results` values at which it stops.
        num_results: how many values are looked at.
        grace_period: no trial stops before so many reports.
        metric_threshold, mode: only trials whose value is at least ("max") or at most ("min") that.
    """

    def __init__(self, metric: str, std: float = 0.01, num_results: int = 4, grace_period: int = 4, metric_threshold: float | None = None,
                 mode: str | None = None) -> None:  # fmt: skip
        if metric_threshold is not None and mode not in ("min", "max"):
            raise ValueError(f"metric_threshold needs mode='min' or mode='max', got {mode!r}")
        self._metric, self._std, self._num_results, self._grace_period = metric, std, num_results, grace_period
        self._threshold, self._mode = metric_threshold, mode
        self._count: dict[str, int] = defaultdict(int)
        self._values: dict[str, deque[float]] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        value = lookup(result, self._metric)
        if value is None:
            return False
        self._count[trial_id] += 1
        values = self._values.setdefault(trial_id, deque(maxlen=self._num_results))
        values.append(float(value))
        if self._count[trial_id] < self._grace_period or len(values) < self._num_results:
            return False
        if self._threshold is not None and (value < self._threshold if self._mode == "max" else value > self._threshold):
            return False
        return statistics.pstdev(values) < self._std

    def stop_all(self) -> bool:
        return False


class ExperimentPlateauStopper(Stopper):
    """All trials, when the best values of all do not move any more.

    Args:
        metric, mode: what is looked at.
        std: the standard deviation of the best `top` values at which all stop.
        top: how many values are looked at.
        patience: for so many reports the best values must stay like that.
    """

    def __init__(self, metric: str, std: float = 0.001, top: int = 10, mode: str = "min", patience: int = 0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not isinstance(top, int) or top <= 1:
            raise ValueError(f"top must be a whole number greater than 1, got {top!r}")
        if not isinstance(std, float) or std <= 0:
            raise ValueError(f"std must be a number greater than 0, got {std!r}")
        if not isinstance(patience, int) or patience < 0:
            raise ValueError(f"patience must be a whole number from 0 on, got {patience!r}")
        self._metric, self._std, self._top, self._mode, self._patience = metric, std, top, mode, patience
        self._best: list[float] = []
        self._calm = 0
        self._stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        value = lookup(result, self._metric)
        if value is None:
            return self._stopped
        self._best = sorted([*self._best, float(value)], reverse=self._mode == "max")[: self._top]
        if len(self._best) == self._top and statistics.pstdev(self._best) <= self._std:
            self._calm += 1
        else:
            self._calm = 0
        self._stopped = self._stopped or self._calm > self._patience
        return self._stopped

    def stop_all(self) -> bool:
        return self._stopped


def as_stopper(stop: Any) -> Stopper:
    """What the user gave as `stop`: None, a dict, a function, a Stopper, or a list of them. Raises ValueError."""
    if stop is None:
        return NoopStopper()
    if isinstance(stop, Stopper):
        return stop
    if isinstance(stop, Mapping):
        return DictStopper(stop)
    if isinstance(stop, list | tuple):
        return CombinedStopper(*(as_stopper(one) for one in stop))
    if callable(stop):
        return FunctionStopper(stop)
    raise ValueError(f"stop={stop!r}: a dict of metrics and values, a function of trial_id and result, or a Stopper is wanted")


def wanted_metrics(stopper: Stopper) -> list[str]:
    """Which metrics a stopper cannot do without."""
    if isinstance(stopper, DictStopper):
        return list(stopper.criteria)
    return []
