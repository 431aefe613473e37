"""Aggregations for `groupby(...).aggregate(...)` and `Dataset.aggregate(...)`.

Each is computed in three steps: per block in Arrow's hash aggregation, which gives a few numbers (or a list) for each group; merged over blocks; finished.

Example::

    from shoal.data.aggregate import Count, Mean, Quantile

    ds.groupby("city").aggregate(Count(), Mean("price"), Quantile("price", q=0.9, alias_name="p90"))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "AbsMax", "AggregateFn", "AsList", "Count", "CountDistinct", "Max", "Mean", "Min", "MissingValuePercentage", "Quantile", "Std", "Sum", "Unique",
    "ZeroPercentage",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A number, or list, that is kept for each group.

    `first`: Arrow's function over rows. `merge`: over parts; `list` joins lists, None where `merge_parts` does it."""

    name: str
    first: str
    merge: str | None
    first_options: Any = None
    merge_options: Any = None


@dataclass(frozen=True)
class Groups:
    """Rows by group: those of group i are `order[starts[i]:ends[i]]`."""

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[self.order], self.starts) if len(self.starts) else values[:0]


class Aggregation(ABC):
    """Base of the built-in ones.

    Args:
        on: the column; None where all rows count.
        ignore_nulls: whether nulls are left out; otherwise a group with a null gives null.
        alias_name: the result column's name instead of `sum(x)`.
    """

    prefix = ""

    def __init__(self, on: str | None, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        if on is not None and not isinstance(on, str):
            raise TypeError(f"{type(self).__name__}(on=...) takes a column's name, and got {on!r}")
        self.on = on
        self.ignore_nulls = ignore_nulls
        self.name = alias_name or f"{self.prefix}({on or ''})"

    def __repr__(self) -> str:
        return self.name

    def _skip(self) -> pc.ScalarAggregateOptions:
        return pc.ScalarAggregateOptions(skip_nulls=self.ignore_nulls, min_count=1 if self.ignore_nulls else 0)

    def prepare(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """The column as it is aggregated."""
        return values

    @abstractmethod
    def parts(self) -> list[Part]:
        """What is reduced in each block, and then over all of them."""

    def merge_parts(self, parts: Mapping[str, pa.ChunkedArray], groups: Groups) -> dict[str, pa.Array]:
        """Those parts whose `merge` is None, one value for each group."""
        return {}

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        return next(iter(parts.values()))


class Count(Aggregation):
    """Rows of the group, or with `on` and `ignore_nulls` the values that are not null."""

    prefix = "count"

    def __init__(self, on: str | None = None, ignore_nulls: bool = False, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def parts(self) -> list[Part]:
        mode = pc.CountOptions(mode="only_valid" if self.ignore_nulls else "all")
        return [Part("n", "count" if self.on else "count_all", "sum", mode if self.on else None)]


class Sum(Aggregation):
    """The sum; null for a group without values."""

    prefix = "sum"

    def __init__(self, on: str | None = None, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def parts(self) -> list[Part]:
        return [Part("v", self.prefix, self.prefix, self._skip(), self._skip())]


class Min(Sum):
    """The smallest value."""

    prefix = "min"


class Max(Sum):
    """The largest value."""

    prefix = "max"


class AbsMax(Sum):
    """The largest absolute value."""

    prefix = "abs_max"

    def prepare(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.abs(values)

    def parts(self) -> list[Part]:
        return [Part("v", "max", "max", self._skip(), self._skip())]


class Mean(Aggregation):
    """The arithmetic mean."""

    prefix = "mean"

    def __init__(self, on: str | None = None, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def parts(self) -> list[Part]:
        return [Part("v", "sum", "sum", self._skip(), self._skip()), Part("n", "count", "sum")]

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        return pc.divide(pc.cast(parts["v"], pa.float64()), parts["n"])


class Std(Aggregation):
    """The standard deviation with `ddof` degrees of freedom taken off; null where no more values than that are there.

    Counts, means and sums of squared deviations are merged by the rule of Chan, Golub and LeVeque (1979), which loses no precision to large means.
    """

    prefix = "std"

    def __init__(self, on: str | None = None, ddof: int = 1, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)
        self.ddof = ddof

    def prepare(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.cast(values, pa.float64())

    def parts(self) -> list[Part]:
        return [
            Part("n", "count", "sum"), Part("nulls", "count", "sum", pc.CountOptions(mode="only_null")), Part("mean", "mean", None),
            Part("m2", "variance", None, pc.VarianceOptions(ddof=0)),
        ]  # fmt: skip

    def from_rows(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Arrow gives the variance: as a sum of squares it can be merged."""
        return {**parts, "m2": pc.multiply(parts["m2"], pc.cast(parts["n"], pa.float64()))}

    def merge_parts(self, parts: Mapping[str, pa.ChunkedArray], groups: Groups) -> dict[str, pa.Array]:
        n = parts["n"].to_numpy().astype(np.float64)
        means, m2 = (np.where(n > 0, np.nan_to_num(parts[name].to_numpy().astype(np.float64), nan=np.nan), 0.0) for name in ("mean", "m2"))
        totals = groups.sums(n)
        mean = groups.sums(n * means) / np.maximum(totals, 1)
        of_row = np.empty(len(n))
        of_row[groups.order] = np.repeat(mean, groups.ends - groups.starts)
        return {"mean": pa.array(mean), "m2": pa.array(groups.sums(m2 + n * (means - of_row) ** 2))}

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        n = parts["n"].to_numpy().astype(np.float64)
        few = n <= self.ddof
        if not self.ignore_nulls:
            few |= parts["nulls"].to_numpy() > 0
        return pa.array(np.sqrt(np.asarray(parts["m2"].to_numpy()) / np.where(few, 1.0, n - self.ddof)), mask=few)


class _Lists(Aggregation):
    """Keeps all values of the group."""

    def parts(self) -> list[Part]:
        return [Part("v", "list", "list")]


class AsList(_Lists):
    """All values, in the order of the blocks."""

    prefix = "list"

    def __init__(self, on: str, alias_name: str | None = None, ignore_nulls: bool = False) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        values, group, count = _flat(parts["v"])
        if self.ignore_nulls:
            keep = values.is_valid()
            values, group = values.filter(keep), group[keep.to_numpy(zero_copy_only=False)]
        return _lists(values, group, count)


class Quantile(_Lists):
    """The quantile `q` (0 to 1), exact, with linear interpolation."""

    prefix = "quantile"

    def __init__(self, on: str | None = None, q: float = 0.5, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)
        if not 0 <= q <= 1:
            raise ValueError(f"Quantile(q=...) must be between 0 and 1, and is {q!r}")
        self.q = q

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        values, group, count = _flat(parts["v"])
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        has_null = np.zeros(count, dtype=bool)
        has_null[group[~valid]] = True
        numbers, group = values.drop_null().cast(pa.float64()).to_numpy(zero_copy_only=False), group[valid]
        order = np.lexsort((numbers, group))
        numbers = numbers[order]
        n = np.bincount(group, minlength=count)
        none = (n == 0) | (has_null & (not self.ignore_nulls))
        if not len(numbers):
            return pa.nulls(count, pa.float64())
        place = np.concatenate([[0], np.cumsum(n)[:-1]]) + self.q * np.maximum(n - 1, 0)
        low = np.minimum(np.floor(place).astype(np.int64), len(numbers) - 1)
        high = np.minimum(np.ceil(place).astype(np.int64), len(numbers) - 1)
        return pa.array(numbers[low] + (numbers[high] - numbers[low]) * (place - low), mask=none)


class Unique(_Lists):
    """The distinct values, as a list; null is one of them unless `ignore_nulls`."""

    prefix = "unique"

    def __init__(self, on: str | None = None, ignore_nulls: bool = False, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def parts(self) -> list[Part]:
        return [Part("v", "distinct", "list", pc.CountOptions(mode="only_valid" if self.ignore_nulls else "all"))]

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        values, group, count = _flat(parts["v"])
        pairs = pa.table({"g": group, "v": values}).group_by(["g", "v"], use_threads=False).aggregate([])
        group = pairs["g"].combine_chunks().to_numpy()
        order = np.argsort(group, kind="stable")
        return _lists(pairs["v"].combine_chunks().take(pa.array(order)), group[order], count)


class CountDistinct(Unique):
    """How many distinct values."""

    prefix = "count_distinct"

    def __init__(self, on: str, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        return pc.cast(pc.list_value_length(super().finish(parts)), pa.int64())


class MissingValuePercentage(Aggregation):
    """How many of 100 rows are null."""

    prefix = "missing_pct"

    def __init__(self, on: str, alias_name: str | None = None) -> None:
        super().__init__(on, False, alias_name)

    def parts(self) -> list[Part]:
        return [Part("v", "count", "sum", pc.CountOptions(mode="only_null")), Part("n", "count", "sum", pc.CountOptions(mode="all"))]

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        return pc.divide(pc.multiply(pc.cast(parts["v"], pa.float64()), 100.0), parts["n"])


class ZeroPercentage(Aggregation):
    """How many of 100 values are zero."""

    prefix = "zero_pct"

    def __init__(self, on: str, ignore_nulls: bool = True, alias_name: str | None = None) -> None:
        super().__init__(on, ignore_nulls, alias_name)

    def prepare(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.cast(pc.equal(values, 0), pa.int64())

    def parts(self) -> list[Part]:
        return [Part("v", "sum", "sum"), Part("n", "count", "sum", pc.CountOptions(mode="only_valid" if self.ignore_nulls else "all"))]

    def finish(self, parts: Mapping[str, pa.ChunkedArray]) -> Any:
        return pc.divide(pc.multiply(pc.cast(parts["v"], pa.float64()), 100.0), pc.if_else(pc.equal(parts["n"], 0), None, parts["n"]))


class AggregateFn:
    """An aggregation of the user's own. It runs in Python for each group of each block, so the built-in ones are much faster.

    Args:
        init: of the group's key, gives an empty accumulator.
        merge: of two accumulators, gives one.
        name: the result's column.
        accumulate_row: of an accumulator and a row (a dict), gives an accumulator. Either this or `accumulate_block`.
        accumulate_block: of an accumulator and a pyarrow.Table of the group's rows, gives an accumulator.
        finalize: of an accumulator, gives the result; by default the accumulator itself.

    Example::

        longest = AggregateFn(init=lambda key: 0, accumulate_row=lambda a, row: max(a, len(row["name"])), merge=max, name="longest")
        ds.groupby("city").aggregate(longest)
    """

    on = None

    def __init__(
        self,
        init: Callable[[Any], Any],
        merge: Callable[[Any, Any], Any],
        name: str,
        accumulate_row: Callable[[Any, dict[str, Any]], Any] | None = None,
        accumulate_block: Callable[[Any, pa.Table], Any] | None = None,
        finalize: Callable[[Any], Any] | None = None,
    ) -> None:
        if (accumulate_row is None) == (accumulate_block is None):
            raise ValueError("AggregateFn takes exactly one of accumulate_row and accumulate_block")
        if not isinstance(name, str):
            raise TypeError(f"AggregateFn(name=...) takes a string, and got {name!r}")
        self.init = init
        self.merge = merge
        self.name = name
        self.accumulate_row = accumulate_row
        self.accumulate_block = accumulate_block
        self.finalize = finalize

    def __repr__(self) -> str:
        return self.name


def _flat(lists: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray, int]:
    """All values, the group of each, and how many groups."""
    joined = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0) if joined.num_chunks else pa.array([], type=lists.type)
    lengths = pc.list_value_length(joined).to_numpy(zero_copy_only=False)
    return joined.flatten(), np.repeat(np.arange(len(joined)), lengths), len(joined)


def _lists(values: pa.Array, group: np.ndarray, count: int) -> pa.Array:
    """One list for each group, of values that are ordered by group."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
