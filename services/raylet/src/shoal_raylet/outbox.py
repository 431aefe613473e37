"""Effects on the wire: a grant leaves after the LEASE_BEGIN that it needs."""

from __future__ import annotations

import asyncio

from shoal_base.connection import FrameConnection
from shoal_base.frames import Type
from shoal_base.resources import Resources
from shoal_base.wire import Exit, LeaseBegin, LeaseGrant, LeaseReclaim, LeaseRefused

from . import effects as do
from .leases import LeaseSpec
from .v1 import raylet_pb2 as pb

# Limit: contexts that are kept, of classes that are lent again and again.
MAX_CONTEXTS = 1024


class Outbox:
    """A connection writes in the next turn of the loop what it was given in this one. What must come later at another connection waits here for a turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._later: list[tuple[FrameConnection, int, bytes]] = []
        self._contexts: dict[tuple[LeaseSpec, bytes, bytes], bytes] = {}

    def _after(self, conn: FrameConnection, type_: int, payload: bytes) -> None:
        if not self._later:
            self._loop.call_soon(self._flush)
        self._later.append((conn, type_, payload))

    def _flush(self) -> None:
        later, self._later = self._later, []
        for conn, type_, payload in later:
            conn.send(type_, payload)

    def begin(self, conn: FrameConnection, effect: do.BeginLease) -> None:
        conn.send(Type.LEASE_BEGIN, LeaseBegin(effect.lease_id, self._context(effect)).pack())

    def _context(self, effect: do.BeginLease) -> bytes:
        """Of a task without a GPU all that it depends on is the class and who asked."""
        spec = effect.spec
        if effect.gpus or effect.incarnation or effect.resources != spec.resources:
            return _pack_context(effect)
        key = spec, effect.owner, effect.owner_node
        packed = self._contexts.get(key)
        if packed is None:
            if len(self._contexts) >= MAX_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            packed = self._contexts[key] = _pack_context(effect)
        return packed

    def grant(self, conn: FrameConnection, effect: do.GrantLease) -> None:
        grant = LeaseGrant(effect.class_id, effect.lease_id, effect.worker_id, effect.node_id, effect.address, effect.spread_over)
        self._after(conn, Type.LEASE_GRANT, grant.pack())

    def refuse(self, conn: FrameConnection, effect: do.RefuseLease) -> None:
        self._after(conn, Type.LEASE_REFUSED, LeaseRefused(effect.class_id, effect.code, effect.reason).pack())

    def reclaim(self, conn: FrameConnection, effect: do.ReclaimLease) -> None:
        # Behind the grant of the same lease, should that still be held back.
        self._after(conn, Type.LEASE_RECLAIM, LeaseReclaim(effect.lease_id, effect.node_id).pack())

    def exit(self, conn: FrameConnection, effect: do.ExitWorker) -> None:
        conn.send(Type.EXIT, Exit(effect.force, effect.reason).pack())

    # -- gRPC messages ----------------------------------------------------------------------------

    @staticmethod
    def reclaim_request(effect: do.ReclaimLease) -> pb.ReclaimLeaseRequest:
        return pb.ReclaimLeaseRequest(lease_id=effect.lease_id, node_id=effect.node_id, client_worker_id=effect.client)

    @staticmethod
    def return_request(effects: list[do.ReturnRemoteLease]) -> pb.ReturnLeasesRequest:
        rows = [pb.LeaseReturn(lease_id=effect.lease_id, discard=effect.discard, client_gone=effect.client_gone) for effect in effects]
        return pb.ReturnLeasesRequest(leases=rows)

    @staticmethod
    def lease_reply(effect: do.AnswerLease, address: str, free: Resources) -> pb.RequestLeaseReply:
        return pb.RequestLeaseReply(
            granted=effect.lease_id != 0, lease_id=effect.lease_id, worker_id=effect.worker_id, node_id=effect.node_id, address=address, reason=effect.reason,
            free=free,
        )  # fmt: skip

    @staticmethod
    def actor_reply(effect: do.AnswerActor) -> pb.StartActorReply:
        return pb.StartActorReply(
            status=effect.status, worker_id=effect.worker_id, pid=effect.pid, error=effect.error, reason=effect.reason, code=effect.code  # type: ignore[arg-type]
        )


def _pack_context(effect: do.BeginLease) -> bytes:
    spec = effect.spec
    context = pb.LeaseContext(
        job_id=spec.job, owner_worker_id=effect.owner, owner_node_id=effect.owner_node, resources=effect.resources, placement_group_id=spec.group,
        capture_child_tasks=spec.capture_child_tasks, runtime_env=spec.runtime_env, max_calls=spec.max_calls, depth=spec.depth,
        incarnation=effect.incarnation,
    )  # fmt: skip
    if "GPU" in effect.resources:
        context.accelerators["GPU"].ids.extend(effect.gpus)
    return context.SerializeToString()
