"""Schedulers: which trials go on, and which are next."""

from typing import Any

from .async_hyperband import ASHAScheduler, AsyncHyperBandScheduler
from .hyperband import HyperBandScheduler
from .median_stopping_rule import MedianStoppingRule
from .pbt import PopulationBasedTraining
from .trial_scheduler import FIFOScheduler, TrialScheduler

__all__ = [
    "ASHAScheduler", "AsyncHyperBandScheduler", "FIFOScheduler", "HyperBandScheduler", "MedianStoppingRule", "PopulationBasedTraining", "TrialScheduler",
    "create_scheduler",
]  # fmt: skip

_BY_NAME: dict[str, type[TrialScheduler]] = {
    "fifo": FIFOScheduler, "async_hyperband": AsyncHyperBandScheduler, "asynchyperband": AsyncHyperBandScheduler, "asha": AsyncHyperBandScheduler,
    "hyperband": HyperBandScheduler,
    "median_stopping_rule": MedianStoppingRule, "medianstopping": MedianStoppingRule, "median_stopping": MedianStoppingRule,
    "pbt": PopulationBasedTraining,
}  # fmt: skip


def create_scheduler(scheduler: str, **kwargs: Any) -> TrialScheduler:
    """A scheduler by name: fifo, asha (or async_hyperband), hyperband, median_stopping_rule, pbt; the rest are its arguments.

    Raises:
        ValueError: another name.
    """
    if scheduler.lower() not in _BY_NAME:
        raise ValueError(f"there is no scheduler {scheduler!r}: known are {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[scheduler.lower()](**kwargs)
