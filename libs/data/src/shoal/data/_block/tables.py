"""Tables: made of rows and batches, cut, joined together, and turned back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from ..exceptions import BatchTypeError, SchemaMismatchError
from . import tensors

Row = dict[str, Any]
Rows = list[Row]
# A slice that uses less of its buffers than this is copied before it is stored: the whole buffers would travel with it.
COPY_BELOW = 0.9
BATCH_FORMATS = ("default", "numpy", "pandas", "pyarrow", None)


# -- columns -------------------------------------------------------------------------------------------------


def column(values: Any) -> pa.Array | pa.ChunkedArray:
    """An Arrow array of whatever a user may give as a column."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if isinstance(values, np.ndarray):
        if values.ndim > 1:
            return tensors.from_ndarray(values)
        return _of_list(list(values)) if values.dtype == object else pa.array(values)
    if type(values).__module__.startswith("torch") and hasattr(values, "detach"):
        return column(values.detach().cpu().numpy())
    if type(values).__module__.startswith("pandas"):
        return _of_list(list(values)) if _holds_arrays(values) else _with_fallback(lambda: pa.array(values, from_pandas=True), lambda: list(values))
    return _of_list(values if isinstance(values, list) else list(values))


def _holds_arrays(series: Any) -> bool:
    return len(series) > 0 and series.dtype == object and any(isinstance(value, np.ndarray) for value in series.iloc[:1])


def _of_list(values: list[Any]) -> pa.Array:
    first = next((value for value in values if value is not None), None)
    if isinstance(first, np.ndarray) or (type(first).__module__.startswith("torch") and hasattr(first, "detach")):
        return _of_arrays([value.detach().cpu().numpy() if hasattr(value, "detach") else value for value in values])
    return _with_fallback(lambda: pa.array(values), lambda: values)


def _of_arrays(arrays: list[Any]) -> pa.Array:
    shapes = {getattr(array, "shape", None) for array in arrays}
    if shapes == {()}:
        return _of_list([array.item() for array in arrays])
    if any(array is not None and np.asarray(array).dtype.kind in "OUS" for array in arrays):
        return _with_fallback(lambda: pa.array([None if array is None else np.asarray(array).tolist() for array in arrays]), lambda: arrays)
    if len(shapes) == 1:
        return tensors.from_ndarray(np.stack(arrays))
    return tensors.from_ragged(arrays)


def _with_fallback(make: Callable[[], pa.Array], values: Callable[[], list[Any]]) -> pa.Array:
    try:
        return make()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return tensors.from_objects(values())


# -- rows and tables -----------------------------------------------------------------------------------------


def of_rows(rows: Sequence[Row], where: str = "rows") -> pa.Table:
    """A table of dicts. Keys that only some rows have are null in the others."""
    if not rows:
        return pa.table({})
    try:
        names = list(rows[0])
        # The common case, column by column without a look at single rows: all have the same keys.
        if set(map(len, rows)) == {len(names)}:
            return _named(names, [_of_list(list(map(itemgetter(name), rows))) for name in names], where)
    except (KeyError, TypeError):
        pass
    names_seen: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, Mapping):
            raise BatchTypeError(f"{where}: a row must be a dict of columns, and this is {type(row).__name__}: {_short(row)}. Return {{'item': value}}.")
        names_seen.update(dict.fromkeys(row))
    return _named(list(names_seen), [_of_list([row.get(name) for row in rows]) for name in names_seen], where)


def _named(names: list[Any], columns: list[Any], where: str) -> pa.Table:
    for name in names:
        if not isinstance(name, str):
            raise BatchTypeError(f"{where}: a column's name must be a string, and this is {type(name).__name__}: {_short(name)}")
    return pa.Table.from_arrays([*columns], names=names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


@lru_cache(maxsize=256)
def _row_maker(names: tuple[str, ...]) -> Callable[..., Rows]:
    # A comprehension over dict displays, compiled for these names, takes half the time of dict(zip(...)).
    variables = [f"v{i}" for i in range(len(names))]
    display = ", ".join(f"{name!r}: {variable}" for name, variable in zip(names, variables, strict=True))
    loop = f"for {variables[0]} in c[0]" if len(names) == 1 else f"for {', '.join(variables)} in zip(*c)"
    made: Callable[..., Rows] = eval(f"lambda c: [{{{display}}} {loop}]", {"zip": zip})
    return made


def to_rows(table: pa.Table) -> Rows:
    """The rows as dicts of Python values; tensors as arrays."""
    if not table.num_columns:
        return [{} for _ in range(table.num_rows)]
    return _row_maker(tuple(table.column_names))([values_of(values) for values in table.columns])


def values_of(values: pa.ChunkedArray) -> list[Any]:
    """A column's values, as rows have them."""
    if isinstance(values.type, pa.BaseExtensionType):
        return tensors.to_list(values)
    return values.to_pylist()


# -- batches -------------------------------------------------------------------------------------------------


def check_format(batch_format: str | None) -> str:
    if batch_format not in BATCH_FORMATS:
        raise ValueError(f"batch_format must be one of {', '.join(map(repr, BATCH_FORMATS))}, and is {batch_format!r}")
    return {"default": "numpy", None: "pyarrow"}.get(batch_format, batch_format)  # type: ignore[return-value]


def to_batch(table: pa.Table, batch_format: str, writable: bool = False) -> Any:
    """`numpy`: a dict of arrays; `pandas`: a data frame; `pyarrow`: the table. Arrays are views of the block where they can be, unless `writable`."""
    if batch_format == "pyarrow":
        return table
    if batch_format == "pandas":
        return to_pandas(table)
    arrays = to_numpy(table)
    if writable:
        return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}
    return arrays


def to_numpy(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: numpy_of(values) for name, values in zip(table.column_names, table.columns, strict=True)}


def numpy_of(values: pa.ChunkedArray) -> np.ndarray:
    if isinstance(values.type, pa.BaseExtensionType):
        return tensors.to_ndarray(values)
    if values.num_chunks == 1:
        return values.chunk(0).to_numpy(zero_copy_only=False)
    return values.to_numpy()


def to_pandas(table: pa.Table) -> Any:
    import pandas as pd

    special = {
        name: tensors.to_list(values) for name, values in zip(table.column_names, table.columns, strict=True) if isinstance(values.type, pa.BaseExtensionType)
    }
    if not special:
        return table.to_pandas()
    frame = table.drop_columns(list(special)).to_pandas()
    made = {
        name: pd.Series(special[name], dtype=object, index=frame.index if len(frame) else None) if name in special else frame[name]
        for name in table.column_names
    }
    return pd.DataFrame(made, columns=table.column_names)


def of_batch(batch: Any, where: str) -> pa.Table:
    """A table of what a function on batches returned.

    Raises BatchTypeError for anything else, SchemaMismatchError for columns of unequal length."""
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, pa.RecordBatch):
        return pa.Table.from_batches([batch])
    if isinstance(batch, Mapping):
        columns = {}
        for name, values in batch.items():
            if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or getattr(values, "shape", None) == ():
                raise BatchTypeError(
                    f"{where}: column {name!r} of the returned batch is {type(values).__name__}, {_short(values)}. "
                    "Each column must be an array or list with one value for each row."
                )
            columns[name] = column(values)
        if len(lengths := {len(values) for values in columns.values()}) > 1:
            raise SchemaMismatchError(f"{where}: the columns of the returned batch have unequal lengths { ({name: len(c) for name, c in columns.items()}) }")
        if not columns or not lengths:
            return pa.table({})
        return _named(list(columns), list(columns.values()), where)
    if type(batch).__module__.startswith("pandas") and hasattr(batch, "columns"):
        return of_pandas(batch)
    if type(batch).__module__.startswith("polars") and hasattr(batch, "to_arrow"):
        made: pa.Table = batch.to_arrow()
        return made
    raise BatchTypeError(
        f"{where}: a batch must be a dict of arrays, a pandas.DataFrame or a pyarrow.Table, and the function returned {type(batch).__name__}: {_short(batch)}"
    )


def of_pandas(frame: Any) -> pa.Table:
    return pa.Table.from_arrays([column(frame.iloc[:, i]) for i in range(frame.shape[1])], names=[str(name) for name in frame.columns])


# -- cutting and joining -------------------------------------------------------------------------------------


def compact(table: pa.Table) -> pa.Table:
    """The same rows in buffers that hold little else: what is pickled is whole buffers, not the slice of them that is used."""
    if table.num_columns == 0 or table.nbytes >= COPY_BELOW * table.get_total_buffer_size():
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def concat(tables: Sequence[pa.Table], where: str = "concat") -> pa.Table:
    """One table, of as few chunks as there are. Schemas may differ in missing columns and in numeric width."""
    filled = [table for table in tables if table.num_rows] or list(tables[:1])
    if len(filled) == 1:
        return filled[0]
    if not filled:
        return pa.table({})
    first = filled[0].schema
    if all(table.schema.equals(first) for table in filled[1:]):
        return pa.concat_tables(filled)
    return _concat_different(filled, where)


def _concat_different(tables: list[pa.Table], where: str) -> pa.Table:
    # Extension types have no promotion in Arrow: fixed tensors of several shapes become ragged ones, anything else becomes objects.
    names: dict[str, None] = {}
    for table in tables:
        names.update(dict.fromkeys(table.column_names))
    for name in names:
        kinds = {table.schema.field(name).type for table in tables if name in table.column_names and not pa.types.is_null(table.schema.field(name).type)}
        if len(kinds) < 2 or not any(isinstance(kind, pa.BaseExtensionType) for kind in kinds):
            continue
        make = tensors.from_ragged if all(tensors.is_tensor(kind) for kind in kinds) else tensors.from_objects
        tables = [
            table.set_column(table.column_names.index(name), name, make(values_of(table[name]))) if name in table.column_names else table for table in tables
        ]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaMismatchError(f"{where}: the schemas do not fit together: {error}") from error


def limited(pieces: Iterable[pa.Table], rows: int | None) -> Iterator[pa.Table]:
    """The first `rows` rows of them (None: all). Not one piece more is made than is needed."""
    left = rows
    for table in pieces:
        if left is not None:
            table = table.slice(0, left)
            left -= table.num_rows
        yield table
        if left is not None and left <= 0:
            return


def slices(table: pa.Table, target_bytes: int) -> Iterator[pa.Table]:
    """Parts of about `target_bytes`."""
    size = table.nbytes
    if size <= target_bytes * 1.5 or table.num_rows <= 1:
        yield table
        return
    parts = min(table.num_rows, -(-size // target_bytes))
    rows = -(-table.num_rows // parts)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def build(pieces: Iterator[pa.Table], target_bytes: int) -> Iterator[pa.Table]:
    """Blocks of about `target_bytes` made of pieces of any size; at least one, empty if need be, so that the schema is known."""
    held: list[pa.Table] = []
    size = 0
    empty: pa.Table | None = None
    made = False
    for piece in pieces:
        if piece.num_rows == 0:
            empty = piece if empty is None or piece.num_columns else empty
            continue
        held.append(piece)
        size += piece.nbytes
        if size >= target_bytes:
            yield from slices(concat(held), target_bytes)
            held, size, made = [], 0, True
    if held:
        yield from slices(concat(held), target_bytes)
    elif not made and empty is not None:
        yield empty.slice(0, 0)
