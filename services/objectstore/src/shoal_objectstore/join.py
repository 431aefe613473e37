"""Joining the node's raylet: it makes the arena's memfd and keeps it, so that this process may die and come back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from shoal_base.connection import FrameConnection, connect_unix, pack_hello
from shoal_base.frames import PeerKind, Type
from shoal_base.sockets import close_fds
from shoal_base.wire import NodeDied, WorkerDied

from ._arena import DEFAULT_MAX_CLIENTS, DEFAULT_MAX_SLOTS, ArenaError, format_arena

STORE_TOKEN = "store"
# The raylet's socket may appear a moment after us.
CONNECT_S = 10.0

# RegisterWorker and Registered of shoal.raylet.v1, as far as the store needs them. By hand, since this service does not import the raylet.
_PID, _START_TOKEN = 2, 10
_NODE_ADDRESS, _ARENA_BYTES, _ERROR = 3, 8, 11


class JoinFailed(Exception):
    """The raylet did not take this store."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pack_register(pid: int) -> bytes:
    token = STORE_TOKEN.encode()
    return bytes([_PID << 3]) + _varint(pid) + bytes([_START_TOKEN << 3 | 2]) + _varint(len(token)) + token


def unpack_fields(data: bytes) -> dict[int, int | bytes]:
    """A protobuf message's top-level fields by number; the last one of a number wins."""
    fields: dict[int, int | bytes] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise JoinFailed("REGISTERED is no message")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            fields[key >> 3] = varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        if kind not in (1, 2, 5) or at + size > len(data):
            raise JoinFailed("REGISTERED is no message")
        fields[key >> 3] = data[at : at + size]
        at += size
    return fields


def lay_out(fd: int, capacity_bytes: int) -> None:
    """Gives a fresh memfd its layout; one that has it (this store is not the first) is left alone."""
    if any(os.pread(fd, 8, 0)):
        return
    os.ftruncate(fd, 0)  # a predecessor may have died on its way
    format_arena(fd, capacity_bytes, DEFAULT_MAX_CLIENTS, DEFAULT_MAX_SLOTS)


def unpack_registered(payload: bytes, fds: list[int]) -> int:
    """The arena's descriptor, laid out; the others are closed. Raises JoinFailed, ArenaError, OSError."""
    try:
        fields = unpack_fields(payload)
        error, capacity = fields.get(_ERROR, b""), fields.get(_ARENA_BYTES, 0)
        if isinstance(error, bytes) and error:
            raise JoinFailed(f"the raylet refused the store: {error.decode('utf-8', 'replace')}")
        if not fds or not isinstance(capacity, int):
            raise JoinFailed("the raylet sent no arena")
        lay_out(fds[0], capacity)
    except BaseException:
        close_fds(fds)
        raise
    close_fds(fds[1:])
    return fds[0]


class Raylet:
    """The connection to the node's raylet. `on_routed` gets the sockets of other stores, `on_lost` is told once when the raylet has gone,
    `on_died` of processes and nodes that died: after REGISTERED, of all that the raylet remembers."""

    def __init__(self, on_routed: Callable[[socket.socket], None], on_lost: Callable[[str], None], on_died: Callable[[WorkerDied | NodeDied], None]) -> None:
        self._on_routed = on_routed
        self._on_lost = on_lost
        self._on_died = on_died
        self._conn: FrameConnection | None = None
        self.address = ""  # where the raylet, and so this store, is reached by other nodes; known once it has joined
        self._registered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def join(self, path: Path, node_id: bytes) -> int:
        """Registers this process as the node's store; returns the arena's descriptor, laid out. Raises JoinFailed, ArenaError, OSError."""
        self._conn = FrameConnection(await self._connect(path), self._on_frame, self._on_closed)
        self._conn.send(Type.HELLO, pack_hello(bytes(16), node_id, kind=PeerKind.STORE))
        self._conn.send(Type.REGISTER, pack_register(os.getpid()))
        try:
            return await asyncio.wait_for(self._registered, CONNECT_S)
        except TimeoutError as error:
            raise JoinFailed(f"the raylet at {path} did not register the store within {CONNECT_S:g} s") from error

    async def _connect(self, path: Path) -> socket.socket:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONNECT_S
        while True:
            try:
                return await connect_unix(path)
            except OSError as error:
                if loop.time() > deadline:
                    raise JoinFailed(f"no raylet answers at {path}: {error}") from error
                await asyncio.sleep(0.02)

    def _on_frame(self, conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        if type_ == Type.REGISTERED and not self._registered.done():
            try:
                self._registered.set_result(unpack_registered(payload, fds))
                address = unpack_fields(payload).get(_NODE_ADDRESS, b"")
                self.address = address.decode() if isinstance(address, bytes) else ""
            except (JoinFailed, ArenaError, OSError) as error:
                self._registered.set_exception(error)
        elif type_ == Type.ROUTED and fds:
            close_fds(fds[1:])
            self._on_routed(socket.socket(fileno=fds[0]))
        elif type_ in (Type.WORKER_DIED, Type.NODE_DIED):
            close_fds(fds)
            self._on_died((WorkerDied if type_ == Type.WORKER_DIED else NodeDied).unpack(payload))
        else:
            close_fds(fds)

    def _on_closed(self, conn: FrameConnection, reason: str) -> None:
        if not self._registered.done():
            self._registered.set_exception(JoinFailed(f"the raylet refused the store: {reason}"))
        else:
            self._on_lost(reason)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
