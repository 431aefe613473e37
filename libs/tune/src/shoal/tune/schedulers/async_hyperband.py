"""Asynchronous successive halving."""

from __future__ import annotations

import math
import random
from bisect import insort
from typing import TYPE_CHECKING, Any

from ..search.searcher import check_mode
from ..trial import Trial, lookup
from .trial_scheduler import TrialScheduler

if TYPE_CHECKING:
    from ..execution.loop import TrialLoop

__all__ = ["ASHAScheduler", "AsyncHyperBandScheduler"]


class AsyncHyperBandScheduler(TrialScheduler):
    """Stops a trial at a rung when it is not among the best `1 / reduction_factor` of those that came there before it.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. No trial ever waits for another.

    Args:
        time_attr: the key that says how far a trial is; it must grow.
        metric, mode: default: those of `TuneConfig`.
        max_t: a trial that is so far is stopped.
        grace_period: before that, no trial is stopped: the first rung.
        reduction_factor: the next rung is so many times as far.
        brackets: with more than one, trials are dealt out to brackets whose first rungs lie one further each.
        stop_last_trials: False: trials that are `max_t` far go on.

    Example::

        TuneConfig(metric="loss", mode="min", num_samples=50, scheduler=ASHAScheduler(max_t=27, grace_period=1, reduction_factor=3))
    """

    needs_metric = True

    def __init__(self, time_attr: str = "training_iteration", metric: str | None = None, mode: str | None = None, max_t: int = 100, grace_period: int = 1,
                 reduction_factor: float = 4, brackets: int = 1, stop_last_trials: bool = True) -> None:  # fmt: skip
        check_mode(mode)
        if not max_t > 0:
            raise ValueError(f"max_t must be greater than 0, got {max_t!r}")
        if not grace_period > 0:
            raise ValueError(f"grace_period must be greater than 0, got {grace_period!r}")
        if max_t < grace_period:
            raise ValueError(f"grace_period={grace_period} must not be greater than max_t={max_t}")
        if not reduction_factor > 1:
            raise ValueError(f"reduction_factor must be greater than 1, got {reduction_factor!r}")
        if not isinstance(brackets, int) or brackets < 1:
            raise ValueError(f"brackets must be at least 1, got {brackets!r}")
        self._time_attr = time_attr
        self._metric = metric
        self._mode = mode
        self.max_t = max_t
        self.reduction_factor = reduction_factor
        self.stop_last_trials = stop_last_trials
        self.brackets = [Bracket(grace_period, max_t, reduction_factor, index) for index in range(brackets)]
        self.bracket_of: dict[str, int] = {}
        self.num_stopped = 0
        # Which bracket is chance, but the same chance each time.
        self._rng = random.Random(0)

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        # As often as a bracket has rungs: the more can be stopped in it, the more trials it takes.
        weights = [math.exp(len(bracket.rungs)) for bracket in self.brackets]
        self.bracket_of[trial.trial_id] = self._rng.choices(range(len(self.brackets)), weights)[0] if len(self.brackets) > 1 else 0

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        time = lookup(result, self._time_attr or "")
        value = self._value(result)
        if time is None or value is None:
            return self.CONTINUE
        goes_on = self.brackets[self.bracket_of[trial.trial_id]].report(trial.trial_id, time, value)
        if time >= self.max_t and self.stop_last_trials:
            return self.STOP
        if goes_on:
            return self.CONTINUE
        self.num_stopped += 1
        return self.STOP

    def on_trial_complete(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> None:
        time, value = lookup(result, self._time_attr or ""), self._value(result)
        if time is not None and value is not None and trial.trial_id in self.bracket_of:
            self.brackets[self.bracket_of[trial.trial_id]].report(trial.trial_id, time, value)
        self.bracket_of.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self.bracket_of.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self.bracket_of.pop(trial.trial_id, None)

    def debug_string(self) -> str:
        rungs = "; ".join(", ".join(f"{rung.milestone:g}: {len(rung.values)}" for rung in bracket.rungs) for bracket in self.brackets)
        return f"Using ASHA: {self.num_stopped} stopped; trials at rungs {rungs}"


ASHAScheduler = AsyncHyperBandScheduler


class Rung:
    """Who came so far, and with what."""

    def __init__(self, milestone: float) -> None:
        self.milestone = milestone
        self.values: list[float] = []
        self.trials: set[str] = set()

    def cutoff(self, reduction_factor: float) -> float | None:
        """What a value must reach; None while nobody was here. Linear between the two nearest, as numpy's percentile."""
        if not self.values:
            return None
        place = (1 - 1 / reduction_factor) * (len(self.values) - 1)
        low = int(place)
        high = min(low + 1, len(self.values) - 1)
        return self.values[low] + (self.values[high] - self.values[low]) * (place - low)


class Bracket:
    """Rungs at grace · factor^(k + s), farthest first."""

    def __init__(self, grace: float, max_t: float, reduction_factor: float, skipped: int) -> None:
        self.reduction_factor = reduction_factor
        rungs = []
        milestone = grace * reduction_factor**skipped
        # A hair of room: 3 ** k in floats.
        while milestone <= max_t * (1 + 1e-9):
            rungs.append(Rung(milestone))
            milestone *= reduction_factor
        self.rungs = rungs[::-1]

    def report(self, trial_id: str, time: float, value: float) -> bool:
        """Whether the trial may go on. NaN never may, once it is at a rung."""
        for rung in self.rungs:
            if time < rung.milestone:
                continue
            if trial_id in rung.trials:
                return True
            cutoff = rung.cutoff(self.reduction_factor)
            rung.trials.add(trial_id)
            if math.isnan(value):
                return False
            insort(rung.values, value)
            return cutoff is None or value >= cutoff
        return True
