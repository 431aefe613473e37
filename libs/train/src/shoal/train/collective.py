"""What all workers do together, without a framework. For tensors and speed use the framework's own collectives."""

from __future__ import annotations

from typing import Any, TypeVar

from .errors import NoSessionError
from .session import current_session

__all__ = ["barrier", "broadcast_from_rank_zero"]

T = TypeVar("T")


def _collective(what: str) -> Any:
    session = current_session(what)
    collective = getattr(session, "collective", None)
    if collective is None:
        raise NoSessionError(f"{what} works only in workers of a trainer")
    return collective


def barrier() -> None:
    """Returns when all workers have called it.

    Raises:
        NoSessionError: outside of a training function.
    """
    _collective("barrier()")("barrier", None)


def broadcast_from_rank_zero(data: T) -> T:
    """What rank 0 gave, in all workers. What the others give does not matter.

    Raises:
        NoSessionError: outside of a training function.

    Example::

        run_id = broadcast_from_rank_zero(new_run_id() if get_context().get_world_rank() == 0 else None)
    """
    value: T = _collective("broadcast_from_rank_zero()")("broadcast_from_rank_zero", data)
    return value
