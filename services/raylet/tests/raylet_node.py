"""Real raylets for tests: a GCS that is a real gRPC server in a thread, raylets as processes, clients over blocking frames."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from shoal_base.auth import AioServerInterceptor, Secrets, make_secret_file, read_secret, sync_client_interceptors
from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import Call, LeaseDemand, LeaseGrant, LeaseReturn, Result
from shoal_gcs.calls import CallRefused, CallStream
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_gcs.v1 import gcs_pb2_grpc as gcs_grpc
from shoal_raylet.v1 import raylet_pb2 as pb
from shoal_raylet.v1 import raylet_pb2_grpc as pb_grpc

UNIT = 10_000
FORK_SERVER = str(Path(__file__).with_name("fork_server.py"))
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout: float = 30.0) -> T:
    """The first true value of the condition."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come about within {timeout} s")
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class _Refusing:
    """A servicer's context for a call that came on the stream."""

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise CallRefused(code, text)


class FakeGcs(gcs_grpc.GcsServicer):
    """As much of the control store as a raylet sees: real gRPC, real authentication, no policy."""

    def __init__(self, secrets: Secrets) -> None:
        self.nodes: dict[bytes, gcs.Node] = {}
        self.jobs: dict[bytes, gcs.Job] = {}
        self.kv: dict[bytes, bytes] = {}
        self.deaths: list[gcs.ReportWorkerDeathRequest] = []
        self.left: list[bytes] = []
        self.registered: list[gcs.RegisterNodeRequest] = []
        self.heartbeats: dict[bytes, gcs.HeartbeatRequest] = {}
        self.published: list[gcs.Event] = []
        self.last: dict[str, bytes] = {}
        self.epoch = 1
        self.subscribed = 0
        self.fenced: set[bytes] = set()
        self.heartbeat_ms, self.lease_ms = 200, 4000
        self._subscribers: list[tuple[set[str], asyncio.Queue[gcs.Event]]] = []
        self._secrets = secrets
        self._started: queue.Queue[int] = queue.Queue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self.port = self._started.get(timeout=10)
        self.address = f"127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = grpc.aio.server(interceptors=[AioServerInterceptor(self._secrets, frozenset())])
        gcs_grpc.add_GcsServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._started.put(port)
        await self._end.wait()
        await server.stop(0)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)

    def publish(self, channel: str, payload: bytes) -> None:
        self.loop.call_soon_threadsafe(self._publish, channel, payload)

    def _publish(self, channel: str, payload: bytes) -> None:
        self.last[channel] = payload
        for channels, events in self._subscribers:
            if channel in channels:
                events.put_nowait(gcs.Event(channel=channel, payload=payload))

    async def RegisterNode(self, request: gcs.RegisterNodeRequest, context: Any) -> gcs.RegisterNodeReply:
        self.registered.append(request)
        self.nodes[request.node.node_id] = request.node
        self._publish("nodes", request.node.SerializeToString())
        return gcs.RegisterNodeReply(
            heartbeat_ms=self.heartbeat_ms, lease_ms=self.lease_ms, cluster_id=b"cluster", gcs_epoch=self.epoch, nodes=self.nodes.values()
        )

    async def Heartbeat(self, request: gcs.HeartbeatRequest, context: Any) -> gcs.HeartbeatReply:
        self.heartbeats[request.node_id] = request
        node = self.nodes.get(request.node_id)
        if node is not None and request.resources_changed:
            node.available.clear()
            node.available.update(request.available)  # type: ignore[attr-defined]
            node.queued_leases = request.queued_leases
            self._publish("resources", gcs.NodeList(nodes=[node]).SerializeToString())
        return gcs.HeartbeatReply(known=node is not None and request.node_id not in self.fenced, gcs_epoch=self.epoch)

    async def UnregisterNode(self, request: gcs.UnregisterNodeRequest, context: Any) -> gcs.Empty:
        self.left.append(request.node_id)
        return gcs.Empty()

    async def ListNodes(self, request: gcs.Empty, context: Any) -> gcs.NodeList:
        return gcs.NodeList(nodes=self.nodes.values())

    async def AddJob(self, request: gcs.AddJobRequest, context: Any) -> gcs.Job:
        job = request.job
        job.job_id = (len(self.jobs) + 1).to_bytes(4, "little")
        self.jobs[job.job_id] = job
        return job

    async def GetJob(self, request: gcs.JobQuery, context: Any) -> gcs.Job:
        if request.job_id not in self.jobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no job {request.job_id.hex()}")
        return self.jobs[request.job_id]

    async def FinishJob(self, request: gcs.FinishJobRequest, context: Any) -> gcs.Empty:
        self.jobs[request.job_id].finished = True
        self._publish("jobs", self.jobs[request.job_id].SerializeToString())
        return gcs.Empty()

    async def KvPut(self, request: gcs.KvPutRequest, context: Any) -> gcs.KvPutReply:
        self.kv[request.key] = request.value
        return gcs.KvPutReply(added=True)

    async def KvGet(self, request: gcs.KvGetRequest, context: Any) -> gcs.KvGetReply:
        end = time.monotonic() + request.wait_ms / 1000
        while request.key not in self.kv and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return gcs.KvGetReply(found=request.key in self.kv, value=self.kv.get(request.key, b""))

    async def ReportWorkerDeath(self, request: gcs.ReportWorkerDeathRequest, context: Any) -> gcs.Empty:
        self.deaths.append(request)
        self._publish("workers", request.SerializeToString())
        return gcs.Empty()

    async def Publish(self, request: gcs.Event, context: Any) -> gcs.Empty:
        self.published.append(request)
        self._publish(request.channel, request.payload)
        return gcs.Empty()

    async def Calls(self, requests: Any, context: Any) -> None:
        await CallStream(self._call, context).serve()

    async def _call(self, method: str, payload: bytes) -> bytes:
        if not hasattr(type(self), method):
            raise CallRefused(grpc.StatusCode.UNIMPLEMENTED, f"no method {method}")
        kind = gcs.DESCRIPTOR.services_by_name["Gcs"].methods_by_name[method].input_type.name
        reply = await getattr(self, method)(getattr(gcs, kind).FromString(payload), _Refusing())
        return bytes(reply.SerializeToString())

    async def Subscribe(self, requests: AsyncIterator[gcs.SubscribeRequest], context: Any) -> AsyncIterator[gcs.Event]:
        channels: set[str] = set()
        events: asyncio.Queue[gcs.Event] = asyncio.Queue()

        async def listen() -> None:
            async for request in requests:
                channels.difference_update(request.remove)
                for channel in request.add:
                    channels.add(channel)
                    if channel == "nodes":
                        for node in self.nodes.values():
                            events.put_nowait(gcs.Event(channel=channel, payload=node.SerializeToString()))
                    elif channel in self.last:
                        events.put_nowait(gcs.Event(channel=channel, payload=self.last[channel]))

        listener = asyncio.ensure_future(listen())
        row = (channels, events)
        self._subscribers.append(row)
        try:
            self.subscribed += 1
            while (event := await events.get()) is not None:
                yield event
        finally:
            self._subscribers.remove(row)
            listener.cancel()


class Node:
    """A raylet process."""

    def __init__(self, directory: Path, gcs_address: str, secrets_dir: Path, cpus: float = 2, *, command: list[str] | None = None, **options: Any) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.secret = read_secret(secrets_dir / "node.secret")
        resources = {name: int(amount * UNIT) for name, amount in {"CPU": cpus, **options.pop("resources", {})}.items()}
        ready_r, ready_w = os.pipe()
        arguments = {
            "node-dir": str(directory), "gcs": gcs_address, "secrets-dir": str(secrets_dir), "resources": json.dumps(resources),
            "worker-command": json.dumps(command or [sys.executable, FORK_SERVER]), "ready-fd": str(ready_w), **options,
        }  # fmt: skip
        flags = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        imports = "import sys; from shoal_raylet.config import parse; from shoal_raylet.__main__ import run"
        code = f"{imports}; config = parse(); config.wait_for_store = False; sys.exit(run(config))"
        self.process = subprocess.Popen([sys.executable, "-c", code, *flags], pass_fds=[ready_w])
        os.close(ready_w)
        with open(ready_r) as ready:
            if not select.select([ready], [], [], 30)[0]:
                self.process.kill()
                raise AssertionError("the raylet was not ready within 30 s")
            line = ready.readline()
        self.ready: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}
        self.address: str = self.ready.get("address", "")
        self.node_id = bytes.fromhex(self.ready.get("node_id", ""))
        self._channel: grpc.Channel | None = None
        self._stub: pb_grpc.RayletStub | None = None

    @property
    def stub(self) -> pb_grpc.RayletStub:
        if self._stub is None:
            self._channel = grpc.insecure_channel(self.address)
            self._stub = pb_grpc.RayletStub(grpc.intercept_channel(self._channel, *sync_client_interceptors("node", self.secret)))
            self._stub.State(pb.Empty(), timeout=10)  # the clocks agree: from here on futures do not wait
        return self._stub

    def state(self) -> pb.StateReply:
        return self.stub.State(pb.Empty(), timeout=10)

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.state().workers if not worker.driver]

    def descendants(self) -> list[int]:
        out, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            # It may end while we look.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{pid}/task").glob("*/children"):
                    children = [int(child) for child in task.read_text().split()]
                    out += children
                    todo += children
        return out

    def order(self, worker_id: bytes, *what: Any) -> Any:
        """Tells one of its workers (see fork_server) what to do."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.directory / "w" / (worker_id.hex() + ".test")))
            sock.sendall(json.dumps(what).encode())
            data = sock.recv(65536)
        return json.loads(data) if data else None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self._channel is not None:
            self._channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Client:
    """A driver, or whoever else, on raylet.sock."""

    def __init__(self, node: Node, *, kind: int = PeerKind.DRIVER, hello: bytes | None = None, **register: Any) -> None:
        self.node = node
        self.id = os.urandom(16)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(node.directory / "raylet.sock"))
        self.frames = BlockingFrames(sock)
        self.frames.send(Type.HELLO, hello or pack_hello(self.id, bytes(16), kind=kind))
        register.setdefault("driver", kind == PeerKind.DRIVER)
        self.frames.send(Type.REGISTER, pb.RegisterWorker(worker_id=self.id, pid=os.getpid(), **register).SerializeToString())
        self.frames.expect(Type.HELLO)
        payload, self.fds = self.frames.expect(Type.REGISTERED)
        self.registered = pb.Registered.FromString(payload)
        self.job = self.registered.job_id
        self.seen: list[tuple[int, bytes]] = []
        self._calls = 0

    def expect(self, type_: int, timeout: float = 30.0) -> bytes:
        """The next frame of this type; others are kept in `seen`."""
        for at, (kind, payload) in enumerate(self.seen):
            if kind == type_:
                del self.seen[at]
                return payload
        end = time.monotonic() + timeout
        while True:
            kind, payload, _fds = self.frames.recv(max(0.001, end - time.monotonic()))
            if kind == type_:
                return payload
            self.seen.append((kind, payload))

    def demand(self, class_id: int = 1, want: int = 1, cpus: float = 1, **fields: Any) -> None:
        resources = {name: int(amount * UNIT) for name, amount in {"CPU": cpus, **fields.pop("resources", {})}.items()}
        message = pb.LeaseClass(resources=resources, job_id=fields.pop("job_id", self.job), name=fields.pop("name", "f"), **fields)
        self.frames.send(Type.LEASE_DEMAND, LeaseDemand(class_id, want, message.SerializeToString()).pack())

    def grant(self, timeout: float = 30.0) -> LeaseGrant:
        return LeaseGrant.unpack(self.expect(Type.LEASE_GRANT, timeout))

    def give_back(self, grant: LeaseGrant) -> None:
        self.frames.send(Type.LEASE_RETURN, LeaseReturn(grant.lease_id, grant.node_id).pack())

    def call(self, method: str, payload: bytes = b"", timeout: float = 10.0) -> Result:
        self.send_call(method, payload, timeout)
        return Result.unpack(self.expect(Type.RESULT, timeout + 5))

    def send_call(self, method: str, payload: bytes = b"", timeout: float = 10.0) -> None:
        self._calls += 1
        self.frames.send(Type.CALL, Call(self._calls, int(timeout * 1000), method, payload).pack())

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.frames.close()


_DRIVER = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from raylet_node import Client
client = Client(SimpleNamespace(directory=Path(sys.argv[2])))
child = os.fork()
if not child:
    signal.pause()
print(client.registered.store_client, child, flush=True)
signal.pause()
"""


class DriverProcess:
    """A driver in a process of its own, that has forked a child which holds its socket open."""

    def __init__(self, node: Node) -> None:
        command = [sys.executable, "-c", _DRIVER, str(Path(__file__).parent), str(node.directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.store_client, self.child = map(int, self.process.stdout.readline().split())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def close(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        if self.process.poll() is None:
            self.kill()


class Place:
    """A directory, secrets, one GCS, and whatever nodes and clients a test asks for; all of it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secrets_dir = directory / "secrets"
        self.secrets_dir.mkdir()
        self.secrets = Secrets(node=make_secret_file(self.secrets_dir / "node.secret"), user=make_secret_file(self.secrets_dir / "user.token"))
        self.gcs = FakeGcs(self.secrets)
        self.nodes: list[Node] = []
        self.clients: list[Client] = []

    def node(self, cpus: float = 2, **options: Any) -> Node:
        node = Node(self.directory / f"n{len(self.nodes)}", options.pop("gcs_address", self.gcs.address), self.secrets_dir, cpus, **options)
        self.nodes.append(node)
        return node

    def client(self, node: Node, **register: Any) -> Client:
        client = Client(node, **register)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for node in self.nodes:
            left = node.descendants()
            node.stop()
            wait_for(lambda left=left: not any(map(alive, left)), "the end of all its processes")
        self.gcs.close()


def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.close()
