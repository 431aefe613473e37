"""Datasets from files and from what a program has."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from . import compute as computes
from ._block import tables
from ._block.meta import Bundle, meta_of
from ._io.paths import Paths, find_files
from ._io.sources import FileSource, ParseBinary, ParseCsv, ParseImage, ParseJson, ParseNumpy, ParseOrc, ParseText, RangeSource
from ._plan import logical
from .context import DataContext
from .dataset import Dataset, MaterializedDataset

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .datasource import Datasource
    from .expressions import Expr

__all__ = [
    "from_arrow", "from_arrow_refs", "from_items", "from_numpy", "from_numpy_refs", "from_pandas", "from_pandas_refs", "from_torch", "range",
    "range_tensor", "read_binary_files", "read_csv", "read_datasource", "read_images", "read_json", "read_numpy", "read_orc", "read_parquet", "read_sql",
    "read_text",
]  # fmt: skip

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "tif", "tiff", "bmp", "gif")
JSON_EXTENSIONS = ("json", "jsonl", "json.gz", "jsonl.gz", "json.br", "jsonl.br", "json.zst", "jsonl.zst", "json.lz4", "jsonl.lz4")


def _read(source: Any, override_num_blocks: int | None, concurrency: int | None, where: str, **remote: Any) -> Dataset:
    for name, value in (("override_num_blocks", override_num_blocks), ("concurrency", concurrency)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{where}: {name} must be a positive number, and is {value!r}")
    return Dataset(logical.Read((), source, override_num_blocks, computes.remote_args(where, **remote), concurrency))


def _options(num_cpus: float | None, num_gpus: float | None, memory: float | None, ray_remote_args: dict[str, Any] | None) -> dict[str, Any]:
    """What is given by name goes before what `ray_remote_args` says."""
    named = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
    return {**(ray_remote_args or {}), **{name: value for name, value in named.items() if value is not None}}


# -- files ---------------------------------------------------------------------------------------------------


def read_parquet(
    paths: Paths,
    *,
    filesystem: Any = None,
    columns: Sequence[str] | None = None,
    filter: Expr | str | None = None,
    schema: pa.Schema | None = None,
    include_paths: bool = False,
    file_extensions: Sequence[str] | None = ("parquet",),
    ignore_missing_paths: bool = False,
    partitioning: str | None = "hive",
    concurrency: int | None = None,
    override_num_blocks: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    ray_remote_args: dict[str, Any] | None = None,
    **arrow_parquet_args: Any,
) -> Dataset:
    """Parquet files. Later `select_columns`, `filter(expr=...)` and `limit` are done while reading.

    Args:
        paths: files, folders, patterns (`*.parquet`) or URIs (`s3://...`), one or several.
        columns: only these.
        filter: only rows for which this expression is true; row groups whose statistics exclude it are not read.
        schema: instead of the first file's.
        include_paths: adds a column `path`.
        file_extensions: which files of folders are read.
        partitioning: `"hive"`: folders `name=value` become columns; None.
        concurrency: tasks that read at the same time.
        override_num_blocks: tasks that read.
        arrow_parquet_args: of pyarrow.parquet.ParquetFile.

    Raises:
        FileNotFoundError: names what is missing, and what is near.
        ColumnNotFoundError, FileFormatError.
    """
    from ._io.parquet import ParquetSource

    _check_partitioning(partitioning)
    found_in, files = find_files(paths, filesystem, file_extensions, ignore_missing_paths, partitioning == "hive")
    names = [columns] if isinstance(columns, str) else columns
    source = ParquetSource.open(found_in, files, names, include_paths, schema, arrow_parquet_args)
    ds = _read(source, override_num_blocks, concurrency, "read_parquet", **_options(num_cpus, num_gpus, memory, ray_remote_args))
    return ds if filter is None else ds.filter(expr=filter)


def _check_partitioning(partitioning: Any) -> None:
    if partitioning not in ("hive", None):
        raise ValueError(f"partitioning must be 'hive' or None, and is {partitioning!r}")


def read_csv(
    paths: Paths, *, filesystem: Any = None, include_paths: bool = False, file_extensions: Sequence[str] | None = None, ignore_missing_paths: bool = False,
    partitioning: str | None = "hive", concurrency: int | None = None, override_num_blocks: int | None = None, num_cpus: float | None = None,
    num_gpus: float | None = None, memory: float | None = None, ray_remote_args: dict[str, Any] | None = None, **arrow_csv_args: Any,
) -> Dataset:  # fmt: skip
    """CSV files with a header line. `arrow_csv_args`: `read_options`, `parse_options`, `convert_options` of pyarrow.csv. The rest as in `read_parquet`."""
    _check_partitioning(partitioning)
    _check_arguments("read_csv", arrow_csv_args, ("read_options", "parse_options", "convert_options"))
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, partitioning == "hive")
    source = FileSource.of("ReadCSV", found, ParseCsv(arrow_csv_args), include_paths, growth=1.5)
    return _read(source, override_num_blocks, concurrency, "read_csv", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_json(
    paths: Paths, *, lines: bool = False, filesystem: Any = None, include_paths: bool = False, file_extensions: Sequence[str] | None = JSON_EXTENSIONS,
    ignore_missing_paths: bool = False, partitioning: str | None = "hive", concurrency: int | None = None, override_num_blocks: int | None = None,
    num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None, ray_remote_args: dict[str, Any] | None = None,
    **arrow_json_args: Any,
) -> Dataset:  # fmt: skip
    """JSON files: objects one after another (`lines=True` takes nothing else), or one array of objects.

    `arrow_json_args`: `read_options`, `parse_options` of pyarrow.json. The rest as in `read_parquet`."""
    _check_partitioning(partitioning)
    _check_arguments("read_json", arrow_json_args, ("read_options", "parse_options"))
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, partitioning == "hive")
    source = FileSource.of("ReadJSON", found, ParseJson(arrow_json_args, lines), include_paths, growth=1.5)
    return _read(source, override_num_blocks, concurrency, "read_json", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def _check_arguments(where: str, given: dict[str, Any], known: Sequence[str]) -> None:
    from .exceptions import near

    for name in given:
        if name not in known:
            raise TypeError(f"{where} has no argument {name!r}.{near(name, known)}")


def read_orc(
    paths: Paths, *, columns: Sequence[str] | None = None, filesystem: Any = None, include_paths: bool = False,
    file_extensions: Sequence[str] | None = ("orc",), ignore_missing_paths: bool = False, partitioning: str | None = "hive", concurrency: int | None = None,
    override_num_blocks: int | None = None, num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None,
    ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """ORC files. `columns`: only these. The rest as in `read_parquet`."""
    _check_partitioning(partitioning)
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, partitioning == "hive")
    source = FileSource.of("ReadORC", found, ParseOrc(None if columns is None else tuple(columns)), include_paths, growth=3.0)
    return _read(source, override_num_blocks, concurrency, "read_orc", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_text(
    paths: Paths, *, encoding: str = "utf-8", drop_empty_lines: bool = True, filesystem: Any = None, include_paths: bool = False,
    file_extensions: Sequence[str] | None = None, ignore_missing_paths: bool = False, concurrency: int | None = None, override_num_blocks: int | None = None,
    num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None, ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """Lines of text files, in a column `text`."""
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, False)
    source = FileSource.of("ReadText", found, ParseText(encoding, drop_empty_lines), include_paths, growth=1.5)
    return _read(source, override_num_blocks, concurrency, "read_text", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_binary_files(
    paths: Paths, *, include_paths: bool = False, filesystem: Any = None, file_extensions: Sequence[str] | None = None, ignore_missing_paths: bool = False,
    concurrency: int | None = None, override_num_blocks: int | None = None, num_cpus: float | None = None, num_gpus: float | None = None,
    memory: float | None = None, ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """Whole files, in a column `bytes`."""
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, False)
    source = FileSource.of("ReadBinary", found, ParseBinary(), include_paths)
    return _read(source, override_num_blocks, concurrency, "read_binary_files", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_images(
    paths: Paths, *, size: tuple[int, int] | None = None, mode: str | None = None, filesystem: Any = None, include_paths: bool = False,
    file_extensions: Sequence[str] | None = IMAGE_EXTENSIONS, ignore_missing_paths: bool = False, concurrency: int | None = None,
    override_num_blocks: int | None = None, num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None,
    ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """Images as arrays of height × width × channels, in a column `image`. Needs Pillow.

    Args:
        size: (height, width) that all are scaled to.
        mode: `"RGB"`, `"L"`, … that all are converted to.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"read_images: size must be (height, width), and is {size!r}")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError("read_images needs Pillow: pip install 'shoal-data[images]'") from error
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, False)
    source = FileSource.of("ReadImages", found, ParseImage(size, mode), include_paths, growth=10.0)
    return _read(source, override_num_blocks, concurrency, "read_images", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_numpy(
    paths: Paths, *, filesystem: Any = None, include_paths: bool = False, file_extensions: Sequence[str] | None = ("npy",), ignore_missing_paths: bool = False,
    allow_pickle: bool = False, concurrency: int | None = None, override_num_blocks: int | None = None,
) -> Dataset:  # fmt: skip
    """Arrays of `.npy` files, their first axis as rows, in a column `data`."""
    found = find_files(paths, filesystem, file_extensions, ignore_missing_paths, False)
    return _read(FileSource.of("ReadNumpy", found, ParseNumpy(allow_pickle), include_paths), override_num_blocks, concurrency, "read_numpy")


# -- other sources -------------------------------------------------------------------------------------------


def read_datasource(
    datasource: Datasource, *, concurrency: int | None = None, override_num_blocks: int | None = None, num_cpus: float | None = None,
    num_gpus: float | None = None, memory: float | None = None, ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """A source of your own; see `shoal.data.datasource.Datasource`.

    Args:
        concurrency: tasks that read at the same time.
        override_num_blocks: the `parallelism` that the source is asked for.
    """
    from ._io.custom import CustomSource
    from .datasource import Datasource

    if not isinstance(datasource, Datasource):
        raise TypeError(f"read_datasource takes a shoal.data.datasource.Datasource, and got {type(datasource).__name__}")
    source = CustomSource(datasource)
    return _read(source, override_num_blocks, concurrency, "read_datasource", **_options(num_cpus, num_gpus, memory, ray_remote_args))


def read_sql(
    sql: str, connection_factory: Callable[[], Any], *, sql_params: Any = None, num_cpus: float | None = None, num_gpus: float | None = None,
    memory: float | None = None, ray_remote_args: dict[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """The rows of a query, read by one task.

    Args:
        sql: the query.
        connection_factory: opens a connection of a DB API 2 module (PEP 249), in a worker.
        sql_params: values for the query's places, as the module's `execute` takes them.

    Raises:
        DataError: the statement gives no rows.

    Example::

        ds = shoal.data.read_sql("SELECT name, size FROM files WHERE size > ?", lambda: sqlite3.connect("files.db"), sql_params=(1000,))
    """
    from ._io.sql import SqlDatasource

    source = SqlDatasource(sql, connection_factory, sql_params)
    return read_datasource(source, num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, ray_remote_args=ray_remote_args)


def from_torch(dataset: Any) -> Dataset:
    """A `torch.utils.data.Dataset`, in a column `item`: with indices it is read in parallel, an iterable one by one task. It is pickled."""
    from ._io.torch_data import TorchDatasource, has_indices

    if not hasattr(dataset, "__iter__") and not has_indices(dataset):
        raise TypeError(f"from_torch takes a torch.utils.data.Dataset, and {type(dataset).__name__} has neither __iter__ nor both of __getitem__ and __len__")
    return read_datasource(TorchDatasource(dataset))


# -- numbers -------------------------------------------------------------------------------------------------


def range(n: int, *, concurrency: int | None = None, override_num_blocks: int | None = None) -> Dataset:
    """The numbers 0 to n - 1, in a column `id`."""
    _check_rows(n, "range")
    return _read(RangeSource(n), override_num_blocks, concurrency, "range")


def range_tensor(n: int, *, shape: tuple[int, ...] = (1,), concurrency: int | None = None, override_num_blocks: int | None = None) -> Dataset:
    """Tensors of a shape, filled with the numbers 0 to n - 1, in a column `data`."""
    _check_rows(n, "range_tensor")
    if not shape or min(shape) < 1:
        raise ValueError(f"range_tensor: a shape has positive lengths, and got {shape!r}")
    return _read(RangeSource(n, tuple(shape)), override_num_blocks, concurrency, "range_tensor")


def _check_rows(n: int, where: str) -> None:
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"{where} takes a number of rows, and got {n!r}")


# -- what a program has --------------------------------------------------------------------------------------


def _put(blocks: Iterable[pa.Table]) -> MaterializedDataset:
    import shoal

    bundles = []
    for block in blocks:
        whole = tables.compact(block.combine_chunks() if block.num_columns else block)
        bundles.append(Bundle(shoal.put(whole), meta_of(whole)))
    return MaterializedDataset(logical.Blocks((), tuple(bundles)))


def _in_blocks(table: pa.Table, blocks: int) -> list[pa.Table]:
    count = max(1, min(blocks, table.num_rows))
    edges = [table.num_rows * i // count for i in builtins.range(count + 1)]
    return [table.slice(start, end - start) for start, end in itertools.pairwise(edges)]


def _default_blocks(size_bytes: int) -> int:
    context = DataContext.get_current()
    import shoal

    if not shoal.is_initialized():
        shoal.init()
    cpus = int(shoal.cluster_resources().get("CPU", 1))
    return max(1, min(2 * cpus, size_bytes // context.target_min_block_size), -(-size_bytes // context.target_max_block_size))


def from_items(items: Sequence[Any], *, override_num_blocks: int | None = None) -> MaterializedDataset:
    """Dicts become rows; anything else, rows with a column `item`."""
    rows = [item if isinstance(item, dict) else {"item": item} for item in items]
    table = tables.of_rows(rows, "from_items")
    return _put(_in_blocks(table, override_num_blocks or _default_blocks(table.nbytes)))


def from_pandas(dfs: pd.DataFrame | Sequence[pd.DataFrame], override_num_blocks: int | None = None) -> MaterializedDataset:
    """One data frame, or several, a block each. Indexes are not kept."""
    frames: Any = dfs if isinstance(dfs, (list, tuple)) else [dfs]
    return from_arrow([tables.of_pandas(frame) for frame in frames], override_num_blocks=override_num_blocks)


def from_arrow(tables_given: pa.Table | Sequence[pa.Table], *, override_num_blocks: int | None = None) -> MaterializedDataset:
    """One table, or several, a block each."""
    given = list(tables_given) if isinstance(tables_given, (list, tuple)) else [tables_given]
    for table in given:
        if not isinstance(table, pa.Table):
            raise TypeError(f"from_arrow takes pyarrow.Table, and got {type(table).__name__}")
    if override_num_blocks is not None:
        return _put(_in_blocks(tables.concat(given, "from_arrow"), override_num_blocks))
    return _put(part for table in (given or [pa.table({})]) for part in tables.slices(table, DataContext.get_current().target_max_block_size))


def from_numpy(ndarrays: np.ndarray | Sequence[np.ndarray]) -> MaterializedDataset:
    """One array, or several, a block each: the first axis as rows, in a column `data`."""
    given = list(ndarrays) if isinstance(ndarrays, (list, tuple)) else [ndarrays]
    return from_arrow([pa.table({"data": tables.column(array)}) for array in given])


def _from_refs(refs: Any, kind: str) -> MaterializedDataset:
    import shoal

    given = list(refs) if isinstance(refs, (list, tuple)) else [refs]
    convert = shoal.remote(_converted).options(num_returns=2, name=f"From({kind})")
    pairs = [convert.remote(ref, kind) for ref in given]
    metas = shoal.get([meta for _, meta in pairs])
    return MaterializedDataset(logical.Blocks((), tuple(Bundle(block, meta) for (block, _), meta in zip(pairs, metas, strict=True))))


def _converted(value: Any, kind: str) -> tuple[pa.Table, Any]:
    make = {"arrow": lambda: value, "pandas": lambda: tables.of_pandas(value), "numpy": lambda: pa.table({"data": tables.column(value)})}[kind]
    block = tables.compact(make())
    return block, meta_of(block)


def from_arrow_refs(tables: Any) -> MaterializedDataset:
    """Tables in the object store, a block each."""
    return _from_refs(tables, "arrow")


def from_pandas_refs(dfs: Any) -> MaterializedDataset:
    """Data frames in the object store, a block each."""
    return _from_refs(dfs, "pandas")


def from_numpy_refs(ndarrays: Any) -> MaterializedDataset:
    """Arrays in the object store, a block each."""
    return _from_refs(ndarrays, "numpy")
