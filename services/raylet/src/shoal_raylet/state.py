"""The local scheduler: events in, effects out. No I/O, no clock, no randomness; the time comes with each event.

Its parts, each of small functions over `Core`: `placing` (where a wish goes), `manning` (who works), `reclaim` (asking leases back), `clients`,
`actors`, `groups`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shoal_base.errors import Code
from shoal_base.resources import Resources, add, fits

from . import actors, clients, draining, groups, manning, placing
from . import effects as do
from . import events as on
from .core import Core, Settings
from .leases import LeaseSpec, Wish, totals
from .view import Group, show_nodes
from .workers import Worker

__all__ = ["Scheduler", "Settings"]

# The latest events, for a dump when something puzzles.
STORY_LENGTH = 256


class Scheduler:
    """One node's. `handle` is the one door for changes; the rest only reads."""

    def __init__(self, settings: Settings, total: Mapping[str, int], labels: Mapping[str, str] | None = None, gpus: Mapping[str, int] | None = None) -> None:
        self.core = Core(settings, total, labels or {}, gpus)
        self.story: deque[tuple[float, on.Event]] = deque(maxlen=STORY_LENGTH)

    def handle(self, event: on.Event, now: float) -> list[do.Effect]:
        core = self.core
        core.now = now
        self.story.append((now, event))
        _HANDLERS[type(event)](core, event, now)
        placing.schedule(core, now)
        if core.guests:
            clients.end_guests(core, now)
        out, core.out = core.out, []
        return out

    # -- reading ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Somebody waits: blocked workers and time matter."""
        return self.core.waiting()

    @property
    def draining(self) -> str:
        return self.core.draining

    def blocked(self) -> list[bytes]:
        return [worker.id for worker in self.core.blocked]

    def lent(self) -> Iterator[Worker]:
        """Workers that run tasks or actors."""
        return (lease.worker for lease in self.core.leases.values())

    def leased_to(self, client: bytes) -> list[bytes]:
        return [self.core.leases[lease].worker.id for lease in self.core.by_client.get(client, ())]

    def leased_to_node(self, node_id: bytes) -> list[bytes]:
        return [lease.worker.id for lease in self.core.leases.values() if lease.client_node == node_id]

    def doubtful(self) -> list[tuple[int, bytes, bool]]:
        """(lease, worker, asked back) of those that may not come back by themselves: asked back already, or lent over the network."""
        return [
            (lease.id, lease.worker.id, lease.reclaimed)
            for lease in self.core.leases.values() if lease.wish is not None and (lease.reclaimed or lease.client_node not in (b"", self.core.node_id))
        ]  # fmt: skip

    def lease_worker(self, lease_id: int) -> bytes:
        lease = self.core.leases.get(lease_id)
        return lease.worker.id if lease else b""

    def available(self) -> Resources:
        return self.core.available()

    def reclaimable(self, now: float) -> Resources:
        """What tasks have of the node itself, and give back soon when asked to. Those that were asked, and have not, are long: nobody waits for them."""
        core, out = self.core, Resources()
        for lease in core.leases.values():
            long = lease.reclaimed and now - lease.reclaimed_at >= core.settings.actor_wait_s
            if lease.wish is not None and lease.allocation.pool is core.pool and not long:
                add(out, lease.allocation.returns())
        return out

    def explain(self, wish: Wish) -> str:
        return placing.explain(self.core, wish)

    def pending(self) -> list[Wish]:
        return self.core.queue.all()

    def pending_totals(self) -> list[tuple[Mapping[str, int], int, str]]:
        return totals(self.core.queue.all(), self.explain)

    def queued_leases(self) -> int:
        return sum(wish.open for wish in self.core.queue.all() if not wish.request)

    def workers(self) -> list[Worker]:
        return list(self.core.workers)

    def live_actors(self) -> list[bytes]:
        """Also those that start: the GCS must be able to end what it does not know."""
        return list(self.core.actors)

    def live_groups(self) -> list[bytes]:
        return list(dict.fromkeys(bundle.group for bundle in self.core.bundles.usable()))


# -- handlers that belong to no part of their own ----------------------------------------------------


def _started(core: Core, event: on.Started, now: float) -> None:
    manning.prestart(core, now)


def _view_changed(core: Core, event: on.ViewChanged, now: float) -> None:
    core.view.update([node for node in event.nodes if node.node_id != core.node_id])
    core.dirty = core.dirty or bool(core.queue)


def _node_lost(core: Core, event: on.NodeLost, now: float) -> None:
    """Its clients' leases here end; what we borrowed there is gone."""
    core.view.lose(event.node_id, event.cause)
    for request, asked in list(core.asked.items()):
        if asked.node_id == event.node_id:
            clients.on_remote_answered(core, on.RemoteLeaseAnswered(request, False, reason=f"node {event.node_id.hex()[:12]} died"), now)
    for (node_id, lease_id), borrowed in list(core.borrowed.items()):
        if node_id == event.node_id:
            del core.borrowed[node_id, lease_id]
            borrowed.wish.held -= 1
    for lease in [lease for lease in core.leases.values() if lease.client_node == event.node_id and lease.wish is not None]:
        clients.give_back(core, lease, now, kill=True)
    for wish in [wish for wish in core.guests.values() if wish.client_node == event.node_id]:
        clients.withdraw(core, wish, now)
        core.guests.pop(wish.request, None)
    for wish in core.queue.all():
        if wish.spec.affinity == event.node_id and not wish.spec.soft:
            core.refuse(wish, Code.NODE_AFFINITY_FAILED, f"{wish.spec.wish()}: that node died ({event.cause})", now)
    core.dirty = True


def _group_changed(core: Core, event: on.GroupChanged, now: float) -> None:
    known = core.view.groups.get(event.group)
    if event.removed and known is not None and known.removed and not core.bundles.holds(event.group):
        return  # its remover is a client of this node, and was heard before the control store
    core.view.set_group(event.group, Group(event.created, event.removed, event.places))
    if event.removed:
        for wish in core.queue.all():
            if wish.spec.group == event.group:
                core.refuse(wish, Code.PLACEMENT_GROUP_REMOVED, f"{wish.spec.wish()}: the placement group was removed", now)
        groups.remove(core, event.group, [], now)
    core.dirty = core.dirty or bool(core.queue)


def _ticked(core: Core, event: on.Ticked, now: float) -> None:
    manning.reap_idle(core, now)
    core.view.expire(now)
    manning.prestart(core, now)
    actors.end_waits(core, now)
    groups.end_waits(core, now)
    if core.aside:
        core.end_aside()
    if core.queue:
        placing.choose_hold(core, now)
        for wish in core.queue.all():
            _look_at(core, wish, now)
    if core.waiting():
        core.dirty = True


def _look_at(core: Core, wish: Wish, now: float) -> None:
    """What time does to a wish that waits."""
    wish.tried = wish.tried_view = -1
    if wish.refused_by:
        before = len(wish.refused_by)
        wish.refused_by = {node: until for node, until in wish.refused_by.items() if until > now}
        if len(wish.refused_by) < before:
            wish.seen = -1
    if wish.limited_since >= 0 and now - wish.limited_since >= core.settings.limit_grace_s and _all_blocked(core):
        core.refuse(wish, Code.LIMIT_REACHED, _limit_text(core, wish), now)
    elif not wish.request:
        _check_feasible(core, wish, now)


def _all_blocked(core: Core) -> bool:
    return manning.task_workers(core) >= core.worker_limit and all(
        lease.worker.blocked for lease in core.leases.values() if lease.wish is not None
    )  # fmt: skip


def _limit_text(core: Core, wish: Wish) -> str:
    deepest = max((lease.spec.depth for lease in core.leases.values()), default=0)
    return (
        f"{wish.spec.name or 'a task'} at depth {wish.spec.depth} cannot start: all {core.worker_limit} workers that node {core.node_id.hex()[:12]} may have "
        f"wait in get() for tasks, nested up to depth {deepest}. Nest less deeply, or raise worker_limit"
    )


def _check_feasible(core: Core, wish: Wish, now: float) -> None:
    code = _infeasible(core, wish.spec)
    if code is None:
        wish.infeasible_since = -1.0
        return
    if wish.infeasible_since < 0:
        wish.infeasible_since = now
    waited = now - wish.infeasible_since
    if code is Code.UNSCHEDULABLE and core.settings.autoscaler:
        wish.reason = f"{wish.spec.wish()}: fits no node yet; waits for the autoscaler: {show_nodes(core.living_nodes())}"
    elif waited < core.settings.infeasible_timeout_s:
        left = core.settings.infeasible_timeout_s - waited
        wish.reason = f"{wish.spec.wish()}: fits no node of the cluster; fails in {left:.0f} s unless one joins: {show_nodes(core.living_nodes())}"
    else:
        why = f"{wish.spec.wish()}: no node can ever run it; {show_nodes(core.living_nodes())}. Ask for less, or add a node that has it"
        core.refuse(wish, code, why, now)


def _infeasible(core: Core, spec: LeaseSpec) -> Code | None:
    """Why no living node could run it, were all of them empty; None: one could."""
    if spec.group:
        return _group_infeasible(core, spec)
    if placing.may_run_here(core, spec) or next(core.view.able(spec), None) is not None:
        return None
    if core.draining and fits(spec.resources, core.pool.total) and not spec.affinity and not core.view.nodes:
        return None  # the last node goes: its end says more than this
    return Code.NODE_AFFINITY_FAILED if spec.affinity and not spec.soft and not _known(core, spec.affinity) else Code.UNSCHEDULABLE


def _known(core: Core, node_id: bytes) -> bool:
    return node_id == core.node_id or node_id in core.view.nodes


def _group_infeasible(core: Core, spec: LeaseSpec) -> Code | None:
    group = core.view.groups.get(spec.group)
    if any(pool.could(spec.resources) for pool in placing.pools(core, spec)):
        return None
    if group is None:
        return Code.PLACEMENT_GROUP_REMOVED
    if not group.created:
        return None
    return None if core.view.group_places(spec) else Code.UNSCHEDULABLE


_HANDLERS: dict[type, Callable[[Core, Any, float], None]] = {
    on.Started: _started,
    on.WorkerRegistered: manning.on_registered,
    on.ForkFailed: manning.on_fork_failed,
    on.WorkerDied: manning.on_died,
    on.MemoryExceeded: manning.on_memory_exceeded,
    on.WorkerDiedElsewhere: clients.on_worker_died_elsewhere,
    on.WorkerBlocked: manning.on_blocked,
    on.WorkerUnblocked: manning.on_unblocked,
    on.OwnershipChanged: manning.on_ownership_changed,
    on.LeaseDemanded: clients.on_demanded,
    on.LeaseReturned: clients.on_returned,
    on.LeaseIdle: clients.on_idle,
    on.ClientGone: clients.on_client_gone,
    on.RemoteLeaseRequested: clients.on_remote_requested,
    on.RemoteLeaseAnswered: clients.on_remote_answered,
    on.NodeSpoke: clients.on_node_spoke,
    on.ReclaimPassedOn: clients.on_reclaim_passed_on,
    on.ViewChanged: _view_changed,
    on.NodeLost: _node_lost,
    on.GroupChanged: _group_changed,
    on.ActorRequested: actors.on_requested,
    on.ActorCreated: actors.on_created,
    on.KillRequested: actors.on_kill_requested,
    on.BundlesRequested: groups.on_requested,
    on.BundlesCommitted: groups.on_committed,
    on.BundlesCancelled: groups.on_cancelled,
    on.JobFinished: clients.on_job_finished,
    on.DrainStarted: draining.on_started,
    on.Ticked: _ticked,
}
