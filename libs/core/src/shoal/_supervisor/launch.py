"""Starts a supervisor and waits until its node serves, or says why not."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from .config import NodeConfig, Started

# Beyond the supervisor's own limit for its services: the interpreter's start and its imports.
_MARGIN_S = 15.0
# How long a told supervisor may take to end everything, beyond its own grace.
_END_MARGIN_S = 8.0
_LINE_BYTES = 1 << 16
ZYGOTE = "shoal._worker.zygote"


class LaunchFailed(RuntimeError):
    """The node did not come up; the message says why."""


def default_worker_command() -> list[str]:
    return [sys.executable, "-P", "-m", ZYGOTE]


class Launched:
    """A supervisor that serves, and how to end it."""

    def __init__(self, process: subprocess.Popen[bytes], started: Started, grace_s: float) -> None:
        self.process = process
        self.started = started
        self._grace_s = grace_s

    def stop(self) -> None:
        """Ends the node; when it returns, nothing of it is left. Idempotent."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        if not wait_exit(self.process, self._grace_s + _END_MARGIN_S):
            self.process.kill()  # its janitor does the rest
            wait_exit(self.process, _END_MARGIN_S)


def launch(configure: Callable[[], NodeConfig], *, own: bool, meanwhile: Callable[[], None] | None = None) -> Launched:
    """Starts a node. `own`: it ends with this process. `configure` and then `meanwhile` run while the supervisor imports and the node starts.

    Raises LaunchFailed, within bounded time, and what `configure` raises; then nothing is left.
    """
    output = os.memfd_create("shoal-output")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    settings, told = os.pipe2(os.O_CLOEXEC)
    owner = os.pidfd_open(os.getpid()) if own else -1
    inherited = [fd for fd in (settings, writing, owner) if fd >= 0]
    command = [sys.executable, "-P", "-m", "shoal._supervisor", "--config-fd", str(settings), "--report-fd", str(writing), "--owner-fd", str(owner)]
    try:
        # A session of its own: Ctrl-C in the terminal is for the program, which then ends the node.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=inherited, start_new_session=True)
        for fd in inherited:
            os.close(fd)
        inherited = []
        try:
            config = configure()
            config.worker_command = config.worker_command or default_worker_command()
            if own:
                config.owner_pid = os.getpid()
            with contextlib.suppress(BrokenPipeError), open(told, "wb") as file:  # one that is gone already says why below
                told = -1
                file.write(config.to_json())
        except BaseException:
            process.kill()
            wait_exit(process, _END_MARGIN_S)
            raise
        if meanwhile is not None:
            meanwhile()
        line = _read_line(reading, process, config.start_timeout_s + _MARGIN_S)
        if not line:
            process.kill()
            wait_exit(process, _END_MARGIN_S)
            raise LaunchFailed(f"the node's supervisor did not come up: {_text(output) or 'it wrote nothing'}")
        started = Started.from_line(line)
        if started.error:
            wait_exit(process, _END_MARGIN_S)
            raise LaunchFailed(started.error)
        return Launched(process, started, config.grace_s)
    finally:
        for fd in (*inherited, output, reading, *([told] if told >= 0 else [])):
            os.close(fd)


def _text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, _LINE_BYTES).decode("utf-8", "replace").strip()[-4000:]


def _read_line(fd: int, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """The report; empty when the process ends or the time is up without one."""
    deadline = time.monotonic() + timeout_s
    line = b""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not waiting.poll(left * 1000):
            return b""
        data = os.read(fd, _LINE_BYTES)
        if not data:
            return b""
        line += data
    return line


def wait_exit(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Popen.wait sleeps in steps of up to 50 ms; a pidfd wakes at once."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        process.poll()
        return True
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        ended = bool(waiting.poll(timeout_s * 1000))
    finally:
        os.close(fd)
    if ended:
        process.wait()
    return ended
