"""What the control store wants done. The shell does it in this order, and calls to one node in this order too."""

from __future__ import annotations

from msgspec import Struct

from ..v1 import gcs_pb2 as pb
from .events import BundleStep


class Persist(Struct, frozen=True):
    table: str
    key: bytes
    record: bytes


class DeleteRecord(Struct, frozen=True):
    table: str
    key: bytes


class Publish(Struct, frozen=True):
    """One payload on several channels, so that it is serialised once."""

    channels: tuple[str, ...]
    payload: bytes


class Answer(Struct, frozen=True):
    """What the request that caused the event is answered with."""

    message: pb.Actor | pb.Job | pb.PlacementGroup | pb.KvPutReply | pb.KvDeleteReply


class StartActor(Struct, frozen=True):
    node_id: bytes
    incarnation: int
    actor: pb.Actor
    spec: pb.CreateActorRequest


class KillActor(Struct, frozen=True):
    """Idempotent. `worker_id` is empty while it is not known; force: do not wait for the running call."""

    node_id: bytes
    actor_id: bytes
    worker_id: bytes
    force: bool
    reason: str
    migrate: bool = False  # it is to start elsewhere, and the report of its end says so


class ChangeBundles(Struct, frozen=True):
    """Answered by the event BundlesChanged with the same group, attempt and step."""

    node_id: bytes
    step: BundleStep
    group_id: bytes
    attempt: int
    bundles: tuple[pb.Bundle, ...]
    wait_ms: int = 0  # for tasks to give back what it takes


class FinishJobOn(Struct, frozen=True):
    node_id: bytes
    job_id: bytes


class DrainRaylet(Struct, frozen=True):
    node_id: bytes
    reason: str
    within_ms: int  # from now; 0: no deadline


class ProbeNode(Struct, frozen=True):
    """Knock at its address; a host that answers with a refusal means NodeRefused."""

    node_id: bytes
    address: str


class ForgetNode(Struct, frozen=True):
    """Give up every call to it: it is dead."""

    node_id: bytes


class WakeGroupWaiters(Struct, frozen=True):
    group_id: bytes


class WakeKeyWaiters(Struct, frozen=True):
    namespace: str
    key: bytes


Effect = (
    Persist | DeleteRecord | Publish | Answer | StartActor | KillActor | ChangeBundles | FinishJobOn | DrainRaylet | ProbeNode | ForgetNode
    | WakeGroupWaiters | WakeKeyWaiters
)  # fmt: skip
