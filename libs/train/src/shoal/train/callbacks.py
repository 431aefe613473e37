"""Hooks into a run, called in the process that calls `fit()`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint
from .config import RunConfig, ScalingConfig

__all__ = ["RunContext", "UserCallback"]


@dataclass(frozen=True)
class RunContext:
    """What a callback may want to know of the run."""

    run_config: RunConfig
    scaling_config: ScalingConfig
    backend_config: Any
    train_loop_config: dict[str, Any] | None
    datasets: Mapping[str, Any]
    path: str


class UserCallback:
    """Derive from it and override what is wanted; give instances to `RunConfig(callbacks=[...])`. What a callback raises ends the run.

    Example:
        >>> class Printing(UserCallback):
        ...     def after_report(self, run_context, metrics, checkpoint):
        ...         print(metrics[0]["loss"])
    """

    def after_report(self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """All workers have reported: their metrics by rank, and the committed checkpoint if there was one. The workers wait meanwhile."""

    def after_exception(self, run_context: RunContext, worker_exceptions: dict[int, Exception]) -> None:
        """Workers have failed: rank to exception. Called for each attempt that failed."""
