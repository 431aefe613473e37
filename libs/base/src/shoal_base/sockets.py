"""Unix stream sockets of one user: listening, connecting, who is at the other end, descriptors in passing."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
_UCRED = struct.Struct("=iII")
_FD_SIZE = array.array("i").itemsize

# Limit: the kernel's own (SCM_MAX_FD is 253); no frame of ours carries more than two.
MAX_FDS = 16
# Limit: connections the kernel holds until we accept them; capped by net.core.somaxconn.
BACKLOG = 4096
# Limit: a Unix socket's address (sun_path), with its final zero.
MAX_PATH_BYTES = 107
# Out of descriptors, accept() fails at once and again: wait before the next try instead of spinning.
_ACCEPT_PAUSE_S = 0.5
_CONNECT_RETRY_S = 0.01


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that made the other end; (-1, -1) when it is no Unix socket."""
    if sock.family != socket.AF_UNIX:
        return -1, -1
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def ancillary(fds: tuple[int, ...] | list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)


def received_fds(messages: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
            fds.extend(numbers)
    return fds


def close_fds(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def check_path(path: str | os.PathLike[str]) -> str:
    """Raises ValueError when the path is too long for a Unix socket: the kernel's own message does not name it."""
    text = os.fspath(path)
    if len(os.fsencode(text)) > MAX_PATH_BYTES:
        length = len(os.fsencode(text))
        raise ValueError(f"{text!r} has {length} bytes; a Unix socket's path may have {MAX_PATH_BYTES}: set SHOAL_TMPDIR to a shorter directory")
    return text


class Server:
    """A listening Unix socket. `close()` ends it and removes its path."""

    def __init__(self, path: str, sock: socket.socket, on_connection: Callable[[socket.socket], object]) -> None:
        self.path = path
        self._sock = sock
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._uid = os.geteuid()
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(64):  # then let the loop serve others
            try:
                client, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            client.setblocking(False)
            _pid, uid = peer_credentials(client)
            if uid != self._uid:
                _log.warning("%s: refused a connection by uid %d; this cluster is uid %d's", self.path, uid, self._uid)
                client.close()
                continue
            self._on_connection(client)

    def _pause(self, error: OSError) -> None:
        _log.error("%s: accept failed: %s; the next try is in %g s", self.path, error, _ACCEPT_PAUSE_S)
        self._loop.remove_reader(self._sock.fileno())
        self._resume = self._loop.call_later(_ACCEPT_PAUSE_S, lambda: self._loop.add_reader(self._sock.fileno(), self._accept))

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


async def listen_unix(path: str | Path, on_connection: Callable[[socket.socket], object]) -> Server:
    """Listens at `path` with mode 0600; `on_connection` gets each accepted, non-blocking socket of this user. A socket left by a dead owner is replaced."""
    text = check_path(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(text).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is in the way", text)
        os.unlink(text)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(text)
        os.chmod(text, 0o600)
        sock.listen(BACKLOG)
        return Server(text, sock, on_connection)
    except BaseException:
        sock.close()
        raise


async def connect_unix(path: str | Path, timeout: float = 10.0) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError (nobody listens) or TimeoutError (its backlog stays full)."""
    text = check_path(path)
    deadline = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            # Not loop.sock_connect(): it takes EAGAIN, which means a full backlog here, for a connection in progress.
            try:
                sock.connect(text)
                return sock
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{text} did not accept a connection for {timeout:g} s: its backlog is full") from error
            await asyncio.sleep(_CONNECT_RETRY_S)
    except BaseException:
        sock.close()
        raise
