"""Processes of the supervisor: forked, told apart, and ended for good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from shoal_base.processes import set_name, set_parent_death_signal

# Limit: how much of a service's last output goes into an error message.
_TAIL_BYTES = 2000
_POLL_S = 0.005


class Child(msgspec.Struct):
    """A service. `ready_fd` is the reading end of its ready pipe, -1 once it has answered."""

    name: str
    pid: int
    ready_fd: int
    output: Path | None
    started_at: float = msgspec.field(default_factory=time.monotonic)
    line: bytes = b""
    status: int | None = None

    def close(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        if self.output is None:
            return ""
        try:
            with open(self.output, "rb") as file:
                file.seek(max(0, self.output.stat().st_size - _TAIL_BYTES))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


def fork_service(name: str, run: Callable[[int], int | None], output: Path | None, close: Iterable[int]) -> Child:
    """Forks a process that runs `run(ready fd)` and ends. `close`: the supervisor's own descriptors, which must not live on in the child."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(name, pid, reading, output)
    status = 70
    pipe = os.fstat(writing).st_ino
    try:
        os.close(reading)
        _become(name, supervisor, output, close)
        status = run(writing) or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        _tell(writing, pipe, f"{name} cannot start: {type(error).__name__}: {error}")
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _tell(fd: int, pipe: int, why: str) -> None:
    """On the ready pipe, if the service has not closed it: on a full disk its log says nothing."""
    with contextlib.suppress(OSError):
        if os.fstat(fd).st_ino == pipe:
            os.write(fd, json.dumps({"error": why}).encode() + b"\n")


def _become(name: str, supervisor: int, output: Path | None, close: Iterable[int]) -> None:
    set_parent_death_signal()
    if os.getppid() != supervisor:  # it died before the line above
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for fd in close:
        with contextlib.suppress(OSError):
            os.close(fd)
    if output is not None:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
        # By lines: what a service said before it was killed is wanted most.
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 (as long as the process)
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 (as long as the process)
    set_name(f"shoal-{name}")


def reap() -> list[tuple[int, int]]:
    """(pid, wait status) of every child that has ended: our own and adopted orphans."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def children_of(parents: set[int]) -> list[int]:
    """Pids of their living children."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The name in parentheses may itself hold spaces and parentheses.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) in parents and state not in (b"Z", b"X"):
            found.append(int(entry))
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_descendants(spare: set[int], timeout_s: float) -> None:
    """Kills every child of this process but `spare`, and what falls to it when they end: it is their sub-reaper."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        reap()
        left = [pid for pid in children_of({os.getpid()}) if pid not in spare]
        if not left:
            return
        for pid in left:
            kill(pid)
        time.sleep(_POLL_S)


def kill_marked(marker: bytes) -> int:
    """Kills this user's processes whose environment, as of their start, holds `marker`; how many there were."""
    count = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if marker not in file.read().split(b"\0"):
                    continue
        except OSError:
            continue
        kill(int(entry))
        count += 1
    return count
