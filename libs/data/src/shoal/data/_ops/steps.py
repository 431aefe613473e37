"""Steps: each takes an iterator of tables and gives one. Steps that follow each other are fused into one task.

A step is called with the pieces and with `TaskInfo`; it may cut, drop and make pieces as it likes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from .._block import tables
from ..exceptions import BatchTypeError, DataError, check_columns
from ..expressions import Expr

# So many rows are Python objects at the same time: few enough to stay in the processor's cache, which makes mapping them nearly twice as fast.
ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class TaskInfo:
    """Which task of its stage this is: the same when it is tried again."""

    index: int


class Step(Protocol):
    name: str

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]: ...


# -- functions of users --------------------------------------------------------------------------------------


@dataclass
class UserFunction:
    """A user's function or callable class, with its arguments. A class is made into one object for each process."""

    fn: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    constructor_args: tuple[Any, ...] = ()
    constructor_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_class(self) -> bool:
        return isinstance(self.fn, type)

    @property
    def name(self) -> str:
        return getattr(self.fn, "__name__", None) or getattr(getattr(self.fn, "func", None), "__name__", None) or type(self.fn).__name__

    def bind(self) -> BoundFunction:
        call = self.fn
        if self.is_class:
            if "_made" not in self.__dict__:
                self._made = self.fn(*self.constructor_args, **self.constructor_kwargs)
            call = self._made
        return BoundFunction(call, self.args, self.kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}


@dataclass
class BoundFunction:
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def plain(self) -> Callable[[Any], Any]:
        """Of one argument."""
        if not self.args and not self.kwargs:
            return self.call
        call, args, kwargs = self.call, self.args, self.kwargs
        return lambda value: call(value, *args, **kwargs)

    def on_batch(self, batch: Any, where: str) -> Iterator[pa.Table]:
        """The tables of what the function returns, or yields."""
        try:
            result = self.call(batch, *self.args, **self.kwargs)
            if inspect.isgenerator(result) or (hasattr(result, "__next__") and not hasattr(result, "columns")):
                for item in result:
                    yield tables.of_batch(item, where)
                return
        except DataError:
            raise
        except Exception as error:
            error.add_note(f"raised by the function of {where}")
            raise
        yield tables.of_batch(result, where)


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass
class RowFunction:
    """`kind`: map, filter or flat_map."""

    kind: str
    fn: UserFunction
    name: str


class RowSteps:
    """Functions on rows, one after the other: rows stay Python dicts between them."""

    def __init__(self, functions: list[RowFunction]) -> None:
        self.functions = functions

    @property
    def name(self) -> str:
        return "->".join(function.name for function in self.functions)

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        bound = [(function, function.fn.bind().plain()) for function in self.functions]
        keeps_columns = all(function.kind == "filter" for function in self.functions)
        for piece in pieces:
            for start in range(0, max(1, piece.num_rows), ROWS_AT_ONCE):
                part = piece.slice(start, ROWS_AT_ONCE)
                if keeps_columns:
                    yield _filter_rows(part, bound, start)
                elif part.num_rows:
                    yield _map_rows(part, bound, start)

    def with_more(self, other: RowSteps) -> RowSteps:
        return RowSteps([*self.functions, *other.functions])


def _filter_rows(part: pa.Table, bound: list[Any], start: int) -> pa.Table:
    for function, call in bound:
        rows = tables.to_rows(part)
        part = part.filter(pa.array([bool(keep) for keep in _apply(function, call, rows, start, _evaluate)], type=pa.bool_()))
    return part


def _map_rows(part: pa.Table, bound: list[Any], start: int) -> pa.Table:
    rows: Any = tables.to_rows(part)
    for function, call in bound:
        rows = _apply(function, call, rows, start, _BY_KIND[function.kind])
    return tables.of_rows(rows, f"operator {bound[-1][0].name}")


def _evaluate(call: Callable[[Any], Any], rows: Sequence[Any]) -> list[Any]:
    return [call(row) for row in rows]


def _keep(call: Callable[[Any], Any], rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if call(row)]


def _flatten(call: Callable[[Any], Any], rows: Sequence[Any]) -> list[Any]:
    return [made for row in rows for made in call(row)]


_BY_KIND = {"map": _evaluate, "filter": _keep, "flat_map": _flatten}


def _apply(function: RowFunction, call: Callable[[Any], Any], rows: Sequence[Any], start: int, run: Callable[..., list[Any]]) -> list[Any]:
    try:
        return run(call, rows)
    except DataError:
        raise
    except Exception as error:
        error.add_note(f"raised by the function of operator {function.name}, among rows {start} to {start + len(rows) - 1} of its block")
        raise


# -- batches -------------------------------------------------------------------------------------------------


class MapBatches:
    """A function on batches of `batch_size` rows, or on whole pieces."""

    def __init__(self, fn: UserFunction, batch_size: int | None, batch_format: str, writable: bool, name: str) -> None:
        self.fn = fn
        self.batch_size = batch_size
        self.batch_format = batch_format
        self.writable = writable
        self.name = name

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        call = self.fn.bind()
        row = 0
        for number, piece in enumerate(rebatch(pieces, self.batch_size), start=1):
            where = f"operator {self.name}, batch {number} of task {info.index} (rows {row} to {row + piece.num_rows - 1})"
            row += piece.num_rows
            yield from call.on_batch(tables.to_batch(piece, self.batch_format, self.writable), where)


def rebatch(pieces: Iterator[pa.Table], batch_size: int | None) -> Iterator[pa.Table]:
    """Tables of exactly `batch_size` rows, but for the last; None: the pieces that have rows."""
    held: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        if not piece.num_rows:
            continue
        if batch_size is None:
            yield piece
            continue
        held.append(piece)
        rows += piece.num_rows
        if rows < batch_size:
            continue
        table = tables.concat(held)
        full = rows - rows % batch_size
        for start in range(0, full, batch_size):
            yield table.slice(start, batch_size)
        held = [table.slice(full)] if full < rows else []
        rows -= full
    if held:
        yield tables.concat(held)


class AddColumn:
    """A column made by a function on batches."""

    def __init__(self, column: str, fn: UserFunction, batch_format: str, name: str) -> None:
        self.column = column
        self.fn = fn
        self.batch_format = batch_format
        self.name = name

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        call = self.fn.bind().plain()
        for piece in pieces:
            if not piece.num_rows:
                continue
            try:
                made = call(tables.to_batch(piece, self.batch_format))
            except Exception as error:
                error.add_note(f"raised by the function of operator {self.name}")
                raise
            values = tables.column(
                made if hasattr(made, "__len__") and not isinstance(made, (str, bytes)) and getattr(made, "shape", None) != () else [made] * piece.num_rows
            )
            if len(values) != piece.num_rows:
                raise BatchTypeError(f"operator {self.name}: the function returned {len(values)} values for {piece.num_rows} rows")
            yield put_column(piece, self.column, values)


def put_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


# -- columns and expressions ---------------------------------------------------------------------------------


class Project:
    """`outputs`: the columns and what each is made of; with `keep`, the other columns stay as they are."""

    def __init__(self, outputs: list[tuple[str, Expr]], keep: bool, name: str) -> None:
        self.outputs = outputs
        self.keep = keep
        self.name = name

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        for piece in pieces:
            if piece.num_columns or piece.num_rows:
                yield self.apply(piece)

    def apply(self, table: pa.Table) -> pa.Table:
        made = []
        for name, expr in self.outputs:
            check_columns(sorted(expr.columns()), table.column_names, f"operator {self.name}")
            values = expr.evaluate(table)
            made.append((name, pa.repeat(values, table.num_rows) if isinstance(values, pa.Scalar) else values))
        if self.keep:
            for name, values in made:
                table = put_column(table, name, values)
            return table
        return pa.Table.from_arrays([values for _, values in made], names=[name for name, _ in made])


class Drop:
    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.name = f"Drop({', '.join(columns)})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        for piece in pieces:
            if piece.num_columns or piece.num_rows:
                yield self.apply(piece)

    def apply(self, table: pa.Table) -> pa.Table:
        check_columns(self.columns, table.column_names, f"operator {self.name}")
        return table.drop_columns(self.columns)


class Rename:
    """By a mapping, or all columns by a list."""

    def __init__(self, names: dict[str, str] | list[str]) -> None:
        self.names = names
        self.name = f"Rename({names})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        for piece in pieces:
            if piece.num_columns or piece.num_rows:
                yield self.apply(piece)

    def apply(self, table: pa.Table) -> pa.Table:
        return table.rename_columns(self.renamed(table.column_names))

    def renamed(self, columns: list[str]) -> list[str]:
        if isinstance(self.names, list):
            if len(self.names) != len(columns):
                raise DataError(f"operator {self.name}: {len(self.names)} names for {len(columns)} columns {columns}")
            return self.names
        check_columns(self.names, columns, f"operator {self.name}")
        return [self.names.get(column, column) for column in columns]


class FilterExpression:
    def __init__(self, expr: Expr) -> None:
        self.expr = expr
        self.name = f"Filter({expr!r})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        for piece in pieces:
            if piece.num_columns or piece.num_rows:
                yield self.apply(piece)

    def apply(self, table: pa.Table) -> pa.Table:
        check_columns(sorted(self.expr.columns()), table.column_names, f"operator {self.name}")
        mask = self.expr.evaluate(table)
        if not pa.types.is_boolean(mask.type):
            raise DataError(f"operator {self.name}: the expression gives {mask.type}, not true or false")
        if isinstance(mask, pa.Scalar):
            return table if mask.as_py() else table.slice(0, 0)
        return table.filter(mask)


class Head:
    """No more than the first rows of each task: more are never wanted."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.name = f"Limit({rows})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        left = self.rows
        for piece in pieces:
            yield piece.slice(0, left)
            left -= piece.num_rows
            if left <= 0:
                return


class Gather:
    """Nothing but a task of its own, whose blocks were put together."""

    name = "Gather"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        return pieces


class RandomSample:
    def __init__(self, fraction: float, seed: int) -> None:
        self.fraction = fraction
        self.seed = seed
        self.name = f"RandomSample({fraction:g})"

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        random = np.random.default_rng([self.seed, info.index])
        for piece in pieces:
            yield piece.filter(pa.array(random.random(piece.num_rows) < self.fraction))
