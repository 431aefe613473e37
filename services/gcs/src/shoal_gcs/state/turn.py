"""What the handling of one event has at hand: its instant, and the effects so far."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from .effects import Effect

GOLDEN = 0.618_033_988_75  # steps of it spread evenly over [0, 1)


class Instant(NamedTuple):
    """When an event is handled: unix time for people, a steady clock for terms, and a random number in [0, 1) to choose by."""

    unix_ms: int
    steady_ms: int
    rank: float = 0.0


START = Instant(0, 0)


class Refusal(enum.Enum):
    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    INVALID = "invalid"
    LIMIT = "limit reached"


class Refused(Exception):
    """A request that changes nothing; the message says why and what to do."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Turn(msgspec.Struct):
    """One for each cluster, shared by its nouns; `begin` and `end` enclose the handling of an event."""

    at: Instant = START
    effects: list[Effect] = msgspec.field(default_factory=list)
    _draws: int = 0

    def begin(self, at: Instant) -> None:
        self.at = at
        self._draws = 0

    def end(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def rank(self) -> float:
        """Another number in [0, 1) for each decision of this turn."""
        self._draws += 1
        return (self.at.rank + self._draws * GOLDEN) % 1.0
