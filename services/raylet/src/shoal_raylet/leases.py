"""What is wished, and what is lent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import msgspec
from shoal_base.labels import parse_selector
from shoal_base.resources import Resources, add, show
from shoal_base.scheduling import Request

from .bundles import Allocation, Pool
from .v1 import raylet_pb2 as pb
from .workers import Worker, environment_key

# What decides whether something fits: resources, group, bundle.
Shape = tuple[frozenset[tuple[str, int]], bytes, int]


class LeaseSpec(msgspec.Struct, frozen=True, eq=False):
    """A scheduling class, read from the wire. `raw` is the LeaseClass as it came, to be passed on unchanged."""

    raw: bytes
    resources: Resources
    job: bytes
    depth: int
    name: str
    group: bytes
    bundle_index: int
    affinity: bytes
    soft: bool
    spread: bool
    runtime_env: str
    environment: str
    capture_child_tasks: bool
    max_calls: int
    final: bool  # its tasks, or its actor, cannot be tried again
    request: Request
    shape: Shape
    plain: bool  # no strategy, affinity, group or soft selector

    @classmethod
    def parse(cls, raw: bytes) -> LeaseSpec:
        """Raises ValueError naming what is wrong with it."""
        return cls.read(pb.LeaseClass.FromString(raw), raw)

    @classmethod
    def read(cls, message: pb.LeaseClass, raw: bytes | None = None) -> LeaseSpec:
        resources = {name: units for name, units in message.resources.items() if units}
        negative = {name: units for name, units in resources.items() if units < 0}
        if negative:
            raise ValueError(f"resources cannot be negative: {show(negative)}")
        if message.strategy not in ("", "DEFAULT", "SPREAD"):
            raise ValueError(f"scheduling strategy {message.strategy!r} is unknown; use '' or 'SPREAD'")
        spread = message.strategy == "SPREAD"
        group = bytes(message.placement_group_id)
        request = Request(
            resources=resources,
            strategy="SPREAD" if spread else "",
            affinity=bytes(message.node_id),
            soft=message.soft,
            selector=parse_selector(dict(message.label_selector)),
            soft_selector=parse_selector(dict(message.soft_label_selector)),
            pg_id=group,
            bundle_index=message.bundle_index if group else -1,
            argument_bytes={bytes(place.node_id): place.size_bytes for place in message.arguments},
        )
        return cls(
            raw=message.SerializeToString() if raw is None else raw,
            resources=resources,
            job=bytes(message.job_id),
            depth=message.depth,
            name=message.name,
            group=group,
            bundle_index=message.bundle_index if group else -1,
            affinity=bytes(message.node_id),
            soft=message.soft,
            spread=spread,
            runtime_env=message.runtime_env,
            environment=environment_key(message.runtime_env, resources.get("memory", 0)),
            capture_child_tasks=message.capture_child_tasks,
            max_calls=message.max_calls,
            final=message.final,
            request=request,
            shape=(frozenset(resources.items()), group, message.bundle_index if group else -1),
            plain=not (spread or group or message.node_id or request.soft_selector),
        )

    def wish(self) -> str:
        """For people."""
        parts = [show(self.resources)]
        if self.affinity:
            parts.append(f"on node {self.affinity.hex()[:12]}{' if possible' if self.soft else ''}")
        if self.group:
            at = "any bundle" if self.bundle_index < 0 else f"bundle {self.bundle_index}"
            parts.append(f"in {at} of placement group {self.group.hex()[:12]}")
        if self.request.selector:
            parts.append(f"on a node with labels {self.request.selector}")
        return f"{self.name or 'a task'} needs {' '.join(parts)}"


class Wish(msgspec.Struct, eq=False):
    """How many more workers one client wants for one class; or one request from another raylet (`request` is not 0)."""

    client: bytes
    class_id: int
    spec: LeaseSpec
    client_node: bytes = b""
    request: int = 0
    hops: int = 0
    deadline: float = float("inf")
    want: int = 0
    placed: int = 0  # have resources here and wait for their worker
    asked: int = 0  # asked of other raylets
    held: int = 0  # leases that live
    since: float = 0.0  # waits since then
    reason: str = ""
    infeasible_since: float = -1.0
    limited_since: float = -1.0
    tried: int = -1  # the version of capacity at the last failed try
    tried_view: int = -1
    seen: int = -1  # no other node had room when the table of nodes was of that version: only those that grew since are looked at
    refused_by: dict[bytes, float] = msgspec.field(default_factory=dict)  # node -> not before then
    pause_s: float = 0.0  # leases of other nodes came back before they were worth the way: so long between two; see way.py
    near_until: float = 0.0
    learnt_at: float = float("-inf")
    queued: bool = False
    runs_here: bool | None = None  # of a plain class: this node could run it

    @property
    def open(self) -> int:
        return self.want - self.placed - self.asked


class Lease(msgspec.Struct, eq=False):
    """A worker that is lent, or an actor's worker (`wish` is None)."""

    id: int
    worker: Worker
    allocation: Allocation
    spec: LeaseSpec
    client: bytes
    client_node: bytes
    wish: Wish | None
    since: float
    reclaimed: bool = False
    reclaimed_at: float = 0.0
    for_start: bool = False  # it was asked back for an actor or for bundles, which have no turn among the wishes


class Asked(msgspec.Struct, frozen=True):
    """A request to another raylet. `came_back`: how many leases of this node had come back by then."""

    wish: Wish
    node_id: bytes
    at: float
    came_back: int


class Borrowed(msgspec.Struct, frozen=True):
    """A lease of another node that a client of this one has, and what was when it was asked for."""

    wish: Wish
    worker_id: bytes
    asked_at: float
    came_back: int


class ActorStart(msgspec.Struct, eq=False):
    """An actor on its way or alive. `requests` are the StartActor calls that wait for it."""

    actor_id: bytes
    incarnation: int
    creation_task: bytes
    spec: LeaseSpec
    held: Resources
    owner: bytes
    owner_node: bytes
    detached: bool
    name: str
    since: float
    requests: list[int]
    worker: Worker | None = None
    alive: bool = False


class Reservation(msgspec.Struct, eq=False):
    """Bundles that wait for room, with the call that asks for them."""

    request: int
    group: bytes
    bundles: Mapping[int, Resources]
    deadline: float

    def total(self) -> Resources:
        out: Resources = {}
        for resources in self.bundles.values():
            add(out, resources)
        return out


class Aside(msgspec.Struct, eq=False):
    """What a lease gave back that was asked for an actor or for bundles: kept from wishes, or they would take it piece by piece for ever."""

    pool: Pool
    resources: Resources
    until: float


class Placed(msgspec.Struct, eq=False):
    """Resources are taken, the worker is on its way."""

    spec: LeaseSpec
    allocation: Allocation
    wish: Wish | None
    actor: ActorStart | None


class Queue:
    """Wishes that are open, by job: round robin over jobs, then over the wishes of a job."""

    def __init__(self) -> None:
        self.order: deque[bytes] = deque()
        self._jobs: dict[bytes, deque[Wish]] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __len__(self) -> int:
        return sum(len(wishes) for wishes in self._jobs.values())

    def add(self, wish: Wish) -> None:
        if wish.queued:
            return
        wish.queued = True
        job = wish.spec.job
        if job not in self._jobs:
            self._jobs[job] = deque()
            self.order.append(job)
        self._jobs[job].append(wish)

    def discard(self, wish: Wish) -> None:
        if not wish.queued:
            return
        wish.queued = False
        job = wish.spec.job
        wishes = self._jobs[job]
        wishes.remove(wish)
        if not wishes:
            del self._jobs[job]
            self.order.remove(job)

    def of(self, job: bytes, *, deepest: bool) -> list[Wish]:
        """In the order to be tried. `deepest`: somebody is blocked, so what it waits for goes first, or recursion costs breadth."""
        wishes = list(self._jobs.get(job, ()))
        if deepest:
            wishes.sort(key=lambda wish: -wish.spec.depth)
        return wishes

    def served(self, wish: Wish) -> None:
        """Its turn is over: behind the others of its job."""
        wishes = self._jobs[wish.spec.job]
        wishes.remove(wish)
        wishes.append(wish)

    def all(self) -> list[Wish]:
        return [wish for wishes in self._jobs.values() for wish in wishes]

    def fair(self) -> list[Wish]:
        """One of each job in turn."""
        if len(self._jobs) == 1:
            return self.all()
        rows = [list(self._jobs[job]) for job in self.order]
        return [row[i] for i in range(max(map(len, rows), default=0)) for row in rows if i < len(row)]


def totals(wishes: list[Wish], explain: Callable[[Wish], str]) -> list[tuple[Mapping[str, int], int, str]]:
    """(resources, count, reason) of what waits, alike ones together."""
    out: dict[tuple[tuple[str, int], ...], list[object]] = {}
    for wish in wishes:
        key = tuple(sorted(wish.spec.resources.items()))
        row = out.setdefault(key, [wish.spec.resources, 0, wish])
        row[1] = int(row[1]) + wish.open  # type: ignore[call-overload]
    return [(row[0], row[1], explain(row[2])) for row in out.values()]  # type: ignore[misc, arg-type]
