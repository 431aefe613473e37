"""Numbers brought to a common scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..aggregate import AbsMax, Max, Mean, Min, Std
from .base import Preprocessor


class _Scaler(Preprocessor):
    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            offset, scale = self._scale(name)
            values = pc.cast(table[name], pa.float64())
            # A column that is the same everywhere becomes zeros.
            made[output] = pc.divide(pc.subtract(values, offset), scale or 1.0)
        return self._replaced(table, made)

    def _scale(self, name: str) -> tuple[float, float]:
        raise NotImplementedError(f"{type(self).__name__} must give offset and scale")

    def _learnt(self, name: str) -> float:
        assert self.stats_ is not None
        value = self.stats_[name]
        return np.nan if value is None else float(value)


class StandardScaler(_Scaler):
    """`(x - mean) / std`, with the standard deviation of the population."""

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        found: dict[str, Any] = ds.aggregate(*(make for name in self.columns for make in (Mean(name), Std(name, ddof=0))))
        return found

    def _scale(self, name: str) -> tuple[float, float]:
        return self._learnt(f"mean({name})"), self._learnt(f"std({name})")


class MinMaxScaler(_Scaler):
    """`(x - min) / (max - min)`."""

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        found: dict[str, Any] = ds.aggregate(*(make for name in self.columns for make in (Min(name), Max(name))))
        return found

    def _scale(self, name: str) -> tuple[float, float]:
        low = self._learnt(f"min({name})")
        return low, self._learnt(f"max({name})") - low


class MaxAbsScaler(_Scaler):
    """`x / max(|x|)`."""

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        found: dict[str, Any] = ds.aggregate(*map(AbsMax, self.columns))
        return found

    def _scale(self, name: str) -> tuple[float, float]:
        return 0.0, self._learnt(f"abs_max({name})")
