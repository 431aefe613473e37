"""One object from other nodes to here, in parts: several connections at once, from several nodes where several have it, and after a break only what is missing.

`Parts` decides who brings which part; it does no I/O. `bring` is the shell: each of its streams is a thread that lies in recv most of the time. Small objects
that are wanted of one node at the same moment go `Together`, since the questions and the changes of threads would take longer than their bytes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from msgspec import Struct
from shoal_base.errors import Code

from .peer import PeerFailed, Peers, Wanted
from .pulls import Place

PART_BYTES = 8 << 20
# Connections for one object; a smaller one has fewer.
MAX_STREAMS = 3
STREAM_BYTES = 32 << 20
# Objects up to this size share a question; so many of them, and so many bytes at most: the answer to one comes while the others are looked after.
SMALL_BYTES = 2 << 20
TOGETHER, TOGETHER_BYTES = 8, 8 << 20
# A node that cannot be reached is tried again so often after a break, with pauses that double.
TRIES, PAUSE_S = 4, 0.1
# A node that serves as many as it can is asked again after so long; doubled up to the second.
BUSY_S, MOST_BUSY_S = 0.05, 1.0
# Limit: places that one object is read from in the course of its transfer.
MAX_PLACES = 16
# These tell that the source has no such object, or none that is whole: it is not asked again.
_FINAL = frozenset({Code.OBJECT_FREED, Code.OBJECT_LOST, Code.ARENA_FULL, Code.OUT_OF_DISK, Code.UNAUTHENTICATED})


class Part(Struct, frozen=True):
    offset: int
    length: int
    source: int  # which place


class Later(Struct, frozen=True):
    """Nobody can be asked just now."""

    pause_s: float


class _Source(Struct):
    place: Place
    streams: int = 0  # that read from it now
    failures: int = 0
    refusals: int = 0  # in a row, since it serves others
    rest_until: float = 0.0
    dropped: PeerFailed | None = None


class Parts:
    """Which parts of an object are wanted, from where they may still come, and which are here. Thread-safe."""

    def __init__(self, size_bytes: int, places: Sequence[Place], part_bytes: int = 0) -> None:
        """`part_bytes`: 0 for PART_BYTES."""
        part_bytes = part_bytes or PART_BYTES
        self._lock = threading.Lock()
        self._missing = deque((at, min(part_bytes, size_bytes - at)) for at in range(0, size_bytes, part_bytes))
        if not size_bytes:
            self._missing.append((0, 0))
        self._left = len(self._missing)
        self._part_bytes = part_bytes
        self._here: set[int] = set()  # where parts begin that are
        self._ended = False
        self._changed = threading.Condition(self._lock)
        self._sources = [_Source(place) for place in places]

    @property
    def places(self) -> int:
        return len(self._sources)

    @property
    def single(self) -> bool:
        """It is one part, and that is wanted."""
        return self._left == 1 and not self._here

    @property
    def complete(self) -> bool:
        return not self._left

    @property
    def error(self) -> PeerFailed | None:
        """Why it cannot be had, once every source was dropped: what became of the first place. A further one that has it no more has dropped its copy, which
        says nothing of the object: an asker that took it for lost would give up what lies on a node that is silent for a moment."""
        with self._lock:
            if not self._left or any(source.dropped is None for source in self._sources):
                return None
            return self._sources[0].dropped

    def place(self, part: Part) -> Place:
        return self._sources[part.source].place

    def take(self, now: float) -> Part | Later | None:
        """What to bring now, and from where; None: nothing is missing, or nobody is left to ask."""
        with self._lock:
            living = [n for n, source in enumerate(self._sources) if source.dropped is None]
            if not self._missing or not living:
                return None
            ready = [n for n in living if self._sources[n].rest_until <= now]
            if not ready:
                return Later(min(self._sources[n].rest_until for n in living) - now)
            source = min(ready, key=lambda n: self._sources[n].streams)
            self._sources[source].streams += 1
            return Part(*self._missing.popleft(), source)

    def brought(self, part: Part) -> None:
        with self._lock:
            source = self._sources[part.source]
            source.streams -= 1
            source.failures = source.refusals = 0
            self._left -= 1
            self._here.add(part.offset)
            self._changed.notify_all()

    def failed(self, part: Part, error: PeerFailed, now: float) -> None:
        """The part is wanted again; its source rests, or is given up."""
        with self._lock:
            self._missing.appendleft((part.offset, part.length))
            source = self._sources[part.source]
            source.streams -= 1
            if error.code == Code.SOURCE_BUSY:
                source.rest_until = now + min(BUSY_S * 2**source.refusals, MOST_BUSY_S)
                source.refusals += 1
                self._try_elsewhere(source.place, error.elsewhere)
                return
            source.failures += 1
            source.rest_until = now + PAUSE_S * 2.0 ** (source.failures - 1)
            if (error.code in _FINAL or source.failures >= TRIES) and source.dropped is None:
                source.dropped = error

    def wait_for(self, offset: int, length: int, timeout_s: float) -> bool:
        """Whether all of that is here, in time."""
        wanted = range(offset // self._part_bytes * self._part_bytes, offset + length, self._part_bytes)
        with self._lock:
            self._changed.wait_for(lambda: self._ended or self._here.issuperset(wanted), timeout_s)
            return self._here.issuperset(wanted)

    def end(self) -> None:
        """Nothing more comes: nobody is to wait for it."""
        with self._lock:
            self._ended = True
            self._changed.notify_all()

    def give_up(self, node_id: bytes) -> set[str]:
        """That node is dead. Returns the addresses that are not asked any more."""
        with self._lock:
            gone = {source.place.address for source in self._sources if source.place.origin.node_id == node_id}
            for source in self._sources:
                if source.place.address in gone and source.dropped is None:
                    source.dropped = PeerFailed(Code.UNREACHABLE, f"{source.place.address}: its node died")
            return gone

    def _try_elsewhere(self, place: Place, address: str) -> None:
        if address and len(self._sources) < MAX_PLACES and all(source.place.address != address for source in self._sources):
            self._sources.append(_Source(Place(place.origin, address)))


def streams(size_bytes: int) -> int:
    """How many connections bring an object.

    >>> [streams(n << 20) for n in (0, 8, 40, 400)]
    [1, 1, 2, 3]
    """
    return max(1, min(MAX_STREAMS, -(-size_bytes // STREAM_BYTES)))


class Together:
    """Small objects that are wanted within one turn of the event loop, with one question to each node."""

    def __init__(self, peers: Peers, pool: Executor) -> None:
        self._peers = peers
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Wanted, asyncio.Future[PeerFailed | None]]] = []

    async def bring(self, wanted: Wanted) -> PeerFailed | None:
        """What went wrong."""
        if not self._waiting:
            self._loop.call_soon(self._ask)
        future: asyncio.Future[PeerFailed | None] = self._loop.create_future()
        self._waiting.append((wanted, future))
        # Until its thread has ended, it writes into the object.
        return await asyncio.shield(future)

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        for some in shared([wanted for wanted, _ in waiting]):
            asked = [waiting[n] for n in some]
            try:
                self._loop.run_in_executor(self._pool, self._fetch, asked)
            except RuntimeError as error:  # the store ends
                self._told([future for _, future in asked], [error] * len(asked))

    def _fetch(self, asked: Sequence[tuple[Wanted, asyncio.Future[PeerFailed | None]]]) -> None:
        outcome: Sequence[BaseException | None]
        try:
            outcome = self._peers.fetch_many([wanted for wanted, _ in asked])
        except BaseException as error:
            outcome = [error] * len(asked)
        self._loop.call_soon_threadsafe(self._told, [future for _, future in asked], outcome)

    def _told(self, futures: Sequence[asyncio.Future[PeerFailed | None]], outcome: Sequence[BaseException | None]) -> None:
        for future, error in zip(futures, outcome, strict=True):
            if future.cancelled():
                continue
            if error is None or isinstance(error, PeerFailed):
                future.set_result(error)
            else:
                future.set_exception(error)


def shared(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Which of them share a question, by their place in the list: those of one node, in the order in which they are wanted."""
    questions: list[list[int]] = []
    latest: dict[tuple[str, bytes], tuple[list[int], int]] = {}
    for n, (place, _, into) in enumerate(wanted):
        to = place.address, place.origin.node_id
        question, nbytes = latest.get(to, ([], 0))
        if not question or len(question) == TOGETHER or nbytes + len(into) > TOGETHER_BYTES:
            question, nbytes = [], 0
            questions.append(question)
        question.append(n)
        latest[to] = question, nbytes + len(into)
    return questions


async def bring(peers: Peers, pool: Executor, parts: Parts, object_id: bytes, into: memoryview, together: Together | None = None) -> None:
    """Fills `into`. Raises PeerFailed when no place has it."""
    if together is not None and parts.single and len(into) <= SMALL_BYTES and isinstance(part := parts.take(time.monotonic()), Part):
        failure = await together.bring(Wanted(parts.place(part), object_id, into))
        if failure is None:
            parts.brought(part)
            return
        parts.failed(part, failure, time.monotonic())
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    count = max(streams(len(into)), min(parts.places, MAX_STREAMS))
    try:
        # Rounds: a part may fail when the other streams have found nothing more to bring.
        while not parts.complete and parts.error is None:
            work = [loop.run_in_executor(pool, _stream, peers, parts, object_id, into, stop.wait) for _ in range(count)]
            # All of them, also when one fails unforeseen: as long as a stream runs it writes into the object.
            done = await asyncio.shield(asyncio.gather(*work, return_exceptions=True))
            unforeseen = next((error for error in done if isinstance(error, BaseException)), None)
            if unforeseen is not None:
                raise unforeseen
            count = 1
    except asyncio.CancelledError:
        stop.set()
        raise
    if (error := parts.error) is not None:
        raise error


def _stream(peers: Peers, parts: Parts, object_id: bytes, into: memoryview, wait: Callable[[float], bool]) -> None:
    """Brings parts until none is missing or nobody is left to ask."""
    while (part := parts.take(time.monotonic())) is not None:
        if isinstance(part, Later):
            if wait(part.pause_s):
                return
            continue
        place, end = parts.place(part), part.offset + part.length
        try:
            peers.fetch(place, object_id, into[part.offset : end], part.offset, len(into))
        except PeerFailed as error:
            parts.failed(part, error, time.monotonic())
        except BaseException as error:
            parts.failed(part, PeerFailed(Code.OBJECT_LOST, f"{place.address}: {error}"), time.monotonic())
            raise
        else:
            parts.brought(part)
