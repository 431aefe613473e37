"""Reading Parquet: only the columns and row groups that are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from .._block import tables
from .._run.tasks import Reads
from ..context import DataContext
from ..exceptions import FileFormatError, check_columns
from ..expressions import Binary, Call, Column, Expr, IsIn, Literal
from .paths import File, grouped, partition_fields, with_partition

# Limit: row groups are split over tasks only when there are few files, since every footer has to be read first.
SPLIT_FILES = 64
# One task a file, up to so many for each unit of parallelism.
TASKS_PER_SLOT = 64
# What Parquet takes on disk grows by about so much in memory.
GROWTH = 3


@dataclass(frozen=True)
class ParquetSource:
    """Files, and what is wanted of them."""

    files_found: tuple[File, ...]
    filesystem: pafs.FileSystem
    full_schema: pa.Schema
    columns: tuple[str, ...] | None = None
    filter: Expr | None = None
    limit: int | None = None
    include_paths: bool = False
    partitions: dict[str, pa.DataType] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    rows_wanted: bool = True

    @staticmethod
    def open(
        filesystem: pafs.FileSystem,
        files: Sequence[File],
        columns: Sequence[str] | None,
        include_paths: bool,
        schema: pa.Schema | None,
        arguments: dict[str, Any],
    ) -> ParquetSource:
        """Reads the first file's footer."""
        fields = partition_fields(files)
        full = schema
        if full is None:
            with open_parquet(filesystem, files[0].path, arguments) as first:
                full = first.schema_arrow
            full = pa.schema([one.with_metadata(None) for one in full])  # what pandas left there describes the whole file
        for name, kind in fields.items():
            if name not in full.names:
                full = full.append(pa.field(name, kind))
        if include_paths:
            full = full.append(pa.field("path", pa.string()))
        if columns is not None:
            check_columns(columns, full.names, f"read_parquet of {files[0].path}")
            if include_paths and "path" not in columns:
                columns = [*columns, "path"]
        return ParquetSource(
            tuple(files), filesystem, full, None if columns is None else tuple(columns), include_paths=include_paths, partitions=fields, arguments=arguments
        )

    @property
    def name(self) -> str:
        parts = []
        if self.columns is not None:
            parts.append(f"columns {', '.join(self.columns)}")
        if self.filter is not None:
            parts.append(f"where {self.filter!r}")
        if self.limit is not None:
            parts.append(f"first {self.limit}")
        return f"ReadParquet({'; '.join(parts)})" if parts else "ReadParquet"

    def schema(self) -> pa.Schema:
        return self.full_schema if self.columns is None else pa.schema([self.full_schema.field(name) for name in self.columns])

    def files(self) -> list[str]:
        return [file.path for file in self.files_found]

    def rows(self) -> int | None:
        """From the footers, when there are not too many."""
        if self.filter is not None or self.limit is not None or len(self.files_found) > SPLIT_FILES:
            return None
        return sum(footer(self.filesystem, file.path, self.arguments).num_rows for file in self.files_found)

    def with_columns(self, columns: Sequence[str]) -> ParquetSource:
        return replace(self, columns=tuple(columns))

    def with_filter(self, expr: Expr) -> ParquetSource | None:
        if self.limit is not None or not _simple(expr) or not expr.columns() <= set(self.full_schema.names) - {"path"}:
            return None
        return replace(self, filter=expr if self.filter is None else self.filter & expr)

    def with_limit(self, rows: int) -> ParquetSource:
        return replace(self, limit=rows if self.limit is None else min(rows, self.limit))

    def reads(self, parallelism: int, context: DataContext, exact: bool) -> list[tuple[Reads, float | None]]:
        pieces = [(file, None) for file in self.files_found]
        sizes = [file.size_bytes for file in self.files_found]
        if len(pieces) < parallelism and len(pieces) <= SPLIT_FILES and self.limit is None:
            pieces, sizes = self._split(parallelism)
        tasks = parallelism if exact else max(parallelism, min(len(pieces), parallelism * TASKS_PER_SLOT))
        share = len(self.schema()) / max(1, len(self.full_schema))
        made: list[tuple[Reads, float | None]] = []
        taken = 0
        for group in grouped(pieces, sizes, tasks):
            size = sum(sizes[taken : taken + len(group)])
            taken += len(group)
            made.append((ParquetRead(tuple(group), replace(self, files_found=()), context.target_max_block_size), size * GROWTH * share))
        return made

    def _split(self, parallelism: int) -> tuple[list[tuple[File, Any]], list[int]]:
        total = sum(file.size_bytes for file in self.files_found) or 1
        pieces: list[tuple[File, Any]] = []
        sizes = []
        for file in self.files_found:
            groups = list(range(footer(self.filesystem, file.path, self.arguments).num_row_groups))
            parts = max(1, min(len(groups), round(parallelism * file.size_bytes / total)))
            for part in range(parts):
                run = groups[len(groups) * part // parts : len(groups) * (part + 1) // parts]
                pieces.append((file, tuple(run) if parts > 1 else None))
                sizes.append(file.size_bytes // parts)
        return pieces, sizes


@dataclass(frozen=True)
class ParquetRead:
    """One task: files, each with its row groups (None: all)."""

    pieces: tuple[tuple[File, tuple[int, ...] | None], ...]
    source: ParquetSource
    target_bytes: int

    def read(self) -> Iterator[pa.Table]:
        found = (table for file, groups in self.pieces for table in self._read_file(file, groups))
        yield from tables.limited(found, self.source.limit)

    def _read_file(self, file: File, groups: tuple[int, ...] | None) -> Iterator[pa.Table]:
        source = self.source
        wanted = source.schema()
        with_filter = [] if source.filter is None else sorted(source.filter.columns())
        try:
            with open_parquet(source.filesystem, file.path, source.arguments) as parquet:
                have = parquet.schema_arrow.names
                columns = [name for name in dict.fromkeys([*wanted.names, *with_filter]) if name in have]
                for run in self._runs(parquet.metadata, groups, columns):
                    # Without a column of its own a table would not know how many rows it has.
                    table = parquet.read_row_groups(run, columns=columns or have[:1], use_threads=False)
                    yield self._shaped(table, file, wanted)
                if parquet.metadata.num_row_groups == 0:
                    yield self._shaped(parquet.schema_arrow.empty_table(), file, wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise unreadable(file.path, error) from error

    def _runs(self, metadata: pq.FileMetaData, groups: tuple[int, ...] | None, columns: list[str]) -> Iterator[list[int]]:
        """Row groups that are read at once; without those in which the filter can find nothing."""
        run: list[int] = []
        size = 0
        dropped: int | None = None
        for i in range(metadata.num_row_groups) if groups is None else groups:
            group = metadata.row_group(i)
            if self.source.filter is not None and not may_match(self.source.filter, statistics(group)):
                dropped = i
                continue
            run.append(i)
            size += group.total_byte_size
            if size >= self.target_bytes // 2:
                yield run
                run, size = [], 0
        if run:
            yield run
        elif dropped is not None and size == 0:
            yield [dropped]  # its rows are filtered away, and its columns are known

    def _shaped(self, table: pa.Table, file: File, wanted: pa.Schema) -> pa.Table:
        source = self.source
        table = with_partition(table, file, source.partitions, source.include_paths).replace_schema_metadata(None)
        if source.filter is not None:
            table = table.filter(source.filter.evaluate(table))
        if table.schema.names == wanted.names and table.schema.equals(wanted):
            return table
        columns = []
        for want in wanted:
            if want.name not in table.column_names:
                columns.append(pa.nulls(table.num_rows, want.type))  # a file written before the column was there
            else:
                values = table[want.name]
                columns.append(values if values.type == want.type or isinstance(want.type, pa.BaseExtensionType) else values.cast(want.type))
        return pa.Table.from_arrays(columns, names=wanted.names)


def open_parquet(filesystem: pafs.FileSystem, path: str, arguments: dict[str, Any]) -> pq.ParquetFile:
    """Raises FileFormatError for what is no Parquet file."""
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            return pq.ParquetFile(path, memory_map=True, **arguments)
        return pq.ParquetFile(filesystem.open_input_file(path), **arguments)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise unreadable(path, error) from error


def footer(filesystem: pafs.FileSystem, path: str, arguments: dict[str, Any]) -> pq.FileMetaData:
    with open_parquet(filesystem, path, arguments) as parquet:
        return parquet.metadata


def unreadable(path: str, error: BaseException) -> Exception:
    if isinstance(error, (FileNotFoundError, FileFormatError)):
        return error
    return FileFormatError(f"{path} cannot be read as Parquet, its footer or pages are damaged: {error}")


# -- filters and statistics ----------------------------------------------------------------------------------


def _simple(expr: Expr) -> bool:
    """Whether it can do no harm where it runs first: comparisons of columns with constants."""
    match expr:
        case Binary(operator="&" | "|", left=left, right=right):
            return _simple(left) and _simple(right)
        case Binary(operator=">" | ">=" | "<" | "<=" | "==" | "!=", left=left, right=right):
            return isinstance(left, (Column, Literal)) and isinstance(right, (Column, Literal))
        case IsIn(operand=operand):
            return isinstance(operand, Column)
        case Call(function="is_null" | "is_valid", arguments=(operand,)):
            return isinstance(operand, Column)
        case Call(function="invert", arguments=(operand,)):
            return _simple(operand)
    return False


def statistics(group: Any) -> dict[str, tuple[Any, Any]]:
    """The least and the greatest value of those columns that have them."""
    found = {}
    for i in range(group.num_columns):
        column = group.column(i)
        known = column.statistics
        if known is not None and known.has_min_max:
            found[column.path_in_schema] = (known.min, known.max)
    return found


def may_match(expr: Expr, known: dict[str, tuple[Any, Any]]) -> bool:
    """False only if no row within these bounds can match."""
    match expr:
        case Binary(operator="&", left=left, right=right):
            return may_match(left, known) and may_match(right, known)
        case Binary(operator="|", left=left, right=right):
            return may_match(left, known) or may_match(right, known)
        case Binary(operator=operator, left=Column(column=name), right=Literal(value=value)):
            return _within(operator, name, value, known)
        case Binary(operator=operator, left=Literal(value=value), right=Column(column=name)):
            return _within({">": "<", ">=": "<=", "<": ">", "<=": ">="}.get(operator, operator), name, value, known)
        case IsIn(operand=Column(column=name), values=values):
            return any(_within("==", name, value, known) for value in values)
    return True


def _within(operator: str, name: str, value: Any, known: dict[str, tuple[Any, Any]]) -> bool:
    if name not in known or value is None:
        return True
    low, high = known[name]
    try:
        found = {">": high > value, ">=": high >= value, "<": low < value, "<=": low <= value, "==": low <= value <= high}
    except TypeError:
        return True
    return bool(found.get(operator, True))
