"""Who is blocked, read from the control pages, while somebody waits for what a blocked worker could lend."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from . import events as on

if TYPE_CHECKING:
    from .server import Raylet

BLOCKED_NS = 1_000_000
_FIRST_S, _MOST_S = 0.002, 0.010
# Looks without a change before they become rarer.
_PATIENCE = 50


class BlockedPoll:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = 0

    def start(self) -> None:
        self._quiet = 0
        if self._timer is None:
            self._timer = self._raylet.loop.call_later(_FIRST_S, self._poll)

    def _poll(self) -> None:
        self._timer = None
        changed = self.look()
        if not self._raylet.scheduler.waiting:
            return
        quiet = 0 if changed else self._quiet + 1
        self._quiet = quiet  # feeding an event above may have set it
        if self._timer is None:
            self._timer = self._raylet.loop.call_later(_FIRST_S if quiet < _PATIENCE else _MOST_S, self._poll)

    def look(self) -> bool:
        """Tells the scheduler who has changed; whether anybody had."""
        raylet = self._raylet
        now = time.monotonic_ns()
        events: list[on.Event] = []
        for worker in raylet.scheduler.lent():
            session = raylet.sessions.get(worker.id)
            if session is None:
                continue
            since = raylet.control.blocked_since(session.record)
            # Nothing but a whole millisecond counts as blocked, but going on counts at once.
            blocked = bool(since) and (worker.blocked or now - since >= BLOCKED_NS)
            if blocked != worker.blocked:
                events.append(on.WorkerBlocked(worker.id) if blocked else on.WorkerUnblocked(worker.id))
        for event in events:
            raylet.feed(event)
        return bool(events)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
