"""Who may read an object from here just now, and who is sent to a node that reads it, or has done so: so that the readers of one object are a tree, and not a
star around its first node. No I/O, no clock.

A node that reads an object serves what it has of it, by the same rules. Small objects are not worth the question.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from msgspec import Struct, field

# Limit: nodes that read one object from here at once. What leaves the first node is so many times the object, whoever reads it: fewer would make a chain, in
# which each node adds the time of a part.
FAN_OUT = 2
# Objects below this are read by whoever comes.
LARGE_BYTES = 32 << 20
# A reader that asked for nothing for so long has gone, or has it from elsewhere.
IDLE_S = 5.0
# Limit: objects that are looked after, and nodes of each that are known to read it or to have it.
MAX_OBJECTS, MAX_BRANCHES = 1000, 64


class Wait(Struct, frozen=True):
    """Not now, and there is nobody else."""


class Elsewhere(Struct, frozen=True):
    """Another node reads it, or has done so."""

    address: str


Turn = Wait | Elsewhere | None  # None: now, and here


class _Reader(Struct):
    address: str
    seen: float
    brought: int = 0


class _Object(Struct):
    readers: dict[bytes, _Reader] = field(default_factory=dict)
    branches: OrderedDict[str, None] = field(default_factory=OrderedDict)  # the one that was named last is last


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
            # Else it may have the rest from elsewhere; who finds that it has not asks again.
            if not idle.brought:
                known.branches.pop(idle.address, None)
        if reader in known.readers or len(known.readers) < FAN_OUT:
            known.readers.setdefault(reader, _Reader(address, now)).seen = now
            known.branches.setdefault(address)
            while len(known.branches) > MAX_BRANCHES:
                known.branches.popitem(last=False)
            return None
        for branch in known.branches:
            if branch != address:
                known.branches.move_to_end(branch)
                return Elsewhere(branch)
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

    def _object(self, key: Hashable) -> _Object:
        known = self._objects.setdefault(key, _Object())
        self._objects.move_to_end(key)
        while len(self._objects) > MAX_OBJECTS:
            self._objects.popitem(last=False)
        return known
