"""Sources and sinks of users, as parts of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from .._block import tables, tensors
from .._block.meta import BlockMeta
from .._run.tasks import Reads
from ..context import DataContext
from ..datasource import Datasink, Datasource, ReadTask, TaskContext
from ..datasource.datasource import ask_for_tasks
from ..expressions import Expr


@dataclass(frozen=True)
class CustomSource:
    datasource: Datasource
    limit: int | None = None

    @property
    def name(self) -> str:
        label = f"Read{self.datasource.get_name()}"
        return label if self.limit is None else f"{label}(first {self.limit})"

    def schema(self) -> None:
        return None

    def rows(self) -> None:
        return None

    def files(self) -> list[str]:
        return []

    def with_columns(self, columns: Sequence[str]) -> None:
        return None

    def with_filter(self, expr: Expr) -> None:
        return None

    def with_limit(self, rows: int) -> CustomSource:
        return replace(self, limit=rows if self.limit is None else min(rows, self.limit))

    def reads(self, parallelism: int, context: DataContext, exact: bool) -> list[tuple[Reads, float | None]]:
        tasks = ask_for_tasks(self.datasource, parallelism, self.limit, context)
        total = self.datasource.estimate_inmemory_data_size()
        share = None if total is None or not tasks else total / len(tasks)
        made: list[tuple[Reads, float | None]] = []
        for task in tasks:
            size = task.metadata.size_bytes
            made.append((CustomRead(task, self.limit), share if size is None else float(size)))
        return made


@dataclass(frozen=True)
class CustomRead:
    task: ReadTask
    limit: int | None

    def read(self) -> Iterator[pa.Table]:
        yield from tables.limited(self.task(), self.limit)


class Sunk:
    """Finish: a block goes into a sink. Gives a row for each write, with what it returned."""

    def __init__(self, sink: Datasink[Any]) -> None:
        self.sink = sink

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, Any]:
        returned = [self.sink.write([block], TaskContext(index, self.sink.get_name()))] if block.num_rows else []
        made = pa.table({
            "returned": tensors.from_objects(returned), "rows": pa.array([block.num_rows] * len(returned), type=pa.int64()),
            "bytes": pa.array([block.nbytes] * len(returned), type=pa.int64()),
        })  # fmt: skip
        return made, BlockMeta(made.num_rows, made.nbytes, made.schema)
