"""What this library raises.

::

    TuneError                 also a RuntimeError; base of the others
    ├── JournalError          the record of an experiment cannot be read or written
    ├── MissingMetricError    also a ValueError: a report lacks a metric that the experiment needs
    └── TrialEndedError       a trial's process is gone; what a trial that was killed has as its error
    SpaceError                a ValueError: a search space that cannot be drawn from (shoal.tune.search.variants)
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["JournalError", "MissingMetricError", "TrialEndedError", "TuneError"]


class TuneError(RuntimeError):
    """An experiment that cannot go on, or cannot start."""


class JournalError(TuneError):
    """The record of an experiment cannot be read or written."""


class TrialEndedError(TuneError):
    """A trial's process is gone: killed, out of memory, or on a node that died."""


class MissingMetricError(TuneError, ValueError):
    """A report lacks a metric that the experiment needs."""

    def __init__(self, trial: object, missing: str, wanted_by: str, reported: Iterable[str]) -> None:
        self.trial = str(trial)
        self.missing = missing
        self.wanted_by = wanted_by
        self.reported = tuple(reported)
        shown = ", ".join(self.reported) or "none"
        super().__init__(
            f"trial {self.trial} reported no {missing!r}, which {wanted_by} needs; it reported: {shown}. Report it, or name one of these. "
            "TUNE_DISABLE_STRICT_METRIC_CHECKING=1 passes over reports without it"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, str, tuple[str, ...]]]:
        return MissingMetricError, (self.trial, self.missing, self.wanted_by, self.reported)
