"""What a user says about an experiment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoal.train.config import CheckpointConfig as _TrainCheckpointConfig
from shoal.train.config import FailureConfig as _TrainFailureConfig
from shoal.train.config import RunConfig as _TrainRunConfig

from .callback import Callback
from .errors import TuneError
from .stopper import Stopper, as_stopper

if TYPE_CHECKING:
    from .schedulers.trial_scheduler import TrialScheduler
    from .search.searcher import Searcher
    from .trial import Trial

__all__ = ["CheckpointConfig", "FailureConfig", "ResumeConfig", "RunConfig", "TuneConfig"]


@dataclass
class FailureConfig(_TrainFailureConfig):
    """What happens when trials fail.

    Args:
        max_failures: how often a trial is started again, from its last checkpoint (default 0: never; -1: always).
        fail_fast: True: the first trial that fails for good ends the experiment. "raise": and `fit()` raises its error.
    """

    fail_fast: bool | Literal["raise"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fail_fast not in (True, False, "raise"):
            raise ValueError(f"fail_fast={self.fail_fast!r}: True, False or 'raise' is wanted")
        if self.fail_fast and self.max_failures:
            raise ValueError(f"max_failures={self.max_failures} makes no sense with fail_fast={self.fail_fast!r}: leave one out")


@dataclass
class CheckpointConfig(_TrainCheckpointConfig):
    """Which checkpoints are made, and which stay.

    Args:
        num_to_keep, checkpoint_score_attribute, checkpoint_score_order: as in `shoal.train.CheckpointConfig`, for each trial.
        checkpoint_frequency: a class trainable is saved after so many steps (default 0: not). A function reports its checkpoints itself.
        checkpoint_at_end: whether a class trainable is saved when it ends. Default: no.
    """

    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpoint_frequency, bool) or not isinstance(self.checkpoint_frequency, int) or self.checkpoint_frequency < 0:
            raise ValueError(f"checkpoint_frequency={self.checkpoint_frequency!r}: a whole number from 0 on is wanted")


@dataclass
class RunConfig:
    """An experiment's name, the place of its results, and its policies.

    Args:
        name: its folder below storage_path. Default: made from the trainable's name and the time.
        storage_path: a folder; on several nodes one that all of them see. Default: SHOAL_STORAGE_PATH, or `~/shoal_results`.
        failure_config, checkpoint_config: see there; those of `shoal.train` do as well.
        stop: when a trial stops: a dict (`{"training_iteration": 10, "accuracy": 0.9}`: when a metric reaches the value), a function of trial_id and result,
            or a `Stopper`.
        callbacks: `Callback`s, beside the loggers that are always there.
        verbose: 0: says nothing; 1 (default): a table while it runs and one in the end; 2: also each trial's end; 3: also each report.

    Raises:
        ValueError: naming the field and its value.
    """

    name: str | None = None
    storage_path: str | None = None
    failure_config: _TrainFailureConfig | None = None
    checkpoint_config: _TrainCheckpointConfig | None = None
    stop: Mapping[str, float] | Stopper | Callable[[str, dict[str, Any]], bool] | Sequence[Any] | None = None
    callbacks: Sequence[Callback] | None = None
    verbose: int = 1

    def __post_init__(self) -> None:
        # The checks of the name and the default of the path are those of train.
        base = _TrainRunConfig(name=self.name, storage_path=self.storage_path)
        self.storage_path = _local(base.storage_path or "")
        self.failure_config = self.failure_config or FailureConfig()
        self.checkpoint_config = self.checkpoint_config or CheckpointConfig()
        as_stopper(self.stop)
        for callback in self.callbacks or ():
            if not isinstance(callback, Callback):
                raise ValueError(f"callbacks: {callback!r} is no shoal.tune.Callback")
        if self.verbose not in (0, 1, 2, 3):
            raise ValueError(f"verbose={self.verbose!r}: 0, 1, 2 or 3 is wanted")


def as_run_config(given: Any) -> RunConfig:
    """From one of ours, one of train's, or nothing."""
    if given is None:
        return RunConfig()
    if isinstance(given, RunConfig):
        return given
    if isinstance(given, _TrainRunConfig):
        if given.storage_filesystem is not None or given.worker_runtime_env is not None:
            raise ValueError("Tuner takes no storage_filesystem and no worker_runtime_env: use shoal.tune.RunConfig")
        return RunConfig(
            name=given.name, storage_path=given.storage_path, failure_config=given.failure_config, checkpoint_config=given.checkpoint_config,
            callbacks=given.callbacks,  # type: ignore[arg-type]  # checked there
        )  # fmt: skip
    raise ValueError(f"run_config must be a shoal.tune.RunConfig, got {type(given).__name__}")


def _local(path: str) -> str:
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if "://" in path:
        raise ValueError(f"storage_path={path!r}: an experiment's journal needs a folder of a file system; give a path that is mounted on all nodes")
    return str(Path(path).expanduser().absolute())


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
        from .search.searcher import ConcurrencyLimiter, Searcher, check_mode

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
