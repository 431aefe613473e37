"""The process that workers are forked from: imports once, forks in milliseconds, reports who ended and how.

Speaks newline-delimited JSON with the raylet on the socket `--control-fd`. It has one thread: a fork copies only the thread that called it, and
locks that others hold would stay locked in the child for ever.

A node's first one is forked by the supervisor, which has imported half of what it needs; any other is executed by the raylet.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from shoal_base.processes import become_subreaper, children, set_name, set_parent_death_signal

from .holes import fill_holes
from .threads import single_threaded

# Everything a worker needs, so that none imports it again.
_IMPORTS = (
    "cloudpickle", "shoal._core.engine", "shoal._worker.main", "shoal._worker.actor_modes", "shoal._control", "shoal._failures", "shoal._packages",
    "shoal._cluster", "shoal._logging_config", "shoal.actor", "shoal.remote_function", "shoal._api", "shoal.runtime_context", "shoal_raylet.v1.raylet_pb2",
    "shoal_gcs.v1.gcs_pb2", "asyncio", "concurrent.futures.thread", "traceback", "inspect",
)  # fmt: skip
_READ_BYTES = 64 << 10
# Where the kernel itself has to end somebody, a worker goes before the services, and before the user's shell.
_OOM_SCORE = "1000"
# What a dead worker has left may end by itself for so long: multiprocessing's tracker removes what its process forgot.
_ORPHANS_S = 0.05


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = b""
        self._children: set[int] = set()
        self._orphans: set[int] = set()  # killed, and not reaped yet
        self._orphans_due = 0.0  # 0: nobody has died since they were looked for
        self._forked_child: dict[str, Any] | None = None
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake_write = wake_write
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> dict[str, Any] | None:
        """The zygote's life. Returns in a child with the request that it is to fulfil; None when the raylet has gone."""
        self._send({"op": "ready", "pid": os.getpid()})
        while True:
            sources: list[Any] = [self._control, self._wake_read]
            readable, _, _ = select.select(sources, [], [], max(0.0, self._orphans_due - time.monotonic()) if self._orphans_due else None)
            if self._orphans_due and time.monotonic() >= self._orphans_due:
                self._end_orphans()
            if self._wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control in readable:
                if not self._read():
                    self._kill_children()
                    return None
                if self._forked_child is not None:
                    return self._forked_child

    def _read(self) -> bool:
        try:
            data = self._control.recv(_READ_BYTES)
        except ConnectionResetError:
            return False
        if not data:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for i, line in enumerate(lines):
            request = json.loads(line)
            if request.get("op") == "fork" and self._fork(request):
                return True
            del i
        return True

    def _fork(self, request: dict[str, Any]) -> bool:
        """True in the child."""
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"op": "forked", "id": request["id"], "pid": 0, "error": str(error)})
            return False
        if pid == 0:
            self._become_worker(request)
            self._forked_child = request
            return True
        self._children.add(pid)
        self._send({"op": "forked", "id": request["id"], "pid": pid})
        return False

    def _become_worker(self, request: dict[str, Any]) -> None:
        parent = os.getppid()
        set_parent_death_signal()
        set_name("shoal-worker")
        if os.getppid() != parent:
            os._exit(1)  # the zygote died before the signal was set
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A session of its own: Ctrl-C at the driver's terminal is the driver's.
        os.setsid()
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        _redirect(request["stdout"], 1)
        _redirect(request["stderr"], 2)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        variables = request.get("env") or {}
        if any("$" in value for value in variables.values()):
            from ..runtime_env import expanded

            variables = {name: expanded(value) for name, value in variables.items()}
        os.environ.update(variables)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._children.clear()
                return
            if pid == 0:
                return
            if pid in self._children:
                self._children.discard(pid)
                self._send({"op": "exited", "pid": pid, "status": status})
            elif pid in self._orphans:
                self._orphans.discard(pid)  # it may have left some itself
            else:
                continue  # the daemon of a worker that lives
            self._orphans_due = self._orphans_due or time.monotonic() + _ORPHANS_S

    def _end_orphans(self) -> None:
        """Processes that dead workers had started are ours now, since this process is the sub-reaper: they end, nothing is left behind."""
        self._orphans_due = 0.0
        for pid in children():
            if pid not in self._children:
                self._orphans.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _send(self, message: dict[str, Any]) -> None:
        # A raylet that is gone is noticed by the next read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _kill_children(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _redirect(path: str, to: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, to)
    os.close(fd)


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def preload(names: list[str]) -> str:
    """Imports what the user wants every worker to have; what fails is left out. Returns the first module that left threads behind: this process cannot fork
    safely any more."""
    with single_threaded():
        for name in names:
            try:
                importlib.import_module(name)
            except BaseException as error:
                print(f"zygote: {name} cannot be preloaded: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if thread_count() > 1:
                print(f"zygote: {name} leaves threads behind when imported, so workers import it themselves", file=sys.stderr, flush=True)
                return name
    return ""


def start_again_without(name: str, control_fd: int, names: Sequence[str], left_out: Sequence[str]) -> NoReturn:
    """In the same process, for the raylet: what was imported cannot be taken back."""
    os.set_inheritable(control_fd, True)
    command = [sys.executable, "-P", "-m", "shoal._worker.zygote", "--control-fd", str(control_fd), "--preload", ",".join(names)]
    os.execv(sys.executable, command + [word for one in (*left_out, name) for word in ("--leave-out", one)])


def serve(control_fd: int, names: Sequence[str] = (), left_out: Sequence[str] = ()) -> None:
    """A zygote's life, and in each of its children a worker's. `names`: modules that the user wants every worker to have; SHOAL_PRELOAD names more."""
    set_name("shoal-zygote")
    become_subreaper()
    gc.disable()  # imports leave nothing to collect
    for name in _IMPORTS:
        importlib.import_module(name)
    wanted = dict.fromkeys([*names, *os.environ.get("SHOAL_PRELOAD", "").split(",")])
    if threaded := preload([name for name in wanted if name and name not in left_out]):
        start_again_without(threaded, control_fd, names, left_out)
    if thread_count() != 1:
        raise RuntimeError(f"the zygote has {thread_count()} threads before it has forked anybody; forking it would not be safe")
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    # What was made so far is shared with all children, and neither the collector nor what they make need touch (and so copy) it.
    gc.collect()
    _filled = fill_holes()
    gc.freeze()
    gc.enable()
    request = Zygote(control).run()
    if request is not None:
        from shoal._worker.main import run

        run(bytes.fromhex(request["worker_id"]), request["node_dir"], request["start_token"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m shoal._worker.zygote", description="Forks Shoal's workers. Started by the raylet.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--preload", default="", help="modules that every worker needs, separated by commas; SHOAL_PRELOAD names more")
    parser.add_argument("--leave-out", action="append", default=[], help="a module that is not preloaded, whoever names it")
    args = parser.parse_args(argv)
    set_parent_death_signal()
    serve(args.control_fd, args.preload.split(","), args.leave_out)


if __name__ == "__main__":
    main()
