"""Objects on their way here, from other nodes or from this node's disk: one transfer for any number of askers, which go first and how many at once, and which
copies are here already. No I/O, no clock."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable

from msgspec import Struct, field
from msgspec.structs import replace

# Limit: copies that are remembered; an older one that is asked for again is fetched again.
MAX_COPIES = 100_000
# Limit: of transfers at once, and of objects that are read from disk. Their bytes have a limit too, which is the shell's to say.
MAX_RUNNING = 16

GET, WAIT, ARGUMENTS = 0, 1, 2  # priorities, the most urgent first


class Origin(Struct, frozen=True):
    """Where the object lies: its key, since slot and generation name it on its node."""

    node_id: bytes
    slot: int
    generation: int


class Place(Struct, frozen=True):
    """Where a transfer may read from."""

    origin: Origin
    address: str


class PullWanted(Struct, frozen=True):
    asker: Hashable
    request: int
    origin: Origin
    object_id: bytes
    size_bytes: int
    address: str
    priority: int = GET
    others: tuple[Place, ...] = ()
    owner: bytes = b""


class PullEnded(Struct, frozen=True):
    origin: Origin
    code: int
    slot: int = 0
    generation: int = 0
    text: str = ""


class CopyGone(Struct, frozen=True):
    """What we remembered as a copy is no more."""

    origin: Origin


class AskerLeft(Struct, frozen=True):
    asker: Hashable


Event = PullWanted | PullEnded | CopyGone | AskerLeft


class StartPull(Struct, frozen=True):
    origin: Origin
    object_id: bytes
    size_bytes: int
    address: str
    others: tuple[Place, ...] = ()
    owner: bytes = b""

    @property
    def places(self) -> tuple[Place, ...]:
        return (Place(self.origin, self.address), *self.others)


class Answer(Struct, frozen=True):
    asker: Hashable
    request: int
    code: int
    slot: int
    generation: int
    text: str


class Forget(Struct, frozen=True):
    """A copy that is remembered no longer: an object like any other from now on."""

    slot: int
    generation: int


Effect = StartPull | Answer | Forget


class _Wanted(Struct):
    start: StartPull
    priority: int
    number: int  # in the order of asking
    started: bool = False
    askers: list[tuple[Hashable, int]] = field(default_factory=list)


class _Lane(Struct):
    """What is on its way by one kind of way, and what waits for its turn there."""

    running: int = 0
    running_bytes: int = 0
    # (priority, number, origin), a heap. What has started since, is wanted no more or became more urgent is passed over when its turn comes.
    waiting: list[tuple[int, int, Origin]] = field(default_factory=list)


class Pulls:
    def __init__(self, limit_bytes: int = 1 << 62, here: bytes = b"") -> None:
        """`limit_bytes` of objects are on their way at once from other nodes, and as many from this node's disk (`here`: its id), but always one object.

        Each has a limit of its own: a transfer may wait for the other node's disk, and two nodes whose limits are taken by what each wants of the other would
        never come to read it.
        """
        self._limit_bytes = limit_bytes
        self._here = here
        self._wanted: dict[Origin, _Wanted] = {}
        self._copies: OrderedDict[Origin, tuple[int, int]] = OrderedDict()
        self._asked = 0
        self._disk, self._network = _Lane(), _Lane()

    @property
    def running(self) -> int:
        return self._disk.running + self._network.running

    @property
    def running_bytes(self) -> int:
        return self._disk.running_bytes + self._network.running_bytes

    @property
    def queued(self) -> int:
        return len(self._wanted) - self.running

    @property
    def wanted(self) -> list[Origin]:
        """On their way, or waiting for their turn."""
        return list(self._wanted)

    def waiting_for(self, node_id: bytes) -> list[Origin]:
        """What waits for its turn to be brought from there."""
        return [origin for origin, wanted in self._wanted.items() if origin.node_id == node_id and not wanted.started]

    @property
    def known_copies(self) -> int:
        return len(self._copies)

    def copy(self, origin: Origin) -> tuple[int, int] | None:
        """(slot, generation) here. Whoever asks must see whether it is still there, and say CopyGone when not."""
        return self._copies.get(origin)

    def copies(self) -> list[tuple[Origin, tuple[int, int]]]:
        """The one longest unused first."""
        return list(self._copies.items())

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case PullWanted():
                return self._pull_wanted(event)
            case PullEnded():
                return self._ended(event)
            case CopyGone(origin):
                self._copies.pop(origin, None)
                return []
            case AskerLeft(asker):
                return self._asker_left(asker)

    def _pull_wanted(self, want: PullWanted) -> list[Effect]:
        here = self._copies.get(want.origin)
        if here is not None:
            self._copies.move_to_end(want.origin)
            return [Answer(want.asker, want.request, 0, *here, "")]
        known = self._wanted.get(want.origin)
        if known is not None:
            known.askers.append((want.asker, want.request))
            if not known.started and not known.start.others:
                known.start = replace(known.start, others=want.others)
            if want.priority < known.priority and not known.started:
                known.priority = want.priority
                self._wait(known)
            return []
        self._asked += 1
        start = StartPull(want.origin, want.object_id, want.size_bytes, want.address, want.others, want.owner)
        self._wanted[want.origin] = wanted = _Wanted(start, want.priority, self._asked, askers=[(want.asker, want.request)])
        self._wait(wanted)
        return self._next()

    def _lane(self, origin: Origin) -> _Lane:
        return self._disk if origin.node_id == self._here else self._network

    def _next(self) -> list[Effect]:
        """Starts what may start: in each lane strictly in order, so that a large object is not overtaken for ever."""
        out: list[Effect] = []
        for lane in (self._network, self._disk):
            while lane.waiting and lane.running < MAX_RUNNING:
                priority, number, origin = lane.waiting[0]
                wanted = self._wanted.get(origin)
                if wanted is not None and not wanted.started and (wanted.priority, wanted.number) == (priority, number):
                    if lane.running and lane.running_bytes + wanted.start.size_bytes > self._limit_bytes:
                        break
                    wanted.started = True
                    lane.running += 1
                    lane.running_bytes += wanted.start.size_bytes
                    out.append(wanted.start)
                heapq.heappop(lane.waiting)
        return out

    def _wait(self, wanted: _Wanted) -> None:
        heapq.heappush(self._lane(wanted.start.origin).waiting, (wanted.priority, wanted.number, wanted.start.origin))

    def _ended(self, event: PullEnded) -> list[Effect]:
        out: list[Effect] = []
        ended = self._wanted.pop(event.origin, None)
        if event.code == 0:
            self._copies[event.origin] = (event.slot, event.generation)
            while len(self._copies) > MAX_COPIES:
                out.append(Forget(*self._copies.popitem(last=False)[1]))
        if ended is not None:
            if ended.started:
                lane = self._lane(event.origin)
                lane.running -= 1
                lane.running_bytes -= ended.start.size_bytes
            out += [Answer(asker, request, event.code, event.slot, event.generation, event.text) for asker, request in ended.askers]
        return out + self._next()

    def _asker_left(self, asker: Hashable) -> list[Effect]:
        for wanted in list(self._wanted.values()):
            wanted.askers = [a for a in wanted.askers if a[0] != asker]
            # One that runs ends by itself, and leaves a copy that can be dropped.
            if not wanted.askers and not wanted.started:
                del self._wanted[wanted.start.origin]
        for lane in (self._network, self._disk):
            lane.waiting = [entry for entry in lane.waiting if entry[2] in self._wanted]
            heapq.heapify(lane.waiting)
        return self._next()
