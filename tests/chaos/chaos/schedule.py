"""What goes wrong and when: from a seed alone, so that a failing run can be had again."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Kind:
    """One way to break things. `lasts_s`: for how long, at least and at most; (0, 0): it is over at once."""

    name: str
    on: str  # "victim": a machine that may be lost; "head"; "any"
    lasts_s: tuple[float, float] = (0.0, 0.0)
    on_all: bool = False  # of those that `on` names, at the same time


@dataclass(frozen=True)
class Event:
    number: int
    at_s: float
    kind: str
    machine: int
    lasts_s: float
    choice: int  # which of several processes, directions or groups

    def __str__(self) -> str:
        lasting = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"#{self.number} at {self.at_s:.1f} s: {self.kind} on machine {self.machine}{lasting} (choice {self.choice})"


# Between the beginnings of two faults. A machine is left alone until its last one is over and it has had the time to come back.
GAP_S = (1.0, 7.0)
RETURN_S = 4.0


def plan(seed: int, seconds: float, kinds: list[Kind], machines: dict[str, list[int]]) -> list[Event]:
    """Every kind comes once before any comes twice. `machines`: those that "victim", "head" and "any" stand for."""
    chance = random.Random(f"chaos {seed}")
    events: list[Event] = []
    bag: list[Kind] = []
    busy: dict[int, float] = {}
    now = 1.0
    while True:
        if not bag:
            bag = chance.sample(kinds, len(kinds))
        kind = bag.pop()
        machine = chance.choice(machines[kind.on])
        occupied = machines[kind.on] if kind.on_all else [machine]
        at = max(now, *(busy.get(number, 0.0) for number in occupied))
        lasts = chance.uniform(*kind.lasts_s)
        if at + lasts > seconds:
            return events
        events.append(Event(len(events) + 1, round(at, 2), kind.name, machine, round(lasts, 2), chance.randrange(1 << 16)))
        busy |= dict.fromkeys(occupied, at + lasts + RETURN_S)
        now = at + chance.uniform(*GAP_S)


def each(seed: int, times: int, kinds: list[Kind], machines: dict[str, list[int]]) -> list[Event]:
    """Every kind so many times, one fault at a time: for figures. An event's time is the earliest; the next waits until the last is over."""
    chance = random.Random(f"each {seed}")
    events: list[Event] = []
    for _ in range(times):
        for kind in chance.sample(kinds, len(kinds)):
            lasts = round(chance.uniform(*kind.lasts_s), 2)
            events.append(Event(len(events) + 1, 0.0, kind.name, chance.choice(machines[kind.on]), lasts, chance.randrange(1 << 16)))
    return events


def to_lines(events: list[Event]) -> str:
    return "".join(json.dumps(asdict(event)) + "\n" for event in events)
