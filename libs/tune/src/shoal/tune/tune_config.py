"""What a user says about a search: how configurations are found, and how many."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from .error import TuneError

if TYPE_CHECKING:
    from .schedulers.trial_scheduler import TrialScheduler
    from .search.searcher import Searcher
    from .trial import Trial

__all__ = ["ResumeConfig", "TuneConfig", "check_metric", "strict_metrics"]


@dataclass
class TuneConfig:
    """How configurations are searched.

    Args:
        mode: "min" or "max".
        metric: the name in the reports; `a/b` is key b of the dict at key a.
        search_alg: a `Searcher`; default: `BasicVariantGenerator`, random and grid.
        scheduler: a `TrialScheduler`; default: `FIFOScheduler`, each trial to its end.
        num_samples: how many samples (default 1), each over the whole grid. -1: until the time budget or a stopper ends it.
        max_concurrent_trials: at most so many at once. Default: as many as the cluster can hold.
        time_budget_s: after so many seconds (or a timedelta) all trials are stopped.
        reuse_actors: a trial's process runs the next one, too. Faster, but trials are not shielded from what others leave behind.
        trial_name_creator, trial_dirname_creator: functions of a trial that name it, or its folder.

    Raises:
        ValueError: naming the field and its value.
    """

    mode: str | None = None
    metric: str | None = None
    search_alg: Searcher | None = None
    scheduler: TrialScheduler | None = None
    num_samples: int = 1
    max_concurrent_trials: int | None = None
    time_budget_s: float | timedelta | None = None
    reuse_actors: bool = False
    trial_name_creator: Callable[[Trial], str] | None = None
    trial_dirname_creator: Callable[[Trial], str] | None = None

    def __post_init__(self) -> None:
        from .schedulers.trial_scheduler import TrialScheduler
        from .search.concurrency_limiter import ConcurrencyLimiter
        from .search.searcher import Searcher, check_mode

        check_mode(self.mode)
        if self.search_alg is not None and not isinstance(self.search_alg, Searcher):
            raise ValueError(f"search_alg must be a shoal.tune.search.Searcher, got {type(self.search_alg).__name__}")
        if self.scheduler is not None and not isinstance(self.scheduler, TrialScheduler):
            raise ValueError(f"scheduler must be a shoal.tune.schedulers.TrialScheduler, got {type(self.scheduler).__name__}")
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or (self.num_samples < 1 and self.num_samples != -1):
            raise ValueError(f"num_samples={self.num_samples!r}: a whole number from 1 on is wanted, or -1")
        limit = self.max_concurrent_trials
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError(f"max_concurrent_trials={limit!r}: a whole number is wanted")
        if limit and isinstance(self.search_alg, ConcurrencyLimiter):
            raise ValueError("max_concurrent_trials and a ConcurrencyLimiter as search_alg say the same: leave one out")
        budget = self.budget_s
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0):
            raise ValueError(f"time_budget_s={self.time_budget_s!r}: a number of seconds greater than 0 is wanted")

    @property
    def budget_s(self) -> float | None:
        budget = self.time_budget_s
        return budget.total_seconds() if isinstance(budget, timedelta) else budget


@dataclass
class ResumeConfig:
    """What happens to the trials of an earlier run: SKIP (they stay as they are), RESUME (from the last checkpoint) or RESTART (from the start).

    Args:
        finished, unfinished, errored: trials of that fate. Defaults: skip, resume, skip.
    """

    SKIP = "skip"
    RESUME = "resume"
    RESTART = "restart"

    finished: str = field(default="skip")
    unfinished: str = field(default="resume")
    errored: str = field(default="skip")

    def __post_init__(self) -> None:
        for name in ("finished", "unfinished", "errored"):
            if getattr(self, name) not in ("skip", "resume", "restart"):
                raise ValueError(f"ResumeConfig.{name}={getattr(self, name)!r}: 'skip', 'resume' or 'restart' is wanted")


def strict_metrics() -> bool:
    """Whether the first report of each trial must have all metrics that somebody needs."""
    return os.environ.get("TUNE_DISABLE_STRICT_METRIC_CHECKING", "0") in ("", "0")


def check_metric(metric: str | None, mode: str | None, who: str) -> None:
    """That both are known. Raises TuneError."""
    if not metric or not mode:
        raise TuneError(f"{who} needs metric and mode: give them to TuneConfig, for example TuneConfig(metric='loss', mode='min')")
