"""Writing: tasks write below a hidden folder, and when all have ended the files move to where they belong, whole."""

from __future__ import annotations

import enum
import io
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from .._block import tables
from .._block.meta import BlockMeta
from ..exceptions import DataError, SchemaMismatchError, check_columns
from .paths import NULL_PARTITION


class SaveMode(enum.StrEnum):
    """What happens to files that are there already."""

    APPEND = "append"
    OVERWRITE = "overwrite"
    IGNORE = "ignore"
    ERROR = "error"
    CREATE = "create"


@dataclass
class Target:
    """Where to write. On this machine's file system (or one that is mounted) files move at the end; object stores show no file before it is whole anyway."""

    path: str
    filesystem: pafs.FileSystem
    write_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    @staticmethod
    def of(path: str | os.PathLike[str], filesystem: pafs.FileSystem | None) -> Target:
        text = os.fspath(path)
        if filesystem is not None:
            return Target(text, filesystem)
        if "://" in text:
            found, inner = pafs.FileSystem.from_uri(text)
            return Target(inner, found)
        return Target(os.path.abspath(os.path.expanduser(text)), pafs.LocalFileSystem())

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def staging(self) -> str:
        return f"{self.path}/.writing-{self.write_id}" if self.local else self.path

    def prepare(self, mode: SaveMode, try_create_dir: bool) -> bool:
        """Whether there is anything to write. Raises FileExistsError or FileNotFoundError."""
        info = self.filesystem.get_file_info(self.path)
        if info.type == pafs.FileType.File:
            raise NotADirectoryError(f"{self.path} is a file; datasets are written into a folder")
        there = info.type == pafs.FileType.Directory and bool(self.filesystem.get_file_info(pafs.FileSelector(self.path)))
        if there and mode in (SaveMode.ERROR, SaveMode.CREATE):
            raise FileExistsError(f"{self.path} has files already; write with mode=SaveMode.APPEND or SaveMode.OVERWRITE, or elsewhere")
        if there and mode is SaveMode.IGNORE:
            return False
        if info.type == pafs.FileType.NotFound and not try_create_dir:
            raise FileNotFoundError(f"{self.path} does not exist, and try_create_dir is False")
        self.filesystem.create_dir(self.staging, recursive=True)
        return True

    def commit(self, files: Sequence[str], mode: SaveMode) -> None:
        """The files, named relative to the folder, appear; with OVERWRITE all others go."""
        old = []
        if mode is SaveMode.OVERWRITE:
            everything = self.filesystem.get_file_info(pafs.FileSelector(self.path, recursive=True))
            new = {f"{self.path}/{name}" for name in files}
            old = [one.path for one in everything if one.type == pafs.FileType.File and "/.writing-" not in one.path and (self.local or one.path not in new)]
        if self.local:
            for folder in {os.path.dirname(name) for name in files}:
                os.makedirs(os.path.join(self.path, folder), exist_ok=True)
            for name in files:
                os.replace(f"{self.staging}/{name}", f"{self.path}/{name}")
            shutil.rmtree(self.staging, ignore_errors=True)
        for path in old:
            self.filesystem.delete_file(path)

    def abandon(self) -> None:
        if self.local:
            shutil.rmtree(self.staging, ignore_errors=True)


class Written:
    """Finish: a block becomes one file, or one for each partition or each row. Gives a row for each file."""

    def __init__(self, target: Target, extension: str, encode: Any, partition_cols: Sequence[str] = (), by_row: bool = False) -> None:
        self.target = target
        self.extension = extension
        self.encode = encode
        self.partition_cols = list(partition_cols)
        self.by_row = by_row

    def __call__(self, block: pa.Table, index: int, ordinal: int) -> tuple[pa.Table, Any]:
        names, rows = [], []
        if block.num_rows:
            for folder, suffix, part in self._parts(block):
                # The same in each attempt, so that a task that is tried again overwrites what it wrote.
                name = f"{folder}{self.target.write_id}_{index:06d}_{ordinal:06d}{suffix}.{self.extension}"
                self._write(name, part)
                names.append(name)
                rows.append(part.num_rows)
        made = pa.table({"file": pa.array(names, type=pa.string()), "rows": pa.array(rows, type=pa.int64())})
        return made, BlockMeta(made.num_rows, made.nbytes, made.schema)

    def _write(self, name: str, part: pa.Table) -> None:
        path = f"{self.target.staging}/{name}"
        if "/" in name:
            self.target.filesystem.create_dir(os.path.dirname(path), recursive=True)
        with self.target.filesystem.open_output_stream(path) as stream:
            self.encode(part, stream)

    def _parts(self, block: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
        """Folder, what tells several files of one block apart, and rows."""
        if self.by_row:
            for row in range(block.num_rows):
                yield "", f"_{row:06d}", block.slice(row, 1)
            return
        if not self.partition_cols:
            yield "", "", block
            return
        from .._ops.grouping import groups_of

        check_columns(self.partition_cols, block.column_names, "write_parquet(partition_cols=...)")
        distinct, groups = groups_of(block, self.partition_cols)
        rest = block.drop_columns(self.partition_cols)
        if not rest.num_columns:
            raise SchemaMismatchError(f"write_parquet: no columns are left besides the partition_cols {self.partition_cols}")
        for i, row in enumerate(distinct.to_pylist()):
            folder = "".join(f"{name}={NULL_PARTITION if value is None else urllib.parse.quote(str(value), safe=' ')}/" for name, value in row.items())
            yield folder, "", rest.take(pa.array(np.sort(groups.order[groups.starts[i] : groups.ends[i]])))


@dataclass
class _Encoder:
    arguments: dict[str, Any]
    # Called in the worker: what cannot be pickled.
    more: Callable[[], dict[str, Any]] | None = None

    def given(self) -> dict[str, Any]:
        return self.arguments if self.more is None else {**self.more(), **self.arguments}


class ParquetEncoder(_Encoder):
    def __call__(self, table: pa.Table, stream: Any) -> None:
        import pyarrow.parquet as pq

        given = self.given()
        if "use_dictionary" not in given:
            given = {**given, "use_dictionary": worth_a_dictionary(table)}
        pq.write_table(table, stream, **given)


# So many rows tell whether a column's values repeat.
SAMPLE_ROWS = 8192


def worth_a_dictionary(table: pa.Table) -> bool | list[str]:
    """Columns whose values repeat: for others, trying a dictionary takes Parquet's writer as long as all the rest."""
    if any(pa.types.is_nested(one.type) or isinstance(one.type, pa.BaseExtensionType) for one in table.schema):
        return True  # the writer names nested columns by their inner paths
    sample = table.slice(0, SAMPLE_ROWS)
    return [name for name, values in zip(sample.column_names, sample.columns, strict=True) if pc.count_distinct(values).as_py() * 2 < len(values)]


class CsvEncoder(_Encoder):
    def __call__(self, table: pa.Table, stream: Any) -> None:
        import pyarrow.csv as csv

        for field_ in table.schema:
            if pa.types.is_nested(field_.type) or isinstance(field_.type, pa.BaseExtensionType):
                raise DataError(f"write_csv: column {field_.name!r} is {field_.type}, which CSV cannot hold; drop it or write Parquet")
        csv.write_csv(table, stream, **self.given())


@dataclass
class JsonEncoder:
    """One object a line."""

    arguments: dict[str, Any]

    def __call__(self, table: pa.Table, stream: Any) -> None:
        import json

        given = {"default": _jsonable, "ensure_ascii": False, **self.arguments}
        text = io.StringIO()
        for row in tables.to_rows(table):
            text.write(json.dumps(row, **given))
            text.write("\n")
        stream.write(text.getvalue().encode())


def _jsonable(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    raise DataError(f"write_json: a value of {type(value).__name__} cannot be written as JSON")


def total_rows(written: pa.Table) -> int:
    return int(pc.sum(written["rows"]).as_py() or 0)


@dataclass
class OrcEncoder:
    arguments: dict[str, Any]

    def __call__(self, table: pa.Table, stream: Any) -> None:
        import pyarrow.orc as orc

        for field_ in table.schema:
            if isinstance(field_.type, pa.BaseExtensionType):
                raise DataError(f"write_orc: column {field_.name!r} is {field_.type}, which ORC cannot hold; drop it or write Parquet")
        orc.write_table(table, stream, **self.arguments)


@dataclass
class NumpyEncoder:
    """One column, as an array whose first axis are the rows."""

    column: str

    def __call__(self, table: pa.Table, stream: Any) -> None:
        check_columns([self.column], table.column_names, "write_numpy")
        array = tables.numpy_of(table[self.column])
        if array.dtype == object:
            raise DataError(f"write_numpy: the rows of column {self.column!r}, {table[self.column].type}, make no array of numbers")
        whole = io.BytesIO()  # NumPy writes into real files and into memory
        np.save(whole, array, allow_pickle=False)
        stream.write(whole.getbuffer())


@dataclass
class ImageEncoder:
    """One row's image."""

    column: str
    file_format: str

    def __call__(self, table: pa.Table, stream: Any) -> None:
        from PIL import Image

        check_columns([self.column], table.column_names, "write_images")
        array = np.asarray(tables.values_of(table[self.column])[0])
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        whole = io.BytesIO()
        try:
            Image.fromarray(array).save(whole, format={"jpg": "jpeg"}.get(self.file_format.lower(), self.file_format))
        except (TypeError, ValueError, KeyError, OSError) as error:
            what = f"{array.dtype} of shape {array.shape}"
            raise DataError(f"write_images: column {self.column!r}, {what}, cannot be written as {self.file_format!r}: {error}") from error
        stream.write(whole.getbuffer())
