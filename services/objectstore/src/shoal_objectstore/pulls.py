"""Objects on their way here from other nodes: one transfer for any number of askers, and which copies are here already. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

# Limit: copies that are remembered; an older one that is asked for again is fetched again.
MAX_COPIES = 100_000


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the object lies: its key, since slot and generation name it on its node."""

    node_id: bytes
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class PullWanted:
    asker: Hashable
    request: int
    origin: Origin
    object_id: bytes
    size_bytes: int
    address: str


@dataclass(frozen=True, slots=True)
class PullEnded:
    origin: Origin
    code: int
    slot: int = 0
    generation: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class CopyGone:
    """What we remembered as a copy is no more."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class AskerLeft:
    asker: Hashable


Event = PullWanted | PullEnded | CopyGone | AskerLeft


@dataclass(frozen=True, slots=True)
class StartPull:
    origin: Origin
    object_id: bytes
    size_bytes: int
    address: str


@dataclass(frozen=True, slots=True)
class Answer:
    asker: Hashable
    request: int
    code: int
    slot: int
    generation: int
    text: str


Effect = StartPull | Answer


@dataclass(slots=True)
class _Running:
    size_bytes: int
    askers: list[tuple[Hashable, int]] = field(default_factory=list)


class Pulls:
    def __init__(self) -> None:
        self._running: dict[Origin, _Running] = {}
        self._copies: OrderedDict[Origin, tuple[int, int]] = OrderedDict()

    @property
    def running(self) -> int:
        return len(self._running)

    def copy(self, origin: Origin) -> tuple[int, int] | None:
        """(slot, generation) here. Whoever asks must see whether it is still there, and say CopyGone when not."""
        return self._copies.get(origin)

    def copies(self) -> list[tuple[Origin, tuple[int, int]]]:
        """The one longest unused first."""
        return list(self._copies.items())

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case PullWanted():
                return self._wanted(event)
            case PullEnded():
                return self._ended(event)
            case CopyGone(origin):
                self._copies.pop(origin, None)
                return []
            case AskerLeft(asker):
                for running in self._running.values():
                    running.askers = [a for a in running.askers if a[0] != asker]
                return []

    def _wanted(self, want: PullWanted) -> list[Effect]:
        here = self._copies.get(want.origin)
        if here is not None:
            self._copies.move_to_end(want.origin)
            return [Answer(want.asker, want.request, 0, *here, "")]
        running = self._running.get(want.origin)
        if running is not None:
            running.askers.append((want.asker, want.request))
            return []
        self._running[want.origin] = _Running(want.size_bytes, [(want.asker, want.request)])
        return [StartPull(want.origin, want.object_id, want.size_bytes, want.address)]

    def _ended(self, event: PullEnded) -> list[Effect]:
        running = self._running.pop(event.origin, None)
        if event.code == 0:
            self._copies[event.origin] = (event.slot, event.generation)
            while len(self._copies) > MAX_COPIES:
                self._copies.popitem(last=False)
        if running is None:
            return []
        return [Answer(asker, request, event.code, event.slot, event.generation, event.text) for asker, request in running.askers]
