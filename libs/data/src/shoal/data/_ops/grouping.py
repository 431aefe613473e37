"""Groups: partial aggregates of a block, merged ones, finished ones; and the rows of each group for functions on groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._block import tables, tensors
from ..aggregate import AggregateFn, Aggregation, Groups, Std
from ..exceptions import DataError, check_columns
from .steps import TaskInfo

AnyAggregation = Aggregation | AggregateFn
ROW = "__row"
# The key of a global aggregation.
ALL = "__all"
# Partial aggregates of one task are merged when they have so many rows.
MERGE_ROWS = 200_000


def groups_of(table: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, Groups]:
    """The distinct keys, and the rows of each."""
    indexed = table.select(list(keys)).append_column(ROW, pa.array(np.arange(table.num_rows)))
    grouped = _group(indexed, keys).aggregate([(ROW, "list")]).combine_chunks()
    lists = grouped.column(len(keys))
    if not lists.num_chunks:
        empty = np.empty(0, dtype=np.int64)
        return grouped.select(range(len(keys))), Groups(empty, empty, empty)
    chunk = lists.chunk(0)
    offsets = chunk.offsets.to_numpy()
    return grouped.select(range(len(keys))), Groups(chunk.values.to_numpy(), offsets[:-1], offsets[1:])


def _group(table: pa.Table, keys: Sequence[str]) -> pa.TableGroupBy:
    try:
        return table.group_by(list(keys), use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"groupby: rows cannot be grouped by {list(keys)}: {error}") from error


def keyed(table: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """With a constant key where there is none."""
    if keys:
        return table, list(keys)
    return table.append_column(ALL, pa.array(np.zeros(table.num_rows, dtype=np.int8))), [ALL]


def partial(table: pa.Table, keys: Sequence[str], aggregations: Sequence[AnyAggregation]) -> pa.Table:
    """A table with a row for each group, the keys first, then a column for each part of each aggregation."""
    check_columns([*keys, *(a.on for a in aggregations if a.on)], table.column_names, "groupby" if keys else "aggregate")
    table, keys = keyed(table, keys)
    columns = {name: table[name] for name in keys}
    wanted: list[Any] = []
    names: list[str] = []
    for i, aggregation in enumerate(aggregations):
        if isinstance(aggregation, AggregateFn):
            continue
        if aggregation.on:
            columns[f"{i}"] = _prepared(aggregation, table[aggregation.on])
        for part in aggregation.parts():
            wanted.append(_call(f"{i}" if aggregation.on else [], part.first, part.first_options))
            names.append(f"{i}:{part.name}")
    try:
        grouped = _group(pa.table(columns), keys).aggregate(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise DataError(f"aggregate {[a.name for a in aggregations]} over columns of {table.schema.types}: {error}") from error
    result = grouped.rename_columns([*keys, *names])
    for i, aggregation in enumerate(aggregations):
        if isinstance(aggregation, Std):
            made = aggregation.from_rows({part.name: result[f"{i}:{part.name}"] for part in aggregation.parts()})
            result = result.set_column(result.column_names.index(f"{i}:m2"), f"{i}:m2", made["m2"])
    own = [(i, a) for i, a in enumerate(aggregations) if isinstance(a, AggregateFn)]
    return _with_own(result, table, keys, own) if own else result


def _prepared(aggregation: Aggregation, values: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return aggregation.prepare(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{aggregation.name}: a column of type {values.type} cannot be aggregated so: {error}") from error


def _call(column: Any, function: str, options: Any) -> tuple[Any, ...]:
    return (column, function) if options is None else (column, function, options)


def _with_own(result: pa.Table, table: pa.Table, keys: list[str], own: list[tuple[int, AggregateFn]]) -> pa.Table:
    distinct, groups = groups_of(table, keys)
    names = [name for name in table.column_names if name != ALL]
    parts = [table.select(names).take(pa.array(groups.order[start:end])) for start, end in zip(groups.starts, groups.ends, strict=True)]
    # Both come from the same engine over the same rows, so the groups are in the same order.
    assert distinct.equals(result.select(keys).combine_chunks()) or result.num_rows == distinct.num_rows
    key_values = [tuple(row.values()) for row in distinct.to_pylist()]
    for i, aggregation in own:
        states = []
        for key, rows in zip(key_values, parts, strict=True):
            state = aggregation.init(None if keys == [ALL] else key[0] if len(key) == 1 else key)
            if aggregation.accumulate_block is not None:
                state = aggregation.accumulate_block(state, rows)
            else:
                assert aggregation.accumulate_row is not None
                for row in tables.to_rows(rows):
                    state = aggregation.accumulate_row(state, row)
            states.append(state)
        result = result.append_column(f"{i}:v", tensors.from_objects(states))
    return result


def merge(parts: pa.Table, keys: Sequence[str], aggregations: Sequence[AnyAggregation]) -> pa.Table:
    """Partial aggregates with one row for each group."""
    keys = list(keys) or [ALL]
    wanted: list[Any] = []
    names: list[str] = []
    special = False
    for i, aggregation in enumerate(aggregations):
        for part in [] if isinstance(aggregation, AggregateFn) else aggregation.parts():
            if part.merge not in (None, "list"):
                wanted.append(_call(f"{i}:{part.name}", part.merge, part.merge_options))
                names.append(f"{i}:{part.name}")
            else:
                special = True
        special = special or isinstance(aggregation, AggregateFn)
    if not special:
        return _group(parts, keys).aggregate(wanted).rename_columns([*keys, *names])
    merged, groups = groups_of(parts, keys)
    if wanted:
        merged = _group(parts, keys).aggregate(wanted).rename_columns([*keys, *names])
    for i, aggregation in enumerate(aggregations):
        for name, values in _merge_special(parts, i, aggregation, groups).items():
            merged = merged.append_column(f"{i}:{name}", values)
    return merged


def _merge_special(parts: pa.Table, i: int, aggregation: AnyAggregation, groups: Groups) -> dict[str, Any]:
    if isinstance(aggregation, AggregateFn):
        return {"v": _merge_own(parts[f"{i}:v"], aggregation, groups)}
    own = {part.name: parts[f"{i}:{part.name}"] for part in aggregation.parts()}
    made = dict(aggregation.merge_parts(own, groups))
    for part in aggregation.parts():
        if part.merge == "list":
            made[part.name] = _join_lists(own[part.name], groups)
    return made


def _merge_own(states: pa.ChunkedArray, aggregation: AggregateFn, groups: Groups) -> Any:
    values = tensors.to_list(states)
    merged = []
    for start, end in zip(groups.starts, groups.ends, strict=True):
        state = values[groups.order[start]]
        for row in groups.order[start + 1 : end]:
            state = aggregation.merge(state, values[row])
        merged.append(state)
    return tensors.from_objects(merged)


def _join_lists(lists: pa.ChunkedArray, groups: Groups) -> Any:
    ordered = lists.take(pa.array(groups.order)).combine_chunks()
    if isinstance(ordered, pa.ChunkedArray):
        ordered = ordered.chunk(0) if ordered.num_chunks else pa.array([], type=lists.type)
    lengths = pc.list_value_length(ordered).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    offsets = ends[np.concatenate([groups.starts, [len(lengths)]]).astype(np.int64)]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), ordered.flatten())


def finish(merged: pa.Table, keys: Sequence[str], aggregations: Sequence[AnyAggregation]) -> pa.Table:
    """The keys and one column for each aggregation, ordered by the keys."""
    columns: list[Any] = [merged[name] for name in keys]
    for i, aggregation in enumerate(aggregations):
        if isinstance(aggregation, AggregateFn):
            states = tensors.to_list(merged[f"{i}:v"])
            columns.append(tables.column(states if aggregation.finalize is None else [aggregation.finalize(state) for state in states]))
        else:
            columns.append(aggregation.finish({part.name: merged[f"{i}:{part.name}"] for part in aggregation.parts()}))
    table = pa.Table.from_arrays(columns, names=[*keys, *(a.name for a in aggregations)])
    if not keys or table.num_rows < 2:
        return table
    return table.take(pc.sort_indices(table.select(list(keys)), sort_keys=[(name, "ascending") for name in keys]))


class PartialAggregate:
    """Step: the partial aggregates of all that a task reads."""

    def __init__(self, keys: list[str], aggregations: list[AnyAggregation]) -> None:
        self.keys = keys
        self.aggregations = aggregations
        self.name = f"Aggregate({', '.join(a.name for a in aggregations)})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        rows = 0
        for piece in pieces:
            if piece.num_rows == 0 and piece.num_columns == 0:
                continue
            made = partial(piece, self.keys, self.aggregations)
            held.append(made)
            rows += made.num_rows
            if len(held) > 1 and rows > MERGE_ROWS:
                held = [merge(tables.concat(held), self.keys, self.aggregations)]
                if held[0].num_rows > rows // 2:  # nearly all keys differ: merging gains nothing here
                    yield held.pop()
                rows = sum(part.num_rows for part in held)
        if held:
            yield merge(tables.concat(held), self.keys, self.aggregations) if len(held) > 1 else held[0]


class FinishAggregate:
    """Reducer: partial aggregates of whole groups become results."""

    def __init__(self, keys: list[str], aggregations: list[AnyAggregation]) -> None:
        self.keys = keys
        self.aggregations = aggregations

    def __call__(self, parts: list[list[pa.Table]]) -> Iterator[pa.Table]:
        filled = [part for part in parts[0] if part.num_rows]
        if filled:
            yield finish(merge(tables.concat(filled), self.keys, self.aggregations), self.keys, self.aggregations)
        elif parts[0]:
            yield finish(parts[0][0].slice(0, 0), self.keys, self.aggregations)


class EachGroup:
    """Step: a user's function on each group of blocks that hold whole groups."""

    def __init__(self, keys: list[str], fn: Any, batch_format: str, writable: bool, name: str) -> None:
        self.keys = keys
        self.fn = fn
        self.batch_format = batch_format
        self.writable = writable
        self.name = name

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        call = self.fn.bind()
        for piece in pieces:
            if not piece.num_rows:
                continue
            for group in self._groups(piece):
                yield from call.on_batch(tables.to_batch(group, self.batch_format, self.writable), f"operator {self.name}")

    def _groups(self, table: pa.Table) -> Iterator[pa.Table]:
        if not self.keys:
            yield table
            return
        distinct, groups = groups_of(table, self.keys)
        order = pc.sort_indices(distinct, sort_keys=[(name, "ascending") for name in self.keys]).to_numpy()
        rows = np.concatenate([groups.order[groups.starts[i] : groups.ends[i]] for i in order])
        ordered = table.take(pa.array(rows)).combine_chunks()
        start = 0
        for i in order:
            length = int(groups.ends[i] - groups.starts[i])
            yield ordered.slice(start, length)
            start += length
