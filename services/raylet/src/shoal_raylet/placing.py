"""Where a wish goes: here first, then by the view of the cluster, else it waits and says why."""

from __future__ import annotations

from itertools import islice

from msgspec.structs import replace
from shoal_base.node_table import LOOK_AT, candidates, could_hold, grown
from shoal_base.resources import fits, from_units, show
from shoal_base.scheduling import NodeView, choose_node

from . import effects as do
from . import groups, manning, reclaim, way
from .bundles import Allocation, Pool
from .core import Core
from .leases import ActorStart, Asked, LeaseSpec, Placed, Wish


def schedule(core: Core, now: float) -> None:
    """Places whatever can be placed. Cheap when nothing came free since the last time."""
    if not core.dirty:
        return
    core.dirty = False
    if core.waiting_bundles:
        groups.place_waiting(core, now)
    if core.waiting_actors:
        _place_actors(core, now)
    order = core.queue.order
    stuck = 0
    while stuck < len(order):
        job = order[0]
        order.rotate(-1)
        stuck = 0 if _serve_job(core, job, now) else stuck + 1
    if core.waiting():
        reclaim.reclaim(core, now)
    # What was placed in this pass changed nothing that could free more; a worker ended to make room did not come free yet.
    core.dirty = False


def _serve_job(core: Core, job: bytes, now: float) -> bool:
    for wish in core.queue.of(job, deepest=bool(core.blocked)):
        if place(core, wish, now):
            if wish.open > 0:
                core.queue.served(wish)
            core.enqueue(wish, now)
            return True
    return False


def place(core: Core, wish: Wish, now: float) -> bool:
    """One unit of it."""
    spec = wish.spec
    if _waits_on(core, wish) or (wish.tried == core.version and wish.tried_view == core.view.version):
        return False
    if _local_first(core, wish):
        if _place_here(core, wish, now) or _place_far(core, wish, now):
            return True
    elif spec.group:
        if _place_in_group_elsewhere(core, wish, now):
            return True
    elif _place_anywhere(core, wish, now):
        return True
    wish.tried, wish.tried_view = core.version, core.view.version
    return False


def _waits_on(core: Core, wish: Wish) -> bool:
    """What `place` would find for most: one like it did not fit here just now, and no other node has grown. Many may wait for each that is served."""
    if core.hold is not None or core.aside or wish.reason or not wish.runs_here or wish.spec.shape not in core.full:
        return False
    return not core.draining and (not core.view.nodes or wish.seen == core.view.nodes.version)


def pools(core: Core, spec: LeaseSpec) -> list[Pool]:
    return core.bundles.pools(spec.group, spec.bundle_index) if spec.group else [core.pool]


def may_run_here(core: Core, spec: LeaseSpec) -> bool:
    """Whether this node could take it, were it empty."""
    if core.draining or (spec.affinity and not spec.soft and spec.affinity != core.node_id):
        return False
    return spec.request.selector.matches(core.labels) and any(pool.could(spec.resources) for pool in pools(core, spec))


def _local_first(core: Core, wish: Wish) -> bool:
    """No other node is preferred, so what fits here is taken here without asking anyone."""
    spec = wish.spec
    if spec.plain and not core.draining:
        if wish.runs_here is None:
            wish.runs_here = may_run_here(core, spec)
        return wish.runs_here
    if not may_run_here(core, spec):
        return False
    if spec.spread and not spec.group:
        return False
    if spec.affinity and spec.affinity != core.node_id and spec.affinity in core.view.nodes:
        return False
    return not spec.request.soft_selector or spec.request.soft_selector.matches(core.labels)


def _place_here(core: Core, wish: Wish, now: float) -> bool:
    spec = wish.spec
    if _held_back(core, wish):
        wish.reason = f"{core.hold.spec.name or 'another task'} has waited longer for the same resources"  # type: ignore[union-attr]
        return False
    allocation = None if spec.shape in core.full else _allocate(core, spec)
    if allocation is None:
        core.full.add(spec.shape)
        wish.reason = "what comes free is kept for an actor or a placement group that waits" if core.aside else ""  # see explain()
        return False
    if not manning.can_man(core, spec.job, spec.environment):
        allocation.release()
        wish.reason = f"all {core.worker_limit} workers that this node may have for tasks are in use (worker limit)"
        if wish.limited_since < 0:
            wish.limited_since = now
        return False
    wish.limited_since = wish.infeasible_since = -1.0
    wish.placed += 1
    if core.hold is wish:
        core.hold = None
    manning.man(core, Placed(spec, allocation, wish, None), now)
    return True


def explain(core: Core, wish: Wish) -> str:
    """Why it waits. The usual reason is put into words only here: thousands may wait, and few ask."""
    if wish.reason:
        return wish.reason
    wanted, free, total = wish.spec.resources, core.available(), core.pool.total
    here = ", ".join(f"{name} {from_units(free.get(name, 0)):g} free of {name} {from_units(total.get(name, 0)):g}" for name in wanted)
    return f"needs {show(wanted)}; this node has {here}"


def _allocate(core: Core, spec: LeaseSpec) -> Allocation | None:
    for pool in pools(core, spec):
        if core.aside and not core.spares(pool, spec.resources):
            continue
        if allocation := pool.allocate(spec.resources):
            return allocation
    return None


def _held_back(core: Core, wish: Wish) -> bool:
    """Somebody waited long for resources that small wishes would take from under it, for ever."""
    hold = core.hold
    if hold is None or hold is wish or hold.spec.group != wish.spec.group:
        return False
    return any(name in wish.spec.resources for name in hold.spec.resources)


def choose_hold(core: Core, now: float) -> None:
    """The one that waits longest, every other term: it may need what long tasks keep, and the rest must not stand still meanwhile.

    Where workers are blocked, only the deepest of a job: the others may wait for what is deeper, and each that begins early adds a branch to be held open.
    """
    core.hold = None
    oldest = now - core.settings.hold_s
    depths: dict[bytes, int] = {}
    if core.blocked:
        for wish in core.queue.all():
            depths[wish.spec.job] = max(wish.spec.depth, depths.get(wish.spec.job, 0))
    for wish in core.queue.all():
        if wish.since <= oldest and wish.limited_since < 0 and wish.spec.depth >= depths.get(wish.spec.job, 0) and may_run_here(core, wish.spec):
            oldest, core.hold = wish.since, wish
    if core.hold is not None and int((now - core.hold.since) / core.settings.hold_s) % 2 == 0:
        core.hold = None


# -- elsewhere --------------------------------------------------------------------------------------


def _askable(core: Core, wish: Wish) -> bool:
    return wish.hops < core.settings.max_hops and wish.asked < core.settings.asked_limit


def _refused(wish: Wish, node_id: bytes, now: float) -> bool:
    """Whether to leave this node out. A wish from another node never goes back there: it had no room, and would hold a lease of itself as a stranger's."""
    return node_id == wish.client_node or wish.refused_by.get(node_id, 0.0) > now


def _place_far(core: Core, wish: Wish, now: float) -> bool:
    """This node could run it but is busy: another one that has room now."""
    spec = wish.spec
    if not core.view.nodes or spec.group or not _askable(core, wish) or spec.affinity == core.node_id or not way.is_worth_it(core, wish, now):
        return False
    if wish.seen == core.view.nodes.version and not spec.affinity:
        return False
    choice = choose_node(spec.request, _others(core, wish, now), None, core.rank())
    if choice.node_id is None:
        wish.seen = core.view.nodes.version
        return False
    way.went(wish, now)
    return _ask(core, wish, choice.node_id, 0.0, now)


def _others(core: Core, wish: Wish, now: float) -> list[NodeView]:
    """Nodes to choose among; where none had room, those that have grown since then."""
    request, table = wish.spec.request, core.view.nodes

    def skip(node_id: bytes) -> bool:
        return _refused(wish, node_id, now)

    if wish.seen >= 0 and not request.affinity:
        return grown(request, table, wish.seen, skip)
    return candidates(request, table, core.rank(), skip)


def _place_at(core: Core, wish: Wish, wanted: NodeView, now: float) -> bool:
    """An affinity that is soft, to a node that could run it: soft means elsewhere once that node is gone, not when it is busy."""
    wish.reason = f"node {wanted.node_id.hex()[:12]} is busy"
    room = fits(wish.spec.resources, wanted.available)
    if _refused(wish, wanted.node_id, now) or not _askable(core, wish) or not (room or wish.asked < core.settings.queued_far_limit):
        return False
    return _ask(core, wish, wanted.node_id, 0.0 if room else core.settings.remote_wait_s, now)


def _place_anywhere(core: Core, wish: Wish, now: float) -> bool:
    """Another node may be better than this one, or this one cannot run it."""
    spec = wish.spec
    wanted = core.view.nodes.get(spec.affinity)
    if spec.soft and wanted is not None and could_hold(spec.request, wanted):
        return _place_at(core, wish, wanted, now)
    here = may_run_here(core, spec)
    asks = _askable(core, wish)
    if here:
        wish.seen = -1  # what is free here and there is compared
    quiet = asks and wish.seen >= 0
    nodes = _others(core, wish, now) if asks else []
    everyone = [core.local_view(), *nodes] if here else nodes
    choice = choose_node(spec.request, everyone, core.node_id if here else None, core.rank())
    if choice.node_id == core.node_id:
        return _place_here(core, wish, now)
    if choice.node_id is not None:
        return _ask(core, wish, choice.node_id, 0.0, now)
    if asks:
        wish.seen = core.view.nodes.version
    if wish.infeasible_since < 0 and not quiet:  # else the reason says when it will fail, or is what it was
        wish.reason = choice.reason
    return not here and _queue_far(core, wish, now)


def _queue_far(core: Core, wish: Wish, now: float) -> bool:
    """Only other nodes could ever run it, and they are busy: wait there, where it counts as waiting."""
    if not _askable(core, wish) or wish.asked >= core.settings.queued_far_limit:
        return False
    able = (node for node in core.view.able(wish.spec, core.rank()) if not _refused(wish, node.node_id, now))
    empty = [replace(node, available=node.total) for node in islice(able, LOOK_AT)]
    choice = choose_node(wish.spec.request, empty, None, core.rank())
    return choice.node_id is not None and _ask(core, wish, choice.node_id, core.settings.remote_wait_s, now)


def _place_in_group_elsewhere(core: Core, wish: Wish, now: float) -> bool:
    spec = wish.spec
    places = [node for node in core.view.group_places(spec) if node != core.node_id and node in core.view.nodes and not _refused(wish, node, now)]
    if not places or not _askable(core, wish) or wish.asked >= core.settings.queued_far_limit:
        group = core.view.groups.get(spec.group)
        state = "unknown here" if group is None else "removed" if group.removed else "busy" if group.created else "not placed yet"
        wish.reason = f"placement group {spec.group.hex()[:12]} is {state}"
        return False
    return _ask(core, wish, places[int(core.rank() * len(places))], core.settings.remote_wait_s, now)


def _ask(core: Core, wish: Wish, node_id: bytes, wait_s: float, now: float) -> bool:
    request = core.number("request")
    core.asked[request] = Asked(wish, node_id, now, core.came_back)
    wish.asked += 1
    wish.infeasible_since = -1.0
    core.view.asked(request, node_id, wish.spec.resources, now + core.settings.asked_s)
    client_node = wish.client_node or core.node_id
    core.emit(do.RequestRemoteLease(request, node_id, wish.spec, wish.hops + 1, wish.client, client_node, wait_s))
    return True


# -- actors -----------------------------------------------------------------------------------------


def _place_actors(core: Core, now: float) -> None:
    for start in list(core.waiting_actors):
        if _place_actor(core, start, now):
            core.waiting_actors.remove(start)


def _place_actor(core: Core, start: ActorStart, now: float) -> bool:
    """It takes what it keeps while it lives. What it needs besides, to be placed, has chosen this node among others, and makes nobody wait."""
    spec = start.spec
    for pool in pools(core, spec):
        allocation = pool.allocate(start.held)
        if allocation is None:
            continue
        if not manning.can_man(core, spec.job, spec.environment, actor=True):
            allocation.release()
            return False
        if core.aside:
            core.use_aside(pool, start.held)
        manning.man(core, Placed(spec, allocation, None, start), now)
        return True
    return False
