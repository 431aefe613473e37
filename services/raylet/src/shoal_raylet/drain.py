"""The end of a node that is to go: once nothing is left here, or at the deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from . import events as on
from .draining import left

if TYPE_CHECKING:
    from .server import Raylet

_log = logging.getLogger(__name__)


class Drain:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._reason = ""
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self, reason: str, within_s: float) -> None:
        """Again: with the new deadline. `within_s` 0: none."""
        _log.info("drains: %s; %s", reason, f"ends within {within_s:.1f} s" if within_s else "without a deadline")
        self._reason = reason
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._raylet.loop.call_later(within_s, self._too_late) if within_s else None
        self._raylet.feed(on.DrainStarted(reason))

    def look(self) -> None:
        """Comes with each tick."""
        if self._reason and not self.left():
            self._raylet.stop(f"drained: {self._reason}")

    def left(self) -> list[str]:
        drivers = sum(session.is_driver for session in self._raylet.sessions.values())
        return left(self._raylet.scheduler.core) + ([f"{drivers} driver{'s' if drivers > 1 else ''}"] if drivers else [])

    def _too_late(self) -> None:
        self._raylet.stop(f"drained: {self._reason}; at the deadline there still were {', '.join(self.left()) or 'objects'}")

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
