"""What happens to the scheduler: past tense, one dataclass each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal_base.resources import Resources
from shoal_base.scheduling import NodeView

from .leases import LeaseSpec


@dataclass(slots=True)
class Started:
    """The node serves: time to start workers in advance."""


@dataclass(slots=True)
class WorkerRegistered:
    fork: int
    worker_id: bytes
    pid: int


@dataclass(slots=True)
class ForkFailed:
    """A worker ended, or was given up, before it registered."""

    fork: int
    why: str


@dataclass(slots=True)
class WorkerDied:
    worker_id: bytes
    code: int
    cause: str
    started_task: bytes = bytes(16)


@dataclass(slots=True)
class MemoryExceeded:
    """It is to be ended: the node is short of memory, or the worker used more than its limit."""

    worker_id: bytes
    code: int
    cause: str


@dataclass(slots=True)
class WorkerDiedElsewhere:
    worker_id: bytes


@dataclass(slots=True)
class LeaseDemanded:
    client: bytes
    class_id: int
    want: int
    spec: LeaseSpec | None = None  # None: sent before


@dataclass(slots=True)
class LeaseReturned:
    """`running`: the worker still runs a task, so a client that is gone takes it along."""

    lease_id: int
    node_id: bytes
    discard: bool = False
    client_gone: bool = False
    running: bool = False


@dataclass(slots=True)
class ClientGone:
    client: bytes
    running: frozenset[bytes] = frozenset()  # workers lent to it that have a task running


@dataclass(slots=True)
class RemoteLeaseRequested:
    request: int
    spec: LeaseSpec
    hops: int
    client: bytes
    client_node: bytes
    wait_s: float


@dataclass(slots=True)
class RemoteLeaseAnswered:
    request: int
    granted: bool
    lease_id: int = 0
    worker_id: bytes = b""
    node_id: bytes = b""
    address: str = ""
    reason: str = ""


@dataclass(slots=True)
class ReclaimPassedOn:
    """Another raylet wants its lease back from a client of this node."""

    client: bytes
    lease_id: int
    node_id: bytes


@dataclass(slots=True)
class ViewChanged:
    nodes: list[NodeView]


@dataclass(slots=True)
class NodeLost:
    node_id: bytes
    cause: str


@dataclass(slots=True)
class GroupChanged:
    """Where a placement group's bundles lie now. `places`: index -> (node, resources)."""

    group: bytes
    places: Mapping[int, tuple[bytes, Resources]]
    created: bool
    removed: bool


@dataclass(slots=True)
class WorkerBlocked:
    worker_id: bytes


@dataclass(slots=True)
class WorkerUnblocked:
    worker_id: bytes


@dataclass(slots=True)
class OwnershipChanged:
    worker_id: bytes
    objects: bool
    leaving: bool


@dataclass(slots=True)
class ActorRequested:
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


@dataclass(slots=True)
class ActorCreated:
    worker_id: bytes
    actor_id: bytes
    ok: bool
    error: bytes = b""


@dataclass(slots=True)
class KillRequested:
    worker_id: bytes
    actor_id: bytes
    force: bool
    reason: str


@dataclass(slots=True)
class BundlesRequested:
    request: int
    group: bytes
    bundles: dict[int, Resources]


@dataclass(slots=True)
class BundlesCommitted:
    request: int
    group: bytes
    indexes: list[int]


@dataclass(slots=True)
class BundlesCancelled:
    group: bytes
    indexes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class JobFinished:
    job: bytes


@dataclass(slots=True)
class DrainStarted:
    reason: str


@dataclass(slots=True)
class Ticked:
    """Some time went by."""


Event = (
    Started | WorkerRegistered | ForkFailed | WorkerDied | MemoryExceeded | WorkerDiedElsewhere | LeaseDemanded | LeaseReturned | ClientGone
    | RemoteLeaseRequested | RemoteLeaseAnswered | ReclaimPassedOn | ViewChanged | NodeLost | GroupChanged | WorkerBlocked | WorkerUnblocked
    | ActorRequested | ActorCreated | OwnershipChanged | KillRequested | BundlesRequested | BundlesCommitted | BundlesCancelled
    | JobFinished | DrainStarted | Ticked
)  # fmt: skip
