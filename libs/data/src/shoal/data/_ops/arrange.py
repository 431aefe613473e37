"""Arrangements: a block's rows put in an order in which each partition is one run of rows, so that reducers read their runs in place.

The number of partitions is decided when all blocks are there: by buckets of a hash (or of chance), or by a sample of sorted keys.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cmp_to_key
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._block import tables
from .._run.imports import imported
from ..exceptions import DataError, check_columns

# Partitions are made of buckets; so there are never more of them.
BUCKETS = 256
# Rows that are permuted at once: of some columns they fit into a core's cache.
PERMUTED_ROWS = 1 << 14
# Keys that a sorted block leaves as a sample.
SAMPLES = 64


def one_chunk(table: pa.Table) -> pa.Table:
    return table.combine_chunks() if any(column.num_chunks > 1 for column in table.columns) else table


# -- sorting -------------------------------------------------------------------------------------------------


class SortKey(NamedTuple):
    columns: tuple[str, ...]
    descending: tuple[bool, ...]

    def sort(self, table: pa.Table) -> pa.Table:
        """Nulls come last, NaN is the largest number."""
        check_columns(self.columns, table.column_names, "sort")
        if table.num_rows < 2:
            return table
        pl: Any = imported("polars")

        try:
            if all(_plain(field.type) for field in table.schema):
                # Polars sorts whole frames of numbers about three times as fast as Arrow; with other types its copies would change them.
                frame = pl.from_arrow(table)
                return frame.sort(self.columns, descending=list(self.descending), nulls_last=True, maintain_order=True).to_arrow().cast(table.schema)
            keys = pl.from_arrow(table.select(list(self.columns)))
            order = keys.select(pl.arg_sort_by(list(self.columns), descending=list(self.descending), nulls_last=True, maintain_order=True)).to_series()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"sort: rows cannot be sorted by {list(self.columns)} of {[str(table[name].type) for name in self.columns]}: {error}") from error
        return one_chunk(table).take(order.to_arrow())

    def compare(self, left: Sequence[Any], right: Sequence[Any]) -> int:
        for a, b, descending in zip(left, right, self.descending, strict=True):
            if a is None or b is None:
                if a is not b:
                    return 1 if a is None else -1
                continue
            rank_a, rank_b = _rank(a), _rank(b)
            if rank_a != rank_b:
                return (1 if rank_a > rank_b else -1) * (-1 if descending else 1)
        return 0

    def first_not_before(self, table: pa.Table, key: Sequence[Any]) -> int:
        """In a sorted table, the first row that is not before `key`."""
        columns = [table[name] for name in self.columns]
        low, high = 0, table.num_rows
        while low < high:
            middle = (low + high) // 2
            if self.compare([column[middle].as_py() for column in columns], key) < 0:
                low = middle + 1
            else:
                high = middle
        return low


def _rank(value: Any) -> tuple[bool, Any]:
    return (True, 0) if isinstance(value, float) and math.isnan(value) else (False, value)


def _plain(kind: pa.DataType) -> bool:
    return (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_date32(kind)) and not pa.types.is_float16(kind)


class Sample(NamedTuple):
    """Keys at even distances of a sorted block; each stands for `rows` rows."""

    keys: list[tuple[Any, ...]]
    rows: float


class Sorted:
    """Arrangement: the block sorted. With `limit`, only so many of its first rows."""

    def __init__(self, key: SortKey, limit: int | None = None) -> None:
        self.key = key
        self.limit = limit

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, Sample]:
        if not block.num_rows:
            return block, Sample([], 0)
        block = self.key.sort(block)
        if self.limit is not None:
            block = block.slice(0, self.limit)
        places = np.unique(np.linspace(0, block.num_rows - 1, min(SAMPLES, block.num_rows)).astype(np.int64))
        picked = block.select(list(self.key.columns)).take(pa.array(places))
        return block, Sample(list(zip(*(column.to_pylist() for column in picked.columns), strict=True)), block.num_rows / len(places))


def boundaries(samples: Sequence[Sample], key: SortKey, parts: int) -> list[tuple[Any, ...]]:
    """Keys that cut all rows into about `parts` equal runs; fewer where many rows have the same key."""
    weighted = [(keys, sample.rows) for sample in samples for keys in sample.keys]
    ordered = cmp_to_key(key.compare)
    weighted.sort(key=lambda pair: ordered(pair[0]))
    total = sum(rows for _, rows in weighted)
    found: list[tuple[Any, ...]] = []
    seen = 0.0
    for keys, rows in weighted:
        if len(found) < parts - 1 and seen >= total * (len(found) + 1) / parts and (not found or key.compare(found[-1], keys) < 0):
            found.append(keys)
        seen += rows
    return found


class MergeSorted:
    """Reducer: the rows from one boundary to the next, of blocks that are sorted."""

    def __init__(self, key: SortKey, start: tuple[Any, ...] | None, end: tuple[Any, ...] | None, limit: int | None = None) -> None:
        self.key = key
        self.start = start
        self.end = end
        self.limit = limit

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        parts = []
        for block in groups[0]:
            low = 0 if self.start is None else self.key.first_not_before(block, self.start)
            high = block.num_rows if self.end is None else self.key.first_not_before(block, self.end)
            parts.append(block.slice(low, high - low))
        merged = self.key.sort(tables.concat(parts))
        yield merged if self.limit is None else merged.slice(0, self.limit)


# -- buckets -------------------------------------------------------------------------------------------------


class InBuckets(ABC):
    """Base of arrangements by bucket; leaves the places where the buckets begin, BUCKETS + 1 numbers."""

    # Blocks with fewer rows are left as they are (and nothing is left as their places).
    min_rows = 0

    @abstractmethod
    def buckets(self, block: pa.Table, index: int, ordinal: int) -> np.ndarray:
        """A bucket for each row."""

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, np.ndarray | None]:
        if block.num_rows < self.min_rows:
            return block, None
        return self.arrange(block, index, ordinal)

    def part(self, block: pa.Table, ordinal: int, first: int, end: int) -> pa.Table:
        """The rows of the buckets from `first` up to `end`, of a block that was left as it was."""
        buckets = self.buckets(block, 0, ordinal)
        return taken(one_chunk(block), np.flatnonzero((buckets >= first) & (buckets < end)))

    def arrange(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, np.ndarray]:
        if not block.num_rows:
            return block, np.zeros(BUCKETS + 1, dtype=np.int64)
        buckets = self.buckets(block, index, ordinal)
        order = np.argsort(buckets, kind="stable")  # a radix sort, for bytes
        places = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=BUCKETS))])
        return taken(one_chunk(block), order), places


class ByHash(InBuckets):
    def __init__(self, keys: list[str], min_rows: int = 0, where: str = "groupby") -> None:
        self.keys = keys
        self.min_rows = min_rows
        self.where = where

    def buckets(self, block: pa.Table, index: int, ordinal: int) -> np.ndarray:
        check_columns(self.keys, block.column_names, self.where)
        return hash_buckets([block[name] for name in self.keys], block.num_rows)


class ByChance(InBuckets):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def buckets(self, block: pa.Table, index: int, ordinal: int) -> np.ndarray:
        return np.random.default_rng([self.seed, index, ordinal]).integers(0, BUCKETS, block.num_rows, dtype=np.uint8)


def hash_buckets(columns: list[pa.ChunkedArray], rows: int) -> np.ndarray:
    """The same for equal values of different widths, so that two tables can be joined."""
    if not columns:
        return np.zeros(rows, dtype=np.uint8)
    pl: Any = imported("polars")

    try:
        frame = pl.from_arrow(pa.table({f"{i}": _canonical(column) for i, column in enumerate(columns)}))
        hashed = frame.hash_rows(seed=7).to_numpy()
    except (pl.exceptions.PolarsError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"rows cannot be partitioned by columns of {[str(column.type) for column in columns]}: {error}") from error
    return (hashed >> np.uint64(56)).astype(np.uint8)


def _canonical(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _canonical(column.cast(kind.value_type))
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        # Minus zero and zero are one key.
        return pc.add(column.cast(pa.float64()), 0.0)
    return column


class Whole:
    """Reducer: all rows of a partition as one table, the pieces in order."""

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        yield tables.concat(groups[0])


class SortedWhole:
    """Reducer: all rows of a partition, sorted."""

    def __init__(self, key: SortKey) -> None:
        self.key = key

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        yield self.key.sort(tables.concat(groups[0]))


class Permuted:
    """Reducer: all rows of a partition in random order, each order as likely as any other.

    Rows have fallen into buckets by chance, so only those of a bucket have to be permuted: they fit into the cache, and all rows of a partition do not.

    Args:
        runs: for each block, where in its part each bucket begins, and where the last one ends.
    """

    def __init__(self, seed: int, part: int, runs: list[np.ndarray]) -> None:
        self.seed = seed
        self.part = part
        self.runs = runs

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        parts = [one_chunk(part) for part in groups[0]]
        random = np.random.default_rng([self.seed, 1 << 20, self.part])
        schema = parts[0].schema
        if not all(part.schema.equals(schema) for part in parts):
            whole = one_chunk(tables.concat(parts))
            yield taken(whole, random.permutation(whole.num_rows))
            return
        starts = np.stack(self.runs)
        rows = starts.sum(axis=0)
        columns = [Gathered([part.column(i) for part in parts], field.type, int(rows[-1])) for i, field in enumerate(schema)]
        for first, end in itertools.pairwise(_edges(rows, PERMUTED_ROWS)):
            order = random.permutation(int(rows[end] - rows[first]))
            for column in columns:
                column.add(starts[:, first], starts[:, end], order)
        yield pa.Table.from_arrays([column.array() for column in columns], schema=schema)


def _edges(rows: np.ndarray, at_least: int) -> list[int]:
    """Runs of buckets that have so many rows together."""
    edges = [0]
    for bucket in range(1, len(rows)):
        if rows[bucket] - rows[edges[-1]] >= at_least:
            edges.append(bucket)
    return edges if edges[-1] == len(rows) - 1 else [*edges, len(rows) - 1]


class Gathered:
    """A column that is put together from runs of others. Numbers are written where they belong; anything else is joined at the end."""

    def __init__(self, chunks: list[pa.ChunkedArray], kind: pa.DataType, rows: int) -> None:
        self.kind = kind
        self.rows = rows
        self.chunks = [chunk for column in chunks for chunk in (column.chunks or [pa.array([], type=kind)])]
        self.numbers = (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not any(chunk.null_count for chunk in self.chunks)
        self.pieces: list[pa.Array] = []
        self.filled = 0
        if self.numbers:
            self.sources = [chunk.to_numpy() for chunk in self.chunks]
            # Of Arrow's allocator, which still has the memory of the task before.
            self.buffer = pa.allocate_buffer(rows * kind.bit_width // 8)
            self.target = np.frombuffer(self.buffer, dtype=kind.to_pandas_dtype())

    def add(self, starts: np.ndarray, ends: np.ndarray, order: np.ndarray) -> None:
        """From each chunk the rows of `starts` to `ends`, all together in this order."""
        runs = zip(starts.tolist(), ends.tolist(), strict=True)
        if not self.numbers:
            joined = pa.concat_arrays([chunk.slice(start, end - start) for chunk, (start, end) in zip(self.chunks, runs, strict=True)])
            self.pieces.append(joined.take(pa.array(order)))
            return
        values = np.concatenate([source[start:end] for source, (start, end) in zip(self.sources, runs, strict=True)])
        np.take(values, order, out=self.target[self.filled : self.filled + len(order)], mode="clip")  # without a copy, unlike "raise"
        self.filled += len(order)

    def array(self) -> pa.Array:
        if self.numbers:
            return pa.Array.from_buffers(self.kind, self.rows, [None, self.buffer])
        return pa.concat_arrays(self.pieces) if self.pieces else pa.array([], type=self.kind)


def taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    return pc.take(table, pa.array(rows), boundscheck=False)


class Zipped:
    """Reducer: columns side by side. A name that is taken gets `_1`, `_2`, …"""

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        left, *others = [tables.concat(group) for group in groups]
        for other in others:
            for name, values in zip(other.column_names, other.columns, strict=True):
                free = name
                number = 1
                while free in left.column_names:
                    free = f"{name}_{number}"
                    number += 1
                left = left.append_column(free, values)
        yield left
