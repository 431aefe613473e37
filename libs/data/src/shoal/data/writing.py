"""What a dataset is written into: files of several formats, databases, sinks of users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._block import tables
from ._plan import logical

if TYPE_CHECKING:
    from ._block.meta import Bundle
    from ._io.writing import SaveMode
    from .datasource import Datasink


class Writing(ABC):
    """Base of `Consumption`: what runs a plan in order to write."""

    _plan: logical.Node

    @abstractmethod
    def _execute(self, plan: logical.Node) -> Iterator[Bundle]:
        """Runs a plan."""

    # -- files
    def write_parquet(
        self, path: str, *, partition_cols: list[str] | None = None, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append",
        min_rows_per_file: int | None = None, concurrency: int | None = None, arrow_parquet_args_fn: Callable[[], dict[str, Any]] | None = None,
        ray_remote_args: dict[str, Any] | None = None, **arrow_parquet_args: Any,
    ) -> None:  # fmt: skip
        """Writes one Parquet file or more into the folder `path`.

        On a file system all files appear when all are written; when the program fails none do.

        Args:
            partition_cols: columns that become folders, `name=value/`.
            mode: append, overwrite, ignore, or error if there are files.
            min_rows_per_file: blocks are put together until they have so many rows.
            arrow_parquet_args_fn: called where the files are written, gives further arrow_parquet_args: what cannot be pickled.
            ray_remote_args: options of the tasks that write.
            arrow_parquet_args: of pyarrow.parquet.write_table.
        """
        from ._io.writing import ParquetEncoder

        self._check_columns(partition_cols or [], "write_parquet(partition_cols=...)")
        encode = ParquetEncoder(arrow_parquet_args, arrow_parquet_args_fn)
        self._write(path, filesystem, "parquet", encode, try_create_dir, mode, min_rows_per_file, concurrency, partition_cols or [], ray_remote_args)

    def write_csv(
        self, path: str, *, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append", min_rows_per_file: int | None = None,
        concurrency: int | None = None, arrow_csv_args_fn: Callable[[], dict[str, Any]] | None = None, ray_remote_args: dict[str, Any] | None = None,
        **arrow_csv_args: Any,
    ) -> None:  # fmt: skip
        """Writes CSV files; see `write_parquet`. `arrow_csv_args`: of pyarrow.csv.write_csv."""
        from ._io.writing import CsvEncoder

        encode = CsvEncoder(arrow_csv_args, arrow_csv_args_fn)
        self._write(path, filesystem, "csv", encode, try_create_dir, mode, min_rows_per_file, concurrency, [], ray_remote_args)

    def write_json(
        self, path: str, *, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append", min_rows_per_file: int | None = None,
        concurrency: int | None = None, ray_remote_args: dict[str, Any] | None = None, **json_args: Any,
    ) -> None:  # fmt: skip
        """Writes files of JSON objects, one a line; see `write_parquet`. `json_args`: of json.dumps."""
        from ._io.writing import JsonEncoder

        self._write(path, filesystem, "json", JsonEncoder(json_args), try_create_dir, mode, min_rows_per_file, concurrency, [], ray_remote_args)

    def write_orc(
        self, path: str, *, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append", min_rows_per_file: int | None = None,
        concurrency: int | None = None, **arrow_orc_args: Any,
    ) -> None:  # fmt: skip
        """Writes ORC files; see `write_parquet`. `arrow_orc_args`: of pyarrow.orc.write_table."""
        from ._io.writing import OrcEncoder

        self._write(path, filesystem, "orc", OrcEncoder(arrow_orc_args), try_create_dir, mode, min_rows_per_file, concurrency, [])

    def write_numpy(
        self, path: str, *, column: str, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append",
        min_rows_per_file: int | None = None, concurrency: int | None = None,
    ) -> None:  # fmt: skip
        """Writes one column as `.npy` files, its rows as their first axis; see `write_parquet`.

        Raises:
            DataError: its rows have no one shape, or are no numbers.
        """
        from ._io.writing import NumpyEncoder

        self._check_columns([column], "write_numpy")
        self._write(path, filesystem, "npy", NumpyEncoder(column), try_create_dir, mode, min_rows_per_file, concurrency, [])

    def write_images(
        self, path: str, column: str, file_format: str = "png", *, filesystem: Any = None, try_create_dir: bool = True, mode: SaveMode | str = "append",
        concurrency: int | None = None,
    ) -> None:  # fmt: skip
        """Writes each row's image, an array of height × width (× channels) of uint8, into a file of its own; see `write_parquet`. Needs Pillow.

        Raises:
            DataError: a value is no image, or Pillow cannot write it in this format.
        """
        from ._io.writing import ImageEncoder

        self._check_columns([column], "write_images")
        self._write(path, filesystem, file_format, ImageEncoder(column, file_format), try_create_dir, mode, None, concurrency, [], by_row=True)

    # -- other places
    def write_sql(
        self, sql: str, connection_factory: Callable[[], Any], *, concurrency: int | None = None, ray_remote_args: dict[str, Any] | None = None
    ) -> None:
        """Executes a statement for each row; the rows of a block are one transaction.

        Args:
            sql: with a place for each column, as the database's Python module wants them: `INSERT INTO t VALUES (?, ?)`.
            connection_factory: opens a connection (PEP 249) in a worker.
            concurrency: connections at the same time.
            ray_remote_args: options of the tasks.
        """
        from ._io.sql import SqlDatasink

        self.write_datasink(SqlDatasink(sql, connection_factory), ray_remote_args=ray_remote_args, concurrency=concurrency)

    def write_datasink(self, datasink: Datasink[Any], *, ray_remote_args: dict[str, Any] | None = None, concurrency: int | None = None) -> None:
        """Writes into a sink of your own; see `shoal.data.datasource.Datasink`.

        Args:
            ray_remote_args: options of the tasks that write.
            concurrency: how many of them run at the same time.
        """
        import shoal

        from ._io.custom import Sunk
        from .compute import remote_args
        from .datasource import Datasink, WriteResult

        if not isinstance(datasink, Datasink):
            raise TypeError(f"write_datasink takes a shoal.data.datasource.Datasink, and got {type(datasink).__name__}")
        options = remote_args("write_datasink", **(ray_remote_args or {}))
        plan = self._gathered(datasink.min_rows_per_write, concurrency, options)
        datasink.on_write_start(self._plan.schema())
        rows = size_bytes = 0
        returned: list[Any] = []
        try:
            for bundle in self._execute(logical.Finished((plan,), Sunk(datasink), f"Write({datasink.get_name()})")):
                for row in tables.to_rows(shoal.get(bundle.ref)):
                    rows, size_bytes = rows + row["rows"], size_bytes + row["bytes"]
                    returned.append(row["returned"])
        except Exception as error:
            datasink.on_write_failed(error)
            raise
        datasink.on_write_complete(WriteResult(rows, size_bytes, returned))

    # -- how
    def _check_columns(self, columns: list[str], where: str) -> None:
        ds: Any = self
        ds._check(columns, where)

    def _gathered(self, min_rows: int | None, concurrency: int | None, options: dict[str, Any]) -> logical.Node:
        """The plan, with a step of its own for what is asked of the tasks that write."""
        if min_rows is None and concurrency is None and not options:
            return self._plan
        from ._ops.steps import Gather

        return logical.Map((self._plan,), Gather(), options, None, concurrency, min_rows)

    def _write(
        self, path: str, filesystem: Any, extension: str, encode: Any, try_create_dir: bool, mode: Any, min_rows: int | None, concurrency: int | None,
        partition: list[str], ray_remote_args: dict[str, Any] | None = None, by_row: bool = False,
    ) -> None:  # fmt: skip
        import shoal

        from ._io.writing import SaveMode, Target, Written
        from .compute import remote_args

        how = SaveMode(mode)
        target = Target.of(path, filesystem)
        if not target.prepare(how, try_create_dir):
            return
        plan = self._gathered(min_rows, concurrency, remote_args(f"write_{extension}", **(ray_remote_args or {})))
        try:
            names: list[str] = []
            for bundle in self._execute(logical.Finished((plan,), Written(target, extension, encode, partition, by_row), f"Write({extension})")):
                names += shoal.get(bundle.ref)["file"].to_pylist()
            target.commit(names, how)
        except BaseException:
            target.abandon()
            raise
