"""The base of preprocessors, and several one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .._block import tables
from ..exceptions import DataError, check_columns

__all__ = ["Chain", "Preprocessor", "PreprocessorNotFittedException"]


class PreprocessorNotFittedException(DataError, RuntimeError):
    """It has to be fitted before it can transform."""


class Preprocessor:
    """Base class. A subclass gives `_transform_table`, and `_fit_statistics` if it learns something.

    Attributes:
        stats_: what was learnt, by name.
    """

    # Whether it has to be fitted.
    is_fittable = True

    def __init__(self, columns: Sequence[str], output_columns: Sequence[str] | None = None) -> None:
        if isinstance(columns, str) or not columns:
            raise ValueError(f"{type(self).__name__} takes a list of columns, and got {columns!r}")
        if output_columns is not None and len(output_columns) != len(columns):
            raise ValueError(f"{type(self).__name__}: {len(output_columns)} output_columns for {len(columns)} columns")
        self.columns = list(columns)
        self.output_columns = list(output_columns or columns)
        self.stats_: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(columns={self.columns})"

    def fit(self, ds: Any) -> Preprocessor:
        """Learns from a dataset."""
        if self.is_fittable:
            self.stats_ = self._fit_statistics(ds)
        return self

    def fit_transform(self, ds: Any) -> Any:
        return self.fit(ds).transform(ds)

    def transform(self, ds: Any) -> Any:
        """The dataset, transformed; lazy like any other."""
        self._check_fitted()
        return ds.map_batches(_Transform(self), batch_format="pyarrow")

    def transform_batch(self, data: Any) -> Any:
        """A batch (dict of arrays, pandas.DataFrame or pyarrow.Table), transformed, in the same form."""
        self._check_fitted()
        made = self._transform_table(tables.of_batch(data, repr(self)))
        if isinstance(data, pa.Table):
            return made
        return tables.to_batch(made, "numpy" if isinstance(data, dict) else "pandas")

    def _check_fitted(self) -> None:
        if self.is_fittable and self.stats_ is None:
            raise PreprocessorNotFittedException(f"{self!r} has to be fitted first: call fit(dataset) or fit_transform(dataset)")

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must say what it learns")

    def _transform_table(self, table: pa.Table) -> pa.Table:
        raise NotImplementedError(f"{type(self).__name__} must say what it does")

    def _replaced(self, table: pa.Table, made: dict[str, Any]) -> pa.Table:
        from .._ops.steps import put_column

        for name, values in made.items():
            table = put_column(table, name, values)
        return table

    def _check(self, table: pa.Table) -> None:
        check_columns(self.columns, table.column_names, repr(self))


class _Transform:
    """A function whose name is the preprocessor's."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self.preprocessor = preprocessor
        self.__name__ = type(preprocessor).__name__

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.preprocessor._transform_table(table)


class Chain(Preprocessor):
    """One after the other; each learns from what those before it give."""

    def __init__(self, *preprocessors: Preprocessor) -> None:
        if not preprocessors or not all(isinstance(one, Preprocessor) for one in preprocessors):
            raise TypeError(f"Chain takes preprocessors, and got {preprocessors!r}")
        self.preprocessors = preprocessors
        self.stats_ = None

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.preprocessors))})"

    def fit(self, ds: Any) -> Chain:
        for i, one in enumerate(self.preprocessors):
            one.fit(ds)
            if i < len(self.preprocessors) - 1:
                ds = one.transform(ds)
        return self

    def transform(self, ds: Any) -> Any:
        for one in self.preprocessors:
            ds = one.transform(ds)
        return ds

    def _check_fitted(self) -> None:
        for one in self.preprocessors:
            one._check_fitted()

    def _transform_table(self, table: pa.Table) -> pa.Table:
        for one in self.preprocessors:
            table = one._transform_table(table)
        return table
