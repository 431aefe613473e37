"""How functions of users run: in tasks, or in a pool of actors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._plan.logical import PoolSpec
from ._run.entry import map_task

__all__ = ["ActorPoolStrategy", "TaskPoolStrategy"]

# A pool without an upper bound grows as far as the cluster's CPUs go.
UNBOUNDED = 1 << 16


@dataclass(frozen=True)
class TaskPoolStrategy:
    """Tasks; at most `size` at the same time."""

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"TaskPoolStrategy(size=...) must be at least 1, and is {self.size}")


@dataclass(frozen=True, kw_only=True)
class ActorPoolStrategy:
    """Actors, each with one object of the user's class: `size` of them, or `min_size` that become up to `max_size` while work waits.

    Args:
        size: a pool that does not grow; not together with the next two.
        min_size: actors to begin with, 1.
        max_size: as many as fit into the cluster by default.
        max_tasks_in_flight_per_actor: how many blocks may wait at an actor, 2.
    """

    size: int | None = None
    min_size: int | None = None
    max_size: int | None = None
    max_tasks_in_flight_per_actor: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (self.min_size is not None or self.max_size is not None):
            raise ValueError("ActorPoolStrategy takes either size, or min_size and max_size")
        for name in ("size", "min_size", "max_size", "max_tasks_in_flight_per_actor"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"ActorPoolStrategy({name}=...) must be at least 1, and is {value}")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"ActorPoolStrategy: min_size {self.min_size} is more than max_size {self.max_size}")

    def spec(self) -> PoolSpec:
        low = self.size or self.min_size or 1
        return PoolSpec(low, self.size or self.max_size or UNBOUNDED, self.max_tasks_in_flight_per_actor or 2)


def resolve(fn: Any, compute: Any, concurrency: Any, where: str) -> tuple[PoolSpec | None, int | None]:
    """The pool, or the greatest number of tasks.

    Raises:
        TypeError, ValueError: for settings that contradict each other.
    """
    if compute is not None and concurrency is not None:
        raise ValueError(f"{where} takes either compute or concurrency")
    if isinstance(compute, ActorPoolStrategy):
        return compute.spec(), None
    if isinstance(compute, TaskPoolStrategy):
        if isinstance(fn, type):
            raise ValueError(f"{where}: the class {fn.__name__} needs actors; give concurrency=n or compute=ActorPoolStrategy(size=n)")
        return None, compute.size
    if compute is not None:
        raise TypeError(f"{where}: compute must be an ActorPoolStrategy or a TaskPoolStrategy, and is {compute!r}")
    if not isinstance(fn, type):
        if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
            raise ValueError(f"{where}: concurrency of a function must be a positive number of tasks, and is {concurrency!r}")
        return None, concurrency
    if concurrency is None:
        return ActorPoolStrategy().spec(), None
    if isinstance(concurrency, int):
        return ActorPoolStrategy(size=concurrency).spec(), None
    if isinstance(concurrency, tuple) and len(concurrency) == 2 and all(isinstance(n, int) for n in concurrency):
        return ActorPoolStrategy(min_size=concurrency[0], max_size=concurrency[1]).spec(), None
    raise ValueError(f"{where}: concurrency of a class must be n or (min, max), and is {concurrency!r}")


def remote_args(where: str, pool: bool = False, **given: Any) -> dict[str, Any]:
    """The options that were given, checked."""
    import shoal

    options = {name: value for name, value in given.items() if value is not None}
    for name in ("num_returns", "name"):
        if name in options:
            raise ValueError(f"{where} sets {name} itself")
    if options:
        shoal.remote(_Checked if pool else map_task).options(**options)
    return options


class _Checked:
    """An actor whose options are checked."""
