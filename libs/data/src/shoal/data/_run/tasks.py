"""What a worker runs: a chain of steps over what is read or over blocks; blocks and what is known of them are yielded in turn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa

from .._block import tables
from .._block.meta import BlockMeta, meta_of
from .._ops.arrange import BUCKETS, InBuckets, one_chunk
from .._ops.steps import RowSteps, Step, TaskInfo


class Reads(Protocol):
    """What a task may read instead of blocks."""

    def read(self) -> Iterator[pa.Table]: ...


class Finish(Protocol):
    """What is done with a block of its final size: arranged, or written. Gives the block and something for the next operator."""

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, Any]: ...


class Discarded:
    """Only the number of rows is wanted."""

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, Any]:
        return pa.table({}), BlockMeta(block.num_rows, 0, block.schema)


class Chain:
    """Steps, fused."""

    def __init__(self, steps: list[Step] | None = None, finish: Finish | None = None, target_bytes: int = 128 << 20) -> None:
        self.steps: list[Any] = list(steps or [])
        self.finish = finish
        self.target_bytes = target_bytes

    def add(self, step: Step) -> None:
        if self.steps and isinstance(self.steps[-1], RowSteps) and isinstance(step, RowSteps):
            self.steps[-1] = self.steps[-1].with_more(step)
        else:
            self.steps.append(step)

    def run(self, pieces: Iterator[pa.Table], index: int) -> Iterator[Any]:
        """Blocks and metas, in turn."""
        info = TaskInfo(index)
        for step in self.steps:
            pieces = step(pieces, info)
        began = time.perf_counter()
        for ordinal, block in enumerate(tables.build(pieces, self.target_bytes)):
            extra = None
            if self.finish is not None:
                block, extra = self.finish(block, index, ordinal)
            block = tables.compact(one_chunk(block))
            now = time.perf_counter()
            meta = extra if isinstance(extra, BlockMeta) else meta_of(block, extra, now - began)
            began = now
            yield block
            yield meta


_threads_set = False


def limit_threads() -> None:
    """A task has one CPU: the engines' pools are made for the whole machine, and many workers would fight for it."""
    global _threads_set
    if not _threads_set:
        os.environ.setdefault("POLARS_MAX_THREADS", "1")
        pa.set_cpu_count(1)
        pa.set_io_thread_count(2)
        _threads_set = True


def map_blocks(chain: Chain, index: int, read: Reads | None, blocks: tuple[pa.Table, ...]) -> Iterator[Any]:
    limit_threads()
    yield from chain.run(iter(blocks) if read is None else read.read(), index)


class Cut:
    """Which rows of a block belong to a partition: `rows`, or those of its buckets from `first` up to `end`."""

    __slots__ = ("arrangement", "end", "first", "rows")

    def __init__(self, rows: tuple[int, int] | None, first: int = 0, end: int = BUCKETS, arrangement: InBuckets | None = None) -> None:
        self.rows = rows
        self.first = first
        self.end = end
        self.arrangement = arrangement

    def __call__(self, block: pa.Table, ordinal: int) -> pa.Table:
        if self.rows is not None:
            return block.slice(self.rows[0], self.rows[1] - self.rows[0])
        if self.arrangement is None or (self.first == 0 and self.end == BUCKETS):
            return block
        return self.arrangement.part(block, ordinal, self.first, self.end)


def reduce_blocks(chain: Chain, index: int, reducer: Any, cuts: list[list[Cut]], blocks: tuple[pa.Table, ...]) -> Iterator[Any]:
    """`cuts`: for each input, one for each of its blocks."""
    limit_threads()
    groups: list[list[pa.Table]] = []
    taken = 0
    for group in cuts:
        groups.append([cut(block, i) for i, (cut, block) in enumerate(zip(group, blocks[taken : taken + len(group)], strict=True))])
        taken += len(group)
    yield from chain.run(reducer(groups), index)


def make_objects(chain: Chain) -> None:
    """The users' objects of a chain, before there is work for them."""
    limit_threads()
    for step in chain.steps:
        for function in getattr(step, "functions", [step]):
            if hasattr(function, "fn"):
                function.fn.bind()
