"""Which checkpoints stay. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import CheckpointConfig


@dataclass(frozen=True)
class Entry:
    """A committed checkpoint: the folder's name, its running number, what was reported with it, and how many reports there were up to it."""

    name: str
    number: int
    metrics: dict[str, Any]
    reports: int


def metric_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric as a number; None if it is not there or is none. `a/b` is key b of the dict at key a.

    >>> metric_of({"eval": {"loss": 0.5}}, "eval/loss")
    0.5
    """
    value: Any = metrics.get(name)
    if value is None:
        value = metrics
        for part in name.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if number != number else number


def to_delete(entries: Sequence[Entry], config: CheckpointConfig) -> list[Entry]:
    """Those beyond `num_to_keep`, oldest first. The latest one stays in any case; one without the attribute, or with NaN, is worse than any other."""
    if config.num_to_keep is None or len(entries) <= config.num_to_keep:
        return []
    ranked = sorted(entries, key=lambda entry: (*_score(entry, config), entry.number), reverse=True)
    kept = {entry.number for entry in ranked[: config.num_to_keep]} | {entries[-1].number}
    return [entry for entry in entries if entry.number not in kept]


def _score(entry: Entry, config: CheckpointConfig) -> tuple[int, float]:
    if config.checkpoint_score_attribute is None:
        return 0, float(entry.number)
    value = metric_of(entry.metrics, config.checkpoint_score_attribute)
    if value is None:
        return -1, 0.0
    return 0, value if config.checkpoint_score_order == "max" else -value
