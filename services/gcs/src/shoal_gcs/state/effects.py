"""What the control store wants done. The shell does it in this order, and calls to one node in this order too."""

from __future__ import annotations

from dataclasses import dataclass

from ..v1 import gcs_pb2 as pb
from .events import BundleStep


@dataclass(slots=True, frozen=True)
class Persist:
    table: str
    key: bytes
    record: bytes


@dataclass(slots=True, frozen=True)
class DeleteRecord:
    table: str
    key: bytes


@dataclass(slots=True, frozen=True)
class Publish:
    """One payload on several channels, so that it is serialised once."""

    channels: tuple[str, ...]
    payload: bytes


@dataclass(slots=True, frozen=True)
class Answer:
    """What the request that caused the event is answered with."""

    message: pb.Actor | pb.Job | pb.PlacementGroup | pb.KvPutReply | pb.KvDeleteReply


@dataclass(slots=True, frozen=True)
class StartActor:
    node_id: bytes
    incarnation: int
    actor: pb.Actor
    spec: pb.CreateActorRequest


@dataclass(slots=True, frozen=True)
class KillActor:
    """Idempotent. `worker_id` is empty while it is not known; force: do not wait for the running call."""

    node_id: bytes
    actor_id: bytes
    worker_id: bytes
    force: bool
    reason: str


@dataclass(slots=True, frozen=True)
class ChangeBundles:
    """Answered by the event BundlesChanged with the same group, attempt and step."""

    node_id: bytes
    step: BundleStep
    group_id: bytes
    attempt: int
    bundles: tuple[pb.Bundle, ...]


@dataclass(slots=True, frozen=True)
class FinishJobOn:
    node_id: bytes
    job_id: bytes


@dataclass(slots=True, frozen=True)
class DrainRaylet:
    node_id: bytes
    reason: str
    deadline_ms: int


@dataclass(slots=True, frozen=True)
class ProbeNode:
    """Knock at its address; a host that answers with a refusal means NodeRefused."""

    node_id: bytes
    address: str


@dataclass(slots=True, frozen=True)
class ForgetNode:
    """Give up every call to it: it is dead."""

    node_id: bytes


@dataclass(slots=True, frozen=True)
class WakeGroupWaiters:
    group_id: bytes


@dataclass(slots=True, frozen=True)
class WakeKeyWaiters:
    namespace: str
    key: bytes


Effect = (
    Persist | DeleteRecord | Publish | Answer | StartActor | KillActor | ChangeBundles | FinishJobOn | DrainRaylet | ProbeNode | ForgetNode
    | WakeGroupWaiters | WakeKeyWaiters
)  # fmt: skip
