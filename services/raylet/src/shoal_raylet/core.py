"""The scheduler's data, and the few moves that all its parts share. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

import msgspec
from shoal_base.node_table import LOOK_AT, has_room
from shoal_base.resources import UNIT, Resources, subtract
from shoal_base.scheduling import NodeView

from . import effects as do
from .bundles import CPU, Bundles, Pool
from .leases import ActorStart, Aside, Asked, Borrowed, Lease, Placed, Queue, Reservation, Shape, Wish
from .view import ClusterView
from .workers import Worker, WorkerTable

_GOLDEN = 0.6180339887498949


class Settings(msgspec.Struct):
    """Limits and terms; see README.md."""

    node_id: bytes
    worker_limit: int = 0  # workers for tasks; 0: max(64, 16 * CPU)
    process_limit: int = 4000  # all workers, bounded by the control records
    prestart: int = -1  # workers started in advance; -1: min(CPU, 4)
    max_hops: int = 2
    infeasible_timeout_s: float = 10.0
    autoscaler: bool = False  # then what fits nowhere waits for a node
    idle_grace_s: float = 5.0
    limit_grace_s: float = 2.0  # all workers blocked for so long: nothing will come free
    hold_s: float = 2.0  # what waited so long is not overtaken for as long again
    actor_wait_s: float = 1.0
    aside_s: float = 1.0  # what came back for an actor or for bundles is kept for them so long: the GCS asks again within it
    remote_wait_s: float = 5.0
    refused_pause_s: float = 0.25
    asked_s: float = 1.0  # what was asked of a node counts as taken for so long, or until it answers
    word_s: float = 0.25  # what a node says of itself in an answer outweighs its reports for so long: they may be older
    way_s: float = 0.05  # a lease of another node that was used for so long was worth the way, in any case
    near_s: float = 0.05  # while leases come back here at this pace, a class that is not worth the way waits for them
    pause_most_s: float = 0.5  # so long at most, until one more is asked far
    finished_grace_s: float = 1.0  # an idle worker of a finished job (a detached actor may still use it)
    prepare_timeout_s: float = 30.0
    fork_tries: int = 3
    asked_limit: int = 256  # of one wish, at other raylets
    queued_far_limit: int = 16  # of one wish, waiting at other raylets


class Core:
    def __init__(self, settings: Settings, total: Mapping[str, int], labels: Mapping[str, str], gpus: Mapping[str, int] | None = None) -> None:
        self.settings = settings
        self.node_id = settings.node_id
        self.labels = dict(labels)
        self.pool = Pool(total, gpus)
        self.bundles = Bundles(self.pool)
        self.workers = WorkerTable()
        self.view = ClusterView()
        self.queue = Queue()
        self.wishes: dict[bytes, dict[int, Wish]] = {}  # of local clients
        self.guests: dict[int, Wish] = {}  # requests by other raylets
        self.asked: dict[int, Asked] = {}  # our requests at other raylets
        self.leases: dict[int, Lease] = {}
        self.by_client: dict[bytes, set[int]] = {}
        self.borrowed: dict[tuple[bytes, int], Borrowed] = {}  # by (node, lease)
        self.overtaken: dict[bytes, set[tuple[bytes, int]]] = {}  # by client: (node, lease) that was asked back before its grant was here
        self.held_by_job: dict[bytes, int] = {}
        self.unmanned: dict[str, deque[Placed]] = {}
        self.unmanned_actors = 0
        self.fork_failures: dict[str, int] = {}
        self.finished_jobs: OrderedDict[bytes, None] = OrderedDict()
        self.actors: dict[bytes, ActorStart] = {}
        self.waiting_actors: deque[ActorStart] = deque()
        self.waiting_bundles: deque[Reservation] = deque()
        self.aside: list[Aside] = []
        self.now = 0.0  # of the event that is handled
        self.came_back_at = float("-inf")  # a lease of this node, the last time
        self.came_back = 0  # so many have
        self.blocked: set[Worker] = set()
        self.hold: Wish | None = None
        self.draining = ""
        self.version = 0  # grows when something comes free
        self.full: set[Shape] = set()  # what did not fit since then
        self.dirty = False  # something may be placeable
        self.out: list[do.Effect] = []
        self._numbers = {"lease": 0, "fork": 0, "request": 0}
        self._rank = int.from_bytes(settings.node_id[:4], "little") / 2**32
        cpus = max(1, self.pool.total.get(CPU, 0) // UNIT)
        self.cpus = cpus
        self.worker_limit = settings.worker_limit or max(64, 16 * cpus)
        self.prestart = settings.prestart if settings.prestart >= 0 else min(cpus, 4)

    def emit(self, effect: do.Effect) -> None:
        self.out.append(effect)

    def number(self, kind: str) -> int:
        self._numbers[kind] += 1
        return self._numbers[kind]

    def count(self, kind: str) -> int:
        return self._numbers[kind]

    def rank(self) -> float:
        """Evenly spread in [0, 1), different on each node, and no randomness: the same story gives the same decisions."""
        self._rank = (self._rank + _GOLDEN) % 1.0
        return self._rank

    def freed(self) -> None:
        """Something came free: what waited may be tried again."""
        self.version += 1
        self.dirty = True
        self.full.clear()

    def local_view(self) -> NodeView:
        return NodeView(
            node_id=self.node_id, total=self.pool.total, available=self.pool.available(), labels=self.labels,
            alive=True, draining=bool(self.draining), queued=len(self.queue), bundles={},
        )  # fmt: skip

    def living_nodes(self) -> list[NodeView]:
        return [self.local_view(), *self.view.nodes.values()]

    def available(self) -> Resources:
        return self.pool.available()

    def waiting(self) -> bool:
        return bool(self.queue or self.waiting_actors or self.waiting_bundles)

    def spread_over(self, wish: Wish) -> int:
        """How many nodes can lend to it now, or do, as far as they are looked at; 0: it is not to spread. Its client waits a moment for all of them."""
        spec = wish.spec
        if not spec.spread or spec.group:
            return 0
        nodes = {node_id for (node_id, _lease), borrowed in self.borrowed.items() if borrowed.wish is wish}
        nodes.update(asked.node_id for asked in self.asked.values() if asked.wish is wish)
        if any(lease.wish is wish for lease in self.leases.values()) or has_room(spec.request, self.local_view()):
            nodes.add(self.node_id)
        for node in self.view.able(spec, self.rank()):
            if len(nodes) >= LOOK_AT:
                break
            if has_room(spec.request, node) and wish.refused_by.get(node.node_id, 0.0) <= self.now:
                nodes.add(node.node_id)
        return len(nodes)

    # -- what is kept for actors and bundles ---------------------------------------------------------

    def spares(self, pool: Pool, need: Mapping[str, int]) -> bool:
        """Whether a wish may take it: what is kept aside is not for wishes."""
        kept = [row.resources for row in self.aside if row.pool is pool]
        return all(pool.free.get(name, 0) - sum(resources.get(name, 0) for resources in kept) >= units for name, units in need.items() if units)

    def use_aside(self, pool: Pool, taken: Mapping[str, int]) -> None:
        """An actor or bundles took so much: the oldest of what was kept for such goes with it."""
        left = dict(taken)
        for row in self.aside:
            if row.pool is pool:
                part = {name: min(units, left.get(name, 0)) for name, units in row.resources.items()}
                subtract(row.resources, part)
                subtract(left, part)
        self.aside = [row for row in self.aside if any(row.resources.values())]

    def end_aside(self) -> None:
        """Nobody came for it in time."""
        over = [row for row in self.aside if row.until <= self.now]
        if over:
            self.aside = [row for row in self.aside if row.until > self.now]
            self.freed()

    # -- wishes -----------------------------------------------------------------------------------

    def enqueue(self, wish: Wish, now: float) -> None:
        """Keeps the queue to its invariant: it holds exactly the wishes that are open."""
        if wish.open > 0:
            if not wish.queued:
                wish.since = now
                wish.tried = wish.tried_view = wish.seen = -1
                wish.infeasible_since = wish.limited_since = -1.0
                self.queue.add(wish)
                self.dirty = True
        elif wish.queued:
            self.queue.discard(wish)
            wish.reason = ""
            if self.hold is wish:
                self.hold = None

    def refuse(self, wish: Wish, code: int, reason: str, now: float) -> None:
        """Fails every unit that is not on its way."""
        if wish.request:
            self.emit(do.AnswerLease(wish.request, reason=reason))
            self.guests.pop(wish.request, None)
        else:
            self.emit(do.RefuseLease(wish.client, wish.class_id, code, reason))
        wish.want = 0
        self.drop_placed(lambda placed: placed.wish is wish)
        self.enqueue(wish, now)

    # -- what is placed and not yet manned ----------------------------------------------------------

    def drop_placed(self, doomed: object, limit: int = -1) -> list[Placed]:
        """Gives back the resources of those that `doomed(placed)` names, the latest first."""
        dropped: list[Placed] = []
        for environment, waiting in list(self.unmanned.items()):
            for placed in list(reversed(waiting)):
                if len(dropped) == limit:
                    return dropped
                if doomed(placed):  # type: ignore[operator]
                    waiting.remove(placed)
                    dropped.append(placed)
                    self._undo(placed)
            if not waiting:
                del self.unmanned[environment]
        return dropped

    def _undo(self, placed: Placed) -> None:
        placed.allocation.release()
        if placed.wish is not None:
            placed.wish.placed -= 1
        else:
            self.unmanned_actors -= 1
        self.bundles.settle()
        self.freed()

    # -- leases -----------------------------------------------------------------------------------

    def add_lease(self, placed: Placed, worker: Worker, client: bytes, client_node: bytes, now: float) -> Lease:
        lease = Lease(self.number("lease"), worker, placed.allocation, placed.spec, client, client_node, placed.wish, now)
        worker.lease = lease
        self.leases[lease.id] = lease
        if placed.wish is not None:
            self.by_client.setdefault(client, set()).add(lease.id)
            placed.wish.held += 1
            self.held_by_job[placed.spec.job] = self.held_by_job.get(placed.spec.job, 0) + 1
        return lease

    def end_lease(self, lease: Lease) -> None:
        if self.leases.pop(lease.id, None) is None:
            return
        lease.worker.lease = None
        if lease.wish is not None:
            self.came_back_at = self.now
            self.came_back += 1
            lease.wish.held -= 1
            owned = self.by_client[lease.client]
            owned.discard(lease.id)
            if not owned:
                del self.by_client[lease.client]
            job = lease.spec.job
            self.held_by_job[job] -= 1
            if not self.held_by_job[job]:
                del self.held_by_job[job]
        self.blocked.discard(lease.worker)
        lease.worker.blocked = False
        if lease.for_start:
            self.aside.append(Aside(lease.allocation.pool, dict(lease.allocation.returns()), self.now + self.settings.aside_s))
        lease.allocation.release()
        self.bundles.settle()
        self.freed()
