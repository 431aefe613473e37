"""What a user says about a run: its name, its place, its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoal.train.config import CheckpointConfig as _TrainCheckpointConfig
from shoal.train.config import FailureConfig as _TrainFailureConfig
from shoal.train.config import RunConfig as _TrainRunConfig

from .callback import Callback
from .stopper import Stopper, as_stopper

__all__ = ["CheckpointConfig", "FailureConfig", "RunConfig", "as_run_config"]


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
        if self.verbose is None:  # as Ray's users say it
            self.verbose = 1
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
