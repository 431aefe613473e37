"""What runs a dataset's plan: rows and batches, aggregates of all rows, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ._block import tables
from ._block.meta import Bundle
from ._plan import logical
from ._plan.logical import Node
from ._plan.optimizer import optimize
from .context import DataContext
from .iterator import DataIterator
from .writing import Writing

if TYPE_CHECKING:
    from .dataset import Dataset, MaterializedDataset

# `repr` of a dataset shows so many rows.
SHOWN_ROWS = 10


class Schema:
    """Names and types of columns."""

    def __init__(self, base_schema: pa.Schema) -> None:
        self.base_schema = base_schema

    @property
    def names(self) -> list[str]:
        return list(self.base_schema.names)

    @property
    def types(self) -> list[pa.DataType]:
        return list(self.base_schema.types)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.base_schema.equals(other.base_schema)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        width = max([len("Column"), *map(len, self.names)])
        lines = [f"{'Column':{width}}  Type", f"{'-' * len('Column'):{width}}  ----"]
        return "\n".join(lines + [f"{field.name:{width}}  {field.type}" for field in self.base_schema])


class _WholeIterator(DataIterator):
    """Over a whole dataset."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __repr__(self) -> str:
        return f"DataIterator({self._dataset._plan.name})"

    def _tables(self) -> Iterator[pa.Table]:
        import shoal

        for bundle in self._dataset._execute(self._dataset._plan):
            if bundle.meta.rows:
                yield shoal.get(bundle.ref)

    def schema(self) -> Schema | None:
        return self._dataset.schema()  # type: ignore[no-any-return]

    def stats(self) -> str:
        return self._dataset.stats()  # type: ignore[no-any-return]

    def get_context(self) -> DataContext:
        return self._dataset.context  # type: ignore[no-any-return]


class Consumption(Writing):
    """Base of `Dataset`."""

    def __init__(self, plan: Node, context: DataContext | None = None) -> None:
        self._plan = plan
        self.context = (context or DataContext.get_current()).copy()
        self._schema: pa.Schema | None = None
        self._last: Any = None

    def _execute(self, plan: Node) -> Iterator[Bundle]:
        from ._run.execution import Execution

        execution = Execution(plan, self.context)
        self._last = execution
        return iter(execution)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def _tables(self) -> Iterator[pa.Table]:
        return _WholeIterator(self)._tables()

    # -- blocks
    def materialize(self) -> MaterializedDataset:
        """Runs the plan, and keeps the blocks in the object store."""
        from .dataset import MaterializedDataset

        if isinstance(self, MaterializedDataset):
            return self
        bundles = list(self._execute(self._plan))
        bundles = [bundle for bundle in bundles if bundle.meta.rows] or bundles[:1]
        made = MaterializedDataset(logical.Blocks((), tuple(bundle._replace(meta=bundle.meta._replace(extra=None)) for bundle in bundles)), self.context)
        made._last = self._last
        return made

    def to_arrow_refs(self) -> list[Any]:
        """References to the blocks, pyarrow tables."""
        return [bundle.ref for bundle in self.materialize()._bundles]

    def to_pandas_refs(self) -> list[Any]:
        """References to data frames, one for each block."""
        import shoal

        convert = shoal.remote(tables.to_pandas)
        return [convert.remote(ref) for ref in self.to_arrow_refs()]

    def to_numpy_refs(self, *, column: str | None = None) -> list[Any]:
        """References to dicts of arrays, or to the arrays of one column, one for each block."""
        import shoal

        convert = shoal.remote(_column_of)
        return [convert.remote(ref, column) for ref in self.to_arrow_refs()]

    def num_blocks(self) -> int:
        """How many blocks the plan gives; runs it."""
        return sum(1 for _ in self._execute(self._plan))

    def size_bytes(self) -> int:
        """Bytes of all blocks; runs the plan unless they are there."""
        if isinstance(self._plan, logical.Blocks):
            return sum(bundle.meta.size_bytes for bundle in self._plan.bundles)
        return sum(bundle.meta.size_bytes for bundle in self._execute(self._plan))

    def input_files(self) -> list[str]:
        """The files that are read."""
        return sorted({file for node in self._plan.walk() if isinstance(node, logical.Read) for file in node.source.files()})

    # -- what it is
    def schema(self, fetch_if_missing: bool = True) -> Schema | None:
        """Columns and their types. Where they are not known, the plan is run for a row, unless `fetch_if_missing` is False."""
        if self._schema is None:
            self._schema = self._plan.schema()
        if self._schema is None and fetch_if_missing:
            from ._run.execution import Execution

            execution = Execution(logical.Limit((self._plan,), 1), self.context)
            for _ in execution:
                pass
            self._schema = execution.schema  # type: ignore[assignment]
        return None if self._schema is None else Schema(self._schema)

    def columns(self, fetch_if_missing: bool = True) -> list[str] | None:
        """Names of the columns."""
        schema = self.schema(fetch_if_missing)
        return None if schema is None else schema.names

    def count(self) -> int:
        """Rows; from the files' metadata if they tell."""
        from ._run.tasks import Discarded

        known = self._plan.rows()
        if known is not None:
            return known
        return sum(bundle.meta.rows for bundle in self._execute(logical.Finished((self._plan,), Discarded(), "Count")))

    def stats(self) -> str:
        """What the last execution did, operator by operator."""
        from ._run.split import stats_text

        return stats_text(self._last) if self._last is not None else "nothing was executed yet"

    def explain(self) -> None:
        """Prints the plan: as it was asked for, with less work, and as operators; `A->B` runs in one task."""
        print(self._explained())

    def _explained(self) -> str:
        from ._plan.physical import Planner
        from ._run.budget import Budget

        better = optimize(self._plan)
        operators = Planner(self.context, Budget(limit_bytes=1 << 30, cpus=2)).plan(better)
        lines = [
            f"{type(operator).__name__}[{operator.name}]{'' if operator.consumer is None else ' > ' + operator.consumer[0].name}" for operator in operators
        ]
        parts = {"Logical Plan": logical.describe(self._plan), "Logical Plan (Optimized)": logical.describe(better), "Physical Plan": "\n".join(lines)}
        return "\n\n".join(f"-------- {title} --------\n{text}" for title, text in parts.items())

    def __repr__(self) -> str:
        schema = self._schema or self._plan.schema()
        columns = "unknown" if schema is None else "{" + ", ".join(f"{field.name}: {field.type}" for field in schema) + "}"
        rows = self._plan.rows() if not isinstance(self._plan, logical.Read) or not self._plan.source.files() else None
        return f"{type(self).__name__}({self._plan.name}, num_rows={'?' if rows is None else rows}, schema={columns})"

    def __len__(self) -> int:
        raise TypeError("a dataset has no len(), which would run its plan; use count()")

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a dataset is iterated over by iter_rows() or iter_batches()")

    # -- rows
    def take(self, limit: int = 20) -> list[dict[str, Any]]:
        """The first rows, as dicts."""
        return self._rows(limit)

    def take_all(self, limit: int | None = None) -> list[dict[str, Any]]:
        """All rows. Raises ValueError if there are more than `limit`."""
        if limit is None:
            return self._rows(None)
        rows = self._rows(limit + 1)
        if len(rows) > limit:
            raise ValueError(f"take_all: the dataset has more than the limit of {limit} rows")
        return rows

    def _rows(self, limit: int | None) -> list[dict[str, Any]]:
        return [row for table in self._first(limit) for row in tables.to_rows(table)]

    def _first(self, limit: int | None) -> Iterator[pa.Table]:
        ds = self if limit is None else type(self)._limited(self, limit)
        return ds._tables()

    @staticmethod
    def _limited(ds: Consumption, limit: int) -> Consumption:
        limited: Any = ds
        return limited.limit(limit)  # type: ignore[no-any-return]

    def take_batch(self, batch_size: int = 20, *, batch_format: str | None = "default") -> Any:
        """The first rows as one batch. Raises ValueError for a dataset without rows."""
        form = tables.check_format(batch_format)
        found = [table for table in self._first(batch_size) if table.num_rows]
        if not found:
            raise ValueError("take_batch: the dataset has no rows")
        return tables.to_batch(tables.concat(found), form)

    def show(self, limit: int = 20) -> None:
        """Prints the first rows."""
        for row in self.take(limit):
            print(row)

    def to_pandas(self, limit: int | None = None) -> Any:
        """One data frame of all rows. Raises ValueError if there are more than `limit`."""
        found = list(self._first(None if limit is None else limit + 1))
        if limit is not None and sum(table.num_rows for table in found) > limit:
            raise ValueError(f"to_pandas: the dataset has more than the limit of {limit} rows")
        if found:
            return tables.to_pandas(tables.concat(found))
        schema = self.schema()
        return tables.to_pandas(schema.base_schema.empty_table() if schema is not None else pa.table({}))

    def iterator(self) -> DataIterator:
        """An iterator over the dataset that can be sent to a worker."""
        return _WholeIterator(self)

    def iter_rows(self) -> Iterable[dict[str, Any]]:
        """Every row as a dict."""
        return _WholeIterator(self).iter_rows()

    def iter_batches(self, **options: Any) -> Iterable[Any]:
        """See `DataIterator.iter_batches`."""
        return _WholeIterator(self).iter_batches(**options)

    def iter_torch_batches(self, **options: Any) -> Iterable[Any]:
        """See `DataIterator.iter_torch_batches`."""
        return _WholeIterator(self).iter_torch_batches(**options)

    # -- aggregates of all rows
    def aggregate(self, *aggs: Any) -> dict[str, Any]:
        """Aggregates of all rows, by name."""
        from .grouped_data import GroupedData

        found = list(GroupedData(self, [], None).aggregate(*aggs)._tables())
        if not found:
            return {aggregation.name: 0 if aggregation.name.startswith("count") else None for aggregation in aggs}
        return tables.to_rows(found[0])[0]

    def _aggregate(self, make: Callable[[str], Any], on: str | list[str] | None) -> Any:
        from .grouped_data import columns_for

        columns = columns_for(self, on, [])
        found = self.aggregate(*map(make, columns))
        return next(iter(found.values())) if isinstance(on, str) or (on is None and len(columns) == 1) else found

    def sum(self, on: str | list[str] | None = None, ignore_nulls: bool = True) -> Any:
        """The sum of a column, or a dict of several's; None without rows."""
        from .aggregate import Sum

        return self._aggregate(lambda name: Sum(name, ignore_nulls), on)

    def min(self, on: str | list[str] | None = None, ignore_nulls: bool = True) -> Any:
        from .aggregate import Min

        return self._aggregate(lambda name: Min(name, ignore_nulls), on)

    def max(self, on: str | list[str] | None = None, ignore_nulls: bool = True) -> Any:
        from .aggregate import Max

        return self._aggregate(lambda name: Max(name, ignore_nulls), on)

    def mean(self, on: str | list[str] | None = None, ignore_nulls: bool = True) -> Any:
        from .aggregate import Mean

        return self._aggregate(lambda name: Mean(name, ignore_nulls), on)

    def std(self, on: str | list[str] | None = None, ddof: int = 1, ignore_nulls: bool = True) -> Any:
        from .aggregate import Std

        return self._aggregate(lambda name: Std(name, ddof, ignore_nulls), on)

    def unique(self, column: str, ignore_nulls: bool = False) -> list[Any]:
        """The distinct values of a column, ascending, null last."""
        from .grouped_data import GroupedData

        ds: Dataset = self  # type: ignore[assignment]
        ds._check([column], "unique")
        values = [row[column] for row in GroupedData(ds, [column], None).aggregate()._rows(None)]
        return [value for value in values if value is not None] if ignore_nulls else values


def _column_of(block: pa.Table, column: str | None) -> Any:
    arrays: Mapping[str, Any] = tables.to_numpy(block)
    return arrays if column is None else arrays[column]
