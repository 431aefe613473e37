"""Everything that this library raises of its own.

::

    TrainError
    ├── TrainingFailedError          what `fit()` raises
    │   ├── WorkerGroupError         workers raised, died, or disagreed; `worker_failures`: rank to exception
    │   └── ControllerError          the run itself: workers that could not be started, storage that could not be written
    ├── CollectiveMismatchError      ranks called different things, or unequally often, where all must call the same
    ├── NoSessionError               report() and the like outside of a training function; also a RuntimeError
    ├── StorageError                 a place for results that cannot be used; also an OSError
    └── WorkerEndedError             the process of a rank ended
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "CollectiveMismatchError", "ControllerError", "NoSessionError", "StorageError", "TrainError", "TrainingFailedError", "WorkerEndedError",
    "WorkerGroupError",
]  # fmt: skip


class TrainError(Exception):
    """Base of the errors of this library."""


class TrainingFailedError(TrainError):
    """Training ended without success, and `FailureConfig.max_failures` allows no further attempt."""


class WorkerGroupError(TrainingFailedError):
    """Workers failed.

    Attributes:
        error_message: what happened, with the traceback of the rank that failed first.
        worker_failures: rank to exception, for each rank that failed.
    """

    def __init__(self, error_message: str, worker_failures: Mapping[int, Exception]) -> None:
        super().__init__(error_message)
        self.error_message = error_message
        self.worker_failures = dict(worker_failures)

    def __reduce__(self) -> tuple[type, tuple[str, dict[int, Exception]]]:
        return type(self), (self.error_message, self.worker_failures)


class ControllerError(TrainingFailedError):
    """The run failed outside of the workers.

    Attributes:
        controller_failure: the exception.
    """

    def __init__(self, controller_failure: Exception) -> None:
        super().__init__(f"{type(controller_failure).__name__}: {controller_failure}")
        self.controller_failure = controller_failure

    def __reduce__(self) -> tuple[type, tuple[Exception]]:
        return type(self), (self.controller_failure,)


class CollectiveMismatchError(TrainError):
    """All ranks must call report(), barrier() and broadcast_from_rank_zero() equally often and in the same order; they did not."""


class NoSessionError(TrainError, RuntimeError):
    """Called outside of a training function."""


class StorageError(TrainError, OSError):
    """The place for results and checkpoints cannot be used as it is."""

    def __str__(self) -> str:  # OSError has its own idea of two arguments
        return str(self.args[0]) if self.args else ""


class WorkerEndedError(TrainError):
    """The process of a rank ended while it trained."""
