"""Worker processes: forked by the zygote, watched until they are gone, killed when they must be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable
from typing import Any

import msgspec
from shoal_base.processes import describe_exit

from . import zygote
from .workers import environment_variables
from .zygote import Zygote, fork_request, log_paths

_log = logging.getLogger(__name__)
# A worker that was asked to end is killed after this.
EXIT_GRACE_S = 2.0
# A worker whose connection ended without its process is killed after this.
ORPHAN_GRACE_S = 0.5
# The zygote tells the exit status; without it, this long after the process's end is known.
_STATUS_GRACE_S = 0.2
_RESTART_FIRST_S, _RESTART_MOST_S = 0.1, 5.0


class Process(msgspec.Struct, eq=False):
    """A worker process, from the fork request to its end."""

    fork: int
    worker_id: bytes
    token: str
    environment: str
    pid: int = 0
    pidfd: int = -1
    registered: bool = False
    gone: bool = False
    kill_when_forked: bool = False
    start_timer: asyncio.TimerHandle | None = None
    kill_timer: asyncio.TimerHandle | None = None
    why_killed: str = ""


class WorkerPool:
    """`on_exit(process, status or None, text)` comes once for each process that began, registered or not; `on_forked(process)` once it has a pid."""

    def __init__(
        self, command: list[str], node_dir: str, on_exit: Callable[[Process, int | None, str], None], start_timeout_s: float = 60.0,
        on_forked: Callable[[Process], None] = lambda process: None, zygote_timeout_s: float = 60.0, inherited: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self._command = command
        self._inherited = inherited  # pid and socket of the first zygote, if there is one already
        self._node_dir = node_dir
        self._on_exit = on_exit
        self._on_forked = on_forked
        self._start_timeout_s = start_timeout_s
        self._zygote_timeout_s = zygote_timeout_s
        self._loop = asyncio.get_running_loop()
        self._zygote: Zygote | None = None
        self._reaping: set[asyncio.Task[int | None]] = set()  # zygotes that ended by themselves
        self._by_fork: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._by_token: dict[str, Process] = {}
        self.by_worker: dict[bytes, Process] = {}
        self._unsent: list[Process] = []  # until the zygote is ready
        self._restart_s = _RESTART_FIRST_S
        self._restart_timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.restarts = 0

    def start(self) -> None:
        try:
            inherited, self._inherited = self._inherited, None
            process, sock = zygote.inherit(*inherited) if inherited else zygote.start(self._command, os.path.join(self._node_dir, "logs", "zygote.log"))
            self._zygote = Zygote(process, sock, self._message, self._zygote_gone)
        except OSError as error:
            _log.error("the zygote cannot be started (%s): %s", " ".join(self._command), error)
            self._zygote = None
            self._fail_unsent(f"the worker command {self._command!r} cannot be started: {error}")
            self._restart_later()

    @property
    def zygote_pid(self) -> int:
        return self._zygote.pid if self._zygote else 0

    def fork(self, number: int, environment: str) -> None:
        process = Process(number, os.urandom(16), secrets.token_hex(16), environment)
        self._by_fork[number] = process
        self._by_token[process.token] = process
        self.by_worker[process.worker_id] = process
        if self._zygote is not None and self._zygote.ready:
            self._send_fork(process)
        else:
            self._arm(process, "the zygote was not ready", self._zygote_timeout_s)
            self._unsent.append(process)

    def _arm(self, process: Process, what: str, timeout_s: float) -> None:
        if process.start_timer is not None:
            process.start_timer.cancel()
        process.start_timer = self._loop.call_later(timeout_s, self._start_timed_out, process, what, timeout_s)

    def _send_fork(self, process: Process) -> None:
        assert self._zygote is not None
        self._arm(process, "it did not register", self._start_timeout_s)
        out, err = log_paths(self._node_dir, process.worker_id)
        env = environment_variables(process.environment)
        self._zygote.send(fork_request(process.fork, process.worker_id, self._node_dir, process.token, env, out, err))

    def register(self, token: str, worker_id: bytes) -> Process | None:
        """The process that this token was given to; None: nobody we started, or one given up."""
        process = self._by_token.get(token)
        if process is None or process.worker_id != worker_id or process.registered or process.kill_when_forked:
            return None
        process.registered = True
        if process.start_timer is not None:
            process.start_timer.cancel()
        return process

    # -- what the zygote says -------------------------------------------------------------------------

    def _message(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "forked":
            self._forked(int(message["id"]), int(message["pid"]), str(message.get("error", "")))
        elif op == "exited":
            self._exited(int(message["pid"]), int(message["status"]))
        elif op == "ready":
            self._ready()

    def _ready(self) -> None:
        assert self._zygote is not None
        self._zygote.ready = True
        self._restart_s = _RESTART_FIRST_S
        waiting, self._unsent = self._unsent, []
        for process in waiting:
            self._send_fork(process)

    def _forked(self, number: int, pid: int, error: str) -> None:
        process = self._by_fork.pop(number, None)
        if process is None:
            return
        if pid <= 0:
            self._gone(process, None, f"the zygote could not fork: {error or 'no reason given'}")
            return
        process.pid = pid
        self._by_pid[pid] = process
        try:
            process.pidfd = os.pidfd_open(pid)
        except OSError:  # ended already: the zygote will say how
            self._loop.call_later(_STATUS_GRACE_S, self._gone, process, None, "it ended at once")
            return
        self._loop.add_reader(process.pidfd, self._pidfd_readable, process)
        self._on_forked(process)
        if process.kill_when_forked:
            self._signal(process)

    def _exited(self, pid: int, status: int) -> None:
        process = self._by_pid.get(pid)
        if process is not None:
            self._gone(process, status, describe_exit(status))

    def _pidfd_readable(self, process: Process) -> None:
        """The process is gone, whoever reaps it. The zygote's word is awaited for the status, since it is the parent."""
        self._loop.remove_reader(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1
        self._loop.call_later(_STATUS_GRACE_S, self._gone_without_status, process)

    def _gone_without_status(self, process: Process) -> None:
        if process.gone:
            return
        status: int | None = None
        with contextlib.suppress(ChildProcessError):  # ours only when the zygote died first
            pid, status_ = os.waitpid(process.pid, os.WNOHANG)
            status = status_ if pid else None
        self._gone(process, status, describe_exit(status) if status is not None else "" if process.why_killed else "it ended, and nobody knows how")

    def _gone(self, process: Process, status: int | None, text: str) -> None:
        if process.gone:
            return
        process.gone = True
        for timer in (process.start_timer, process.kill_timer):
            if timer is not None:
                timer.cancel()
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        self._by_fork.pop(process.fork, None)
        self._by_pid.pop(process.pid, None)
        self._by_token.pop(process.token, None)
        self.by_worker.pop(process.worker_id, None)
        self._on_exit(process, status, ": ".join(filter(None, (process.why_killed, text))))

    def _zygote_gone(self, why: str) -> None:
        """Its children die with it by their parent-death signal; each is told by its pidfd, here those that had not begun."""
        dead, self._zygote = self._zygote, None
        if dead is not None:
            reaping = self._loop.create_task(dead.reap())
            self._reaping.add(reaping)
            reaping.add_done_callback(self._reaping.discard)
        if self._stopping:
            return
        _log.error("the zygote (pid %d) ended: %s; its workers end with it", dead.pid if dead else 0, why)
        for process in self._by_pid.values():
            process.why_killed = process.why_killed or "the zygote it was forked from ended"
        for process in list(self._by_fork.values()):
            if process not in self._unsent:
                self._gone(process, None, f"the zygote ended before it forked: {why}")
        self._restart_later()

    def _fail_unsent(self, why: str) -> None:
        waiting, self._unsent = self._unsent, []
        for process in waiting:
            self._gone(process, None, why)

    def _restart_later(self) -> None:
        if self._stopping:
            return
        self._restart_timer = self._loop.call_later(self._restart_s, self._restart)
        if self._restart_s > 1.0:  # it fails again and again: whoever waits should know
            self._fail_unsent(f"the zygote does not start; see {os.path.join(self._node_dir, 'logs', 'zygote.log')}")
        self._restart_s = min(self._restart_s * 2, _RESTART_MOST_S)

    def _restart(self) -> None:
        self.restarts += 1
        self.start()

    # -- ending them ----------------------------------------------------------------------------------

    def _start_timed_out(self, process: Process, what: str, timeout_s: float) -> None:
        process.why_killed = f"{what} within {timeout_s:g} s"
        if not process.pid:
            if process in self._unsent:
                self._unsent.remove(process)
            self._gone(process, None, "and was never forked")
        else:
            self._signal(process)

    def kill(self, worker_id: bytes) -> None:
        process = self.by_worker.get(worker_id)
        if process is None:
            return
        process.kill_when_forked = True
        if process.pid:
            self._signal(process)

    def kill_after(self, worker_id: bytes, delay_s: float) -> None:
        process = self.by_worker.get(worker_id)
        if process is not None and process.kill_timer is None:
            process.kill_timer = self._loop.call_later(delay_s, self.kill, worker_id)

    def _signal(self, process: Process) -> None:
        if process.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    async def stop(self, grace_s: float = EXIT_GRACE_S) -> None:
        """Waits for those that were asked to end, then kills the rest and the zygote."""
        end = self._loop.time() + grace_s
        while any(process.registered for process in self.by_worker.values()) and self._loop.time() < end:
            await asyncio.sleep(0.01)
        self._stopping = True
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        for process in list(self.by_worker.values()):
            self.kill(process.worker_id)
        end = self._loop.time() + 1.0
        while any(process.pid for process in self.by_worker.values()) and self._loop.time() < end:
            await asyncio.sleep(0.005)
        if self._zygote is not None:
            last, self._zygote = self._zygote, None
            last.close()
            await last.reap()
        if self._reaping:
            await asyncio.wait(self._reaping)
        for process in list(self.by_worker.values()):
            self._gone(process, None, "the raylet ended")
