"""Looks at the node's memory, ends workers when it is short, and holds each worker to its `memory=`. Whom to end is decided in `shortage`."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from typing import TYPE_CHECKING

import msgspec
from shoal_base.errors import Code

from . import events as on
from .cgroups import Group, GroupsRefused, MemoryGroups
from .death import cause_text
from .shortage import Held, Threshold, Victim, choose, limit_text, shortage_text
from .usage import NodeReader, NodeUsage, anonymous_bytes, largest_processes, proportional_bytes, tree
from .workers import Phase, Worker, memory_limit

if TYPE_CHECKING:
    from .pool import Process
    from .server import Raylet

_log = logging.getLogger(__name__)
# A worker that was ended gives its memory back before the next one is looked for, unless that takes longer than this.
VICTIM_S = 5.0
_LARGEST = 5
_REMOVE_PAUSE_S = 0.05
_REMOVE_TRIES = 100
# What the next worker would be told too.
_NEVER = (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EOPNOTSUPP, errno.EROFS)
LIMIT_MODES = ("auto", "poll", "off")


class WatchSettings(msgspec.Struct, frozen=True):
    """`refresh_ms` 0: the node's memory is not watched. `limits`: by control groups where they can be made, else by looking ("auto"); "poll"; "off"."""

    threshold: Threshold
    refresh_ms: int = 250
    limits: str = "auto"
    cgroup: str = ""

    def __post_init__(self) -> None:
        if self.refresh_ms < 0:
            raise ValueError(f"memory_monitor_refresh_ms={self.refresh_ms}: 0 (off) or more is wanted")
        if self.limits not in LIMIT_MODES:
            raise ValueError(f"memory_limits={self.limits!r}: one of {', '.join(LIMIT_MODES)} is wanted")


class Limited(msgspec.Struct):
    """A worker with a limit. Without a group it is looked at now and then, and its peak is what was seen."""

    pid: int
    limit: int
    group: Group | None
    peak: int = 0
    ending: bool = False


class MemoryWatch:
    def __init__(self, raylet: Raylet, settings: WatchSettings, groups: MemoryGroups, reader: NodeReader | None = None) -> None:
        self._raylet = raylet
        self._settings = settings
        self._refresh_s = (settings.refresh_ms or 250) / 1000
        self._cores = os.cpu_count() or 1
        self._groups = groups
        self._reader = reader or NodeReader()
        self._limited: dict[bytes, Limited] = {}
        self._inherited: dict[bytes, int] = {}  # by worker: what it shares with its zygote, and would not give back
        self._zygote = (0, 0)  # pid, bytes
        self._leaving: list[Group] = []
        self._refused = ""
        self._timer: asyncio.TimerHandle | None = None
        self._remover: asyncio.TimerHandle | None = None
        self._tries = 0
        self._victim = b""
        self._victim_since = 0.0
        self.kills = {"shortage": 0, "limit": 0}

    def start(self) -> None:
        if self._settings.refresh_ms:
            self._schedule()

    def _schedule(self, pause_s: float = 0.0) -> None:
        """The next look comes so late at most; 0: after the pause that was set."""
        loop = self._raylet.loop
        due = loop.time() + (pause_s or self._refresh_s)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        polled = [item for item in self._limited.items() if item[1].group is None]
        for worker_id, limited in polled:
            self._hold_to_limit(worker_id, limited)
        pause_s = self._refresh_s
        if self._settings.refresh_ms:
            usage = self.usage()
            if usage is not None:
                self._check(usage)
                if not polled:
                    pause_s = self._settings.threshold.pause_s(usage, self._refresh_s, self._cores)
        if self._settings.refresh_ms or polled:
            self._schedule(pause_s)

    # -- the node ------------------------------------------------------------------------------------

    def usage(self) -> NodeUsage | None:
        """None where the machine does not tell."""
        try:
            return self._reader.read()
        except (OSError, ValueError, KeyError):
            return None

    def _check(self, usage: NodeUsage) -> None:
        allowed = self._settings.threshold.bytes_of(usage.total)
        if usage.used <= allowed:
            return
        now = self._raylet.loop.time()
        if self._victim in self._raylet.pool.by_worker and now - self._victim_since < VICTIM_S:
            return
        victim = choose(self._candidates())
        if victim is None:
            return
        self._victim, self._victim_since = victim.worker.worker_id, now
        self._end(victim, shortage_text(victim, usage, allowed, largest_processes(_LARGEST)))

    def _candidates(self) -> list[Held]:
        core = self._raylet.scheduler.core
        busy = (Phase.LEASED, Phase.ACTOR)
        return [self._held(worker) for worker in core.workers if worker.phase in busy or (worker.phase is Phase.IDLE and not worker.owns)]

    def _held(self, worker: Worker) -> Held:
        lease, session = worker.lease, self._raylet.sessions.get(worker.id)
        held = self.held(worker.id, worker.pid)
        if lease is None or session is None:
            return Held(worker.id, worker.pid, "", held)
        record = self._raylet.control.read(session.record)
        busy = any(record.task_id)
        if worker.actor is None and not busy and not worker.owns:
            return Held(worker.id, worker.pid, "", held)  # lent, and nothing runs in it
        owner = worker.actor.owner if worker.actor is not None else lease.client
        started = record.started_at_ns / 1e9 if busy and worker.actor is None and record.started_at_ns else lease.since
        name = worker.actor.name or lease.spec.name if worker.actor is not None else record.task_name or lease.spec.name
        return Held(worker.id, worker.pid, name, held, owner or worker.id, not lease.spec.final, started)

    def _end(self, victim: Victim, text: str) -> None:
        self.kills["shortage"] += 1
        # Alone, it would be ended again and again: it pays as for a crash. Among others, it finds more room later, and pays nothing.
        code = Code.MEMORY_LIMIT if victim.alone or not victim.worker.retriable else Code.OUT_OF_MEMORY
        self._tell(victim.worker.worker_id, code, text)

    def _tell(self, worker_id: bytes, code: Code, text: str) -> None:
        session = self._raylet.sessions.get(worker_id)
        record = self._raylet.control.read(session.record) if session is not None else None
        self._raylet.feed(on.MemoryExceeded(worker_id, code, cause_text(text, record, f"worker-{worker_id.hex()}.out and .err")))

    def held(self, worker_id: bytes, pid: int) -> int:
        """What would go back at its end, with all that it has started. Pages that these share count twice, those that it has written anew after its fork not
        at all: good enough to choose by, and cheap."""
        return max(0, sum(map(anonymous_bytes, tree(pid))) - self._inherited.get(worker_id, 0))

    # -- limits ----------------------------------------------------------------------------------------

    def forked(self, process: Process) -> None:
        """Before it takes work: the limit of a worker's environment holds for life."""
        limit = memory_limit(process.environment)
        self._inherited[process.worker_id] = self._zygote_bytes()
        if not limit or self._settings.limits == "off":
            return
        self._limited[process.worker_id] = limited = Limited(process.pid, limit, self._group(process, limit))
        if limited.group is None:
            self._schedule()

    def _zygote_bytes(self) -> int:
        pid = self._raylet.pool.zygote_pid
        if self._zygote[0] != pid:
            self._zygote = (pid, anonymous_bytes(pid))
        return self._zygote[1]

    def _group(self, process: Process, limit: int) -> Group | None:
        if self._settings.limits == "poll" or self._refused:
            return None
        try:
            return self._groups.make(process.pid, process.worker_id, limit)
        except GroupsRefused as error:
            self._refused = str(error)
        except OSError as error:
            if error.errno in _NEVER:
                self._refused = f"a process cannot be moved into a group: {error.strerror}"
        if self._refused:
            _log.warning("memory= is held by looking every %d ms, not by control groups: %s", self._settings.refresh_ms or 250, self._refused)
        return None

    def _hold_to_limit(self, worker_id: bytes, limited: Limited) -> None:
        if limited.ending:
            return
        held = self.held(worker_id, limited.pid)
        if held > limited.limit and len(pids := tree(limited.pid)) > 1:
            held = proportional_bytes(pids)
        limited.peak = max(limited.peak, held)
        if held > limited.limit:
            limited.ending = True
            self.kills["limit"] += 1
            text = limit_text(limited.pid, limited.peak, limited.limit, f"by looking every {self._settings.refresh_ms or 250} ms")
            self._tell(worker_id, Code.MEMORY_LIMIT, text)

    def ended(self, process: Process, status: int | None) -> str:
        """What its control group says of a worker's end, empty for nothing. Removes the group."""
        self._inherited.pop(process.worker_id, None)
        limited = self._limited.pop(process.worker_id, None)
        if limited is None or limited.group is None:
            return ""
        killed = status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and limited.group.kills() > 0
        peak = limited.group.peak()
        self._leaving.append(limited.group)
        self._remove()
        if not killed:
            return ""
        self.kills["limit"] += 1
        return limit_text(limited.pid, peak, limited.limit, "by its control group")

    def limit_of(self, worker_id: bytes) -> int:
        limited = self._limited.get(worker_id)
        return limited.limit if limited else 0

    def _remove(self) -> None:
        """A group goes when the last process of it has gone, which may be a child of the worker."""
        self._leaving = [group for group in self._leaving if not group.remove()]
        self._tries = self._tries + 1 if self._leaving else 0
        if self._leaving and self._remover is None and self._tries < _REMOVE_TRIES:
            self._remover = self._raylet.loop.call_later(_REMOVE_PAUSE_S, self._remove_again)

    def _remove_again(self) -> None:
        self._remover = None
        self._remove()

    async def close(self) -> None:
        for timer in (self._timer, self._remover):
            if timer is not None:
                timer.cancel()
        self._leaving += [limited.group for limited in self._limited.values() if limited.group is not None]
        self._limited.clear()
        for _ in range(_REMOVE_TRIES):
            self._leaving = [group for group in self._leaving if not group.remove()]
            if not self._leaving and self._groups.close():
                return
            await asyncio.sleep(0.01)
        _log.error("control groups could not be removed: %s", ", ".join(str(group.path) for group in self._leaving) or "the node's own")

