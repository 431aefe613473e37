"""Who may read an object from here just now, and who is sent to a node that has it by then: so that the readers of one object are a tree, and not a star around
its first node. No I/O, no clock.

A node that has read all of an object serves it, too, and by the same rules. Small objects are not worth the question.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from msgspec import Struct, field

# Limit: nodes that read one object from here at once.
FAN_OUT = 3
# Objects below this are read by whoever comes.
LARGE_BYTES = 32 << 20
# A reader that asked for nothing for so long has gone, or has it from elsewhere.
IDLE_S = 5.0
# Limit: objects that are looked after, and nodes of each that are known to have it.
MAX_OBJECTS, MAX_HOLDERS = 1000, 64


class Wait(Struct, frozen=True):
    """Not now, and nobody else has it yet."""


class Elsewhere(Struct, frozen=True):
    """Another node has it by now."""

    address: str


Turn = Wait | Elsewhere | None  # None: now, and here


class _Reader(Struct):
    address: str
    seen: float
    brought: int = 0


class _Object(Struct):
    readers: dict[bytes, _Reader] = field(default_factory=dict)
    holders: OrderedDict[str, None] = field(default_factory=OrderedDict)  # the one that was named last is last


class Spread:
    def __init__(self) -> None:
        self._objects: OrderedDict[Hashable, _Object] = OrderedDict()

    def ask(self, key: Hashable, size_bytes: int, reader: bytes, address: str, now: float) -> Turn:
        """`reader`: the node that wants a part; `address`: where it would serve others, empty if it would not."""
        if size_bytes < LARGE_BYTES or not address:
            return None
        known = self._object(key)
        for node, idle in [(node, r) for node, r in known.readers.items() if now - r.seen >= IDLE_S]:
            del known.readers[node]
            if idle.brought:
                self._has_it(known, idle.address)  # from here and elsewhere; who finds that it has not asks again
        if reader in known.readers or len(known.readers) < FAN_OUT:
            known.readers.setdefault(reader, _Reader(address, now)).seen = now
            return None
        for holder in known.holders:
            if holder != address:
                known.holders.move_to_end(holder)
                return Elsewhere(holder)
        return Wait()

    def brought(self, key: Hashable, size_bytes: int, reader: bytes, part_bytes: int) -> None:
        """A part has arrived at a reader."""
        known = self._objects.get(key)
        by = known.readers.get(reader) if known is not None else None
        if known is None or by is None:
            return
        by.brought += part_bytes
        if by.brought >= size_bytes:
            del known.readers[reader]
            self._has_it(known, by.address)

    def _has_it(self, known: _Object, address: str) -> None:
        known.holders[address] = None
        while len(known.holders) > MAX_HOLDERS:
            known.holders.popitem(last=False)

    def _object(self, key: Hashable) -> _Object:
        known = self._objects.setdefault(key, _Object())
        self._objects.move_to_end(key)
        while len(self._objects) > MAX_OBJECTS:
            self._objects.popitem(last=False)
        return known
