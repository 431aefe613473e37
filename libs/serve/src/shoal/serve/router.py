"""Choosing a replica for a request: a pure table. The shells that send are in `loop_router` (replicas, proxies) and `thread_router` (drivers).

Of two replicas picked at random the one with fewer requests of ours gets it (the power of two choices, Mitzenmacher 2001). A replica has at most
`max_ongoing_requests`; it holds to that itself too, since others send as well: it then says BUSY, and the request goes elsewhere or waits.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from shoal.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from .exceptions import BackPressureError, DeploymentUnavailableError
from .journal import JournalReader
from .state import ReplicaSet

Call = TypeVar("Call")

# First element of every answer of a replica; the others: how many requests it has, and the value.
OK, BUSY, LEAVING, STREAM = range(4)
# A replica that said BUSY is left alone so long, doubled with each time in a row.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.1
# Limit: models whose places are remembered.
MODELS = 4096


class Slot:
    """A replica as one caller sees it."""

    __slots__ = ("call", "handle", "http", "journal", "ongoing", "refusals", "replica_id", "resting", "usable")

    def __init__(self, replica_id: str, handle: Any, journal: JournalReader) -> None:
        self.journal = journal
        self.replica_id = replica_id
        self.handle = handle
        self.call = handle.call
        self.http = handle.http
        self.ongoing = 0
        self.resting = False
        self.refusals = 0
        self.usable = True


class Table(Generic[Call]):
    """Replicas, how many requests each has from here, and the calls that wait. Not thread-safe."""

    def __init__(self, key: tuple[str, str], draw: Callable[[], float] = random.random) -> None:
        self.key = key
        self.slots: dict[str, Slot] = {}
        self._list: list[Slot] = []
        self.queue: deque[Call] = deque()
        self.max_ongoing = 1
        self.max_queued = -1
        self.gone = ""
        self.autoscaled = False
        self._draw = draw
        self._models: OrderedDict[str, list[str]] = OrderedDict()
        self._dead: set[str] = set()

    def update(self, replicas: ReplicaSet, handles: dict[str, tuple[Any, Any]]) -> None:
        """A new set: slots that stay keep their counts. `handles`: for each replica its handle, and the place of its journal or None."""
        self.max_ongoing, self.max_queued, self.gone, self.autoscaled = replicas.max_ongoing, replicas.max_queued, replicas.gone, replicas.autoscaled
        self._dead &= set(replicas.replica_ids)
        before, self.slots = self.slots, {}
        for replica_id in replicas.replica_ids:
            if replica_id not in self._dead and (replica_id in before or replica_id in handles):
                self.slots[replica_id] = before.get(replica_id) or Slot(replica_id, handles[replica_id][0], JournalReader(handles[replica_id][1]))
        for replica_id, slot in before.items():
            slot.usable = replica_id in self.slots
        self._list = list(self.slots.values())

    def choose(self, model_id: str = "") -> Slot | None:
        """A replica with room, or None. Take it with `slot.ongoing += 1`."""
        slots, limit = self._list, self.max_ongoing
        if model_id:
            return self._choose_for_model(model_id)
        count = len(slots)
        if count > 1:
            first = int(self._draw() * count)
            second = int(self._draw() * (count - 1))
            one, two = slots[first], slots[second if second < first else second + 1]
            best = one if one.ongoing <= two.ongoing else two
            if best.ongoing < limit and not best.resting:
                return best
        return self._least(slots)

    def _least(self, slots: Iterable[Slot]) -> Slot | None:
        limit = self.max_ongoing
        return min((slot for slot in slots if slot.ongoing < limit and not slot.resting), key=lambda slot: slot.ongoing, default=None)

    def _choose_for_model(self, model_id: str) -> Slot | None:
        places = self._models.setdefault(model_id, [])
        self._models.move_to_end(model_id)
        while len(self._models) > MODELS:
            self._models.popitem(last=False)
        places[:] = [replica_id for replica_id in places if replica_id in self.slots]
        chosen = self._least(self.slots[replica_id] for replica_id in places) or self._least(self._list)
        if chosen is not None and chosen.replica_id not in places:
            places.append(chosen.replica_id)
        return chosen

    def enqueue(self, call: Call, again: bool = False) -> None:
        """Raises BackPressureError, DeploymentUnavailableError. `again`: it had its turn already, and is the next."""
        if self.gone:
            raise DeploymentUnavailableError(self.gone)
        if again:
            self.queue.appendleft(call)
            return
        if 0 <= self.max_queued <= len(self.queue):
            raise BackPressureError(len(self.queue), self.max_queued, self.key[1])
        self.queue.append(call)

    def refused(self, slot: Slot) -> float:
        """It said BUSY. Returns after how many seconds to call `rested`."""
        slot.resting = True
        slot.refusals += 1
        pause: float = min(FIRST_PAUSE_S * 2 ** min(slot.refusals - 1, 10), LONGEST_PAUSE_S)
        return pause

    def rested(self, slot: Slot) -> None:
        slot.resting = False

    def lost(self, slot: Slot) -> None:
        """It died or is leaving: never chosen again."""
        self._dead.add(slot.replica_id)
        slot.usable = False
        if self.slots.pop(slot.replica_id, None) is not None:
            self._list = list(self.slots.values())


def is_death(error: BaseException) -> bool:
    """Whether this is the replica's own end, and not an error that its code raised."""
    return isinstance(error, ActorDiedError | ActorUnavailableError) and not isinstance(error, RayTaskError)
