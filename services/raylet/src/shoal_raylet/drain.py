"""The end of a node that is to go: once nothing is left here, no object either, or at the deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from . import events as on
from .draining import left
from .rpc import STORE, RpcFailed
from .store import primary_bytes

if TYPE_CHECKING:
    from .server import Raylet

_log = logging.getLogger(__name__)
# The store counts once a second, so that it must have found nothing for longer.
SETTLED_S = 1.5
_TIMEOUT_S = 5.0


class Drain:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._reason = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._asking = False
        self._objects = ""
        self._empty_since: float | None = None

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
        if not self._reason or self._asking:
            return
        if self._working():
            self._empty_since = None
            return
        self._asking = True
        self._raylet.spawn(self._look_at_store())

    async def _look_at_store(self) -> None:
        """What lies here and nowhere else is waited for: its owners free it, or the deadline comes."""
        raylet = self._raylet
        try:
            size = primary_bytes(await raylet.store.call(STORE + "Stats", b"", _TIMEOUT_S)) if raylet.store_session is not None else 0
        except RpcFailed:
            return  # it is being started again: asked with the next tick
        finally:
            self._asking = False
        self._objects = f"objects of {size:,} bytes" if size else ""
        now = raylet.loop.time()
        if size or self._working():
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since >= SETTLED_S:
            raylet.stop(f"drained: {self._reason}")

    def _working(self) -> list[str]:
        drivers = sum(session.is_driver for session in self._raylet.sessions.values())
        return left(self._raylet.scheduler.core) + ([f"{drivers} driver{'s' if drivers > 1 else ''}"] if drivers else [])

    def left(self) -> list[str]:
        return self._working() + ([self._objects] if self._objects else [])

    def _too_late(self) -> None:
        told = ", ".join(self.left())
        self._raylet.stop(f"drained: {self._reason}" + (f"; at the deadline there still were {told}" if told else ""))

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
