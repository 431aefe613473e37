"""Groups of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from . import compute as computes
from ._block.tables import check_format
from ._ops.grouping import EachGroup
from ._plan import logical
from .aggregate import AggregateFn, Aggregation, Count, Max, Mean, Min, Std, Sum

__all__ = ["GroupedData"]


class GroupedData:
    """What `Dataset.groupby` gives. Results have the keys and a column for each aggregation; groups come in the order of their keys within a block."""

    def __init__(self, dataset: Any, keys: list[str], num_partitions: int | None) -> None:
        self._dataset = dataset
        self._keys = keys
        self._partitions = num_partitions

    def __repr__(self) -> str:
        return f"GroupedData({self._dataset!r}, key={self._keys})"

    def aggregate(self, *aggs: Aggregation | AggregateFn) -> Any:
        """One row for each group.

        Example::

            ds.groupby("city").aggregate(Count(), Mean("price"), Max("price", alias_name="dearest"))
        """
        for one in aggs:
            if not isinstance(one, (Aggregation, AggregateFn)):
                raise TypeError(f"aggregate takes aggregations such as Sum('x') or Count(), and got {one!r}")
        names = [*self._keys, *(one.name for one in aggs)]
        if len(set(names)) != len(names):
            raise ValueError(f"aggregate: columns of the result have the same name: {names}; give an alias_name")
        self._dataset._check([one.on for one in aggs if one.on], "aggregate")
        return self._dataset._with(logical.Aggregate((self._dataset._plan,), tuple(self._keys), tuple(aggs), self._partitions))

    def count(self) -> Any:
        """Rows of each group, in a column `count()`."""
        return self.aggregate(Count())

    def sum(self, on: str | Sequence[str] | None = None, ignore_nulls: bool = True) -> Any:
        """Sums of a column, of several, or of all numeric ones, in columns `sum(x)`."""
        return self.aggregate(*(Sum(name, ignore_nulls) for name in columns_for(self._dataset, on, self._keys)))

    def min(self, on: str | Sequence[str] | None = None, ignore_nulls: bool = True) -> Any:
        return self.aggregate(*(Min(name, ignore_nulls) for name in columns_for(self._dataset, on, self._keys)))

    def max(self, on: str | Sequence[str] | None = None, ignore_nulls: bool = True) -> Any:
        return self.aggregate(*(Max(name, ignore_nulls) for name in columns_for(self._dataset, on, self._keys)))

    def mean(self, on: str | Sequence[str] | None = None, ignore_nulls: bool = True) -> Any:
        return self.aggregate(*(Mean(name, ignore_nulls) for name in columns_for(self._dataset, on, self._keys)))

    def std(self, on: str | Sequence[str] | None = None, ddof: int = 1, ignore_nulls: bool = True) -> Any:
        return self.aggregate(*(Std(name, ddof, ignore_nulls) for name in columns_for(self._dataset, on, self._keys)))

    def map_groups(
        self,
        fn: Any,
        *,
        zero_copy_batch: bool = True,
        compute: Any = None,
        batch_format: str | None = "default",
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: float | None = None,
        concurrency: int | tuple[int, int] | None = None,
        **ray_remote_args: Any,
    ) -> Any:
        """Applies a function to all rows of each group, as one batch; arguments as in `Dataset.map_batches`."""
        from .dataset import _function

        where = "map_groups"
        function = _function(fn, where, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs)
        pool, most = computes.resolve(fn, compute, concurrency, where)
        options = computes.remote_args(where, pool is not None, num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, **ray_remote_args)
        step = EachGroup(self._keys, function, check_format(batch_format), not zero_copy_batch, f"MapGroups({function.name})")
        rows: logical.Node = logical.GroupRows((self._dataset._plan,), tuple(self._keys), self._partitions if self._keys else 1)
        return self._dataset._with(logical.Map((rows,), step, options, pool, most))


def columns_for(dataset: Any, on: str | Sequence[str] | None, keys: Sequence[str]) -> list[str]:
    """The columns to aggregate: those that are named, or all numeric ones that are no keys."""
    if on is not None:
        return [on] if isinstance(on, str) else list(on)
    schema = dataset.schema()
    fields = [] if schema is None else list(schema.base_schema)
    names = [field.name for field in fields if field.name not in keys and _numeric(field.type)]
    if not names:
        raise ValueError(f"there is no numeric column to aggregate; the columns are {[field.name for field in fields]}")
    return names


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
