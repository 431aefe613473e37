"""What happens to the scheduler: past tense, one struct each."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from shoal_base.resources import Resources
from shoal_base.scheduling import NodeView

from .leases import LeaseSpec


class Started(Struct):
    """The node serves: time to start workers in advance."""


class WorkerRegistered(Struct):
    fork: int
    worker_id: bytes
    pid: int


class ForkFailed(Struct):
    """A worker ended, or was given up, before it registered."""

    fork: int
    why: str


class WorkerDied(Struct):
    worker_id: bytes
    code: int
    cause: str
    started_task: bytes = bytes(16)


class MemoryExceeded(Struct):
    """It is to be ended: the node is short of memory, or the worker used more than its limit."""

    worker_id: bytes
    code: int
    cause: str


class WorkerDiedElsewhere(Struct):
    """`running`: workers of this node that were lent to it and have a task running."""

    worker_id: bytes
    running: frozenset[bytes] = frozenset()


class LeaseDemanded(Struct):
    client: bytes
    class_id: int
    want: int
    spec: LeaseSpec | None = None  # None: sent before


class LeaseReturned(Struct):
    """`running`: the worker still runs a task, so a client that is gone takes it along."""

    lease_id: int
    node_id: bytes
    discard: bool = False
    client_gone: bool = False
    running: bool = False


class LeaseIdle(Struct):
    """Its worker has run nothing for long, though clients return what they do not need within milliseconds."""

    lease_id: int


class ClientGone(Struct):
    client: bytes
    running: frozenset[bytes] = frozenset()  # workers lent to it that have a task running


class RemoteLeaseRequested(Struct):
    request: int
    spec: LeaseSpec
    hops: int
    client: bytes
    client_node: bytes
    wait_s: float


class RemoteLeaseAnswered(Struct):
    request: int
    granted: bool
    lease_id: int = 0
    worker_id: bytes = b""
    node_id: bytes = b""
    address: str = ""
    reason: str = ""
    free: Mapping[str, int] | None = None  # what the node that was asked has left, by its own word; None: it has not answered


class NodeSpoke(Struct):
    """In an answer, such as to leases that went back there: what it has free."""

    node_id: bytes
    free: Mapping[str, int]


class ReclaimPassedOn(Struct):
    """Another raylet wants its lease back from a client of this node."""

    client: bytes
    lease_id: int
    node_id: bytes


class ViewChanged(Struct):
    nodes: list[NodeView]


class NodeLost(Struct):
    node_id: bytes
    cause: str


class GroupChanged(Struct):
    """Where a placement group's bundles lie now. `places`: index -> (node, resources)."""

    group: bytes
    places: Mapping[int, tuple[bytes, Resources]]
    created: bool
    removed: bool


class WorkerBlocked(Struct):
    worker_id: bytes


class WorkerUnblocked(Struct):
    worker_id: bytes


class OwnershipChanged(Struct):
    worker_id: bytes
    objects: bool
    leaving: bool


class ActorRequested(Struct):
    request: int
    actor_id: bytes
    incarnation: int
    spec: LeaseSpec
    held: Resources
    creation_task: bytes = b""
    owner: bytes = b""
    owner_node: bytes = b""
    detached: bool = False
    name: str = ""


class ActorCreated(Struct):
    worker_id: bytes
    actor_id: bytes
    ok: bool
    error: bytes = b""


class KillRequested(Struct):
    worker_id: bytes
    actor_id: bytes
    force: bool
    reason: str
    migrate: bool = False  # its actor is to start elsewhere


class BundlesRequested(Struct):
    request: int
    group: bytes
    bundles: dict[int, Resources]
    wait_s: float = 0.0  # how long tasks may take to make room


class BundlesCommitted(Struct):
    request: int
    group: bytes
    indexes: list[int]


class BundlesCancelled(Struct):
    group: bytes
    indexes: list[int] = field(default_factory=list)


class JobFinished(Struct):
    job: bytes


class DrainStarted(Struct):
    reason: str


class Ticked(Struct):
    """Some time went by."""


Event = (
    Started | WorkerRegistered | ForkFailed | WorkerDied | MemoryExceeded | WorkerDiedElsewhere | LeaseDemanded | LeaseReturned | LeaseIdle | ClientGone
    | RemoteLeaseRequested | RemoteLeaseAnswered | NodeSpoke | ReclaimPassedOn | ViewChanged | NodeLost | GroupChanged | WorkerBlocked | WorkerUnblocked
    | ActorRequested | ActorCreated | OwnershipChanged | KillRequested | BundlesRequested | BundlesCommitted | BundlesCancelled
    | JobFinished | DrainStarted | Ticked
)  # fmt: skip
