"""The process that workers are forked from, and the newline-delimited JSON that it speaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)
_READ_BYTES = 64 << 10
# Limit: what may wait to be written to a zygote that does not read.
MAX_UNSENT_BYTES = 16 << 20


class Inherited:
    """A zygote that our own parent has forked for us, and reaps: its end is all that we see of it. Raises ProcessLookupError when it has gone already."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def kill(self) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def poll(self) -> int | None:
        """None while it lives. How it ended is told to its parent alone."""
        if self._pidfd >= 0:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if not waiting.poll(0):
                return None
            os.close(self._pidfd)
            self._pidfd = -1
        return 0


def start(command: list[str], log_path: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A new zygote, and our end of the socket that it serves. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def inherit(pid: int, fd: int) -> tuple[Inherited, socket.socket]:
    """One that our parent has forked. Raises OSError."""
    ours = socket.socket(fileno=fd)
    try:
        return Inherited(pid), ours
    except BaseException:
        ours.close()
        raise


class Zygote:
    """One running zygote. `on_message` gets each JSON object, `on_gone` comes once when it has ended."""

    def __init__(
        self, process: subprocess.Popen[bytes] | Inherited, sock: socket.socket, on_message: Callable[[dict[str, Any]], None], on_gone: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.process = process
        self._on_message = on_message
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._writing = False
        self.ready = False
        self._sock = sock
        self._sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, message: dict[str, Any]) -> None:
        if self._sock.fileno() < 0:
            return
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self._end("it does not read what it is sent")
        elif not self._writing:
            self._write()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
            del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._end(f"its socket broke: {error.strerror}")
            return
        if self._unsent and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._writing = False
        self._write()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(f"its socket broke: {error.strerror}")
            return
        if not data:
            self._end("it closed its socket")
            return
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._line(bytes(line))

    def _line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            _log.error("the zygote wrote what is no JSON: %r", line[:200])
            return
        self._on_message(message)

    def _end(self, why: str) -> None:
        if self._sock.fileno() < 0:
            return
        self.close()
        self._on_gone(why)

    def close(self) -> None:
        """It ends by itself at the end of its socket; killed here to be sure. Its children die with it."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            if self._writing:
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def reap(self, timeout_s: float = 5.0) -> int | None:
        """Its exit status, once it has ended."""
        end = self._loop.time() + timeout_s
        while (status := self.process.poll()) is None:
            if self._loop.time() > end:
                _log.error("the zygote (pid %d) does not end", self.pid)
                return None
            await asyncio.sleep(0.01)
        return status


def fork_request(number: int, worker_id: bytes, node_dir: str, token: str, env: dict[str, str], stdout: str, stderr: str) -> dict[str, Any]:
    return {
        "op": "fork", "id": number, "worker_id": worker_id.hex(), "node_dir": node_dir, "start_token": token, "env": env, "stdout": stdout, "stderr": stderr,
    }  # fmt: skip


def log_paths(node_dir: str, worker_id: bytes) -> tuple[str, str]:
    base = os.path.join(node_dir, "logs", f"worker-{worker_id.hex()}")
    return f"{base}.out", f"{base}.err"
