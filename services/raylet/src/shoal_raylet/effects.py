"""What the scheduler wants done: imperative, one dataclass each. The server carries them out in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_base.resources import Resources

from .leases import LeaseSpec


@dataclass(slots=True)
class ForkWorker:
    fork: int
    environment: str


@dataclass(slots=True)
class BeginLease:
    """Comes before the grant, so that a worker knows its lease before the first task."""

    worker_id: bytes
    lease_id: int
    spec: LeaseSpec
    owner: bytes
    owner_node: bytes
    resources: Resources
    gpus: tuple[str, ...] = ()


@dataclass(slots=True)
class GrantLease:
    """`address` is empty when the worker is on this node."""

    client: bytes
    class_id: int
    lease_id: int
    worker_id: bytes
    node_id: bytes
    address: str = ""


@dataclass(slots=True)
class RefuseLease:
    client: bytes
    class_id: int
    code: int
    reason: str


@dataclass(slots=True)
class ReclaimLease:
    """To the client, through its raylet when it is on another node."""

    client: bytes
    client_node: bytes
    lease_id: int
    node_id: bytes


@dataclass(slots=True)
class AnswerLease:
    """The answer to another raylet's request; lease 0: refused."""

    request: int
    lease_id: int = 0
    worker_id: bytes = b""
    node_id: bytes = b""
    address: str = ""
    reason: str = ""


@dataclass(slots=True)
class RequestRemoteLease:
    request: int
    node_id: bytes
    spec: LeaseSpec
    hops: int
    client: bytes
    client_node: bytes
    wait_s: float


@dataclass(slots=True)
class ReturnRemoteLease:
    node_id: bytes
    lease_id: int
    discard: bool = False
    client_gone: bool = False


@dataclass(slots=True)
class CreateActorOn:
    worker_id: bytes
    actor_id: bytes
    creation_task: bytes


@dataclass(slots=True)
class AnswerActor:
    request: int
    status: int  # StartActorStatus
    worker_id: bytes = b""
    pid: int = 0
    error: bytes = b""
    reason: str = ""
    code: int = 0


@dataclass(slots=True)
class AnswerBundles:
    request: int
    reason: str = ""  # empty: done


@dataclass(slots=True)
class ExitWorker:
    """Ask it to end; after a short while it is killed, unless `patient`: then it ends after its current task, whenever that is."""

    worker_id: bytes
    force: bool
    reason: str
    patient: bool = False


@dataclass(slots=True)
class KillWorker:
    worker_id: bytes
    reason: str


@dataclass(slots=True)
class TellWorkerDied:
    """To everyone: local clients, and through the GCS the other nodes."""

    worker_id: bytes
    pid: int
    started_task: bytes
    code: int
    cause: str
    actors: list[bytes] = field(default_factory=list)
    intended: bool = False


Effect = (
    ForkWorker | BeginLease | GrantLease | RefuseLease | ReclaimLease | AnswerLease | RequestRemoteLease | ReturnRemoteLease | CreateActorOn | AnswerActor
    | AnswerBundles | ExitWorker | KillWorker | TellWorkerDied
)  # fmt: skip
