"""Who may speak with us: the two secrets, the handshake of a TCP connection, and signed gRPC calls.

`node.secret` is for services and workers, `user.token` for drivers, jobs and HTTP. No secret crosses the wire: both sides prove that they know it, over
both sides' nonces, so a recorded handshake is worth nothing. grpc is imported only when an interceptor is asked for: workers never need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets as _random
import socket
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .addresses import parse_address

if TYPE_CHECKING:
    from .grpc_auth import AioServerInterceptor, aio_client_interceptors, sync_client_interceptors

__all__ = [
    "KIND_NODE",
    "KIND_USER",
    "MAGIC",
    "STORE_TARGET",
    "AioServerInterceptor",
    "AuthenticationFailed",
    "HandshakeRefused",
    "Secrets",
    "accept_authenticated",
    "aio_client_interceptors",
    "connect_authenticated",
    "finish_handshake",
    "make_secret_file",
    "open_authenticated",
    "read_secret",
    "sync_client_interceptors",
]

MAGIC = b"SHOL"
KIND_NODE = 0
KIND_USER = 1
STORE_TARGET = bytes(16)

_VERSION = 1
_NONCE = 32
_MAC = 32
_OPENING = struct.Struct("<4sBB32s")
_WHY_LENGTH = struct.Struct("<H")
_MIN_SECRET_BYTES = 16
# Limit: of a secret file; whatever is larger is some other file, named by mistake.
_MAX_SECRET_BYTES = 4096
_FAMILY = {KIND_NODE: "node secret", KIND_USER: "user token"}


class AuthenticationFailed(ConnectionError):
    """One side does not know the secret."""


class HandshakeRefused(ConnectionError):
    """Authenticated, but the server will not serve this target; its words."""


@dataclass(frozen=True)
class Secrets:
    """What a server accepts; None: nobody comes in with that kind."""

    node: bytes | None = field(default=None, repr=False)
    user: bytes | None = field(default=None, repr=False)

    def of(self, kind: int) -> bytes | None:
        return {KIND_NODE: self.node, KIND_USER: self.user}.get(kind)

    def by_name(self) -> dict[str, bytes]:
        return {name: secret for name, secret in (("node", self.node), ("user", self.user)) if secret}

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Secrets:
        """`node.secret` and `user.token` of this directory; an absent one is None."""

        def one(name: str) -> bytes | None:
            try:
                return read_secret(Path(directory) / name)
            except FileNotFoundError:
                return None

        return cls(one("node.secret"), one("user.token"))


# -- files ----------------------------------------------------------------------------------------------


def make_secret_file(path: str | os.PathLike[str]) -> bytes:
    """Writes a new secret of 256 bits with mode 0600, or returns the one that is there already."""
    target = Path(path)
    with contextlib.suppress(FileNotFoundError):
        return read_secret(target)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.{_random.token_hex(4)}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, _random.token_hex(32).encode() + b"\n")
        os.fsync(fd)
        # link() fails if the name exists: of two makers one wins, and both return what the winner wrote.
        with contextlib.suppress(FileExistsError):
            os.link(new, target)
    finally:
        os.close(fd)
        os.unlink(new)
    return read_secret(target)


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """Raises PermissionError when others may read the file, ValueError when it holds no secret."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if stat.S_IMODE(info.st_mode) & 0o077:
            mode = f"{os.fspath(path)} has mode {stat.S_IMODE(info.st_mode):04o}"
            raise PermissionError(f"{mode}: others can read this secret; chmod 600 it, and make a new one if they may have")
        if info.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{os.fspath(path)} belongs to uid {info.st_uid}, this process is uid {os.geteuid()}'s")
        text = os.read(fd, _MAX_SECRET_BYTES + 1).strip()
    finally:
        os.close(fd)
    if not _MIN_SECRET_BYTES <= len(text) <= _MAX_SECRET_BYTES:
        raise ValueError(f"{os.fspath(path)} holds {len(text)} bytes; a secret has {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES}")
    return text


# -- the handshake, without a socket ----------------------------------------------------------------------


def _proof(secret: bytes, who: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.new(secret, who + client_nonce + server_nonce, hashlib.sha256).digest()


class _Client:
    """`opening` goes out, `_NONCE + _MAC` bytes come back, `answer` of them goes out, and a verdict comes."""

    def __init__(self, address: str, kind: int, secret: bytes, target: bytes) -> None:
        if len(target) != 16:
            raise ValueError(f"a target has 16 bytes, got {len(target)}")
        self._address, self._kind, self._secret, self._target = address, kind, secret, target
        self._nonce = os.urandom(_NONCE)
        self.opening = _OPENING.pack(MAGIC, _VERSION, kind, self._nonce)

    def answer(self, challenge: bytes) -> bytes:
        server_nonce, proof = challenge[:_NONCE], challenge[_NONCE:]
        if not hmac.compare_digest(proof, _proof(self._secret, b"server", self._nonce, server_nonce)):
            ours = _FAMILY.get(self._kind, "secret")
            raise AuthenticationFailed(f"{self._address} does not know our {ours}: it is another cluster's, or the file here is old")
        return _proof(self._secret, b"client", self._nonce, server_nonce) + self._target

    def refused(self, why: str) -> HandshakeRefused:
        return HandshakeRefused(f"{self._address} refused the connection: {why}")

    def cut(self) -> AuthenticationFailed:
        return AuthenticationFailed(f"{self._address} closed the connection during the handshake: is a Shoal node listening there?")


# -- the client's side --------------------------------------------------------------------------------------


def connect_authenticated(address: str, kind: int, secret: bytes, target: bytes, timeout: float) -> socket.socket:
    """A blocking socket to `target` (a worker's id, or STORE_TARGET) behind a node's port; continue with HELLO. `timeout` bounds the whole.

    Raises AuthenticationFailed, HandshakeRefused, TimeoutError, OSError."""
    deadline = time.monotonic() + timeout
    client = _Client(address, kind, secret, target)
    sock = socket.create_connection(parse_address(address), timeout)

    def left() -> float:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"{address} did not finish the handshake in {timeout:g} s")
        return seconds

    def read(n: int) -> bytes:
        data = b""
        while len(data) < n:
            sock.settimeout(left())
            try:
                more = sock.recv(n - len(data))
            except TimeoutError:
                continue  # left() says it better
            if not more:
                raise client.cut()
            data += more
        return data

    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(client.opening)
        sock.sendall(client.answer(read(_NONCE + _MAC)))
        if read(1) != b"\0":
            raise client.refused(read(_WHY_LENGTH.unpack(read(2))[0]).decode("utf-8", "replace"))
        sock.settimeout(None)
    except BaseException as error:
        sock.close()
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            raise client.cut() from error
        raise
    return sock


async def open_authenticated(address: str, kind: int, secret: bytes, target: bytes, timeout: float) -> socket.socket:
    """The same on an asyncio loop; returns a non-blocking socket."""
    client = _Client(address, kind, secret, target)
    host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            sock = socket.socket(infos[0][0], socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, infos[0][4])
            await loop.sock_sendall(sock, client.opening)
            await loop.sock_sendall(sock, client.answer(await _read(sock, _NONCE + _MAC, client.cut)))
            if await _read(sock, 1, client.cut) != b"\0":
                length = _WHY_LENGTH.unpack(await _read(sock, 2, client.cut))[0]
                raise client.refused((await _read(sock, length, client.cut)).decode("utf-8", "replace"))
            return sock
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{address} did not finish the handshake in {timeout:g} s") from error
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            raise client.cut() from error
        raise


async def _read(sock: socket.socket, n: int, cut: Callable[[], Exception]) -> bytes:
    """Exactly n bytes, never more: what follows is for whoever the socket is passed to."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < n:
        more = await loop.sock_recv(sock, n - len(data))
        if not more:
            raise cut()
        data += more
    return data


# -- the server's side --------------------------------------------------------------------------------------


async def accept_authenticated(sock: socket.socket, secrets: Secrets, timeout: float) -> tuple[int, bytes]:
    """(kind, target) of the client of this accepted, non-blocking socket, whose first unread bytes are `SHOL`. `timeout` bounds the whole,
    however slowly bytes come. The caller then says `finish_handshake(sock)` or `finish_handshake(sock, why_not)`.

    Raises AuthenticationFailed, TimeoutError, OSError; the caller closes the socket.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _accept(sock, secrets)
    except TimeoutError as error:
        raise TimeoutError(f"the peer did not finish the handshake in {timeout:g} s") from error


async def _accept(sock: socket.socket, secrets: Secrets) -> tuple[int, bytes]:
    def cut() -> Exception:
        return AuthenticationFailed("the peer closed the connection during the handshake: it does not know this cluster's secret, or went away")

    magic, version, kind, client_nonce = _OPENING.unpack(await _read(sock, _OPENING.size, cut))
    if magic != MAGIC or version != _VERSION:
        raise AuthenticationFailed(f"no handshake of ours: {magic!r}, version {version}; this side speaks version {_VERSION}")
    # A kind that this server does not take looks to the client like a wrong secret: nothing is told to who has proved nothing.
    secret = secrets.of(kind)
    expected_with = secret if secret is not None else os.urandom(_MAC)
    server_nonce = os.urandom(_NONCE)
    await asyncio.get_running_loop().sock_sendall(sock, server_nonce + _proof(expected_with, b"server", client_nonce, server_nonce))
    answer = await _read(sock, _MAC + 16, cut)
    if secret is None or not hmac.compare_digest(answer[:_MAC], _proof(secret, b"client", client_nonce, server_nonce)):
        finish_handshake(sock, "the secret is not this cluster's")
        raise AuthenticationFailed(f"the peer does not know this cluster's {_FAMILY.get(kind, 'secret')}")
    return kind, answer[_MAC:]


def finish_handshake(sock: socket.socket, error: str = "") -> None:
    """The server's last word: welcome, or why not. A peer that has gone is no error here: whoever gets the socket finds out."""
    why = error.encode("utf-8", "replace")[:0xFFFF]
    with contextlib.suppress(BlockingIOError, ConnectionError):
        # A few bytes into an empty socket buffer: sent at once, or the peer is gone.
        sock.send(b"\0" if not error else b"\1" + _WHY_LENGTH.pack(len(why)) + why)


def __getattr__(name: str) -> Any:
    if name in ("AioServerInterceptor", "aio_client_interceptors", "sync_client_interceptors"):
        from . import grpc_auth

        return getattr(grpc_auth, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
