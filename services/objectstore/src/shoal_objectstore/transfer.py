"""One object from other nodes to here, in parts: several connections at once, from several nodes where several have it, and after a break only what is missing.

`Parts` decides who brings which part; it does no I/O. `bring` is the shell: each of its streams is a thread that lies in recv most of the time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from shoal_base.errors import Code

from .peer import PeerFailed, Peers
from .pulls import Place

PART_BYTES = 8 << 20
# Connections for one object; a smaller one has fewer.
MAX_STREAMS = 3
STREAM_BYTES = 32 << 20
# A node that cannot be reached is tried again so often after a break, with pauses that double.
TRIES, PAUSE_S = 4, 0.1
# These tell that the source has no such object, or none that is whole: it is not asked again.
_FINAL = frozenset({Code.OBJECT_FREED, Code.OBJECT_LOST, Code.ARENA_FULL, Code.OUT_OF_DISK, Code.UNAUTHENTICATED})


class Parts:
    """Which parts of an object are wanted, and from which sources they may still come. Thread-safe."""

    def __init__(self, size_bytes: int, sources: int, part_bytes: int = PART_BYTES) -> None:
        self._lock = threading.Lock()
        self._missing = deque((at, min(part_bytes, size_bytes - at)) for at in range(0, size_bytes, part_bytes))
        if not size_bytes:
            self._missing.append((0, 0))
        self._left = len(self._missing)
        self._failures = [0] * sources
        self._dropped: dict[int, PeerFailed] = {}

    @property
    def complete(self) -> bool:
        return not self._left

    @property
    def error(self) -> PeerFailed | None:
        """Why it cannot be had, once every source was dropped. What a source said of the object tells more than that another is silent."""
        with self._lock:
            if len(self._dropped) < len(self._failures) or not self._left:
                return None
            return min(self._dropped.values(), key=lambda e: e.code not in _FINAL)

    def take(self, source: int) -> tuple[int, int] | None:
        """(offset, length) for this source to bring now; None: nothing for it."""
        with self._lock:
            if source in self._dropped or not self._missing:
                return None
            return self._missing.popleft()

    def brought(self, source: int) -> None:
        with self._lock:
            self._left -= 1
            self._failures[source] = 0

    def failed(self, source: int, part: tuple[int, int], error: PeerFailed) -> float:
        """The part is wanted again. Returns for how long this source is to be left alone; it may be given up."""
        with self._lock:
            self._missing.appendleft(part)
            self._failures[source] += 1
            if error.code in _FINAL or self._failures[source] >= TRIES:
                self._dropped.setdefault(source, error)
                return 0.0
            return PAUSE_S * 2.0 ** (self._failures[source] - 1)


def streams(size_bytes: int) -> int:
    """How many connections bring an object.

    >>> [streams(n << 20) for n in (0, 8, 40, 400)]
    [1, 1, 2, 3]
    """
    return max(1, min(MAX_STREAMS, -(-size_bytes // STREAM_BYTES)))


async def bring(peers: Peers, pool: Executor, places: Sequence[Place], object_id: bytes, into: memoryview) -> None:
    """Fills `into`. Raises PeerFailed when no place has it."""
    parts, loop = Parts(len(into), len(places)), asyncio.get_running_loop()
    stop = threading.Event()
    count = max(streams(len(into)), min(len(places), MAX_STREAMS))
    work = [loop.run_in_executor(pool, _stream, peers, parts, places, n % len(places), object_id, into, stop.wait) for n in range(count)]
    try:
        # Rounds: a source may be given up by its stream after the others found nothing more to bring.
        await asyncio.shield(asyncio.gather(*work))
        while not parts.complete and parts.error is None:
            await asyncio.shield(again := loop.run_in_executor(pool, _stream, peers, parts, places, 0, object_id, into, stop.wait))
            del again
    except asyncio.CancelledError:
        stop.set()
        raise
    if (error := parts.error) is not None:
        raise error


def _stream(peers: Peers, parts: Parts, places: Sequence[Place], first: int, object_id: bytes, into: memoryview, wait: Callable[[float], bool]) -> None:
    """Brings parts from one place after another, until none is missing or none is left."""
    for n in range(len(places)):
        source = (first + n) % len(places)
        place = places[source]
        while (part := parts.take(source)) is not None:
            offset, length = part
            try:
                peers.fetch(place, object_id, into[offset : offset + length], offset, len(into))
            except PeerFailed as error:
                pause = parts.failed(source, part, error)
                if pause and wait(pause):
                    return
            except BaseException as error:
                parts.failed(source, part, PeerFailed(Code.OBJECT_LOST, f"{place.address}: {error}"))
                raise
            else:
                parts.brought(source)
