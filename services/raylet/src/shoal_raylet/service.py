"""The gRPC service Raylet, and the relay to the node's store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from shoal_base.auth import AioServerInterceptor, Secrets
from shoal_gcs.v1.calls import EPOCH_KEY

from . import events as on
from .allowances import Kind, share_of
from .leases import LeaseSpec
from .logs import list_logs, log_path, read_log
from .rpc import OPTIONS, STORE, RpcFailed
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet

NAME = "shoal.raylet.v1.Raylet"
USER_METHODS = frozenset(f"/{NAME}/{name}" for name in ("State", "TaskHistory", "Metrics", "ListLogs", "ReadLog")) | frozenset(
    f"{STORE}{name}" for name in ("Stats", "List", "Metrics", "Check")
)
_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
_INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]
# Beyond what the asking raylet said it would wait.
_LEASE_GRACE_S = 5.0
_STORE_TIMEOUT_S = 60.0

Method = Callable[["Service", Any], Awaitable[Message]]


class Service:
    """Each method takes its request and returns its reply, or raises RpcFailed; gRPC and CALL frames both come here."""

    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet

    async def local(self, method: str, payload: bytes) -> bytes:
        row = _METHODS.get(method)
        if row is None:
            raise RpcFailed(_UNIMPLEMENTED, f"no method raylet/{method}")
        request, function = row
        return bytes((await function(self, request.FromString(payload))).SerializeToString())

    def check_epoch(self, metadata: Any) -> None:
        """Raises RpcFailed for a call by a control store that another one has replaced."""
        told = next((value for key, value in metadata or () if key == EPOCH_KEY), None)
        if told is not None and int(told) < self._raylet.epoch:
            raise RpcFailed(_PRECONDITION, f"epoch {told} of the control store is over: epoch {self._raylet.epoch} has begun, at {self._raylet.gcs.address}")

    def _spec(self, message: pb.LeaseClass) -> LeaseSpec:
        try:
            return LeaseSpec.read(message)
        except ValueError as error:
            raise RpcFailed(_INVALID, str(error)) from error

    # -- leases -----------------------------------------------------------------------------------

    async def request_lease(self, request: pb.RequestLeaseRequest) -> pb.RequestLeaseReply:
        try:
            spec, wait_s = self._raylet.parse_spec(request.lease_class), request.wait_ms / 1000
        except ValueError as error:
            raise RpcFailed(_INVALID, str(error)) from error
        number, future = self._raylet.expect()
        self._raylet.refresh_blocked()
        event = on.RemoteLeaseRequested(number, spec, request.hops, request.client_worker_id, request.client_node_id, wait_s)
        self._raylet.feed(event)
        try:
            reply: pb.RequestLeaseReply = await self._raylet.answer(number, future, wait_s * 3 + _LEASE_GRACE_S)
        except TimeoutError as late:  # its worker still starts; what comes of it then is returned
            raise RpcFailed(_DEADLINE, f"no worker for {spec.wish()} came within {wait_s * 3 + _LEASE_GRACE_S:g} s") from late
        return reply

    async def return_leases(self, request: pb.ReturnLeasesRequest) -> pb.ReturnLeasesReply:
        raylet = self._raylet
        for lease in request.leases:
            running = lease.client_gone and raylet.runs_a_task(raylet.scheduler.lease_worker(lease.lease_id))
            raylet.feed(on.LeaseReturned(lease.lease_id, raylet.node_id, lease.discard, lease.client_gone, running))
        return pb.ReturnLeasesReply(free=raylet.scheduler.available())

    async def reclaim_lease(self, request: pb.ReclaimLeaseRequest) -> pb.Empty:
        self._raylet.feed(on.ReclaimPassedOn(request.client_worker_id, request.lease_id, request.node_id))
        return pb.Empty()

    # -- actors and workers ---------------------------------------------------------------------------

    async def start_actor(self, request: pb.StartActorRequest) -> pb.StartActorReply:
        spec = self._spec(request.placement)
        number, future = self._raylet.expect()
        event = on.ActorRequested(
            number, request.actor_id, request.incarnation, spec, {name: units for name, units in request.held.items() if units}, request.creation_task,
            request.owner_worker_id, request.owner_node_id, request.detached, request.name,
        )  # fmt: skip
        self._raylet.refresh_blocked()
        self._raylet.feed(event)
        # An __init__ may take as long as it likes; whoever asked decides how long to wait.
        reply: pb.StartActorReply = await self._raylet.answer(number, future, None)
        return reply

    async def kill_worker(self, request: pb.KillWorkerRequest) -> pb.Empty:
        self._raylet.feed(on.KillRequested(request.worker_id, request.actor_id, request.force, request.reason or "killed by request", request.migrate))
        return pb.Empty()

    # -- bundles ------------------------------------------------------------------------------------

    async def prepare_bundles(self, request: pb.BundlesRequest) -> pb.PrepareBundlesReply:
        return await self._change(pb.PREPARE, request.placement_group_id, request.bundles)

    async def commit_bundles(self, request: pb.BundlesRequest) -> pb.Empty:
        reply = await self._change(pb.COMMIT, request.placement_group_id, request.bundles)
        if not reply.prepared:
            raise RpcFailed(_NOT_FOUND, reply.reason)
        return pb.Empty()

    async def cancel_bundles(self, request: pb.BundlesRequest) -> pb.Empty:
        await self._change(pb.CANCEL, request.placement_group_id, request.bundles)
        return pb.Empty()

    async def change_bundles(self, request: pb.ChangeBundlesRequest) -> pb.ChangeBundlesReply:
        reply = pb.ChangeBundlesReply()
        for change in request.changes:
            reply.results.append(await self._change(change.step, change.placement_group_id, change.bundles, change.wait_ms / 1000))
        return reply

    async def _change(self, step: int, group: bytes, bundles: Any, wait_s: float = 0.0) -> pb.PrepareBundlesReply:
        wanted = {spec.index: dict(spec.resources) for spec in bundles}
        reason = ""
        if step == pb.CANCEL:
            self._raylet.feed(on.BundlesCancelled(group, list(wanted)))
        if step in (pb.PREPARE, pb.PREPARE_AND_COMMIT):
            number, future = self._raylet.expect()
            if wait_s:
                self._raylet.refresh_blocked()
            self._raylet.feed(on.BundlesRequested(number, group, wanted, wait_s))
            reason = await self._raylet.answer(number, future, None)
        if step in (pb.COMMIT, pb.PREPARE_AND_COMMIT) and not reason:
            number, future = self._raylet.expect()
            self._raylet.feed(on.BundlesCommitted(number, group, list(wanted)))
            reason = await self._raylet.answer(number, future, None)
        return pb.PrepareBundlesReply(prepared=not reason, reason=reason)

    # -- the rest -----------------------------------------------------------------------------------

    async def finish_job(self, request: pb.FinishJobRequest) -> pb.Empty:
        self._raylet.job_finished(request.job_id)
        return pb.Empty()

    async def drain(self, request: pb.DrainRequest) -> pb.Empty:
        within_s = request.within_ms / 1000 or (max(0.001, request.deadline_ms / 1000 - time.time()) if request.deadline_ms else 0.0)
        self._raylet.drain.begin(request.reason or "asked to", within_s)
        return pb.Empty()

    async def head_changed(self, request: pb.HeadChangedRequest) -> pb.Empty:
        self._raylet.head_changed(request.address, request.epoch)
        return pb.Empty()

    async def allowance(self, request: pb.AllowanceRequest) -> pb.AllowanceReply:
        raylet = self._raylet
        control = raylet.control
        records = {session.record: session for session in raylet.registrar.clients() if session.record >= 0}
        asker = next((record for record, session in records.items() if session.worker_id == request.worker_id), -1)
        if request.more and asker < 0:
            raise RpcFailed(_NOT_FOUND, f"no process {request.worker_id.hex()} on this node")
        share = share_of(
            request.job_id, Kind(request.kind), ((record, control.allowance(record)) for record in records), take_back=request.take_back, more_for=asker,
            more=request.more,
        )  # fmt: skip
        record, most = share.most
        name = "" if record < 0 else "the driver" if records[record].is_driver else control.read(record).task_name
        pid = records[record].pid if record >= 0 else 0
        return pb.AllowanceReply(given=share.given, held=share.held, moving=share.moving, pid=pid, name=name, most=max(most, 0))

    async def state(self, request: pb.Empty) -> pb.StateReply:
        reply: pb.StateReply = self._raylet.state_reply()
        return reply

    async def task_waits(self, request: pb.TaskQuery) -> pb.TaskWaitsReply:
        return await self._raylet.waits.of(request.task_id)

    async def task_history(self, request: pb.TaskHistoryRequest) -> pb.TaskHistoryReply:
        raylet = self._raylet
        living = [session.record for session in raylet.sessions.values() if session.process is not None]
        return raylet.history.reply(living, request.limit)

    async def metrics(self, request: pb.Empty) -> pb.MetricsReply:
        return pb.MetricsReply(text=self._raylet.metrics_text())

    async def list_logs(self, request: pb.Empty) -> pb.LogList:
        files = list_logs(self._raylet.logs_dir)
        return pb.LogList(files=[pb.LogFile(name=name, size_bytes=size) for name, size in files])

    async def shutdown(self, request: pb.Empty) -> pb.Empty:
        # After the answer is out.
        asyncio.get_running_loop().call_later(0.05, self._raylet.stop, "asked to shut down")
        return pb.Empty()

    async def read_log(self, request: pb.ReadLogRequest, context: Any) -> AsyncIterator[pb.LogChunk]:
        try:
            path = log_path(self._raylet.logs_dir, request.name)
        except FileNotFoundError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        async with contextlib.aclosing(read_log(path, request.tail, request.follow)) as chunks:  # type: ignore[type-var]
            async for data in chunks:
                yield pb.LogChunk(data=data)


# What only a control store asks. One that was replaced, and does not know it yet, is refused.
_OF_THE_HEAD = frozenset(["StartActor", "KillWorker", "ChangeBundles", "FinishJob", "Drain", "Allowance"])

_METHODS: dict[str, tuple[type[Message], Method]] = {
    "RequestLease": (pb.RequestLeaseRequest, Service.request_lease),
    "ReturnLeases": (pb.ReturnLeasesRequest, Service.return_leases),
    "ReclaimLease": (pb.ReclaimLeaseRequest, Service.reclaim_lease),
    "StartActor": (pb.StartActorRequest, Service.start_actor),
    "KillWorker": (pb.KillWorkerRequest, Service.kill_worker),
    "PrepareBundles": (pb.BundlesRequest, Service.prepare_bundles),
    "CommitBundles": (pb.BundlesRequest, Service.commit_bundles),
    "CancelBundles": (pb.BundlesRequest, Service.cancel_bundles),
    "ChangeBundles": (pb.ChangeBundlesRequest, Service.change_bundles),
    "FinishJob": (pb.FinishJobRequest, Service.finish_job),
    "Drain": (pb.DrainRequest, Service.drain),
    "HeadChanged": (pb.HeadChangedRequest, Service.head_changed),
    "Allowance": (pb.AllowanceRequest, Service.allowance),
    "State": (pb.Empty, Service.state),
    "TaskWaits": (pb.TaskQuery, Service.task_waits),
    "TaskHistory": (pb.TaskHistoryRequest, Service.task_history),
    "Metrics": (pb.Empty, Service.metrics),
    "ListLogs": (pb.Empty, Service.list_logs),
    "Shutdown": (pb.Empty, Service.shutdown),
}


def _handler(service: Service, name: str, request: type[Message], function: Method) -> grpc.RpcMethodHandler:
    of_the_head = name in _OF_THE_HEAD

    async def call(message: Any, context: Any) -> Any:
        try:
            if of_the_head:
                service.check_epoch(context.invocation_metadata())
            return await function(service, message)
        except RpcFailed as error:
            await context.abort(_STATUS.get(error.code, grpc.StatusCode.UNKNOWN), error.text)

    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=request.FromString, response_serializer=_serialize)


def _serialize(message: Message) -> bytes:
    return bytes(message.SerializeToString())


class _StoreRelay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method of ObjectStore, as bytes, to the store's own socket."""

    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method: str = details.method
        if not method.startswith(STORE):
            return None

        async def call(payload: bytes, context: Any) -> Any:
            try:
                return await self._raylet.store.call(method, payload, min(context.time_remaining() or _STORE_TIMEOUT_S, _STORE_TIMEOUT_S))
            except RpcFailed as error:
                await context.abort(_STATUS.get(error.code, grpc.StatusCode.UNKNOWN), error.text)

        return grpc.unary_unary_rpc_method_handler(call)


def make_server(raylet: Raylet, secrets: Secrets, path: str) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[AioServerInterceptor(secrets, USER_METHODS)], options=OPTIONS)
    handlers = {name: _handler(raylet.service, name, *row) for name, row in _METHODS.items()}
    handlers["ReadLog"] = grpc.unary_stream_rpc_method_handler(
        raylet.service.read_log, request_deserializer=pb.ReadLogRequest.FromString, response_serializer=_serialize
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers), _StoreRelay(raylet)))
    server.add_insecure_port(f"unix:{path}")
    return server
