"""Which worker gets which chunk of a pool's work. No actor and no thread: events in, assignments out."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

# So many chunks lie ready at a worker behind the one it runs, that it need not wait for the next.
AHEAD = 1


@dataclass(slots=True)
class Slot:
    """One worker: how many chunks it has, and how many it was given in its life."""

    busy: int = 0
    given: int = 0
    worn: bool = False  # it has had all that `maxtasksperchild` allows, and goes when it is idle


@dataclass(slots=True)
class Dispatch:
    """
    Args:
        most: chunks that one worker runs before it is replaced; 0: no limit.
    """

    most: int = 0
    slots: dict[Hashable, Slot] = field(default_factory=dict)
    waiting: deque[Any] = field(default_factory=deque)

    def added(self, worker: Hashable) -> None:
        self.slots[worker] = Slot()

    def removed(self, worker: Hashable) -> None:
        self.slots.pop(worker, None)

    def submitted(self, chunk: Any) -> None:
        self.waiting.append(chunk)

    def finished(self, worker: Hashable) -> bool:
        """Whether the worker is worn and idle, and is to be replaced now."""
        slot = self.slots.get(worker)
        if slot is None:
            return False
        slot.busy -= 1
        return slot.worn and slot.busy == 0

    def assignments(self) -> list[tuple[Hashable, Any]]:
        """(worker, chunk) for what can be given out now: the idlest worker first, at most AHEAD more than one each."""
        out: list[tuple[Hashable, Any]] = []
        while self.waiting:
            free = [(slot.busy, i, worker) for i, (worker, slot) in enumerate(self.slots.items()) if not slot.worn and slot.busy <= AHEAD]
            if not free:
                break
            _, _, worker = min(free)
            chunk = self.waiting.popleft()
            slot = self.slots[worker]
            slot.busy += 1
            slot.given += 1
            slot.worn = 0 < self.most <= slot.given
            out.append((worker, chunk))
        return out
