"""Columns filled, and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._block import tables, tensors
from ..aggregate import Mean
from .base import Preprocessor


class Concatenator(Preprocessor):
    """Columns become one column of vectors; they themselves are left out.

    Args:
        columns: numbers, or tensors where `flatten`.
        output_column_name: of the vectors.
        dtype: of the vectors; by default what NumPy makes of the columns' types.
        flatten: tensors are laid out flat, one after the other.
    """

    is_fittable = False

    def __init__(self, columns: Sequence[str], output_column_name: str = "concat_out", dtype: Any = None, flatten: bool = False) -> None:
        super().__init__(columns)
        self.output_columns = [output_column_name]
        self.output_column_name = output_column_name
        self.dtype = dtype
        self.flatten = flatten

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        parts = [tables.numpy_of(table[name]) for name in self.columns]
        parts = [part.reshape(len(part), -1) if part.ndim == 1 or self.flatten else part for part in parts]
        vectors = np.concatenate(parts, axis=1)
        rest = table.drop_columns(self.columns)
        return rest.append_column(self.output_column_name, tensors.from_ndarray(vectors if self.dtype is None else vectors.astype(self.dtype)))


class SimpleImputer(Preprocessor):
    """Nulls are filled with the column's mean, its most frequent value, or a constant."""

    def __init__(self, columns: Sequence[str], strategy: str = "mean", fill_value: Any = None, *, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        if strategy not in ("mean", "most_frequent", "constant"):
            raise ValueError(f"SimpleImputer: strategy must be mean, most_frequent or constant, and is {strategy!r}")
        if (strategy == "constant") != (fill_value is not None):
            raise ValueError("SimpleImputer takes a fill_value with strategy='constant', and only then")
        self.strategy = strategy
        self.fill_value = fill_value
        self.is_fittable = strategy != "constant"

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        if self.strategy == "mean":
            found: dict[str, Any] = ds.aggregate(*map(Mean, self.columns))
            return found
        return {f"most_frequent({name})": self._most_frequent(ds, name) for name in self.columns}

    def _most_frequent(self, ds: Any, name: str) -> Any:
        rows = ds.groupby(name).count().sort(["count()", name], descending=[True, False]).take(2)
        return next((row[name] for row in rows if row[name] is not None), None)

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            value = self.fill_value if self.stats_ is None else self.stats_[f"{self.strategy}({name})"]
            values = pc.cast(table[name], pa.float64()) if self.strategy == "mean" else table[name]
            if pa.types.is_floating(values.type):
                values = pc.if_else(pc.is_nan(values), None, values)
            made[output] = values if value is None else pc.fill_null(values, pa.scalar(value, type=values.type))
        return self._replaced(table, made)


class Normalizer(Preprocessor):
    """Each row's vector of `columns` gets the length 1; a row of zeros stays as it is.

    Args:
        norm: what length is: `"l2"`, the root of the sum of squares; `"l1"`, the sum of the absolute values; `"max"`, the largest of these.
    """

    is_fittable = False
    _norms: ClassVar[dict[str, Any]] = {
        "l1": lambda rows: np.abs(rows).sum(axis=1), "l2": lambda rows: np.sqrt((rows**2).sum(axis=1)), "max": lambda rows: np.abs(rows).max(axis=1),
    }  # fmt: skip

    def __init__(self, columns: Sequence[str], norm: str = "l2", *, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        if norm not in self._norms:
            raise ValueError(f"Normalizer: norm must be l1, l2 or max, and is {norm!r}")
        self.norm = norm

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        rows = np.column_stack([np.asarray(pc.cast(table[name], pa.float64())) for name in self.columns])
        lengths = self._norms[self.norm](rows)
        scaled = rows / np.where(lengths == 0, 1.0, lengths)[:, np.newaxis]
        return self._replaced(table, {output: pa.array(scaled[:, i]) for i, output in enumerate(self.output_columns)})
