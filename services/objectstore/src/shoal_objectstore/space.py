"""Who gets an extent, who waits for one, and what is tried before anybody is refused. Events in, effects out: no I/O, no clock.

A request that finds no room makes the shell fetch some, from the cheapest source to the dearest (`Source`), and is tried again after each. Requests that still
lack room wait, in the order they came; every tick goes through the sources again, until the request's time is over.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

from msgspec import Struct

# Limit: requests waiting for space on one node. More clients than the arena's table has could not even attach.
MAX_WAITING = 4096

UNIT_BYTES = 2 << 20
# An object above this part of a shared extent gets an extent of its own size: what would be lost at the end of shared ones is more than a question costs.
WHOLE_SHARE = 4


class Source(enum.IntEnum):
    """Where room comes from."""

    EMPTY_EXTENTS = 1  # lent ones in which nothing lives
    HALF_EMPTY_EXTENTS = 2  # their free pages
    COPIES = 3  # of objects whose primary copy is on another node or on disk
    DISK = 4  # cold objects go there


class Kind(enum.IntEnum):
    SHARED = 0
    WHOLE = 1


# -- events


class ExtentWanted(Struct, frozen=True):
    token: Hashable
    client: int
    size_bytes: int
    lent_bytes: int  # what the client has already
    at: float


class ExtentReserved(Struct, frozen=True):
    token: Hashable


class RoomLacked(Struct, frozen=True):
    token: Hashable
    missing_bytes: int


class RoomMade(Struct, frozen=True):
    source: Source
    failed: str = ""  # why this source, which had something to give, could not give it


class ClientLeft(Struct, frozen=True):
    client: int


class Ticked(Struct, frozen=True):
    at: float


Event = ExtentWanted | ExtentReserved | RoomLacked | RoomMade | ClientLeft | Ticked

# -- effects


class Reserve(Struct, frozen=True):
    """Try to reserve an extent; answer with ExtentReserved or RoomLacked."""

    token: Hashable
    client: int
    size_bytes: int
    kind: Kind


class MakeRoom(Struct, frozen=True):
    """Answer with RoomMade."""

    source: Source
    missing_bytes: int


class Refuse(Struct, frozen=True):
    token: Hashable
    client: int
    size_bytes: int
    waited_s: float
    never: bool  # it could not fit an empty arena
    failed: str = ""  # why the disk took nothing


Effect = Reserve | MakeRoom | Refuse


class _Waiting(Struct):
    want: ExtentWanted
    size_bytes: int
    kind: Kind
    missing_bytes: int = 0


def plan(size_bytes: int, lent_bytes: int, extent_bytes: int) -> tuple[Kind, int]:
    """What extent serves an object of this size. A client's first extents are small and double with what it holds, so that many clients that put
    little take little.

    >>> plan(100_000, 0, 16 << 20)
    (<Kind.SHARED: 0>, 2097152)
    >>> plan(100_000, 6 << 20, 16 << 20)
    (<Kind.SHARED: 0>, 6291456)
    >>> plan(9 << 20, 0, 16 << 20)
    (<Kind.WHOLE: 1>, 9437184)
    """
    if size_bytes > extent_bytes // WHOLE_SHARE:
        return Kind.WHOLE, size_bytes
    wanted = max(4 * size_bytes, lent_bytes, UNIT_BYTES)
    return Kind.SHARED, min(-(-wanted // UNIT_BYTES) * UNIT_BYTES, extent_bytes)


class Space:
    """The queue for space of one arena."""

    def __init__(self, capacity_bytes: int, extent_bytes: int, wait_s: float, last: Source = Source.DISK) -> None:
        """`last` is the dearest source that there is."""
        self.capacity_bytes = capacity_bytes
        self.extent_bytes = extent_bytes
        self.wait_s = wait_s
        self._waiting: dict[Hashable, _Waiting] = {}
        self._trying: set[Hashable] = set()  # asked to be reserved, and not answered yet
        self.last = last
        self._failed = ""
        self._making: Source | None = None  # room is being made
        self._dry: Source | None = None  # the last source of this round
        self._fresh = False  # somebody has come since the round began

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        return sum(w.size_bytes for w in self._waiting.values())

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case ExtentWanted():
                return self._wanted(event)
            case ExtentReserved(token):
                self._waiting.pop(token, None)
                self._trying.discard(token)
                return self._more()
            case RoomLacked(token, missing):
                return self._lacked(token, missing)
            case RoomMade(source, failed):
                self._making = None
                self._dry = source
                self._failed = failed
                return self._try_all()
            case ClientLeft(client):
                self._waiting = {t: w for t, w in self._waiting.items() if w.want.client != client}
                return []
            case Ticked(at):
                return self._ticked(at)

    def _wanted(self, want: ExtentWanted) -> list[Effect]:
        if want.size_bytes > self.capacity_bytes or len(self._waiting) >= MAX_WAITING:
            return [Refuse(want.token, want.client, want.size_bytes, 0.0, want.size_bytes > self.capacity_bytes)]
        if not self._waiting:
            self._failed = ""  # that was for those who waited then, and found room after all
        kind, size = plan(want.size_bytes, want.lent_bytes, self.extent_bytes)
        waiting = _Waiting(want, min(size, self.capacity_bytes), kind)
        self._waiting[want.token] = waiting
        self._fresh = True
        return [self._reserve(waiting)]

    def _try_all(self) -> list[Effect]:
        return [self._reserve(w) for token, w in self._waiting.items() if token not in self._trying]

    def _reserve(self, w: _Waiting) -> Effect:
        self._trying.add(w.want.token)
        return Reserve(w.want.token, w.want.client, w.size_bytes, w.kind)

    def _lacked(self, token: Hashable, missing: int) -> list[Effect]:
        self._trying.discard(token)
        waiting = self._waiting.get(token)
        if waiting is None:
            return self._more()
        waiting.missing_bytes = missing
        # In need, a shared extent is no larger than this object wants.
        if waiting.kind is Kind.SHARED:
            waiting.size_bytes = max(-(-waiting.want.size_bytes // UNIT_BYTES) * UNIT_BYTES, UNIT_BYTES)
        return self._more()

    def _more(self) -> list[Effect]:
        """The next source, once every request was tried on the last one and some still lack room."""
        if self._making is not None or self._trying or not self._waiting:
            return []
        if self._failed:
            # Waiting would not help: what could make room has just said that it cannot.
            failed, self._failed = self._failed, ""
            out: list[Effect] = [Refuse(t, w.want.client, w.want.size_bytes, 0.0, False, failed) for t, w in self._waiting.items()]
            self._waiting.clear()
            return out
        if self._dry is self.last:
            if not self._fresh:
                return []
            self._dry = None
        if self._dry is None:
            self._fresh = False
        self._making = Source((self._dry or 0) + 1)
        return [MakeRoom(self._making, sum(w.missing_bytes for w in self._waiting.values()))]

    def _ticked(self, at: float) -> list[Effect]:
        out: list[Effect] = []
        for token, w in list(self._waiting.items()):
            if at - w.want.at >= self.wait_s:
                del self._waiting[token]
                out.append(Refuse(token, w.want.client, w.want.size_bytes, at - w.want.at, False))
        if self._making is None and not self._trying:
            self._dry = None
            out += self._try_all()
        return out
