"""What the scheduler wants done: imperative, one struct each. The server carries them out in order."""

from __future__ import annotations

from msgspec import Struct, field
from shoal_base.resources import Resources

from .leases import LeaseSpec


class ForkWorker(Struct):
    fork: int
    environment: str


class BeginLease(Struct):
    """Comes before the grant, so that a worker knows its lease before the first task."""

    worker_id: bytes
    lease_id: int
    spec: LeaseSpec
    owner: bytes
    owner_node: bytes
    resources: Resources
    gpus: tuple[str, ...] = ()
    incarnation: int = 0  # of the actor that is to be created under it


class GrantLease(Struct):
    """`address` is empty when the worker is on this node."""

    client: bytes
    class_id: int
    lease_id: int
    worker_id: bytes
    node_id: bytes
    address: str = ""
    spread_over: int = 0  # of a class that is to spread: how many nodes can lend to it now


class RefuseLease(Struct):
    client: bytes
    class_id: int
    code: int
    reason: str


class ReclaimLease(Struct):
    """To the client, through its raylet when it is on another node."""

    client: bytes
    client_node: bytes
    lease_id: int
    node_id: bytes


class AnswerLease(Struct):
    """The answer to another raylet's request; lease 0: refused."""

    request: int
    lease_id: int = 0
    worker_id: bytes = b""
    node_id: bytes = b""
    address: str = ""
    reason: str = ""


class RequestRemoteLease(Struct):
    request: int
    node_id: bytes
    spec: LeaseSpec
    hops: int
    client: bytes
    client_node: bytes
    wait_s: float


class ReturnRemoteLease(Struct):
    node_id: bytes
    lease_id: int
    discard: bool = False
    client_gone: bool = False


class CreateActorOn(Struct):
    worker_id: bytes
    actor_id: bytes
    creation_task: bytes


class AnswerActor(Struct):
    request: int
    status: int  # StartActorStatus
    worker_id: bytes = b""
    pid: int = 0
    error: bytes = b""
    reason: str = ""
    code: int = 0


class AnswerBundles(Struct):
    request: int
    reason: str = ""  # empty: done


class ExitWorker(Struct):
    """Ask it to end; after a short while it is killed, unless `patient`: then it ends after its current task, whenever that is."""

    worker_id: bytes
    force: bool
    reason: str
    patient: bool = False


class KillWorker(Struct):
    worker_id: bytes
    reason: str


class TellWorkerDied(Struct):
    """To everyone: local clients, and through the GCS the other nodes."""

    worker_id: bytes
    pid: int
    started_task: bytes
    code: int
    cause: str
    actors: list[bytes] = field(default_factory=list)
    intended: bool = False
    migrated: bool = False  # it ended so that its actor may start elsewhere


Effect = (
    ForkWorker | BeginLease | GrantLease | RefuseLease | ReclaimLease | AnswerLease | RequestRemoteLease | ReturnRemoteLease | CreateActorOn | AnswerActor
    | AnswerBundles | ExitWorker | KillWorker | TellWorkerDied
)  # fmt: skip
