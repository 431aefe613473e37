"""Hyperparameter search on Shoal: search spaces, schedulers, and experiments that survive their driver."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time before it is used
    from shoal.train import Checkpoint, Result
    from shoal.train import TrainContext as TuneContext

    from .callback import Callback
    from .error import JournalError, MissingMetricError, TrialEndedError, TuneError
    from .function_trainable import with_parameters
    from .registry import register_env, register_trainable
    from .resources import PlacementGroupFactory, with_resources
    from .result_grid import ExperimentAnalysis, ResultGrid
    from .run_config import CheckpointConfig, FailureConfig, RunConfig
    from .schedulers import create_scheduler
    from .search import create_searcher
    from .search.sample import (
        choice,
        grid_search,
        lograndint,
        loguniform,
        qlograndint,
        qloguniform,
        qrandint,
        qrandn,
        quniform,
        randint,
        randn,
        sample_from,
        uniform,
    )
    from .session import get_checkpoint, get_context, report
    from .stopper import Stopper
    from .trainable import Trainable
    from .tune_config import ResumeConfig, TuneConfig
    from .tuner import Tuner, load_results, run

_EXPORTS = {
    "callback": ("Callback",),
    "error": ("JournalError", "MissingMetricError", "TrialEndedError", "TuneError"),
    "function_trainable": ("with_parameters",),
    "registry": ("register_env", "register_trainable"),
    "resources": ("PlacementGroupFactory", "with_resources"),
    "result_grid": ("ExperimentAnalysis", "ResultGrid"),
    "run_config": ("CheckpointConfig", "FailureConfig", "RunConfig"),
    "schedulers": ("create_scheduler",),
    "search": ("create_searcher",),
    "search.sample": (
        "choice", "grid_search", "lograndint", "loguniform", "qlograndint", "qloguniform", "qrandint", "qrandn", "quniform", "randint", "randn", "sample_from",
        "uniform",
    ),
    "session": ("get_checkpoint", "get_context", "report"),
    "stopper": ("Stopper",),
    "trainable": ("Trainable",),
    "tune_config": ("ResumeConfig", "TuneConfig"),
    "tuner": ("Tuner", "load_results", "run"),
}  # fmt: skip
_HOME = {name: f"{__name__}.{module}" for module, names in _EXPORTS.items() for name in names}
_FROM_TRAIN = {"Checkpoint": "Checkpoint", "Result": "Result", "TuneContext": "TrainContext"}
_SUBMODULES = ("callback", "error", "experiment", "integration", "logger", "registry", "schedulers", "search", "stopper", "testing", "trainable")

__all__ = [
    "Callback", "Checkpoint", "CheckpointConfig", "ExperimentAnalysis", "FailureConfig", "JournalError", "MissingMetricError", "PlacementGroupFactory",
    "Result", "ResultGrid", "ResumeConfig", "RunConfig", "Stopper", "Trainable", "TrialEndedError", "TuneConfig", "TuneContext", "TuneError", "Tuner",
    "choice", "create_scheduler", "create_searcher", "get_checkpoint", "get_context", "grid_search", "load_results", "lograndint", "loguniform",
    "qlograndint", "qloguniform", "qrandint", "qrandn", "quniform", "randint", "randn", "register_env", "register_trainable", "report", "run", "sample_from",
    "uniform", "with_parameters", "with_resources",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    value: object
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _FROM_TRAIN:
        value = getattr(import_module("shoal.train"), _FROM_TRAIN[name])
    elif name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_FROM_TRAIN, *_SUBMODULES})
