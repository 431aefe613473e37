"""What the stores of other nodes must be told: that objects there are freed, that copies there have become primary ones. In order for each node, many objects
in a message, again and again until that store has done it or its node is known to be dead. No I/O, no clock.

Whoever asked is answered only then, and asks a successor of this process again if it was not. Nothing is lost with either store.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Hashable

from msgspec import Struct, field

# Limit: objects that other stores are still to be told of. Beyond it nothing is taken, and so not answered: the asker tells it to our successor.
MAX_OBJECTS = 1_000_000
# Limit: objects of one message.
BATCH_OBJECTS = 4096
# After a message that was not answered; doubled each time.
PAUSE_S, MOST_PAUSE_S = 0.2, 10.0
# Limit: dead nodes that are remembered.
MAX_DEAD = 10_000


class Errand(enum.Enum):
    FREE = "free"
    KEEP = "keep"


Slots = tuple[tuple[int, int], ...]

# -- events


class Wanted(Struct, frozen=True):
    asker: Hashable
    number: int  # 0: nobody waits for an answer
    node_id: bytes
    address: str
    errand: Errand
    slots: Slots


class Delivered(Struct, frozen=True):
    node_id: bytes


class Failed(Struct, frozen=True):
    node_id: bytes
    at: float


class NodeDied(Struct, frozen=True):
    node_id: bytes


class Ticked(Struct, frozen=True):
    at: float


Event = Wanted | Delivered | Failed | NodeDied | Ticked

# -- effects


class Send(Struct, frozen=True):
    """Answer with Delivered or Failed."""

    node_id: bytes
    address: str
    errand: Errand
    slots: Slots


class Answer(Struct, frozen=True):
    asker: Hashable
    number: int


Effect = Send | Answer


class _Node(Struct):
    address: str
    waiting: deque[Wanted] = field(default_factory=deque)
    sending: list[Wanted] = field(default_factory=list)
    failures: int = 0
    resume_at: float = 0.0


class Away:
    def __init__(self) -> None:
        self._nodes: dict[bytes, _Node] = {}
        self._dead: OrderedDict[bytes, None] = OrderedDict()
        self.objects = 0  # that are still to be told of
        self.refused = 0  # that were not taken

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case Wanted():
                return self._wanted(event)
            case Delivered(node_id):
                return self._delivered(node_id)
            case Failed(node_id, at):
                return self._failed(node_id, at)
            case NodeDied(node_id):
                return self._node_died(node_id)
            case Ticked(at):
                return [effect for node_id, node in self._nodes.items() if node.resume_at <= at for effect in self._next(node_id, node)]

    def _wanted(self, want: Wanted) -> list[Effect]:
        if want.node_id in self._dead:
            return _answers([want])
        if self.objects + len(want.slots) > MAX_OBJECTS:
            self.refused += len(want.slots)
            return []
        node = self._nodes.setdefault(want.node_id, _Node(want.address))
        node.address = want.address or node.address
        node.waiting.append(want)
        self.objects += len(want.slots)
        return [] if node.failures else self._next(want.node_id, node)

    def _next(self, node_id: bytes, node: _Node) -> list[Effect]:
        """The next message: as many errands of one kind as fit, in their order."""
        if node.sending or not node.waiting:
            return []
        errand, count = node.waiting[0].errand, 0
        while node.waiting and node.waiting[0].errand is errand and (not count or count + len(node.waiting[0].slots) <= BATCH_OBJECTS):
            want = node.waiting.popleft()
            node.sending.append(want)
            count += len(want.slots)
        return [Send(node_id, node.address, errand, tuple(slot for want in node.sending for slot in want.slots))]

    def _delivered(self, node_id: bytes) -> list[Effect]:
        node = self._nodes.get(node_id)
        if node is None:  # it died meanwhile
            return []
        done, node.sending, node.failures = node.sending, [], 0
        self.objects -= sum(len(want.slots) for want in done)
        effects = _answers(done) + self._next(node_id, node)
        if not node.sending:
            del self._nodes[node_id]
        return effects

    def _failed(self, node_id: bytes, at: float) -> list[Effect]:
        node = self._nodes.get(node_id)
        if node is not None:
            node.waiting.extendleft(reversed(node.sending))
            node.sending = []
            node.resume_at = at + min(PAUSE_S * 2**node.failures, MOST_PAUSE_S)
            node.failures = min(node.failures + 1, 16)
        return []

    def _node_died(self, node_id: bytes) -> list[Effect]:
        self._dead[node_id] = None
        while len(self._dead) > MAX_DEAD:
            self._dead.popitem(last=False)
        node = self._nodes.pop(node_id, None)
        if node is None:
            return []
        over = [*node.sending, *node.waiting]
        self.objects -= sum(len(want.slots) for want in over)
        return _answers(over)


def _answers(done: list[Wanted]) -> list[Effect]:
    return [Answer(want.asker, want.number) for want in done if want.number]
