"""A checkpoint with what was reported with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint

__all__ = ["ReportedCheckpoint"]


@dataclass(frozen=True)
class ReportedCheckpoint:
    """A checkpoint that all ranks have reported and that is kept."""

    checkpoint: Checkpoint
    metrics: dict[str, Any]
