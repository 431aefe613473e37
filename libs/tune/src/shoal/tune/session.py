"""What a function trainable calls: `report`, `get_checkpoint`, `get_context`. The names of `shoal.train` do the same inside of a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.train.session import get_checkpoint, get_context
from shoal.train.session import report as _report

if TYPE_CHECKING:
    from shoal.train import Checkpoint

__all__ = ["get_checkpoint", "get_context", "report"]


def report(metrics: dict[str, Any], *, checkpoint: Checkpoint | None = None) -> None:
    """Tells the tuner how far the trial is; returns when it may go on. When it is stopped here, `SystemExit` is raised, so that `finally` blocks run.

    Args:
        metrics: plain values, also nested dicts; numbers of numpy and tensors with one element become plain numbers.
        checkpoint: files in a local folder: `Checkpoint.from_directory(path)`. They are copied: when this returns, the folder may be deleted.

    Raises:
        NoSessionError: outside of a trial.
        TypeError: metrics is no dict, or checkpoint no Checkpoint.
    """
    _report(metrics, checkpoint)
