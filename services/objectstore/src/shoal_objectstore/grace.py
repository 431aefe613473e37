"""Pins for those who were told of an object and have not got it yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from ._arena import Arena, ArenaError, Buffer, Store

if TYPE_CHECKING:
    from .journal import Location

# A copy is pinned for so long after it came, since its asker must be able to get it; when room lacks, for so long.
GRACE_S, SHORT_GRACE_S = 10.0, 1.0


class _Pin(msgspec.Struct):
    since: float
    buffer: Buffer
    asker: int  # client; 0: not known
    gets: int  # how many objects it had read then


class Grace:
    def __init__(self, store: Store, own: Arena) -> None:
        self._store = store
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._pins: deque[_Pin] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, location: Location, asker: int) -> None:
        """It stays for a moment, so that the asker can get it. One that has gone is asked for again."""
        with contextlib.suppress(ArenaError):
            self._pins.append(_Pin(self._loop.time(), self._own.get(*location), asker, self._store.gets(asker)))
            self._plan()

    def end(self, now: float, short: bool = False) -> None:
        """Drops the pins whose time is over. `short`: room lacks, so that of those who have what they asked for, too."""
        while self._pins and self._pins[0].since <= now - GRACE_S:
            self._pins.popleft()
        if short:
            self._pins = deque(pin for pin in self._pins if not self._served(pin, now))

    def _served(self, pin: _Pin, now: float) -> bool:
        """Whether its asker has it, as far as that can be seen: somebody pins it, or the asker has read something since. Who did not get it asks again."""
        store = self._store
        return pin.since <= now - SHORT_GRACE_S or store.pinned_by_others(pin.buffer.location[0]) or (pin.asker > 0 and store.gets(pin.asker) > pin.gets)

    def _plan(self) -> None:
        if self._pins and self._timer is None:
            self._timer = self._loop.call_later(GRACE_S / 10, self._passed)

    def _passed(self) -> None:
        self._timer = None
        self.end(self._loop.time())
        self._plan()

    def close(self) -> None:
        self._pins.clear()
        if self._timer is not None:
            self._timer.cancel()
