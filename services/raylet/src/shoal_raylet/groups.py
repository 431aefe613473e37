"""Bundles of placement groups: asked for by the GCS, waited for, committed, given up."""

from __future__ import annotations

from shoal_base.errors import Code

from . import actors, manning
from . import effects as do
from . import events as on
from .core import Core
from .leases import Reservation


def on_requested(core: Core, event: on.BundlesRequested, now: float) -> None:
    if core.draining:
        core.emit(do.AnswerBundles(event.request, f"the node is draining: {core.draining}"))
        return
    _give_up_waits(core, event.group, "it was asked for once more")
    reservation = Reservation(event.request, event.group, event.bundles, now + event.wait_s)
    why = _prepare(core, reservation, now)
    if why and event.wait_s > 0 and core.pool.could(reservation.total()):
        core.waiting_bundles.append(reservation)
        core.dirty = True
        return
    core.emit(do.AnswerBundles(event.request, why))


def _prepare(core: Core, reservation: Reservation, now: float) -> str:
    why = core.bundles.prepare(reservation.group, reservation.bundles, now)
    if not why and core.aside:
        core.use_aside(core.pool, reservation.total())
    return why


def place_waiting(core: Core, now: float) -> None:
    """In the order they came. Tasks give their leases back for them meanwhile, see `reclaim`."""
    for reservation in list(core.waiting_bundles):
        if not _prepare(core, reservation, now):
            core.waiting_bundles.remove(reservation)
            core.emit(do.AnswerBundles(reservation.request))


def on_committed(core: Core, event: on.BundlesCommitted, now: float) -> None:
    missing = core.bundles.commit(event.group, event.indexes)
    core.emit(do.AnswerBundles(event.request, f"bundles {missing} are not prepared here" if missing else ""))
    core.freed()


def on_cancelled(core: Core, event: on.BundlesCancelled, now: float) -> None:
    _give_up_waits(core, event.group, "it was given up")
    remove(core, event.group, event.indexes, now)


def remove(core: Core, group: bytes, indexes: list[int], now: float) -> None:
    gone = {id(bundle.pool) for bundle in core.bundles.remove(group, indexes)}
    if not gone:
        return
    why = f"its placement group {group.hex()[:12]} was removed"
    for placed in core.drop_placed(lambda placed: id(placed.allocation.pool) in gone):
        if placed.wish is not None:
            core.enqueue(placed.wish, now)
        elif placed.actor is not None:
            actors.cancel_actor(core, placed.actor.actor_id, Code.PLACEMENT_GROUP_REMOVED, why, force=True)
    for lease in list(core.leases.values()):
        if id(lease.allocation.pool) in gone:
            manning.end_worker(core, lease.worker, Code.PLACEMENT_GROUP_REMOVED, why, kill=True)
    core.aside = [row for row in core.aside if id(row.pool) not in gone]
    core.freed()


def end_waits(core: Core, now: float) -> None:
    """What found no room in time is told so, and what was prepared and never committed is given back."""
    for reservation in [one for one in core.waiting_bundles if one.deadline <= now]:
        core.waiting_bundles.remove(reservation)
        core.emit(do.AnswerBundles(reservation.request, _prepare(core, reservation, now)))
    for bundle in core.bundles.expired(now - core.settings.prepare_timeout_s):
        remove(core, bundle.group, [bundle.index], now)


def _give_up_waits(core: Core, group: bytes, why: str) -> None:
    for reservation in [one for one in core.waiting_bundles if one.group == group]:
        core.waiting_bundles.remove(reservation)
        core.emit(do.AnswerBundles(reservation.request, why))
