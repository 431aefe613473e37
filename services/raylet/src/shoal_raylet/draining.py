"""A node that is to go: it takes nothing new, gives back what can run elsewhere, and knows what is left."""

from __future__ import annotations

from shoal_base.resources import show

from . import effects as do
from . import events as on
from .core import Core
from .v1 import raylet_pb2 as pb


def on_started(core: Core, event: on.DrainStarted, now: float) -> None:
    core.draining = event.reason or "asked to"
    why = f"the node is draining: {core.draining}"
    for wish in list(core.guests.values()):
        if wish.queued:
            core.refuse(wish, 0, why, now)
    for start in list(core.waiting_actors):  # the control store finds them another place
        core.waiting_actors.remove(start)
        core.actors.pop(start.actor_id, None)
        for request in start.requests:
            core.emit(do.AnswerActor(request, pb.NO_RESOURCES, reason=f"{why}; it needs {show(start.spec.resources)}"))
    while core.waiting_bundles:
        core.emit(do.AnswerBundles(core.waiting_bundles.popleft().request, why))
    for lease in core.leases.values():
        # What runs goes on to its end; what is queued behind it runs elsewhere.
        if lease.wish is not None and not lease.reclaimed:
            lease.reclaimed, lease.reclaimed_at = True, now
            core.emit(do.ReclaimLease(lease.client, lease.client_node, lease.id, core.node_id))
    core.freed()


def left(core: Core) -> list[str]:
    """What still runs or is needed here, in words; empty: the node can go."""
    tasks = sum(lease.wish is not None for lease in core.leases.values())
    coming = sum(len(waiting) for waiting in core.unmanned.values()) - core.unmanned_actors
    owners = sum(worker.owns and worker.actor is None for worker in core.workers)
    counts = [
        (tasks + coming, "task", "tasks"),
        (len(core.actors), "actor", "actors"),
        (owners, "process whose objects others hold", "processes whose objects others hold"),
    ]
    return [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
