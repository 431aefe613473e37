"""Categories as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._block import tensors
from ..exceptions import DataError
from .base import Preprocessor


class _Encoder(Preprocessor):
    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        return {f"unique_values({name})": {value: i for i, value in enumerate(self._values(ds, name))} for name in self.columns}

    def _values(self, ds: Any, name: str) -> list[Any]:
        values: list[Any] = ds.unique(name)
        if None in values:
            raise DataError(f"{self!r}: column {name!r} has nulls; fill them first, for instance with SimpleImputer")
        return values

    def _codes(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """The place of each value; null for one that was not there when it was fitted."""
        assert self.stats_ is not None
        known = self.stats_[f"unique_values({name})"]
        return pc.index_in(table[name], value_set=pa.array(list(known), type=table[name].type))


class OrdinalEncoder(_Encoder):
    """Each value becomes its place among the sorted distinct values; values that were not seen become null."""

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {output: pc.cast(self._codes(table, name), pa.int64()) for name, output in zip(self.columns, self.output_columns, strict=True)}
        return self._replaced(table, made)


class LabelEncoder(OrdinalEncoder):
    """`OrdinalEncoder` for the column of labels."""

    def __init__(self, label_column: str, *, output_column: str | None = None) -> None:
        super().__init__([label_column], [output_column] if output_column is not None else None)
        self.label_column = label_column

    def inverse_transform(self, ds: Any) -> Any:
        """Labels of their numbers."""
        self._check_fitted()
        assert self.stats_ is not None
        labels = pa.array(list(self.stats_[f"unique_values({self.label_column})"]))
        output = self.output_columns[0]
        return ds.map_batches(lambda table: self._replaced(table, {output: labels.take(table[output].combine_chunks())}), batch_format="pyarrow")


class OneHotEncoder(_Encoder):
    """Each value becomes a vector with a one at its place; values that were not seen become zeros.

    Args:
        max_categories: for some columns, how many of the most frequent values have a place.
    """

    def __init__(self, columns: Sequence[str], *, max_categories: dict[str, int] | None = None, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        self.max_categories = max_categories or {}

    def _values(self, ds: Any, name: str) -> list[Any]:
        most = self.max_categories.get(name)
        if most is None:
            return super()._values(ds, name)
        counted = ds.groupby(name).count().sort("count()", descending=True).take(most)
        return sorted(row[name] for row in counted)

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            assert self.stats_ is not None
            codes = pc.fill_null(self._codes(table, name), -1).to_numpy()
            vectors = codes[:, np.newaxis] == np.arange(len(self.stats_[f"unique_values({name})"]))
            made[output] = tensors.from_ndarray(vectors.astype(np.uint8))
        return self._replaced(table, made)


class MultiHotEncoder(_Encoder):
    """Each list of values becomes a vector of how often each value is in it; values that were not seen are left out.

    Args:
        max_categories: for some columns, how many of the most frequent values have a place.
    """

    def __init__(self, columns: Sequence[str], *, max_categories: dict[str, int] | None = None, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        self.max_categories = max_categories or {}

    def _values(self, ds: Any, name: str) -> list[Any]:
        def flat(table: pa.Table) -> pa.Table:
            return pa.table({name: pc.list_flatten(table[name])})

        counted = ds.select_columns([name]).map_batches(flat, batch_format="pyarrow").groupby(name).count()
        rows = counted.sort(["count()", name], descending=[True, False]).take(self.max_categories.get(name, counted.count()) or 1)
        return sorted(row[name] for row in rows if row[name] is not None)

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        assert self.stats_ is not None
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            known = self.stats_[f"unique_values({name})"]
            vectors = np.zeros((table.num_rows, len(known)), dtype=np.int64)
            for row, values in enumerate(table[name].to_pylist()):
                for value in values or ():
                    if value in known:
                        vectors[row, known[value]] += 1
            made[output] = tensors.from_ndarray(vectors)
        return self._replaced(table, made)


class Categorizer(_Encoder):
    """Each value becomes a number and a common list of categories: Arrow's dictionary type, a categorical in pandas. Values that were not seen become null."""

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        assert self.stats_ is not None
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            categories = pa.array(list(self.stats_[f"unique_values({name})"]), type=table[name].type)
            codes = pc.cast(self._codes(table, name), pa.int32()).combine_chunks()
            made[output] = pa.DictionaryArray.from_arrays(codes, categories)
        return self._replaced(table, made)
