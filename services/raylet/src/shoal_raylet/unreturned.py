"""Leases that were asked back, idle, and not returned: their client is stopped, or so slow that others must not wait for it.

Alive, it returns a lease within milliseconds after the running task. A task that it sends later still runs, once, whoever its worker is lent to by then; what
it returns later is not known any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import events as on

if TYPE_CHECKING:
    from .server import Raylet

PATIENCE_S = 2.0
_LOOK_S = 0.25


class Unreturned:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._next_look = 0.0
        self._idle: dict[int, tuple[int, float]] = {}  # lease -> tasks begun by its worker, and since when it has been so

    def look(self) -> None:
        """Comes with each tick."""
        raylet = self._raylet
        now = raylet.loop.time()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        idle: dict[int, tuple[int, float]] = {}
        late: list[int] = []
        for lease_id, worker_id in raylet.scheduler.asked_back():
            session = raylet.sessions.get(worker_id)
            if session is None or session.record < 0 or raylet.control.runs_a_task(session.record):
                continue
            begun = raylet.control.read(session.record).started
            known = self._idle.get(lease_id)
            idle[lease_id] = known if known is not None and known[0] == begun else (begun, now)
            if now - idle[lease_id][1] >= PATIENCE_S:
                late.append(lease_id)
        self._idle = idle
        for lease_id in late:
            raylet.feed(on.LeaseAbandoned(lease_id))
