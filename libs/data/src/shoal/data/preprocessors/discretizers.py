"""Numbers as the number of the bin that they lie in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..aggregate import Max, Min
from .base import Preprocessor

# So much of its width an outer bin of `UniformKBinsDiscretizer` is wider, that the least (or greatest) value lies in it.
MARGIN = 0.001


class _Discretizer(Preprocessor):
    def __init__(self, columns: Sequence[str], bins: Any, right: bool, include_lowest: bool, output_columns: Sequence[str] | None) -> None:
        super().__init__(columns, output_columns)
        if isinstance(bins, Mapping) and (missing := [name for name in self.columns if name not in bins]):
            raise ValueError(f"{type(self).__name__}: bins has nothing for the columns {missing}")
        self.bins = bins
        self.right = right
        self.include_lowest = include_lowest

    def _bins_of(self, name: str) -> Any:
        return self.bins[name] if isinstance(self.bins, Mapping) else self.bins

    @abstractmethod
    def _edges(self, name: str) -> np.ndarray:
        """The edges of a column's bins."""

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {output: self._numbers(table[name], self._edges(name)) for name, output in zip(self.columns, self.output_columns, strict=True)}
        return self._replaced(table, made)

    def _numbers(self, column: Any, edges: np.ndarray) -> pa.Array:
        """Null outside of all bins."""
        values = np.asarray(pc.cast(column, pa.float64()))
        bins = np.searchsorted(edges, values, side="left" if self.right else "right") - 1
        if self.include_lowest:
            bins[values == edges[0]] = 0
        return pa.array(bins, mask=(bins < 0) | (bins >= len(edges) - 1) | np.isnan(values))


class CustomKBinsDiscretizer(_Discretizer):
    """Bins between given edges.

    Args:
        bins: the edges, ascending; or for each column its own.
        right: whether a bin holds its right edge; otherwise the left one.
        include_lowest: whether the first bin holds its left edge, too.
    """

    is_fittable = False

    def __init__(
        self, columns: Sequence[str], bins: Sequence[float] | Mapping[str, Sequence[float]], *, right: bool = True, include_lowest: bool = False,
        output_columns: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(columns, bins, right, include_lowest, output_columns)
        for name in self.columns:
            edges = self._edges(name)
            if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) <= 0).any():
                raise ValueError(f"CustomKBinsDiscretizer: the edges of column {name!r} must be two or more ascending numbers, and are {self._bins_of(name)!r}")

    def _edges(self, name: str) -> np.ndarray:
        return np.asarray(self._bins_of(name), dtype=np.float64)


class UniformKBinsDiscretizer(_Discretizer):
    """Bins of one width between a column's least and greatest value.

    Args:
        bins: how many; or for each column its own number.
        right, include_lowest: as in `CustomKBinsDiscretizer`.
    """

    def __init__(
        self, columns: Sequence[str], bins: int | Mapping[str, int], *, right: bool = True, include_lowest: bool = False,
        output_columns: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(columns, bins, right, include_lowest, output_columns)
        for name in self.columns:
            number = self._bins_of(name)
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"UniformKBinsDiscretizer: bins of column {name!r} must be a positive number, and is {number!r}")

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        found: dict[str, Any] = ds.aggregate(*(make for name in self.columns for make in (Min(name), Max(name))))
        return found

    def _edges(self, name: str) -> np.ndarray:
        assert self.stats_ is not None
        low, high = float(self.stats_[f"min({name})"]), float(self.stats_[f"max({name})"])
        edges = np.linspace(low, high, self._bins_of(name) + 1)
        margin = (high - low) * MARGIN or MARGIN
        if self.right:
            edges[0] -= margin
        else:
            edges[-1] += margin
        return edges
