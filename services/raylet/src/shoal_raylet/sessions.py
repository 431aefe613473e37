"""The clients of raylet.sock: who they are, and the frames they send."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from shoal_base.connection import FrameConnection, check_hello, pack_hello, unpack_hello
from shoal_base.errors import Code
from shoal_base.frames import BadFrame, PeerKind, Type
from shoal_base.wire import ActorCreated, Call, LeaseDemand, LeaseRefused, LeaseReturn, Owns, Result

from . import events as on
from .leases import LeaseSpec

if TYPE_CHECKING:
    from .pool import Process
    from .server import Raylet

_log = logging.getLogger(__name__)
# Limit: calls of one client that are not answered yet.
MAX_CALLS = 10_000
# Limit: parsed scheduling classes kept for clients that send the same ones.
MAX_SPECS = 4096
_RESOURCE_EXHAUSTED = 8


class Session:
    """One connection. It is somebody once REGISTER was accepted."""

    def __init__(self, raylet: Raylet, conn: FrameConnection) -> None:
        self.raylet = raylet
        self.conn = conn
        self.worker_id = b""
        self.kind = -1
        self.pid = conn.peer_pid
        self.job = b""
        self.mismatch = ""
        self.registering = False
        self.registered = False
        self.closed = False
        self.record = -1
        self.store_client = -1
        self.process: Process | None = None
        self.pidfd = -1
        self.channels: set[str] = set()
        self.calls = 0
        self.connected_at = time.monotonic()

    @property
    def is_driver(self) -> bool:
        return self.kind == PeerKind.DRIVER

    @property
    def is_store(self) -> bool:
        return self.kind == PeerKind.STORE

    def send_event(self, packed: bytes) -> None:
        self.conn.send(Type.EVENT, packed)

    def result(self, call_id: int, code: int, payload: bytes) -> None:
        self.conn.send(Type.RESULT, Result(call_id, code, payload).pack())

    # -- frames -----------------------------------------------------------------------------------

    def on_hello(self, payload: bytes) -> None:
        hello = unpack_hello(payload)
        self.worker_id = hello.worker_id
        self.kind = hello.kind
        self.conn.send(Type.HELLO, pack_hello(bytes(16), self.raylet.node_id, kind=PeerKind.RAYLET))
        # The store never unpickles, so its Python may differ.
        wrong = check_hello(hello, python=not self.is_store)
        if wrong is not None:
            self.mismatch = wrong[1]

    def on_register(self, payload: bytes) -> None:
        if self.kind < 0 or self.registering:
            raise BadFrame("REGISTER needs one HELLO before it, and comes once")
        self.registering = True
        self.raylet.register(self, payload)

    def on_lease_demand(self, payload: bytes) -> None:
        demand = LeaseDemand.unpack(payload)
        spec: LeaseSpec | None = None
        if demand.lease_class:
            try:
                spec = self.raylet.parse_spec(demand.lease_class)
            except ValueError as error:
                self.conn.send(Type.LEASE_REFUSED, LeaseRefused(demand.class_id, Code.UNSCHEDULABLE, str(error)).pack())
                return
        self.raylet.refresh_blocked()
        self.raylet.feed(on.LeaseDemanded(self.worker_id, demand.class_id, demand.want, spec))

    def on_lease_return(self, payload: bytes) -> None:
        given = LeaseReturn.unpack(payload)
        self.raylet.feed(on.LeaseReturned(given.lease_id, given.node_id, given.discard))

    def on_actor_created(self, payload: bytes) -> None:
        created = ActorCreated.unpack(payload)
        self.raylet.feed(on.ActorCreated(self.worker_id, created.actor_id, created.ok, created.error))

    def on_owns(self, payload: bytes) -> None:
        owns = Owns.unpack(payload)
        self.raylet.feed(on.OwnershipChanged(self.worker_id, owns.objects, owns.leaving))

    def on_call(self, payload: bytes) -> None:
        call = Call.unpack(payload)
        if self.calls >= MAX_CALLS:
            self.result(call.id, _RESOURCE_EXHAUSTED, f"{MAX_CALLS} calls of this process are not answered yet".encode())
            return
        self.raylet.calls.start(self, call)


HANDLERS = {
    Type.REGISTER: Session.on_register,
    Type.LEASE_DEMAND: Session.on_lease_demand,
    Type.LEASE_RETURN: Session.on_lease_return,
    Type.ACTOR_CREATED: Session.on_actor_created,
    Type.CALL: Session.on_call,
    Type.OWNS: Session.on_owns,
}
_BEFORE_REGISTERED = (Type.REGISTER,)


def on_frame(session: Session, type_: int, payload: bytes) -> None:
    """Raises BadFrame for what this side does not take."""
    if type_ == Type.HELLO:
        session.on_hello(payload)
        return
    handler = HANDLERS.get(type_)  # type: ignore[call-overload]
    if handler is None:
        raise BadFrame(f"a raylet does not take frames of type {type_}")
    if not session.registered and type_ not in _BEFORE_REGISTERED:
        raise BadFrame(f"{Type(type_).name} came before REGISTERED")
    handler(session, payload)
