"""Databases with a Python DB API 2 connection (PEP 249)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from .._block import tables
from ..context import DataContext
from ..datasource import BlockMetadata, Datasink, Datasource, ReadTask, TaskContext
from ..exceptions import DataError

# Rows that are fetched, and that are written, at once.
ROWS_AT_ONCE = 10_000
Connect = Callable[[], Any]


class SqlDatasource(Datasource):
    """The rows of one query, read by one task: a database has no order in which several could share them."""

    def __init__(self, sql: str, connection_factory: Connect, parameters: Any) -> None:
        self.sql = sql
        self.connection_factory = connection_factory
        self.parameters = parameters

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None) -> list[ReadTask]:
        return [ReadTask(partial(query, self.sql, self.connection_factory, self.parameters), BlockMetadata())]

    def get_name(self) -> str:
        return "SQL"


def query(sql: str, connection_factory: Connect, parameters: Any) -> Iterator[pa.Table]:
    with contextlib.closing(connection_factory()) as connection:
        cursor = connection.cursor()
        cursor.execute(sql) if parameters is None else cursor.execute(sql, parameters)
        if cursor.description is None:
            raise DataError(f"read_sql: this gives no rows, where a query is wanted: {sql}")
        names = [column[0] for column in cursor.description]
        yield pa.table({name: pa.nulls(0) for name in names})
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield pa.Table.from_arrays([tables.column(list(values)) for values in zip(*rows, strict=True)], names=names)


class SqlDatasink(Datasink[None]):
    """One statement for each row, all rows of a block in one transaction."""

    def __init__(self, sql: str, connection_factory: Connect) -> None:
        self.sql = sql
        self.connection_factory = connection_factory

    def write(self, blocks: Iterable[pa.Table], ctx: TaskContext) -> None:
        with contextlib.closing(self.connection_factory()) as connection:
            cursor = connection.cursor()
            for block in blocks:
                for rows in _rows(block):
                    cursor.executemany(self.sql, rows)
            connection.commit()

    def get_name(self) -> str:
        return "SQL"


def _rows(block: pa.Table) -> Iterator[Sequence[tuple[Any, ...]]]:
    for start in range(0, block.num_rows, ROWS_AT_ONCE):
        part = block.slice(start, ROWS_AT_ONCE)
        yield list(zip(*(tables.values_of(values) for values in part.columns), strict=True))
