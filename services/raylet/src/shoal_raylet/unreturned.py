"""Leases whose workers run nothing, for longer than any client keeps one. No I/O, no clock.

A client returns what it does not need within milliseconds. So the client of one that was asked back is stopped, or so slow that others must not wait for it;
and of one that was lent to another node the grant, or the return, was lost with a connection. What then happens is `clients.on_idle`'s. A task that comes
after all still runs, once, whoever its worker is lent to by then; what is returned later is not known any more.
"""

from __future__ import annotations

from collections.abc import Iterable

PATIENCE_S = 2.0
_LOOK_S = 0.25


class Unreturned:
    def __init__(self) -> None:
        self._next_look = 0.0
        self._idle: dict[int, tuple[int, bool, float]] = {}  # lease: tasks begun by its worker, whether it was asked back, and since when it has been so

    def is_due(self, now: float) -> bool:
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_S
        return True

    def late(self, now: float, idle: Iterable[tuple[int, int, bool]]) -> list[int]:
        """Those that have been so for long, each once in `PATIENCE_S`. `idle`: leases whose workers run nothing, the tasks begun there, whether asked back."""
        before, self._idle = self._idle, {}
        late = []
        for lease, begun, asked_back in idle:
            known = before.get(lease)
            if known is None or known[:2] != (begun, asked_back):
                known = (begun, asked_back, now)
            elif now - known[2] >= PATIENCE_S:
                late.append(lease)
                known = (begun, asked_back, now)
            self._idle[lease] = known
        return late
