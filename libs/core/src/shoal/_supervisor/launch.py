"""Starts a supervisor and waits until its node serves, or says why not."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable

from .config import NodeConfig, Started
from .spawn import Spawned, wait_exit

# Beyond the supervisor's own limit for its services: the interpreter's start and its imports.
_MARGIN_S = 15.0
# How long a told supervisor may take to end everything, beyond its own grace.
_END_MARGIN_S = 8.0
_LINE_BYTES = 1 << 16


class LaunchFailed(RuntimeError):
    """The node did not come up; the message says why."""


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


def launch(configure: Callable[[], NodeConfig], *, own: bool, meanwhile: Callable[[], None] | None = None, spawned: Spawned | None = None) -> Launched:
    """Starts a node. `own`: it ends with this process. `configure` and then `meanwhile` run while the supervisor imports and the node starts. `spawned`: a
    process for it that exists already.

    Raises LaunchFailed, within bounded time, and what `configure` raises; then nothing is left.
    """
    spawned = spawned or Spawned(own)
    spawned.taken = True
    process = spawned.process
    try:
        config = configure()
        if own:
            config.owner_pid = os.getpid()
        spawned.tell(config.to_json())
        if meanwhile is not None:
            meanwhile()
        line = _read_line(spawned.answer, config.start_timeout_s + _MARGIN_S)
        if not line:
            process.kill()
            wait_exit(process, _END_MARGIN_S)
            raise LaunchFailed(f"the node's supervisor did not come up: {_text(spawned.output) or 'it wrote nothing'}")
        started = Started.from_line(line)
        if started.error:
            wait_exit(process, _END_MARGIN_S)
            raise LaunchFailed(started.error)
    except BaseException:
        spawned.give_up()
        raise
    spawned.close()
    return Launched(process, started, config.grace_s)


def _text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, _LINE_BYTES).decode("utf-8", "replace").strip()[-4000:]


def _read_line(fd: int, timeout_s: float) -> bytes:
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
