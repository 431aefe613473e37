"""The median stopping rule."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from ..search.searcher import check_mode
from ..trial import Trial, lookup
from .trial_scheduler import TrialScheduler

if TYPE_CHECKING:
    from ..execution.loop import TrialLoop

__all__ = ["MedianStoppingRule"]


class MedianStoppingRule(TrialScheduler):
    """Stops a trial whose best value so far is worse than the median of the others' running means at the same time.

    Golovin et al., "Google Vizier", KDD 2017.

    Args:
        time_attr: the key that says how far a trial is; it must grow.
        metric, mode: default: those of `TuneConfig`.
        grace_period: no trial is stopped before it is so far; values before it do not count.
        min_samples_required: so many other trials must have come so far.
        min_time_slice: a trial that is to pause runs at least so far on.
        hard_stop: False: such trials are paused, and go on when there is room.
    """

    needs_metric = True

    def __init__(self, time_attr: str = "time_total_s", metric: str | None = None, mode: str | None = None, grace_period: float = 60.0,
                 min_samples_required: int = 3, min_time_slice: float = 0, hard_stop: bool = True) -> None:  # fmt: skip
        check_mode(mode)
        if not isinstance(min_samples_required, int) or min_samples_required < 1:
            raise ValueError(f"min_samples_required must be at least 1, got {min_samples_required!r}")
        if grace_period < 0 or min_time_slice < 0:
            raise ValueError(f"grace_period and min_time_slice must not be negative, got {grace_period!r} and {min_time_slice!r}")
        self._time_attr = time_attr
        self._metric = metric
        self._mode = mode
        self.grace_period = grace_period
        self.min_samples_required = min_samples_required
        self.min_time_slice = min_time_slice
        self.hard_stop = hard_stop
        self.curves: dict[str, Curve] = {}
        self.resumed_at: dict[str, float] = {}
        self.num_stopped = 0

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self.curves[trial.trial_id] = Curve()

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        time, value = lookup(result, self._time_attr or ""), self._value(result)
        if time is None or value is None:
            return self.CONTINUE
        own = self.curves[trial.trial_id]
        if time >= self.grace_period:
            own.add(time, value)
        if time < self.grace_period or time < self.resumed_at.get(trial.trial_id, 0.0) + self.min_time_slice:
            return self.CONTINUE
        means = [mean for other, curve in self.curves.items() if other != trial.trial_id and (mean := curve.mean_until(time)) is not None]
        if len(means) < self.min_samples_required or own.best >= statistics.median(means):
            return self.CONTINUE
        self.num_stopped += 1
        if self.hard_stop:
            return self.STOP
        self.resumed_at[trial.trial_id] = time
        return self.PAUSE

    def debug_string(self) -> str:
        return f"Using MedianStoppingRule: {self.num_stopped} stopped"


class Curve:
    """A trial's values over time, with their running sums."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.sums: list[float] = []
        self.best = float("-inf")

    def add(self, time: float, value: float) -> None:
        self.times.append(time)
        self.sums.append((self.sums[-1] if self.sums else 0.0) + value)
        self.best = max(self.best, value)

    def mean_until(self, time: float) -> float | None:
        """None when the trial did not come so far."""
        if not self.times or self.times[-1] < time:
            return None
        count = bisect_right(self.times, time)
        return self.sums[count - 1] / count if count else None
