"""What happened, as told to the control store."""

from __future__ import annotations

import enum

from msgspec import Struct

from ..v1 import gcs_pb2 as pb


class StartStatus(enum.IntEnum):
    """How a raylet ended StartActor. The numbers are those of shoal.raylet.v1.StartActorStatus."""

    STARTED = 0
    NO_RESOURCES = 1
    INIT_RAISED = 2
    WORKER_DIED = 3
    ENVIRONMENT_FAILED = 4


class BundleStep(enum.IntEnum):
    """The numbers are those of shoal.raylet.v1.BundleStep."""

    PREPARE = 0
    COMMIT = 1
    PREPARE_AND_COMMIT = 2
    CANCEL = 3


class NodeRegistered(Struct, frozen=True):
    """What still lives there, so that a restarted control store can compare."""

    node: pb.Node
    live_actors: tuple[bytes, ...] = ()
    live_groups: tuple[bytes, ...] = ()


class NodeBeat(Struct, frozen=True):
    request: pb.HeartbeatRequest


class NodeLeft(Struct, frozen=True):
    node_id: bytes
    reason: str


class NodeDrainRequested(Struct, frozen=True):
    node_id: bytes
    reason: str
    within_ms: int = 0  # from now; 0: no deadline


class NodeConnectionLost(Struct, frozen=True):
    """Its stream broke, or a call did not reach it: perhaps it is dead."""

    node_id: bytes


class NodeRefused(Struct, frozen=True):
    """Its host answers, and nobody listens at its port any more."""

    node_id: bytes


class JobAdded(Struct, frozen=True):
    job: pb.Job


class JobFinished(Struct, frozen=True):
    job_id: bytes


class ActorRequested(Struct, frozen=True):
    request: pb.CreateActorRequest


class ActorStartAnswered(Struct, frozen=True):
    actor_id: bytes
    incarnation: int
    node_id: bytes
    status: StartStatus
    worker_id: bytes = b""
    pid: int = 0
    error: bytes = b""
    reason: str = ""
    code: int = 0


class ActorKillRequested(Struct, frozen=True):
    actor_id: bytes
    no_restart: bool
    force: bool
    reason: str


class ActorWentOutOfScope(Struct, frozen=True):
    actor_id: bytes


class CheckpointKept(Struct, frozen=True):
    state: pb.ActorCheckpoint


class ActorArgumentsKept(Struct, frozen=True):
    arguments: pb.ActorArguments


class WorkerDied(Struct, frozen=True):
    report: pb.ReportWorkerDeathRequest


class GroupRequested(Struct, frozen=True):
    group: pb.PlacementGroup


class GroupRemovalRequested(Struct, frozen=True):
    query: pb.PlacementGroupQuery


class BundlesChanged(Struct, frozen=True):
    """`done` False: the raylet refused, with a reason."""

    node_id: bytes
    step: BundleStep
    group_id: bytes
    attempt: int
    done: bool
    reason: str = ""


class KeyPut(Struct, frozen=True):
    request: pb.KvPutRequest


class KeyDeleted(Struct, frozen=True):
    request: pb.KvDeleteRequest


class ResourceTickCame(Struct, frozen=True):
    """What changed on the nodes since the last one goes out in one batch."""


class TimePassed(Struct, frozen=True):
    """Terms are looked at; comes a few times a second."""


Event = (
    NodeRegistered | NodeBeat | NodeLeft | NodeDrainRequested | NodeConnectionLost | NodeRefused | JobAdded | JobFinished | ActorRequested
    | ActorStartAnswered | ActorKillRequested | ActorWentOutOfScope | CheckpointKept | ActorArgumentsKept | WorkerDied | GroupRequested | GroupRemovalRequested
    | BundlesChanged | KeyPut | KeyDeleted | ResourceTickCame | TimePassed
)  # fmt: skip
