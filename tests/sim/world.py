"""One virtual clock, one queue of what happens next, and a network that delays, holds back and loses; all from one seed."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from core_node import CoreNode


class Violation(AssertionError):
    """A property does not hold."""


class End(Protocol):
    """Whoever is at one end of a connection."""

    node_id: bytes
    alive: bool
    host_gone: bool

    def on_data(self, connection: Connection, number: int, data: bytes) -> None: ...
    def on_closed(self, connection: Connection, number: int) -> None: ...


@dataclass(frozen=True)
class Faults:
    """What goes wrong in one history."""

    name: str
    local_s: float = 0.0002  # longest delay inside a node
    remote_s: float = 0.002  # longest delay between nodes
    lost_calls: float = 0.0  # part of the calls between services of which the request or the answer is lost
    worker_crashes: int = 0
    node_crashes: int = 0
    host_crashes: int = 0  # nobody answers in its place
    partitions: int = 0
    broken_connections: int = 0
    unanswered_dials: float = 0.0  # part of the dials between nodes that nobody answers, though the process lives
    store_restarts: int = 0  # of the control store
    stored: float = 0.0  # part of the values that lie in a store; the others travel inline
    orphans: bool = False  # processes die that own what others hold, after these have heard of it
    recoverable: bool = False  # programs that own all they use, away from what dies, and may always try again

    @property
    def harmless(self) -> bool:
        """Nothing that a program could notice."""
        return not (self.worker_crashes or self.node_crashes or self.host_crashes or self.partitions)


class World:
    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed = seed
        self.faults = faults
        self.random = random.Random(seed)
        self.now = 100.0
        self.steps = 0
        self.granted: set[tuple[bytes, int]] = set()
        self.cut: set[frozenset[bytes]] = set()
        self.history: deque[str] = deque(maxlen=4000)
        self.connections = 0
        self.cores: dict[bytes, CoreNode] = {}
        self.lives: dict[bytes, bytes] = {}  # actor -> the worker of its latest life
        self.applied: set[tuple[str, int]] = set()
        self.holders: dict[bytes, set[bytes]] = {}
        self.doubted: set[bytes] = set()  # dead, or taken for dead by somebody
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._held: dict[int, Link] = {}

    def note(self, text: str) -> None:
        self.history.append(f"{self.now - 100:.6f} {text}")

    def check(self, condition: object, text: str) -> None:
        if not condition:
            raise Violation(text)

    # -- time ---------------------------------------------------------------------------------------

    def at(self, when: float, function: Callable[..., None], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._queue, (max(when, self.now), self._number, function, args))

    def after(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, function, *args)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Lets time pass; True as soon as `until` holds."""
        end = self.now + seconds
        while not until():
            if not self._queue or self._queue[0][0] > end:
                self.now = end
                return until()
            self.now, _, function, args = heapq.heappop(self._queue)
            self.steps += 1
            function(*args)
        return True

    def id16(self) -> bytes:
        return self.random.randbytes(16)

    # -- network ------------------------------------------------------------------------------------

    def delay(self, source: bytes, target: bytes) -> float:
        longest = self.faults.local_s if source == target else self.faults.remote_s
        return longest * (0.1 + 0.9 * self.random.random() ** 3)

    def is_cut(self, source: bytes, target: bytes) -> bool:
        return bool(self.cut) and frozenset((source, target)) in self.cut

    def hold(self, link: Link) -> None:
        self._held[id(link)] = link

    def partition(self, group: list[bytes], others: list[bytes]) -> None:
        self.note(f"partition {[n.hex()[:6] for n in group]} | {[n.hex()[:6] for n in others]}")
        self.cut |= {frozenset((one, other)) for one in group for other in others if one != other}

    def heal(self) -> None:
        self.note("heal")
        self.cut.clear()
        held, self._held = self._held, {}
        for link in held.values():
            link.release()


class Link:
    """One direction: what is sent arrives in its order, late; during a partition it waits, as TCP sends again until it is heard."""

    def __init__(self, world: World, source: bytes, target: bytes) -> None:
        self.world = world
        self.source = source
        self.target = target
        self._free = 0.0
        self._under_way: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._late = 0  # so many of them are due, and wait for the partition's end

    def send(self, function: Callable[..., None], *args: Any) -> None:
        self._under_way.append((function, args))
        self._bring()

    def _bring(self) -> None:
        """One more may arrive: the first one under way, whichever was meant, since what was held back must not be overtaken."""
        world = self.world
        self._free = max(self._free, world.now + world.delay(self.source, self.target))
        world.at(self._free, self._arrive)

    def _arrive(self) -> None:
        if self.world.is_cut(self.source, self.target):
            self._late += 1
            self.world.hold(self)
            return
        function, args = self._under_way.popleft()
        function(*args)

    def release(self) -> None:
        late, self._late = self._late, 0
        for _ in range(late):
            self._bring()


class Connection:
    """Two links between two ends, which may be one and the same process. The end of a process closes it behind what it had sent.

    Each end knows it by a number of its own: the one that dialled by an even one, the other by the next.
    """

    def __init__(self, world: World, one: End, other: End) -> None:
        self.dialled = world.connections
        self.accepted = world.connections + 1
        world.connections += 2
        self.world = world
        self.ends = (one, other)
        self.open = True
        self._links = (Link(world, one.node_id, other.node_id), Link(world, other.node_id, one.node_id))

    def send(self, number: int, data: bytes) -> None:
        """From the end that knows it by this number."""
        self._links[number & 1].send(self._data, number ^ 1, data)

    def tell(self, number: int, function: Callable[..., None], *args: Any) -> None:
        """What real processes say in a frame of no interest here: in order with the frames."""
        self._links[number & 1].send(self._call, number ^ 1, function, args)

    def close(self, number: int, *, silent: bool = False) -> None:
        """`silent`: the host is gone, and nobody says so."""
        if self.open and not silent:
            self._links[number & 1].send(self._closed, number ^ 1)

    def break_off(self) -> None:
        """Both sides see it end; what was under way is lost."""
        if self.open:
            self.open = False
            for number in (self.dialled, self.accepted):
                if self.ends[number & 1].alive:
                    self.ends[number & 1].on_closed(self, number)

    def _data(self, number: int, data: bytes) -> None:
        if self.open and self._is_there(number):
            self.ends[number & 1].on_data(self, number, data)

    def _call(self, number: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.open and self._is_there(number):
            function(*args)

    def _is_there(self, number: int) -> bool:
        target = self.ends[number & 1]
        if not target.alive:
            self.close(number, silent=target.host_gone)
        return target.alive

    def _closed(self, number: int) -> None:
        if self.open:
            self.open = False
            if self.ends[number & 1].alive:
                self.ends[number & 1].on_closed(self, number)
