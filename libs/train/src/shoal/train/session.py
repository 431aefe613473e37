"""What `report()` and its neighbours talk to: the session of the training function that runs.

Trainers install one in each worker. Other libraries plug in their own: whatever has the methods of `Session`, installed with `use_session`.

Example:
    >>> class Printing:
    ...     def report(self, metrics, checkpoint=None, checkpoint_dir_name=None):
    ...         print(metrics)
    ...     def get_checkpoint(self):
    ...         return None
    ...     def get_context(self):
    ...         return TrainContext(experiment_name="demo")
    >>> with use_session(Printing()):
    ...     report({"loss": 0.5})
    {'loss': 0.5}
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .checkpoint import Checkpoint
from .errors import NoSessionError

__all__ = [
    "Session", "TrainContext", "current_session", "get_all_reported_checkpoints", "get_checkpoint", "get_context", "get_dataset_shard", "in_session", "report",
    "use_session",
]  # fmt: skip


@dataclass(frozen=True)
class TrainContext:
    """Where a training function runs. All fields have methods of Ray's names."""

    world_size: int = 1
    world_rank: int = 0
    local_world_size: int = 1
    local_rank: int = 0
    node_rank: int = 0
    experiment_name: str = ""
    storage: Any = None
    trial_id: str = ""
    trial_name: str = ""
    trial_dir: str = ""
    trial_resources: Any = None

    def get_world_size(self) -> int:
        """How many workers there are."""
        return self.world_size

    def get_world_rank(self) -> int:
        """Which of all workers this is, from 0."""
        return self.world_rank

    def get_local_world_size(self) -> int:
        """How many workers there are on this node."""
        return self.local_world_size

    def get_local_rank(self) -> int:
        """Which of this node's workers this is, from 0."""
        return self.local_rank

    def get_node_rank(self) -> int:
        """Which of the nodes that have workers this is, from 0."""
        return self.node_rank

    def get_experiment_name(self) -> str:
        """The run's name."""
        return self.experiment_name

    def get_storage(self) -> Any:
        """The run's folder: `shoal.train.storage.Folder`, with `path` and `filesystem`."""
        return self.storage

    def get_trial_id(self) -> str:
        """Under tune."""
        return self.trial_id

    def get_trial_name(self) -> str:
        """Under tune."""
        return self.trial_name

    def get_trial_dir(self) -> str:
        """Under tune: the trial's folder; else the run's."""
        return self.trial_dir

    def get_trial_resources(self) -> Any:
        """Under tune: what the trial holds."""
        return self.trial_resources


@runtime_checkable
class Session(Protocol):
    """What a library that runs functions of users gives them. May also have `get_dataset_shard(name)` and `get_all_reported_checkpoints()`."""

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None = None, checkpoint_dir_name: str | None = None) -> None:
        """Takes the metrics, and the checkpoint, whose files it has copied when this returns. May raise to end the function."""

    def get_checkpoint(self) -> Checkpoint | None:
        """What to go on from: the last one that was reported, or the one given at the start."""

    def get_context(self) -> TrainContext:
        """Where the function runs."""


# The thread that entered a session has it in its context. Threads that the user's function starts do not inherit contexts; they find the process's one.
_here: ContextVar[Session | None] = ContextVar("shoal_train_session", default=None)
_active: list[Session] = []
_lock = threading.Lock()


@contextlib.contextmanager
def use_session(session: Session) -> Iterator[Session]:
    """Within the block `report()` and its neighbours go to this session: in this thread, and in those that have no session of their own.

    Blocks may be nested; threads may each have theirs.
    """
    with _lock:
        _active.append(session)
    token = _here.set(session)
    try:
        yield session
    finally:
        _here.reset(token)
        with _lock:
            _active.remove(session)


def in_session() -> bool:
    """Whether there is a session."""
    return _here.get() is not None or bool(_active)


def current_session(what: str = "this") -> Session:
    """The session of this thread, or of the process.

    Raises:
        NoSessionError: there is none; `what` says what was called.
    """
    session = _here.get()
    if session is not None:
        return session
    with _lock:
        if not _active:
            raise NoSessionError(f"{what} works only inside of a training function: one that a trainer or a tuner runs")
        return _active[-1]


def report(metrics: dict[str, Any], checkpoint: Checkpoint | None = None, checkpoint_dir_name: str | None = None) -> None:
    """Tells the run how far training is. All workers must call it equally often: it returns when all have.

    Args:
        metrics: those of rank 0 become the run's. Plain values; tensors must be turned into numbers.
        checkpoint: this worker's files, in a local folder. The files of all ranks end up in one folder, so ranks must name theirs differently or leave all but
            one out. When this returns, the folder may be deleted. The checkpoint counts once all ranks' files are there.
        checkpoint_dir_name: name of the checkpoint's folder in the run's; rank 0's counts. Default: `checkpoint_` and a running number.

    Raises:
        NoSessionError: outside of a training function.
        CollectiveMismatchError: other ranks called something else or have returned.
        TypeError: metrics is no dict, or checkpoint no Checkpoint.
    """
    session = current_session("report()")
    if not isinstance(metrics, Mapping):
        raise TypeError(f"report() takes a dict of metrics, got {type(metrics).__name__}")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"report(checkpoint=...) takes a Checkpoint, got {type(checkpoint).__name__}: Checkpoint.from_directory(path) makes one")
    if checkpoint_dir_name is not None and (not checkpoint_dir_name or "/" in checkpoint_dir_name or checkpoint_dir_name.startswith(".")):
        raise ValueError(f"checkpoint_dir_name={checkpoint_dir_name!r}: the name of a folder is wanted, without '/' and not beginning with '.'")
    session.report(dict(metrics), checkpoint, checkpoint_dir_name)


def get_checkpoint() -> Checkpoint | None:
    """The last checkpoint of the run, from which to go on; None in a fresh one. Raises NoSessionError outside of a training function."""
    return current_session("get_checkpoint()").get_checkpoint()


def get_context() -> TrainContext:
    """Ranks, sizes, names. Raises NoSessionError outside of a training function."""
    return current_session("get_context()").get_context()


def get_dataset_shard(dataset_name: str | None = None) -> Any:
    """This worker's part of a dataset that the trainer was given as `datasets`; `dataset_name` may be left out if there is one.

    Raises:
        NoSessionError: outside of a training function.
        KeyError: there is no dataset of this name.
    """
    session = current_session("get_dataset_shard()")
    find = getattr(session, "get_dataset_shard", None)
    if find is None:
        raise KeyError(f"no dataset {dataset_name!r}: this function was started without datasets")
    return find(dataset_name)


def get_all_reported_checkpoints() -> list[Any]:
    """The run's checkpoints that are kept, oldest first: `ReportedCheckpoint`s with `checkpoint` and `metrics`.

    Raises:
        NoSessionError: outside of a training function.
    """
    session = current_session("get_all_reported_checkpoints()")
    find = getattr(session, "get_all_reported_checkpoints", None)
    return list(find()) if find is not None else []
