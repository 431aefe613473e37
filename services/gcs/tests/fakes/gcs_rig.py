"""A real server, real clients, and a fake raylet that speaks the real contract over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from shoal_base.auth import AioServerInterceptor, Secrets, aio_client_interceptors, read_secret
from shoal_gcs.config import Config
from shoal_gcs.server import Server
from shoal_gcs.v1 import gcs_pb2 as pb
from shoal_gcs.v1 import gcs_pb2_grpc as rpc
from shoal_raylet.v1 import raylet_pb2 as raylet
from shoal_raylet.v1 import raylet_pb2_grpc as raylet_rpc

CPU = 10_000
BOUND_S = 10.0


async def until(condition: Callable[[], Any], what: str, bound_s: float = BOUND_S) -> Any:
    """Waits for a condition, with a bound."""
    deadline = time.monotonic() + bound_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {bound_s} s: {what}"
        await asyncio.sleep(0.005)
    return found


async def until_told(ask: Callable[[], Awaitable[Any]], condition: Callable[[Any], Any], what: str, bound_s: float = BOUND_S) -> Any:
    """Asks again and again until the answer is as wished."""
    deadline = time.monotonic() + bound_s
    while not condition(answer := await ask()):
        assert time.monotonic() < deadline, f"not within {bound_s} s: {what}; last: {answer}"
        await asyncio.sleep(0.01)
    return answer


@contextlib.asynccontextmanager
async def client(address: str, secrets_dir: Path, kind: str = "node") -> AsyncIterator[rpc.GcsStub]:
    secret = read_secret(secrets_dir / ("node.secret" if kind == "node" else "user.token"))
    async with grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors(kind, secret)) as channel:
        yield rpc.GcsStub(channel)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Server, rpc.GcsStub]]:
    server = Server(Config(secrets_dir=tmp_path / "secrets", **options))
    await server.start()
    try:
        async with client(server.address, tmp_path / "secrets") as stub:
            yield server, stub
    finally:
        await server.close()


@dataclass
class FakeRaylet(raylet_rpc.RayletServicer):
    """Keeps the rules that the control store relies on: an incarnation starts once, preparing is all or nothing, cancelling is idempotent."""

    node_id: bytes
    cpus: float = 4
    free: int = 0
    bundles: dict[tuple[bytes, int], int] = field(default_factory=dict)
    committed: set[tuple[bytes, int]] = field(default_factory=set)
    live: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    starts: list[raylet.StartActorRequest] = field(default_factory=list)
    kills: list[raylet.KillWorkerRequest] = field(default_factory=list)
    changes: list[raylet.BundleChange] = field(default_factory=list)
    calls: int = 0
    finished_jobs: list[bytes] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    heads: list[raylet.HeadChangedRequest] = field(default_factory=list)
    answer: Callable[[raylet.StartActorRequest], raylet.StartActorReply | None] = lambda request: None
    hold: asyncio.Event | None = None
    room: asyncio.Event | None = None  # until it is set, a preparation that may wait does
    lent: int = 0
    address: str = ""
    registered: pb.RegisterNodeReply | None = None
    heartbeats: int = 0
    _server: Any = None
    _beating: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.free = int(self.cpus * CPU)

    async def StartActor(self, request: raylet.StartActorRequest, context: Any) -> raylet.StartActorReply:
        self.starts.append(request)
        if self.hold is not None:
            await self.hold.wait()
        reply = self.answer(request)
        if reply is not None:
            return reply
        incarnation, worker_id = self.live.get(request.actor_id, (-1, b""))
        if incarnation != request.incarnation:
            worker_id = (request.actor_id[:8] + request.incarnation.to_bytes(8, "little"))[:16]
            self.live[request.actor_id] = (request.incarnation, worker_id)
        return raylet.StartActorReply(status=raylet.STARTED, worker_id=worker_id, pid=4242)

    async def KillWorker(self, request: raylet.KillWorkerRequest, context: Any) -> raylet.Empty:
        self.kills.append(request)
        self.live.pop(request.actor_id, None)
        return raylet.Empty()

    async def ChangeBundles(self, request: raylet.ChangeBundlesRequest, context: Any) -> raylet.ChangeBundlesReply:
        self.calls += 1
        if self.room is not None and any(change.wait_ms for change in request.changes):
            await self.room.wait()
        return raylet.ChangeBundlesReply(results=[self._change(change) for change in request.changes])

    def _change(self, change: raylet.BundleChange) -> raylet.PrepareBundlesReply:
        self.changes.append(change)
        keys = [(change.placement_group_id, bundle.index) for bundle in change.bundles]
        if change.step == raylet.CANCEL:
            for key in keys or [key for key in self.bundles if key[0] == change.placement_group_id]:
                self.free += self.bundles.pop(key, 0)
                self.committed.discard(key)
        elif change.step == raylet.COMMIT:
            self.committed.update(keys)
        else:
            needs = [bundle.resources["CPU"] for bundle in change.bundles]
            if sum(needs) > self.free:
                return raylet.PrepareBundlesReply(prepared=False, reason=f"{self.free} free")
            self.free -= sum(needs)
            self.bundles.update(zip(keys, needs, strict=True))
            if change.step == raylet.PREPARE_AND_COMMIT:
                self.committed.update(keys)
        return raylet.PrepareBundlesReply(prepared=True)

    async def FinishJob(self, request: raylet.FinishJobRequest, context: Any) -> raylet.Empty:
        self.finished_jobs.append(request.job_id)
        return raylet.Empty()

    async def Drain(self, request: raylet.DrainRequest, context: Any) -> raylet.Empty:
        self.drained.append(request.reason)
        return raylet.Empty()

    async def HeadChanged(self, request: raylet.HeadChangedRequest, context: Any) -> raylet.Empty:
        self.heads.append(request)
        return raylet.Empty()

    # -- its own doings

    async def serve(self, secrets: Secrets, port: int = 0) -> None:
        self._server = grpc.aio.server(interceptors=[AioServerInterceptor(secrets)], options=[("grpc.so_reuseport", 0)])
        raylet_rpc.add_RayletServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def register(self, gcs: rpc.GcsStub) -> None:
        record = pb.Node(node_id=self.node_id, address=self.address, resources={"CPU": int(self.cpus * CPU)}, available={"CPU": self.free})
        groups = {group for group, _ in self.bundles}
        self.registered = await gcs.RegisterNode(pb.RegisterNodeRequest(node=record, live_actors=list(self.live), live_groups=groups), timeout=BOUND_S)

    def beat(self, gcs: rpc.GcsStub, period_s: float = 0.1) -> None:
        async def beating() -> None:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    request = pb.HeartbeatRequest(node_id=self.node_id, resources_changed=True, available={"CPU": self.free}, lent={"CPU": self.lent})
                    reply = await gcs.Heartbeat(request, timeout=BOUND_S)
                    self.heartbeats += 1
                    if not reply.known:
                        await self.register(gcs)
                await asyncio.sleep(period_s)

        self._beating = asyncio.get_running_loop().create_task(beating())

    async def silence(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None

    async def end(self) -> None:
        await self.silence()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


@contextlib.asynccontextmanager
async def raylets(gcs: rpc.GcsStub, secrets_dir: Path, count: int = 1, cpus: float = 4) -> AsyncIterator[list[FakeRaylet]]:
    """Registered and beating."""
    made = [FakeRaylet(b"node" + n.to_bytes(12, "little"), cpus) for n in range(1, count + 1)]
    try:
        for one in made:
            await one.serve(Secrets(node=read_secret(secrets_dir / "node.secret"), user=None))
            await one.register(gcs)
            one.beat(gcs)
        yield made
    finally:
        for one in made:
            await one.end()


class Listener:
    """A Subscribe stream, collected."""

    def __init__(self, gcs: rpc.GcsStub, channels: list[str], node_id: bytes = b"") -> None:
        self.events: list[pb.Event] = []
        self.code: grpc.StatusCode | None = None
        self._wishes: asyncio.Queue[pb.SubscribeRequest | None] = asyncio.Queue()
        self._wishes.put_nowait(pb.SubscribeRequest(node_id=node_id, add=channels))
        self._call = gcs.Subscribe(self._requests())
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def _requests(self) -> AsyncIterator[pb.SubscribeRequest]:
        while (wish := await self._wishes.get()) is not None:
            yield wish

    async def _read(self) -> None:
        try:
            async for event in self._call:
                self.events.append(event)
        except grpc.aio.AioRpcError as error:
            self.code = error.code()

    def wish(self, request: pb.SubscribeRequest) -> None:
        self._wishes.put_nowait(request)

    def payloads(self, channel: str) -> list[bytes]:
        return [event.payload for event in self.events if event.channel == channel]

    async def finish(self) -> None:
        """Ends its side; the server ends the stream."""
        self._wishes.put_nowait(None)
        await asyncio.wait_for(self._task, BOUND_S)

    async def close(self) -> None:
        self._call.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])
