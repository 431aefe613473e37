"""What the processes of a job hold of its limits here, and what they may: read from words that they write, without asking them.

A process counts what it holds into its words, and compares with what it is allowed; both lie in the control pages, so that neither side sends anything.
Only when that is used up it asks the control store, which adds up all nodes, and raises it here. What a process passes on (the bytes of a result, which its
owner counts from then on) takes its permission along.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

ALLOWANCE_BYTES = 64
_WORDS = ALLOWANCE_BYTES // 8
_JOB, _TASKS, _HELD, _WRITING, _PASSED, _ALLOWED_TASKS, _ALLOWED_BYTES, _LEAVING = range(8)


class Kind(enum.IntEnum):
    """As AllowanceKind of the contract."""

    UNFINISHED_TASKS = 0
    OBJECT_BYTES = 1


class Allowance:
    """One process's words, in 64-bit words of memory that it shares; each is read and written in one access."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview[int], index: int) -> None:
        self._words = words
        self._at = index * _WORDS

    def is_of(self, job_id: bytes) -> bool:
        """False, too, for one that has no limits."""
        return self._words[self._at + _JOB] & 0xFFFFFFFF == int.from_bytes(job_id, "little") != 0

    def held(self, kind: Kind) -> int:
        if kind is Kind.UNFINISHED_TASKS:
            return self._words[self._at + _TASKS]
        return max(0, _signed(self._words[self._at + _HELD]) + self.moving(kind))

    def moving(self, kind: Kind) -> int:
        """What of that is being written, or on its way to an owner that counts it already, or does in a moment."""
        if kind is Kind.UNFINISHED_TASKS:
            return 0
        # Signed sums: the process may be between two of its writes.
        return max(0, _signed(self._words[self._at + _WRITING]) + _signed(self._words[self._at + _LEAVING]))

    def given(self, kind: Kind) -> int:
        """What it holds, or may hold if that is more: results that others wrote for it are its own though nobody asked."""
        return max(self._allowed(kind) - self._passed(kind), self.held(kind))

    def take_back(self, kind: Kind) -> None:
        """Only what it holds remains. Invariant: it writes what it holds, and then reads what it may; we the other way round, so one of us sees the other."""
        self._allow(kind, self._passed(kind) + self.held(kind))
        self._allow(kind, self._passed(kind) + max(self.given(kind), self.held(kind)))

    def give(self, kind: Kind, more: int) -> None:
        self._allow(kind, self._passed(kind) + self.given(kind) + more)

    def clear(self) -> None:
        self._words[self._at : self._at + _WORDS] = _NOTHING

    def _passed(self, kind: Kind) -> int:
        return self._words[self._at + _PASSED] if kind is Kind.OBJECT_BYTES else 0

    def _allowed(self, kind: Kind) -> int:
        return self._words[self._at + (_ALLOWED_TASKS if kind is Kind.UNFINISHED_TASKS else _ALLOWED_BYTES)]

    def _allow(self, kind: Kind, amount: int) -> None:
        self._words[self._at + (_ALLOWED_TASKS if kind is Kind.UNFINISHED_TASKS else _ALLOWED_BYTES)] = amount


_NOTHING = memoryview(bytes(ALLOWANCE_BYTES)).cast("Q")


def _signed(word: int) -> int:
    return int(struct.unpack("<q", struct.pack("<Q", word))[0])


class Share(NamedTuple):
    """Of one node. `most`: the number of its process that holds most, -1 without any, and how much."""

    given: int
    held: int
    moving: int
    most: tuple[int, int]


def share_of(job_id: bytes, kind: Kind, processes: Iterable[tuple[int, Allowance]], *, take_back: bool, more_for: int = -1, more: int = 0) -> Share:
    """What a job's processes have here, by their numbers, after what was asked was done."""
    given = held = moving = 0
    most = (-1, -1)
    for number, allowance in processes:
        if not allowance.is_of(job_id):
            continue
        if take_back:
            allowance.take_back(kind)
        if number == more_for:
            allowance.give(kind, more)
        mine = allowance.held(kind)
        given += allowance.given(kind)
        held += mine
        moving += allowance.moving(kind)
        most = max(most, (number, mine), key=lambda one: one[1])
    return Share(given, held, moving, most)
