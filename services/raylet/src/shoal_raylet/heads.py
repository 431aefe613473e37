"""Where control stores are, and which of them is believed to lead. No I/O; used by the event loop and by the heartbeat's thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable

# Limit: addresses that are remembered beside those that were given.
MAX_LEARNT = 8


class Heads:
    """`current` is where to ask. One that does not answer is left for the next; one that stands by says who leads.

    `turn` counts how often a head itself has said that it leads. Whoever asks remembers it: what was asked before tells nothing about that head, which may
    have stood by then, or been left for silent.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._given = tuple(dict.fromkeys(addresses))
        if not self._given:
            raise ValueError("no address of a control store was given")
        self._learnt: list[str] = []
        self._current = self._given[0]
        self.turn = 0
        self._lock = threading.Lock()

    @property
    def current(self) -> str:
        return self._current

    @property
    def known(self) -> tuple[str, ...]:
        return (*self._given, *self._learnt)

    def lead(self, address: str) -> None:
        """It says so itself."""
        with self._lock:
            self._go_to(address)
            self.turn += 1

    def failed(self, address: str, turn: int, leader: str = "") -> None:
        """It did not answer what was asked in that turn, or named the `leader`. Several that learn it at once make one step."""
        with self._lock:
            if self._current != address or self.turn != turn:
                return
            if leader and leader != address:
                self._go_to(leader)
            else:
                known = self.known
                self._current = known[(known.index(address) + 1) % len(known)]

    def _go_to(self, address: str) -> None:
        if address not in self.known:
            self._learnt.append(address)
            del self._learnt[:-MAX_LEARNT]
        self._current = address
