"""Blocks: the pieces a dataset is made of. For sources and transformations that take any of the forms a block may have.

    >>> import pyarrow
    >>> rows = BlockAccessor.for_block(pyarrow.table({"x": [1, 2, 3]}))
    >>> rows.num_rows(), rows.slice(1, 3).to_pydict(), rows.to_numpy("x").tolist()
    (3, {'x': [2, 3]}, [1, 2, 3])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Union

import pyarrow as pa

from ._block import tables
from .datasource import BlockMetadata

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["Block", "BlockAccessor", "BlockMetadata", "DataBatch", "Schema"]

# What a block may be where a user gives one; inside a dataset each is an Arrow table.
Block = Union[pa.Table, "pd.DataFrame"]
DataBatch = Union[pa.Table, "pd.DataFrame", dict[str, "np.ndarray"]]
Schema = pa.Schema


class BlockAccessor:
    """A block's rows, whatever form it has. Nothing is changed: what gives rows gives new ones.

    Make one with `BlockAccessor.for_block(block)`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @staticmethod
    def for_block(block: DataBatch) -> BlockAccessor:
        """Raises BatchTypeError for what is no block."""
        return BlockAccessor(tables.of_batch(block, "BlockAccessor.for_block"))

    @staticmethod
    def batch_to_block(batch: DataBatch) -> pa.Table:
        """A table of what a function on batches may return. Raises BatchTypeError."""
        return tables.of_batch(batch, "BlockAccessor.batch_to_block")

    def num_rows(self) -> int:
        return int(self._table.num_rows)

    def size_bytes(self) -> int:
        return int(self._table.nbytes)

    def schema(self) -> pa.Schema:
        return self._table.schema

    def column_names(self) -> list[str]:
        return list(self._table.column_names)

    def get_metadata(self, input_files: list[str] | None = None) -> BlockMetadata:
        return BlockMetadata(self.num_rows(), self.size_bytes(), input_files)

    def slice(self, start: int, end: int, copy: bool = False) -> pa.Table:
        """Rows from `start` to before `end`. They share memory with the block, unless `copy`."""
        part = self._table.slice(start, max(0, end - start))
        return tables.compact(part) if copy else part

    def take(self, indices: Sequence[int]) -> pa.Table:
        """These rows, in this order."""
        return self._table.take(pa.array(indices, type=pa.int64()))

    def select(self, columns: Sequence[str]) -> pa.Table:
        """These columns. Raises KeyError naming one that is not there."""
        return self._table.select(list(columns))

    def iter_rows(self, public_row_format: bool = True) -> Iterator[dict[str, Any]]:
        """A dict for each row."""
        yield from tables.to_rows(self._table)

    def to_arrow(self) -> pa.Table:
        return self._table

    to_block = to_arrow

    def to_pandas(self) -> pd.DataFrame:
        return tables.to_pandas(self._table)

    def to_numpy(self, columns: str | Sequence[str] | None = None) -> Any:
        """An array for one name, else a dict of arrays."""
        if isinstance(columns, str):
            return tables.to_numpy(self._table.select([columns]))[columns]
        return tables.to_numpy(self._table if columns is None else self._table.select(list(columns)))

    def to_batch_format(self, batch_format: str | None) -> DataBatch:
        """As `Dataset.map_batches` would give it: "default", "numpy", "pandas", "pyarrow". Raises ValueError for others."""
        batch: DataBatch = tables.to_batch(self._table, tables.check_format(batch_format))
        return batch
