"""A node for tests: the whole service beside a fake raylet, and clients of it in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from shoal_base.auth import AuthenticationFailed, Secrets, accept_authenticated, aio_client_interceptors, finish_handshake, make_secret_file
from shoal_base.blocking import BlockingFrames
from shoal_base.connection import FrameConnection, listen_unix, pack_hello
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import ExtentGrant, ExtentRequest, Free, Pull, Pulled
from shoal_objectstore._arena import Arena, NeedExtent, ObjectGone
from shoal_objectstore.config import Config
from shoal_objectstore.join import unpack_fields
from shoal_objectstore.server import ObjectStore
from shoal_objectstore.v1 import objectstore_pb2_grpc as pb_grpc

MIB = 1 << 20


def field(number: int, value: int | bytes) -> bytes:
    def varint(n: int) -> bytes:
        out = bytearray()
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        return bytes([*out, n])

    return varint(number << 3) + varint(value) if isinstance(value, int) else varint(number << 3 | 2) + varint(len(value)) + value


class FakeRaylet:
    """What the store needs of one: the memfd in REGISTERED, and ROUTED sockets from its TCP port."""

    def __init__(self, node_dir: Path, secret: bytes, capacity: int) -> None:
        self.node_dir = node_dir
        self.capacity = capacity
        self.secret = secret
        self.arena = os.memfd_create("arena")
        self.control = os.memfd_create("control")
        self.refuse = ""
        self.registered: list[dict[int, int | bytes]] = []
        self.conns: list[FrameConnection] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.tcp.setblocking(False)
        self.address = f"127.0.0.1:{self.tcp.getsockname()[1]}"
        self.unix = await listen_unix(self.node_dir / "raylet.sock", self.on_connection)
        self.accepting = asyncio.create_task(self.accept())

    def on_connection(self, sock: socket.socket) -> None:
        self.conns.append(FrameConnection(sock, self.on_frame, lambda conn, reason: None))

    def on_frame(self, conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        if type_ == Type.HELLO:
            conn.send(Type.HELLO, pack_hello(bytes(16), bytes(16), kind=PeerKind.RAYLET))
        elif type_ == Type.REGISTER:
            self.registered.append(unpack_fields(payload))
            if self.refuse:
                conn.send(Type.REGISTERED, field(11, self.refuse.encode()))
            else:
                conn.send(Type.REGISTERED, field(1, bytes(16)) + field(3, self.address.encode()) + field(8, self.capacity), [self.arena, self.control])

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.tcp)
            task = asyncio.create_task(self.route(sock))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def route(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(AuthenticationFailed, OSError):  # it was killed over its first words
            kind, target = await accept_authenticated(sock, Secrets(node=self.secret, user=None), 5.0)
            assert (kind, target) == (0, bytes(16))
            finish_handshake(sock)
            self.conns[-1].send(Type.ROUTED, b"", [sock.fileno()])

    async def close(self) -> None:
        self.accepting.cancel()
        self.unix.close()
        self.tcp.close()
        for conn in self.conns:
            conn.abort("the test ends")
        os.close(self.arena)
        os.close(self.control)


class Node:
    def __init__(self, number: int, root: Path, capacity: int, **config: Any) -> None:
        self.node_id = bytes([number]) * 16
        self.dir = root / f"n{number}"
        self.dir.mkdir(mode=0o700)
        secret = make_secret_file(root / "node.secret")
        self.secret = secret
        self.raylet = FakeRaylet(self.dir, secret, capacity)
        self.config = Config(self.dir, self.node_id, root, **{"warm_bytes": 0, "spill": True, **config})

    async def start(self) -> Node:
        await self.raylet.start()
        self.store = ObjectStore(self.config)
        await self.store.start()
        return self

    async def close(self) -> None:
        await self.store.close()
        await self.raylet.close()

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[pb_grpc.ObjectStoreStub]:
        async with grpc.aio.insecure_channel(f"unix:{self.dir}/store.grpc.sock", interceptors=aio_client_interceptors("node", self.secret)) as channel:
            yield pb_grpc.ObjectStoreStub(channel)


VICTIM = """
import asyncio, faulthandler, importlib, json, signal, sys
from pathlib import Path
from shoal_objectstore._arena import crash_at
from shoal_objectstore.__main__ import serve
from shoal_objectstore.config import Config
faulthandler.enable()
faulthandler.register(signal.SIGUSR1)
node_dir, node_id, secrets, ready, point, after, settings, *places = sys.argv[1:]
for name, value in json.loads(settings).items():
    module, _, constant = name.partition(".")
    setattr(importlib.import_module(f"shoal_objectstore.{module}"), constant, value)
if int(point):
    crash_at(int(point), int(after))
config = Config(Path(node_dir), bytes.fromhex(node_id), Path(secrets), warm_bytes=0, ready_fd=int(ready), spill_dirs=places)
sys.exit(asyncio.run(serve(config)))
"""


class StoreProcess:
    """A node's store as a process that can be killed; by itself when it passes an instrumented point of the arena."""

    def __init__(self, node: Node, point: int = 0, after: int = 1, settings: dict[str, float] | None = None, log: Path | None = None) -> None:
        """`settings`: constants by module and name (`peer.STALL_S`). `log`: a file for what it writes to stderr."""
        read, write = os.pipe()
        places = [str(place) for place in node.config.spill_dirs]
        given = [str(node.dir), node.node_id.hex(), str(node.dir.parent), str(write), str(point), str(after), json.dumps(settings or {}), *places]
        with open(log, "ab") if log is not None else contextlib.nullcontext() as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", VICTIM, *given], pass_fds=[write], stderr=stderr, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            )
        os.close(write)
        self.ready = read

    def wait(self) -> None:
        line = os.read(self.ready, 10_000)
        os.close(self.ready)
        assert b"address" in line, line

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(20)


async def started(node: Node) -> None:
    """The store in this process, beside the node's raylet that runs already."""
    node.store = ObjectStore(node.config)
    await node.store.start()


class Client:
    """A client in this process: an arena handle and a hot connection, driven from a thread."""

    def __init__(self, node: Node, number: int, arena: Arena | None = None) -> None:
        self.arena = arena or Arena(node.raylet.arena, number)
        sock = socket.socket(socket.AF_UNIX)
        self.frames = BlockingFrames(sock)
        self.id = 0
        try:
            sock.connect(str(node.dir / "store.sock"))
            self.frames.send(Type.HELLO, pack_hello(bytes(16), node.node_id, kind=PeerKind.WORKER))
            self.expect(Type.HELLO)
        except BaseException:
            sock.close()
            raise

    def expect(self, type_: int, timeout: float = 30.0) -> bytes:
        """Raises EOFError when the store has died, or ends."""
        got, payload, _ = self.frames.recv(timeout)
        if got == Type.BYE:
            raise EOFError("the store ends")
        assert got == type_, f"frame {Type(got).name} instead of {Type(type_).name}"
        return payload

    def extent(self, size: int, timeout: float = 30.0) -> ExtentGrant:
        self.id += 1
        self.frames.send(Type.EXTENT_REQUEST, ExtentRequest(self.id, size).pack())
        grant = ExtentGrant.unpack(self.expect(Type.EXTENT_GRANT, timeout))
        assert grant.id == self.id
        return grant

    def put(self, data: bytes, owner: bytes | None = None) -> tuple[int, int]:
        while True:
            try:
                return self.arena.put(data, owner)
            except NeedExtent:
                grant = self.extent(len(data))
                assert grant.code == 0, grant.text
                self.arena.add_extent(grant.extent)

    def pull(self, node: Node, location: tuple[int, int], size: int, owner: bytes = b"") -> Pulled:
        self.id += 1
        self.frames.send(Type.PULL, Pull(self.id, bytes(20), size, node.node_id, *location, node.raylet.address, owner=owner).pack())
        return Pulled.unpack(self.frames.expect(Type.PULLED)[0])

    def read(self, node: Node, location: tuple[int, int], size: int) -> memoryview:
        """As a core worker does: from the arena, or else by its store."""
        place = location
        while True:
            try:
                return memoryview(self.arena.get(*place))
            except ObjectGone:
                answer = self.pull(node, location, size)
                if answer.code:
                    raise LookupError(answer.code, answer.text) from None
                place = (answer.slot, answer.generation)

    def free(self, node: Node, location: tuple[int, int]) -> None:
        """As an owner does: in the arena, or else by its store."""
        try:
            self.arena.free(*location)
        except ObjectGone:
            self.frames.send(Type.FREE, Free(node.node_id, (location,)).pack())

    def close(self) -> None:
        self.frames.close()


@contextlib.asynccontextmanager
async def nodes(root: Path, count: int = 1, capacity: int = 64 * MIB, **config: Any) -> AsyncIterator[list[Node]]:
    made = [await Node(i + 1, root, capacity, **config).start() for i in range(count)]
    try:
        yield made
    finally:
        for node in made:
            await node.close()


async def until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


def value(n: int, size: int) -> bytes:
    """An object's bytes, which tell its number."""
    return random.Random(n).randbytes(4096) * (size // 4096) + n.to_bytes(4, "little") * (size % 4096 // 4) + b"e" * (size % 4)


def spill_files(node: Node) -> list[Path]:
    return sorted((node.dir / "spill").glob("*.spill"))


async def freed_everything(node: Node) -> None:
    """Not a byte is left, neither in the arena nor on disk."""
    spiller, store = node.store.spiller, node.store.keeper.store
    assert spiller is not None
    node.store.pulling.grace.end(1e18)

    def on_disk() -> tuple[int, ...]:
        return len(spiller._evicted), len(spiller._clean), spiller.evicted_bytes, spiller.clean_bytes, spiller.disk.disk_bytes

    # What is being written just now was freed meanwhile: its file comes and goes yet. So this is asked first.
    await until(lambda: not spiller._tasks and not spill_files(node) and on_disk()[:2] == (0, 0), "files are gone")
    assert on_disk() == (0, 0, 0, 0, 0)
    for _ in range(3):
        stats = await asyncio.to_thread(store.sweep)
    assert (stats["sealed_bytes"], stats["created"], stats["doomed"]) == (0, 0, 0)
    await asyncio.to_thread(store.trim, 0)
    assert store.resident_bytes == store.file_resident_bytes == 0
    assert store.check(True) == []
