"""A trial: one configuration, what became of it, and where its files lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .resources import PlacementGroupFactory

__all__ = ["SavedCheckpoint", "Trial"]

# What the trial itself counts, and so what a checkpoint must remember of it.
PROGRESS_KEYS = ("training_iteration", "time_total_s", "timesteps_total", "episodes_total")
# Limit: so many of the last values of a metric make its averages.
_WINDOW = 10


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that lies in the experiment's folder, and the result that was reported with it."""

    path: str
    result: dict[str, Any]
    index: int

    @property
    def progress(self) -> dict[str, Any]:
        return {key: self.result[key] for key in PROGRESS_KEYS if self.result.get(key) is not None}


def lookup(result: Mapping[str, Any], name: str) -> Any:
    """A metric by name; `a/b` is key b of the dict at key a. None when there is none.

    >>> lookup({"a": {"b": 3}}, "a/b")
    3
    """
    if name in result:
        return result[name]
    first, slash, rest = name.partition("/")
    inner = result.get(first)
    return lookup(inner, rest) if slash and isinstance(inner, Mapping) else None


@dataclass(eq=False)
class Trial:
    """One configuration and its fate.

    Attributes:
        trial_id: unique in the experiment.
        config: what the trainable is given.
        status: PENDING, RUNNING, PAUSED, TERMINATED or ERROR.
        last_result: the last reported metrics, with what is filled in.
        metric_analysis: for each number reported: its max, min, avg, last, last-5-avg and last-10-avg.
        checkpoint: the latest, or None.
        error: what ended it, when its status is ERROR.
        path: its folder.
    """

    trial_id: str
    config: dict[str, Any]
    trainable_name: str = "trainable"
    number: int = 0
    evaluated_params: dict[str, Any] = field(default_factory=dict)
    status: str = "PENDING"
    path: str = ""
    placement: PlacementGroupFactory = field(default_factory=lambda: PlacementGroupFactory([{"CPU": 1}]))
    custom_name: str | None = None
    last_result: dict[str, Any] = field(default_factory=dict)
    metric_analysis: dict[str, dict[str, float]] = field(default_factory=dict)
    checkpoints: list[SavedCheckpoint] = field(default_factory=list)
    checkpoint_count: int = 0
    num_failures: int = 0
    error: BaseException | None = None
    error_text: str = ""
    start_time: float = 0.0
    experiment_tag: str = ""
    # Of the loop: a runner belongs to the trial until it is said to be gone.
    runner_open: bool = False
    closing: bool = False
    # What the runner begins with, when that is another checkpoint than the trial's own latest.
    restore_from: SavedCheckpoint | None = None
    is_restored: bool = False
    _recent: dict[str, list[float]] = field(default_factory=dict, repr=False)

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    @property
    def local_path(self) -> str:
        return self.path

    logdir = local_path

    @property
    def latest(self) -> SavedCheckpoint | None:
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def checkpoint(self) -> Any:
        """The latest, as a `Checkpoint`."""
        from shoal.train import Checkpoint

        return Checkpoint(self.checkpoints[-1].path) if self.checkpoints else None

    @property
    def has_checkpoint(self) -> bool:
        return bool(self.checkpoints)

    def get_error(self) -> BaseException | None:
        return self.error

    @property
    def dirname(self) -> str:
        return Path(self.path).name

    def set_config(self, config: dict[str, Any]) -> None:
        """For schedulers: the configuration of the trial's next start."""
        self.config = config

    def set_status(self, status: str) -> None:
        self.status = status

    def metric(self, name: str) -> Any:
        """The last value of a metric."""
        return lookup(self.last_result, name)

    def record(self, result: dict[str, Any], flat: Mapping[str, Any]) -> None:
        """Takes in a report. `flat`: the same with joined keys."""
        self.last_result = result
        for name, value in flat.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            known = self.metric_analysis.get(name)
            if known is None:
                self._recent[name] = [value]
                self.metric_analysis[name] = {"max": value, "min": value, "avg": value, "last": value, "n": 1, "last-5-avg": value, "last-10-avg": value}
                continue
            recent = self._recent[name]
            recent.append(value)
            if len(recent) > _WINDOW:
                del recent[0]
            if not math.isnan(value):
                known["max"] = value if math.isnan(known["max"]) else max(known["max"], value)
                known["min"] = value if math.isnan(known["min"]) else min(known["min"], value)
            known["n"] += 1
            known["avg"] += (value - known["avg"]) / known["n"]
            known["last"] = value
            known["last-5-avg"] = sum(recent[-5:]) / len(recent[-5:])
            known["last-10-avg"] = sum(recent) / len(recent)

    def __str__(self) -> str:
        return self.custom_name or f"{self.trainable_name}_{self.trial_id}"

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trial) and self.trial_id == other.trial_id
