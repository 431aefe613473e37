"""Distributed training on Shoal: a function on many workers, checkpoints, and resuming after failures.

`shoal.train.torch` has what PyTorch needs. Other libraries that run functions which call `report` see `shoal.train.session`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time before it is used
    from .backend import Backend, BackendConfig
    from .callbacks import UserCallback
    from .checkpoint import Checkpoint
    from .config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from .datasets import DataConfig
    from .errors import (
        CollectiveMismatchError,
        ControllerError,
        NoSessionError,
        StorageError,
        TrainError,
        TrainingFailedError,
        WorkerEndedError,
        WorkerGroupError,
    )
    from .reported import ReportedCheckpoint
    from .result import Result
    from .session import TrainContext, get_all_reported_checkpoints, get_checkpoint, get_context, get_dataset_shard, report
    from .trainer import DataParallelTrainer

_EXPORTS = {
    "backend": ("Backend", "BackendConfig"),
    "callbacks": ("UserCallback",),
    "checkpoint": ("Checkpoint",),
    "config": ("CheckpointConfig", "FailureConfig", "RunConfig", "ScalingConfig"),
    "datasets": ("DataConfig",),
    "errors": (
        "CollectiveMismatchError", "ControllerError", "NoSessionError", "StorageError", "TrainError", "TrainingFailedError", "WorkerEndedError",
        "WorkerGroupError",
    ),
    "reported": ("ReportedCheckpoint",),
    "result": ("Result",),
    "session": ("TrainContext", "get_all_reported_checkpoints", "get_checkpoint", "get_context", "get_dataset_shard", "report"),
    "trainer": ("DataParallelTrainer",),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ("collective", "errors", "lightgbm", "session", "storage", "torch")

__all__ = [
    "Backend", "BackendConfig", "Checkpoint", "CheckpointConfig", "CollectiveMismatchError", "ControllerError", "DataConfig", "DataParallelTrainer",
    "FailureConfig", "NoSessionError", "ReportedCheckpoint", "Result", "RunConfig", "ScalingConfig", "StorageError", "TrainContext", "TrainError",
    "TrainingFailedError", "UserCallback", "WorkerEndedError", "WorkerGroupError", "get_all_reported_checkpoints", "get_checkpoint", "get_context",
    "get_dataset_shard", "report",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME.get(name)
    if home is not None:
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})
