"""Asking leases back: one for each that waits, from whoever has held longest and holds more."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_base.resources import Resources, add, fits, subtract

from . import effects as do
from .bundles import Pool
from .core import Core
from .leases import Lease, LeaseSpec, Wish
from .workers import Phase


def reclaim(core: Core, now: float) -> None:
    """Counts what will come back by reclaims already sent, gives it to those who wait in fair order, and reclaims for the rest."""
    held = [lease for lease in core.leases.values() if not lease.reclaimed and lease.wish is not None and lease.worker.phase is Phase.LEASED]
    if not held or _alone(core, held):
        return
    asking = _Asking(core, held, now)
    for reservation in core.waiting_bundles:
        asking.cover_in(core.pool, reservation.total(), None)
    for start in core.waiting_actors:
        asking.cover(None, start.spec, start.held)
    for wish in core.queue.fair():
        if wish.request and wish.deadline <= now:  # refused before anything could come back
            continue
        for _ in range(wish.open):
            if not held or not asking.cover(wish, wish.spec):
                break


def _alone(core: Core, held: list[Lease]) -> bool:
    """The usual case: who waits has all that could be asked back."""
    if core.waiting_bundles or core.waiting_actors or len(core.queue) != 1:
        return False
    [wish] = core.queue.all()
    return all(lease.wish is wish for lease in held)


class _Projection:
    """What each pool will have free once the reclaimed leases are back."""

    def __init__(self, core: Core) -> None:
        self._free: dict[int, Resources] = {}
        self.workers = 0
        for lease in core.leases.values():
            if lease.reclaimed:
                self.back(lease)
                self.workers += 1

    def of(self, pool: Pool) -> Resources:
        free = self._free.get(id(pool))
        if free is None:
            free = self._free[id(pool)] = dict(pool.free)
        return free

    def back(self, lease: Lease) -> None:
        add(self.of(lease.allocation.pool), lease.allocation.returns())


class _Asking:
    """One pass over who waits. `held`: leases that may still be asked back, in the order they were granted."""

    def __init__(self, core: Core, held: list[Lease], now: float) -> None:
        self._core = core
        self._held = held
        self._now = now
        self._projected = _Projection(core)

    def cover(self, wish: Wish | None, spec: LeaseSpec, held: Resources | None = None) -> bool:
        """Makes room for one unit in one of its pools; for an actor, of what it holds. False: cannot."""
        core, need = self._core, spec.resources if held is None else held
        if spec.plain and wish is not None and wish.runs_here:
            return self.cover_in(core.pool, spec.resources, wish)
        pools = core.bundles.pools(spec.group, spec.bundle_index) if spec.group else [core.pool]
        if not spec.request.selector.matches(core.labels) or (spec.affinity and not spec.soft and spec.affinity != core.node_id):
            return False
        return any(self.cover_in(pool, need, wish) for pool in pools)

    def cover_in(self, pool: Pool, need: Mapping[str, int], wish: Wish | None) -> bool:
        core, projected = self._core, self._projected
        if not pool.could(need):
            return False
        free = projected.of(pool)
        limited = wish is not None and wish.limited_since >= 0
        if limited:
            if projected.workers > 0:
                projected.workers -= 1
                return True
            victims = _first(core, wish, self._held)
        elif fits(need, free):
            subtract(free, need)
            return True
        else:
            victims = _victims(core, wish, need, pool, free, self._held)
        for lease in victims:
            self._ask(lease, wish)
        if victims and not limited:
            subtract(free, need)
        return bool(victims)

    def _ask(self, lease: Lease, wish: Wish | None) -> None:
        self._held.remove(lease)
        lease.reclaimed, lease.reclaimed_at, lease.for_start = True, self._now, wish is None
        self._projected.back(lease)
        self._core.emit(do.ReclaimLease(lease.client, lease.client_node, lease.id, self._core.node_id))


def _first(core: Core, wish: Wish | None, held: list[Lease]) -> list[Lease]:
    return next(([lease] for lease in held if not lease.worker.blocked and _may_ask(core, lease, wish)), [])


def _victims(core: Core, wish: Wish | None, need: Mapping[str, int], pool: Pool, free: Resources, held: list[Lease]) -> list[Lease]:
    """The fewest, longest held first, that make room together; none when even all would not."""
    room = dict(free)
    chosen: list[Lease] = []
    for lease in held:  # in the order they were granted
        if lease.allocation.pool is not pool or not _may_ask(core, lease, wish):
            continue
        back = lease.allocation.returns()
        if not any(back.get(name, 0) > 0 and room.get(name, 0) < units for name, units in need.items()):
            continue
        add(room, back)
        chosen.append(lease)
        if fits(need, room):
            return chosen
    return []


def _may_ask(core: Core, lease: Lease, wish: Wish | None) -> bool:
    """Not from the one that waits, and not when the two would only change places for ever."""
    victim = lease.wish
    if wish is None or victim is None:
        return True
    if victim is wish:
        return False
    if wish.held + wish.placed == 0:
        return True
    if lease.spec.job != wish.spec.job:
        return core.held_by_job.get(lease.spec.job, 0) >= core.held_by_job.get(wish.spec.job, 0) + 2
    return victim.held >= wish.held + 2
