"""Ends of worker processes: what was it doing, why did it end, who must know."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.processes import children
from shoal_base.wire import WorkerDied
from shoal_gcs.v1 import gcs_pb2 as gcs

from . import effects as do
from . import events as on
from .memory import Record
from .pool import Process
from .rpc import RpcFailed

if TYPE_CHECKING:
    from .server import Raylet
    from .sessions import Session

_log = logging.getLogger(__name__)
_NO_TASK = bytes(16)
_REPORT_PAUSE_S = 0.2
# How long a death is told to a GCS that does not answer.
_REPORT_TIMEOUT_S = 60.0
# A GCS that was started again hears of such late deaths once more: its predecessor may have died with what it had not passed on.
_TOLD_AGAIN_S = 60.0
_MAX_TOLD_AGAIN = 1_000  # Limit: the oldest are forgotten first
_ORPHANS_S = 0.05


def cgroup_oom_kills() -> int:
    """How many processes of this control group the kernel has killed for lack of memory; 0 where that is not told."""
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        events = Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events"
        return next(int(row.split()[1]) for row in events.read_text().splitlines() if row.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
        return 0


def cause_text(text: str, record: Record | None, log: str) -> str:
    parts = [text]
    if record is not None and record.task_id != _NO_TASK:
        parts.append(f"it ran {record.task_name or 'a task'} (task {record.task_id.hex()})")
    if record is not None and record.last_words:
        parts.append(f"its last words: {record.last_words}")
    return "; ".join(parts) + f"; its output is in {log}"


def _with_pid(effect: do.TellWorkerDied) -> str:
    return f"pid {effect.pid}: {effect.cause}"


class Deaths:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._tellers: set[asyncio.Task[None]] = set()
        self._recent: deque[tuple[float, gcs.ReportWorkerDeathRequest]] = deque(maxlen=_MAX_TOLD_AGAIN)
        self._oom_kills = cgroup_oom_kills()
        self._orphans_timer: asyncio.TimerHandle | None = None

    def exited(self, process: Process, status: int | None, text: str) -> None:
        raylet = self._raylet
        worker_id = process.worker_id
        if raylet.config.own_process:
            self._look_for_orphans()
        session = raylet.registrar.of_process(process)
        over = raylet.memory.ended(process, status)
        raylet.tail.finish(worker_id)
        if session is None:
            raylet.feed(on.ForkFailed(process.fork, f"{over or text}; see {raylet.logs_dir}/worker-{worker_id.hex()}.err"))
            return
        record = raylet.control.read(session.record)
        worker = raylet.scheduler.core.workers.by_id.get(worker_id)
        raylet.history.retire(session.record, record, worker.job if worker is not None else b"")
        code = Code.MEMORY_LIMIT if over else self._code(status)
        cause = cause_text(over or text, record, f"worker-{worker_id.hex()}.out and .err")
        # As a client first: what it had asked for must not be granted to the dead.
        if not session.closed:
            session.conn.abort("its process has ended")
            session.closed = True
            raylet.connections.pop(session.conn, None)
            raylet.channels.drop(session)
            raylet.registrar.closed(session, text)
        raylet.feed(on.WorkerDied(worker_id, code, cause, record.task_id))
        raylet.registrar.release(session)

    def _code(self, status: int | None) -> int:
        if status == 0:
            return Code.WORKER_EXITED
        if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            before, self._oom_kills = self._oom_kills, cgroup_oom_kills()
            if self._oom_kills > before:
                return Code.MEMORY_LIMIT  # the kernel found nothing better to end: again would end alike
        return Code.WORKER_CRASHED

    def tell(self, effect: do.TellWorkerDied) -> None:
        raylet = self._raylet
        if raylet.closing:  # everybody is told at once that the node ends
            return
        log = logging.INFO if effect.intended else logging.WARNING
        _log.log(log, "worker %s (pid %d) ended: %s", effect.worker_id.hex()[:12], effect.pid, effect.cause)
        frame = WorkerDied(effect.worker_id, raylet.node_id, effect.started_task, effect.code, _with_pid(effect)).pack()
        raylet.owner_died(Type.WORKER_DIED, frame)
        request = gcs.ReportWorkerDeathRequest(
            worker_id=effect.worker_id, node_id=raylet.node_id, code=effect.code, cause=_with_pid(effect), actor_ids=effect.actors,
            intended=effect.intended, pid=effect.pid, started_task_id=effect.started_task if any(effect.started_task) else b"",
            migrated=effect.migrated,
        )  # fmt: skip
        self._recent.append((raylet.loop.time(), request))
        self._report(request)

    def tell_again(self) -> None:
        """To a GCS that was started again; all that hear of it twice are none the worse."""
        since = self._raylet.loop.time() - _TOLD_AGAIN_S
        for at, request in self._recent:
            if at >= since:
                self._report(request)

    def _report(self, request: gcs.ReportWorkerDeathRequest) -> None:
        task = asyncio.ensure_future(self._reporting(request))
        self._tellers.add(task)
        task.add_done_callback(self._tellers.discard)

    async def _reporting(self, request: gcs.ReportWorkerDeathRequest) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + _REPORT_TIMEOUT_S
        while loop.time() < end:
            try:
                await self._raylet.gcs.call("ReportWorkerDeath", request, gcs.Empty)
                return
            except RpcFailed as error:
                if not error.unavailable:
                    _log.error("the GCS did not take the death of worker %s: %s", request.worker_id.hex(), error)
                    return
            await asyncio.sleep(_REPORT_PAUSE_S)
        _log.error("the GCS did not answer for %g s; the death of worker %s was not told", _REPORT_TIMEOUT_S, request.worker_id.hex())

    # -- what dead workers leave behind -----------------------------------------------------------------

    def _look_for_orphans(self) -> None:
        if self._orphans_timer is None:
            self._orphans_timer = self._raylet.loop.call_later(_ORPHANS_S, self._end_orphans)

    def _end_orphans(self) -> None:
        """Processes that dead workers had started are ours now, since this process is the sub-reaper: they end, nothing is left behind."""
        self._orphans_timer = None
        again = False
        for pid in children():
            if pid == self._raylet.pool.zygote_pid:
                continue
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                reaped, _status = os.waitpid(pid, os.WNOHANG)
                again = again or not reaped
        if again:
            self._look_for_orphans()

    async def close(self) -> None:
        if self._orphans_timer is not None:
            self._orphans_timer.cancel()
        if self._raylet.config.own_process:
            self._end_orphans()
            if self._orphans_timer is not None:
                self._orphans_timer.cancel()
        if self._tellers:
            await asyncio.wait(self._tellers, timeout=0.5)
        for task in list(self._tellers):
            task.cancel()
        await asyncio.gather(*self._tellers, return_exceptions=True)


def session_running(raylet: Raylet, session: Session) -> frozenset[bytes]:
    """Workers lent to it that have a task running."""
    return frozenset(worker for worker in raylet.scheduler.leased_to(session.worker_id) if raylet.runs_a_task(worker))
