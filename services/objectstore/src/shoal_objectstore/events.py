"""What happens to objects, for those who subscribed: bounded queues that never hold the store up, and the difference of two looks at the arena.

No I/O, no clock.

Clients put and free without a message, so SEALED and FREED are seen by looking; what lives for less than the time between two looks is not seen. The other
events are the store's own doing, and told when it is done.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from .journal import Location

# Limit: events that wait for one subscriber. What comes beyond is dropped and counted.
MAX_WAITING = 10_000
# Limit: subscribers.
MAX_SUBSCRIBERS = 64


class Kind(enum.IntEnum):
    """As in the contract."""

    SEALED = 1
    FREED = 2
    SPILLED = 3
    RESTORED = 4
    PULLED = 5
    DAMAGED = 6


SEEN = frozenset({Kind.SEALED, Kind.FREED})


class Event(Struct, frozen=True):
    kind: Kind
    slot: int
    generation: int
    size_bytes: int = 0
    where: str = ""


class Subscription:
    def __init__(self, kinds: Iterable[Kind], wake: Callable[[], None], interval_s: float) -> None:
        self.kinds = frozenset(kinds) or frozenset(Kind)
        self.interval_s = interval_s
        self._wake = wake
        self._waiting: deque[Event] = deque()
        self._lost = 0

    def tell(self, event: Event) -> None:
        if event.kind not in self.kinds:
            return
        # One gap, not many: after the first that is dropped all are, until the subscriber was told how many.
        if self._lost or len(self._waiting) >= MAX_WAITING:
            self._lost += 1
        else:
            self._waiting.append(event)
        self._wake()

    def take(self, limit: int) -> tuple[list[Event], int]:
        """The next ones, and how many were dropped after them."""
        events = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        lost = 0 if self._waiting else self._lost
        self._lost -= lost
        return events, lost

    @property
    def waiting(self) -> bool:
        return bool(self._waiting or self._lost)


class Subscriptions:
    def __init__(self, on_added: Callable[[], None] = lambda: None) -> None:
        self._on_added = on_added
        self._all: set[Subscription] = set()
        self._seen: dict[Location, int] | None = None
        self._spilled: set[Location] = set()  # while somebody looks

    def __len__(self) -> int:
        return len(self._all)

    def add(self, kinds: Iterable[Kind], wake: Callable[[], None], interval_s: float = 1.0) -> Subscription | None:
        """None: there are too many already."""
        if len(self._all) >= MAX_SUBSCRIBERS:
            return None
        subscription = Subscription(kinds, wake, interval_s)
        self._all.add(subscription)
        self._on_added()
        return subscription

    def remove(self, subscription: Subscription) -> None:
        self._all.discard(subscription)
        if self.interval_s is None:
            self._seen = None

    @property
    def interval_s(self) -> float | None:
        """How often somebody wants the arena to be looked at; None: nobody does."""
        return min((s.interval_s for s in self._all if s.kinds & SEEN), default=None)

    def publish(self, kind: Kind, location: Location, size_bytes: int = 0, where: str = "") -> None:
        if kind is Kind.SPILLED and self._seen is not None:
            # Gone from the arena, and not freed.
            self._seen.pop(location, None)
            self._spilled.add(location)
        if self._all:
            event = Event(kind, *location, size_bytes, where)
            for subscription in self._all:
                subscription.tell(event)

    def begin_to_look(self) -> None:
        self._spilled.clear()

    def look(self, found: Mapping[Location, int]) -> None:
        """What was readable in the arena at some moment since `begin_to_look`. The first look tells nothing: what is there was there before."""
        now = {location: size for location, size in found.items() if location not in self._spilled}
        before, self._seen = self._seen, now
        if before is None:
            return
        for location, size in now.items():
            if location not in before:
                self.publish(Kind.SEALED, location, size)
        for location, size in before.items():
            if location not in now:
                self.publish(Kind.FREED, location, size)
