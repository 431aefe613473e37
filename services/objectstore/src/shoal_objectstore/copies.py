"""Copies of what lies on other nodes or on this node's disk: which there are, and of which nobody may know. Events in, no I/O, no clock.

A copy ends with its object: its owner, told by whoever asked for it, frees it. Until then it stays, unless room lacks, so that it need not come again. But
of some copies no owner may ever hear: their asker died before it told (or before it was told), or the store did, and its successor knows no asker. Those
are *doubtful*. To drop one that somebody wants after all costs another transfer and nothing else, so the shell drops it once nobody has read it for a while.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from .journal import Location
from .pulls import Origin

# Whoever was told of a copy, has read something since and lives for so long has told its owner.
TOLD_S = 10.0


class _Told(Struct, frozen=True):
    at: float
    gets: int  # how many objects the asker had read then


class _Copy(Struct):
    size_bytes: int
    origin: Origin | None = None  # None: made by a predecessor
    told: dict[int, _Told] = field(default_factory=dict)  # by client
    known: bool = False  # its owner has been told of it


class Copies:
    """
    >>> copies = Copies()
    >>> copies.made((7, 1), 100, Origin(b"there", 3, 1))
    >>> copies.doubtful
    [(7, 1)]
    >>> copies.told((7, 1), 5, gets=0, at=1.0)
    >>> copies.doubtful, copies.bytes
    ([], 100)
    >>> copies.asker_left(5, gets=0, at=2.0)
    >>> copies.doubtful
    [(7, 1)]
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._copies: dict[Location, _Copy] = {}
        self._doubtful: dict[Location, None] = {}  # in the order in which they became so

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def locations(self) -> list[Location]:
        return list(self._copies)

    @property
    def doubtful(self) -> list[Location]:
        return list(self._doubtful)

    def origin(self, location: Location) -> Origin | None:
        copy = self._copies.get(location)
        return copy.origin if copy is not None else None

    def made(self, location: Location, size_bytes: int, origin: Origin | None = None) -> None:
        """Nobody knows of it until somebody is told. Without an origin: found in the arena."""
        self._copies[location] = _Copy(size_bytes, origin)
        self._doubtful[location] = None
        self.bytes += size_bytes

    def told(self, location: Location, asker: int, gets: int, at: float) -> None:
        """This client knows of it now, and has read so many objects before. Client 0: a caller of the contract, whose affair it is what becomes of the copy."""
        copy = self._copies.get(location)
        if copy is None:
            return
        self._doubtful.pop(location, None)
        if asker:
            copy.told[asker] = _Told(at, gets)
        else:
            copy.known = True

    def asker_left(self, asker: int, gets: int, at: float) -> None:
        """Its connection ended, or its process. It has read so many objects in all."""
        for location, copy in self._copies.items():
            told = copy.told.pop(asker, None)
            if told is None:
                continue
            copy.known |= gets > told.gets and at - told.at > TOLD_S
            if not copy.known and not copy.told:
                self._doubtful[location] = None

    def gone(self, locations: Iterable[Location]) -> None:
        """Freed, dropped, or an object like any other from now on."""
        for location in locations:
            copy = self._copies.pop(location, None)
            if copy is not None:
                self.bytes -= copy.size_bytes
                self._doubtful.pop(location, None)
