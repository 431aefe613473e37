"""Sources that are not Parquet: numbers, and files that are read whole."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from .._block import tables, tensors
from .._run.tasks import Reads
from ..context import DataContext
from ..exceptions import DataError, FileFormatError, check_columns
from ..expressions import Expr
from .paths import File, grouped, partition_fields, with_partition

# Pieces of a range are made as they are needed.
RANGE_ROWS = 1 << 20
TASKS_PER_SLOT = 16


# -- numbers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RangeSource:
    """0 to n - 1 in a column `id`; with a shape, tensors of it filled with the number, in a column `data`."""

    n: int
    shape: tuple[int, ...] | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        return "ReadRange" if self.limit is None else f"ReadRange(first {self.limit})"

    def schema(self) -> pa.Schema:
        return self.table(0, 0).schema

    def rows(self) -> int:
        return self.n if self.limit is None else min(self.n, self.limit)

    def files(self) -> list[str]:
        return []

    def with_columns(self, columns: Sequence[str]) -> None:
        return None

    def with_filter(self, expr: Expr) -> None:
        return None

    def with_limit(self, rows: int) -> RangeSource:
        return replace(self, limit=rows if self.limit is None else min(rows, self.limit))

    def row_bytes(self) -> int:
        return 8 * math.prod(self.shape or ())

    def table(self, start: int, end: int) -> pa.Table:
        numbers = np.arange(start, end, dtype=np.int64)
        if self.shape is None:
            return pa.table({"id": numbers})
        return pa.table({"data": tensors.from_ndarray(np.broadcast_to(numbers.reshape(-1, *[1] * len(self.shape)), (len(numbers), *self.shape)))})

    def reads(self, parallelism: int, context: DataContext, exact: bool) -> list[tuple[Reads, float | None]]:
        rows = self.rows()
        size = rows * self.row_bytes()
        tasks = max(1, min(parallelism, rows), 0 if exact else math.ceil(size / context.target_max_block_size))
        edges = [rows * i // tasks for i in range(tasks + 1)]
        return [(RangeRead(self, start, end), float(end - start) * self.row_bytes()) for start, end in itertools.pairwise(edges)]


@dataclass(frozen=True)
class RangeRead:
    source: RangeSource
    start: int
    end: int

    def read(self) -> Iterator[pa.Table]:
        rows = max(1, RANGE_ROWS * 8 // max(8, self.source.row_bytes()))
        for start in range(self.start, self.end, rows):
            yield self.source.table(start, min(start + rows, self.end))
        if self.start == self.end:
            yield self.source.table(self.start, self.end)


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSource:
    """Files that `parse` turns into tables."""

    label: str
    files_found: tuple[File, ...]
    filesystem: pafs.FileSystem
    parse: Callable[[pafs.FileSystem, str], Iterator[pa.Table]]
    include_paths: bool = False
    partitions: dict[str, pa.DataType] = field(default_factory=dict)
    growth: float = 1.0
    limit: int | None = None

    @staticmethod
    def of(label: str, found: tuple[pafs.FileSystem, list[File]], parse: Any, include_paths: bool, growth: float = 1.0) -> FileSource:
        filesystem, files = found
        return FileSource(label, tuple(files), filesystem, parse, include_paths, partition_fields(files), growth)

    @property
    def name(self) -> str:
        return self.label if self.limit is None else f"{self.label}(first {self.limit})"

    def schema(self) -> None:
        return None

    def rows(self) -> None:
        return None

    def files(self) -> list[str]:
        return [file.path for file in self.files_found]

    def with_columns(self, columns: Sequence[str]) -> None:
        return None

    def with_filter(self, expr: Expr) -> None:
        return None

    def with_limit(self, rows: int) -> FileSource:
        return replace(self, limit=rows if self.limit is None else min(rows, self.limit))

    def reads(self, parallelism: int, context: DataContext, exact: bool) -> list[tuple[Reads, float | None]]:
        sizes = [file.size_bytes for file in self.files_found]
        # Many small files in one task, large ones each in its own.
        most = min(len(sizes), parallelism * TASKS_PER_SLOT, sum(sizes) // max(1, context.target_min_block_size))
        tasks = parallelism if exact else max(parallelism, most)
        made: list[tuple[Reads, float | None]] = []
        taken = 0
        for group in grouped(self.files_found, sizes, tasks):
            size = sum(sizes[taken : taken + len(group)])
            taken += len(group)
            made.append((FileRead(tuple(group), replace(self, files_found=())), size * self.growth))
        return made


@dataclass(frozen=True)
class FileRead:
    files: tuple[File, ...]
    source: FileSource

    def read(self) -> Iterator[pa.Table]:
        source = self.source
        found = (with_partition(table, file, source.partitions, source.include_paths) for file in self.files for table in self._parsed(file))
        yield from tables.limited(found, source.limit)

    def _parsed(self, file: File) -> Iterator[pa.Table]:
        try:
            yield from self.source.parse(self.source.filesystem, file.path)
        except (DataError, FileNotFoundError):
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise FileFormatError(f"{file.path} cannot be read ({self.source.label}): {error}") from error


@dataclass(frozen=True)
class ParseCsv:
    arguments: dict[str, Any]

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        import pyarrow.csv as csv

        given = dict(self.arguments)
        read_options = given.pop("read_options", None) or csv.ReadOptions()
        read_options.use_threads = False
        with filesystem.open_input_stream(path) as stream:
            yield csv.read_csv(stream, read_options=read_options, **given)


@dataclass(frozen=True)
class ParseJson:
    """Objects one after another, or one array of them."""

    arguments: dict[str, Any]
    lines: bool

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        import pyarrow.json as pajson

        with filesystem.open_input_stream(path) as stream:
            text = stream.read()
        if not text.strip():
            yield pa.table({})
        elif not self.lines and text.lstrip()[:1] == b"[":
            import json

            yield tables.of_rows(json.loads(text), path)
        else:
            given = dict(self.arguments)
            options = given.pop("read_options", None) or pajson.ReadOptions(block_size=max(1 << 20, min(len(text) + 1, (1 << 31) - 1)))
            options.use_threads = False
            yield pajson.read_json(io.BytesIO(text), read_options=options, **given)


@dataclass(frozen=True)
class ParseOrc:
    columns: tuple[str, ...] | None

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        import pyarrow.orc as orc

        with filesystem.open_input_file(path) as stream:
            file = orc.ORCFile(stream)
            if self.columns is not None:
                check_columns(self.columns, file.schema.names, f"read_orc of {path}")
            wanted = None if self.columns is None else list(self.columns)
            if not file.nstripes:
                yield file.schema.empty_table() if wanted is None else file.schema.empty_table().select(wanted)
            for stripe in range(file.nstripes):
                yield pa.Table.from_batches([file.read_stripe(stripe, columns=wanted)])


@dataclass(frozen=True)
class ParseText:
    encoding: str
    drop_empty_lines: bool

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        with filesystem.open_input_stream(path) as stream:
            lines = stream.read().decode(self.encoding).split("\n")
        if lines and not lines[-1]:
            lines.pop()
        lines = [line.removesuffix("\r") for line in lines]
        yield pa.table({"text": pa.array([line for line in lines if line.strip()] if self.drop_empty_lines else lines, type=pa.string())})


@dataclass(frozen=True)
class ParseBinary:
    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        with filesystem.open_input_stream(path) as stream:
            yield pa.table({"bytes": pa.array([stream.read()], type=pa.binary())})


@dataclass(frozen=True)
class ParseNumpy:
    allow_pickle: bool

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        with filesystem.open_input_stream(path) as stream:
            array = np.load(io.BytesIO(stream.read()), allow_pickle=self.allow_pickle)
        if array.ndim == 0:
            raise FileFormatError(f"{path} holds one number, not an array of rows")
        yield pa.table({"data": tables.column(array)})


@dataclass(frozen=True)
class ParseImage:
    size: tuple[int, int] | None
    mode: str | None

    def __call__(self, filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
        from PIL import Image

        with filesystem.open_input_stream(path) as stream:
            image: Any = Image.open(io.BytesIO(stream.read()))
        if self.mode is not None:
            image = image.convert(self.mode)
        if self.size is not None:
            height, width = self.size
            image = image.resize((width, height), resample=Image.Resampling.BILINEAR)
        yield pa.table({"image": tensors.from_ndarray(np.asarray(image)[np.newaxis])})
