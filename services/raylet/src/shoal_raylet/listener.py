"""The node's one TCP port: frames for a worker or the store are authenticated and handed over, everything else is HTTP/2 for our own gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import cast

from shoal_base.auth import MAGIC, AuthenticationFailed, Secrets, accept_authenticated, finish_handshake
from shoal_base.connection import FrameConnection
from shoal_base.frames import Type

_log = logging.getLogger(__name__)
# Limit: a stranger may keep a connection so long before it has said who it is.
HANDSHAKE_TIMEOUT_S = 5.0
# Limit: connections that have not said who they are; more are refused at once.
MAX_HANDSHAKES = 512
# Limit: gRPC connections relayed at a time.
MAX_RELAYED = 4096
_PEEK_PAUSE_S = 0.002
_ACCEPT_PAUSE_S = 0.2
_HIGH_WATER = 1 << 20


class Listener:
    """`find(target)` is the local connection that takes an authenticated socket, or the text why there is none."""

    def __init__(self, host: str, port: int, secrets: Secrets, grpc_path: str, find: Callable[[bytes], FrameConnection | str]) -> None:
        self._secrets = secrets
        self._grpc_path = grpc_path
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._greeting: set[asyncio.Task[None]] = set()
        self._pipes: set[_Pipe] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.setblocking(False)
        try:
            self._sock.bind((host, port))
            self._sock.listen(1024)
        except OSError as error:
            self._sock.close()
            raise OSError(error.errno, f"port {port} at {host} cannot be taken: {error.strerror}") from error
        self.port: int = self._sock.getsockname()[1]

    def start(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("accept failed: %s", error)
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            if len(self._greeting) >= MAX_HANDSHAKES:
                _log.warning("refused a connection: %d others have not said yet who they are", len(self._greeting))
                sock.close()
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._greet(sock))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self.start()

    async def _greet(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                ours = await self._is_ours(sock)
            if ours:
                await self._hand_over(sock)
            else:
                await self._relay(sock)
        except (OSError, EOFError, AuthenticationFailed) as error:  # TimeoutError is an OSError
            _log.info("a connection ended before it was authenticated: %s", error or type(error).__name__)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

    async def _is_ours(self, sock: socket.socket) -> bool:
        """Looks at the first bytes and leaves them."""
        readable = asyncio.Event()
        self._loop.add_reader(sock.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(sock.fileno())
        while True:
            start = sock.recv(len(MAGIC), socket.MSG_PEEK)
            if not start:
                raise EOFError("the peer closed the connection")
            if len(start) == len(MAGIC) or not MAGIC.startswith(start):
                return start == MAGIC
            await asyncio.sleep(_PEEK_PAUSE_S)  # readiness would call at once again: the bytes are still there

    async def _hand_over(self, sock: socket.socket) -> None:
        _kind, target = await accept_authenticated(sock, self._secrets, HANDSHAKE_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = self._find(target)
        if isinstance(found, str):
            finish_handshake(sock, found)
        else:
            # The last byte of the handshake before anybody else can write to it.
            finish_handshake(sock)
            found.send(Type.ROUTED, fds=[sock.fileno()])
        sock.close()

    async def _relay(self, sock: socket.socket) -> None:
        if len(self._pipes) >= MAX_RELAYED * 2:
            raise ConnectionError(f"{MAX_RELAYED} gRPC connections are open, which is the limit")
        front, back = _Pipe(self._pipes), _Pipe(self._pipes)
        await self._loop.create_unix_connection(lambda: back, self._grpc_path)
        back.join(front)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.connect_accepted_socket(lambda: front, sock)

    async def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in list(self._greeting):
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)
        for pipe in list(self._pipes):
            pipe.abort()


class _Pipe(asyncio.Protocol):
    """One half of a relay: what it receives, the other half writes; it reads only as fast as the other writes."""

    def __init__(self, pipes: set[_Pipe]) -> None:
        self._pipes = pipes
        self._transport: asyncio.Transport | None = None
        self._other: _Pipe | None = None
        self._early: list[bytes] = []

    def join(self, other: _Pipe) -> None:
        self._other, other._other = other, self
        early, self._early = self._early, []
        for data in early:
            other.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not its subclass
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._pipes.add(self)
        early, self._early = self._early, []
        for data in early:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._other is None:  # the server speaks first, and the front is not joined yet
            self._early.append(data)
        else:
            self._other.write(data)

    def write(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        else:
            self._transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._other._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._pipes.discard(self)
        other, self._other = self._other, None
        if other is not None and other._transport is not None:
            other._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
