"""What happened, as told to the control store."""

from __future__ import annotations

import enum
from dataclasses import dataclass

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


@dataclass(slots=True, frozen=True)
class NodeRegistered:
    """What still lives there, so that a restarted control store can compare."""

    node: pb.Node
    live_actors: tuple[bytes, ...] = ()
    live_groups: tuple[bytes, ...] = ()


@dataclass(slots=True, frozen=True)
class NodeBeat:
    request: pb.HeartbeatRequest


@dataclass(slots=True, frozen=True)
class NodeLeft:
    node_id: bytes
    reason: str


@dataclass(slots=True, frozen=True)
class NodeDrainRequested:
    node_id: bytes
    reason: str
    deadline_ms: int


@dataclass(slots=True, frozen=True)
class NodeConnectionLost:
    """Its stream broke, or a call did not reach it: perhaps it is dead."""

    node_id: bytes


@dataclass(slots=True, frozen=True)
class NodeRefused:
    """Its host answers, and nobody listens at its port any more."""

    node_id: bytes


@dataclass(slots=True, frozen=True)
class JobAdded:
    job: pb.Job


@dataclass(slots=True, frozen=True)
class JobFinished:
    job_id: bytes


@dataclass(slots=True, frozen=True)
class ActorRequested:
    request: pb.CreateActorRequest


@dataclass(slots=True, frozen=True)
class ActorStartAnswered:
    actor_id: bytes
    incarnation: int
    node_id: bytes
    status: StartStatus
    worker_id: bytes = b""
    pid: int = 0
    error: bytes = b""
    reason: str = ""
    code: int = 0


@dataclass(slots=True, frozen=True)
class ActorKillRequested:
    actor_id: bytes
    no_restart: bool
    force: bool
    reason: str


@dataclass(slots=True, frozen=True)
class ActorWentOutOfScope:
    actor_id: bytes


@dataclass(slots=True, frozen=True)
class WorkerDied:
    report: pb.ReportWorkerDeathRequest


@dataclass(slots=True, frozen=True)
class GroupRequested:
    group: pb.PlacementGroup


@dataclass(slots=True, frozen=True)
class GroupRemovalRequested:
    query: pb.PlacementGroupQuery


@dataclass(slots=True, frozen=True)
class BundlesChanged:
    """`done` False: the raylet refused, with a reason."""

    node_id: bytes
    step: BundleStep
    group_id: bytes
    attempt: int
    done: bool
    reason: str = ""


@dataclass(slots=True, frozen=True)
class KeyPut:
    request: pb.KvPutRequest


@dataclass(slots=True, frozen=True)
class KeyDeleted:
    request: pb.KvDeleteRequest


@dataclass(slots=True, frozen=True)
class TasksReported:
    request: pb.ReportTasksRequest


@dataclass(slots=True, frozen=True)
class ResourceTickCame:
    """What changed on the nodes since the last one goes out in one batch."""


@dataclass(slots=True, frozen=True)
class TimePassed:
    """Terms are looked at; comes a few times a second."""


Event = (
    NodeRegistered | NodeBeat | NodeLeft | NodeDrainRequested | NodeConnectionLost | NodeRefused | JobAdded | JobFinished | ActorRequested
    | ActorStartAnswered | ActorKillRequested | ActorWentOutOfScope | WorkerDied | GroupRequested | GroupRemovalRequested
    | BundlesChanged | KeyPut | KeyDeleted | TasksReported | ResourceTickCame | TimePassed
)  # fmt: skip
