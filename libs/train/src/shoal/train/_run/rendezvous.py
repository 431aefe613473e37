"""The calls that all ranks must make together: who has come, who is missing, and whether they mean the same. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REPORT, BARRIER, BROADCAST = "report", "barrier", "broadcast_from_rank_zero"


@dataclass(frozen=True, slots=True)
class Call:
    """What a rank called."""

    kind: str
    metrics: dict[str, Any] | None = None
    staged: bool = False  # files of a checkpoint lie ready to be committed
    dir_name: str | None = None
    data: Any = None


class Mismatch(Exception):
    """The ranks will never meet; the text says why."""


class Rendezvous:
    """One for each group of workers."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._waiting: dict[int, Call] = {}
        self._returned: set[int] = set()
        # kind -> how often each rank has called it, the call it waits in included
        self._counts: dict[str, list[int]] = {}

    @property
    def waiting(self) -> frozenset[int]:
        """Ranks that wait for the others."""
        return frozenset(self._waiting)

    def called(self, rank: int, call: Call) -> Mapping[int, Call] | None:
        """All calls, when this was the last one that was missing. Raises Mismatch."""
        self._waiting[rank] = call
        self._counts.setdefault(call.kind, [0] * self.world_size)[rank] += 1
        self._check()
        if len(self._waiting) < self.world_size:
            return None
        together, self._waiting = self._waiting, {}
        return together

    def returned(self, rank: int) -> None:
        """The rank's function has returned. Raises Mismatch."""
        self._returned.add(rank)
        self._check()

    def _check(self) -> None:
        kinds = {call.kind for call in self._waiting.values()}
        if len(kinds) > 1:
            told = "; ".join(f"{_ranks(self._in(kind))} called {kind}()" for kind in sorted(kinds))
            raise Mismatch(f"all ranks must call the same thing, but {told}. {self._told()}")
        if kinds and self._returned:
            [kind] = kinds
            raise Mismatch(
                f"{_ranks(self._in(kind))} called {kind}(), but {_ranks(sorted(self._returned))} returned without it. All ranks must call {kind}() equally "
                f"often. {self._told()}"
            )
        if len(self._returned) == self.world_size:
            for kind, counts in self._counts.items():
                if len(set(counts)) > 1:
                    raise Mismatch(f"all ranks must call {kind}() equally often. {self._told()}")

    def _in(self, kind: str) -> list[int]:
        return sorted(rank for rank, call in self._waiting.items() if call.kind == kind)

    def _told(self) -> str:
        return " ".join(f"Calls of {kind}(): {_grouped(counts)}." for kind, counts in sorted(self._counts.items()))

    def missing(self) -> str:
        """For a warning: who waits in what for whom."""
        [kind] = {call.kind for call in self._waiting.values()}
        absent = [rank for rank in range(self.world_size) if rank not in self._waiting]
        return f"{_ranks(self._in(kind))} wait(s) in {kind}() for {_ranks(absent)}. {self._told()}"


def _ranks(ranks: list[int]) -> str:
    """
    >>> _ranks([0, 1, 2, 5])
    'ranks 0-2, 5'
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    told = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"rank{'s' if len(ranks) != 1 else ''} {told}"


def _grouped(counts: list[int]) -> str:
    by_count: dict[int, list[int]] = {}
    for rank, count in enumerate(counts):
        by_count.setdefault(count, []).append(rank)
    return ", ".join(f"{_ranks(ranks)}: {count}" for count, ranks in sorted(by_count.items(), reverse=True))
