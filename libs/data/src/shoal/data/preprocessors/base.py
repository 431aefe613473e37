"""The base of preprocessors, and several one after the other."""

from __future__ import annotations

import base64
import binascii
import enum
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .._block import tables
from ..exceptions import DataError, check_columns

__all__ = ["Chain", "Preprocessor", "PreprocessorNotFittedException"]


class PreprocessorNotFittedException(DataError, RuntimeError):
    """It has to be fitted before it can transform."""


class Preprocessor(ABC):
    """Base class. A subclass gives `_transform_table`, and `_fit_statistics` if it learns something.

    Attributes:
        stats_: what was learnt, by name.
    """

    class FitStatus(enum.StrEnum):
        """Whether a preprocessor can transform: it need not be fitted, has to be, is in parts (a chain), or is."""

        NOT_FITTABLE = "NOT_FITTABLE"
        NOT_FITTED = "NOT_FITTED"
        PARTIALLY_FITTED = "PARTIALLY_FITTED"
        FITTED = "FITTED"

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

    def fit_status(self) -> FitStatus:
        if not self.is_fittable:
            return self.FitStatus.NOT_FITTABLE
        return self.FitStatus.NOT_FITTED if self.stats_ is None else self.FitStatus.FITTED

    def has_stats(self) -> bool:
        """Whether it has learnt something."""
        return self.stats_ is not None

    def get_input_columns(self) -> list[str]:
        return list(self.columns)

    def get_output_columns(self) -> list[str]:
        return list(self.output_columns)

    def serialize(self) -> str:
        """As text, with what was learnt; for `deserialize`."""
        import cloudpickle

        return base64.b64encode(cloudpickle.dumps(self)).decode()

    @staticmethod
    def deserialize(serialized: str) -> Preprocessor:
        """What `serialize` gave. Only text that you trust: it is unpickled, which can run any code.

        Raises:
            ValueError: it is no serialized preprocessor.
        """
        try:
            made = pickle.loads(base64.b64decode(serialized, validate=True))
        except (binascii.Error, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"this is no serialized preprocessor: {error}") from error
        if not isinstance(made, Preprocessor):
            raise ValueError(f"this is a serialized {type(made).__name__}, and no preprocessor")
        return made

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

    @abstractmethod
    def _transform_table(self, table: pa.Table) -> pa.Table:
        """The table, transformed."""

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

    def fit_status(self) -> Preprocessor.FitStatus:
        states = {one.fit_status() for one in self.preprocessors} - {self.FitStatus.NOT_FITTABLE}
        if len(states) > 1:
            return self.FitStatus.PARTIALLY_FITTED
        return states.pop() if states else self.FitStatus.NOT_FITTABLE

    def has_stats(self) -> bool:
        return any(one.has_stats() for one in self.preprocessors)

    def get_input_columns(self) -> list[str]:
        """What it needs that no part of it makes."""
        made: set[str] = set()
        needed: dict[str, None] = {}
        for one in self.preprocessors:
            needed.update(dict.fromkeys(name for name in one.get_input_columns() if name not in made))
            made.update(one.get_output_columns())
        return list(needed)

    def get_output_columns(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.preprocessors for name in one.get_output_columns()))

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
