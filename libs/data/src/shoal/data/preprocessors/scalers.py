"""Numbers brought to a common scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..aggregate import AbsMax, Max, Mean, Min, Quantile, Std
from ..exceptions import DataError
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

    @abstractmethod
    def _scale(self, name: str) -> tuple[float, float]:
        """What is taken from a column, and what the rest is divided by."""

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


class RobustScaler(_Scaler):
    """`(x - median) / (high - low)`, with the quantiles `low` and `high` of `quantile_range`: what lies far out moves nothing."""

    def __init__(
        self, columns: Sequence[str], quantile_range: tuple[float, float] = (0.25, 0.75), output_columns: Sequence[str] | None = None
    ) -> None:
        super().__init__(columns, output_columns)
        low, high = quantile_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"RobustScaler: quantile_range must be (low, high) with 0 <= low < high <= 1, and is {quantile_range!r}")
        self.quantile_range = (low, high)

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        places = {"low": self.quantile_range[0], "median": 0.5, "high": self.quantile_range[1]}
        found: dict[str, Any] = ds.aggregate(*(Quantile(name, q, alias_name=f"{which}({name})") for name in self.columns for which, q in places.items()))
        return found

    def _scale(self, name: str) -> tuple[float, float]:
        return self._learnt(f"median({name})"), self._learnt(f"high({name})") - self._learnt(f"low({name})")


class PowerTransformer(Preprocessor):
    """Makes a skewed column more like a normal distribution, by a power.

    Args:
        power: the exponent, λ; 0 is the logarithm.
        method: `"yeo-johnson"`, for any number (Yeo and Johnson 2000), or `"box-cox"`, for positive ones (Box and Cox 1964).
    """

    is_fittable = False

    def __init__(self, columns: Sequence[str], power: float, method: str = "yeo-johnson", *, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        if method not in ("yeo-johnson", "box-cox"):
            raise ValueError(f"PowerTransformer: method must be yeo-johnson or box-cox, and is {method!r}")
        self.power = power
        self.method = method

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        transform = _yeo_johnson if self.method == "yeo-johnson" else _box_cox
        made = {
            output: pa.array(transform(np.asarray(pc.cast(table[name], pa.float64())), self.power))
            for name, output in zip(self.columns, self.output_columns, strict=True)
        }
        return self._replaced(table, made)


def _box_cox(x: np.ndarray, power: float) -> np.ndarray:
    if (x <= 0).any():
        raise DataError(f"PowerTransformer: box-cox is for positive numbers, and there is {x[x <= 0][0]}; use yeo-johnson")
    return np.log(x) if power == 0 else (x**power - 1) / power


def _yeo_johnson(x: np.ndarray, power: float) -> np.ndarray:
    made = np.empty_like(x)
    low = x < 0
    high = ~low  # with NaN, which stays what it is
    made[high] = np.log1p(x[high]) if power == 0 else ((x[high] + 1) ** power - 1) / power
    made[low] = -np.log1p(-x[low]) if power == 2 else -((1 - x[low]) ** (2 - power) - 1) / (2 - power)
    return made
