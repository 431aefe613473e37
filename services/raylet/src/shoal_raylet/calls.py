"""CALL frames: relayed to the GCS or the store, or answered here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from shoal_base.wire import Call
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_gcs.v1.calls import CallFailed

from . import events as on
from .functions import FunctionNotFound
from .gcs_client import may_be_repeated
from .rpc import STORE, RpcFailed
from .sessions import Session
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet

_log = logging.getLogger(__name__)
_NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
_INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]
# A caller that names no timeout gets this one: no wait is unbounded.
DEFAULT_TIMEOUT_S = 60.0

_GCS, _REMOVE_GROUP = "gcs/", "gcs/RemovePlacementGroup"
Handler = Callable[["Calls", Session, bytes, float], Awaitable[bytes]]


class Calls:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, session: Session, call: Call) -> None:
        if call.method == "raylet/Subscribe":  # in order with what the client sends next, and no task for it
            self._subscribe(session, call)
            return
        session.calls += 1
        timeout_s = call.timeout_ms / 1000 if call.timeout_ms else DEFAULT_TIMEOUT_S
        if call.method.startswith(_GCS):
            self._relay(session, call, timeout_s)
        else:
            self._spawn(session, call, timeout_s)

    def _spawn(self, session: Session, call: Call, timeout_s: float) -> None:
        task = asyncio.ensure_future(self._answer(session, call, timeout_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _relay(self, session: Session, call: Call, timeout_s: float) -> None:
        """To the control store, without a task, which would cost as much again. Only what is to be asked once more needs one."""
        if call.method == _REMOVE_GROUP:
            with contextlib.suppress(DecodeError):  # the control store refuses it
                self._forget_group(call.payload)
        loop = asyncio.get_running_loop()
        method, head, end = call.method.removeprefix(_GCS), self._raylet.gcs.address, loop.time() + timeout_s

        def answered(future: asyncio.Future[bytes]) -> None:
            error = future.exception()
            if isinstance(error, CallFailed) and may_be_repeated(error) and not self._closed:
                self._spawn(session, call, max(0.001, end - loop.time()))
                return
            session.calls -= 1
            if error is None:
                session.result(call.id, 0, future.result())
            else:
                session.result(call.id, error.code if isinstance(error, CallFailed) else _INTERNAL, f"{method} at {head}: {error}".encode())

        self._raylet.gcs.begin(method, call.payload, timeout_s).add_done_callback(answered)

    async def _answer(self, session: Session, call: Call, timeout_s: float) -> None:
        try:
            code, payload = 0, await self._dispatch(session, call, timeout_s)
        except RpcFailed as error:
            code, payload = error.code, error.text.encode()
        except FunctionNotFound as error:
            code, payload = _NOT_FOUND, str(error).encode()
        except DecodeError as error:
            code, payload = _INVALID, f"{call.method}: the request is no protobuf of its type: {error}".encode()
        except Exception as error:
            _log.exception("%s failed", call.method)
            code, payload = _INTERNAL, f"{call.method}: {type(error).__name__}: {error}".encode()
        finally:
            session.calls -= 1
        session.result(call.id, code, payload)

    async def _dispatch(self, session: Session, call: Call, timeout_s: float) -> bytes:
        service, _, method = call.method.partition("/")
        if service == "gcs":
            return await self._raylet.gcs.raw(method, call.payload, timeout_s)
        if service == "store":
            return await self._raylet.store.call(STORE + method, call.payload, timeout_s)
        handler = _RAYLET.get(method) if service == "raylet" else None
        if handler is not None:
            return await handler(self, session, call.payload, timeout_s)
        if service == "raylet":
            return await self._raylet.service.local(method, call.payload)
        raise RpcFailed(_UNIMPLEMENTED, f"no method {call.method!r}; a method is gcs/, store/ or raylet/ and a name of that contract")

    def _forget_group(self, payload: bytes) -> None:
        """At once, since the caller does not wait: what it submits next must not run in the group while the control store is told."""
        group = gcs.PlacementGroupQuery.FromString(payload).placement_group_id
        if group:
            self._raylet.feed(on.GroupChanged(group, {}, created=False, removed=True))

    def _subscribe(self, session: Session, call: Call) -> None:
        try:
            request = pb.SubscribeChannels.FromString(call.payload)
        except DecodeError as error:
            session.result(call.id, _INVALID, f"raylet/Subscribe: {error}".encode())
            return
        self._raylet.channels.remove(session, request.remove)
        self._raylet.channels.add(session, request.add)
        session.result(call.id, 0, b"")

    async def _function_put(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        await self._raylet.functions.put(payload, timeout_s)
        return b""

    async def _function_get(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        return await self._raylet.functions.get(payload, timeout_s)

    async def _node_address(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        """Whoever asks takes a node without an address for dead, for ever. So one that is not known here may be too new: the control store knows."""
        node_id = pb.NodeQuery.FromString(payload).node_id
        if node_id == self._raylet.node_id:
            return bytes(pb.NodeAddress(address=self._raylet.address, alive=True).SerializeToString())
        node = self._raylet.nodes.get(node_id)
        if node is None:
            known = await self._raylet.gcs.call("ListNodes", gcs.Empty(), gcs.NodeList, timeout_s)
            node = next((node for node in known.nodes if node.node_id == node_id), None)
        alive = node is not None and node.alive
        return bytes(pb.NodeAddress(address=node.address if node and alive else "", alive=alive).SerializeToString())

    async def _job_config(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        config = await self._raylet.jobs.config(pb.FinishJobRequest.FromString(payload).job_id, timeout_s)
        return bytes(config.SerializeToString())

    async def _pending_reasons(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        return bytes(pb.PendingReasons(reasons=self._raylet.pending_reasons(session.worker_id)).SerializeToString())

    async def _tell_waits(self, session: Session, payload: bytes, timeout_s: float) -> bytes:
        self._raylet.waits.told(session, pb.TaskWaitsReply.FromString(payload))
        return b""

    async def close(self) -> None:
        self._closed = True
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


_RAYLET: dict[str, Handler] = {
    "FunctionPut": Calls._function_put,
    "FunctionGet": Calls._function_get,
    "NodeAddress": Calls._node_address,
    "JobConfig": Calls._job_config,
    "PendingReasons": Calls._pending_reasons,
    "TellWaits": Calls._tell_waits,
}
