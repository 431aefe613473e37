"""Databases, sources and sinks of users, and formats that are written as they are read."""

import os
import sqlite3
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shoal.data
from shoal.data import Datasink, Datasource, ReadTask
from shoal.data.datasource import BlockMetadata, TaskContext
from shoal.data.exceptions import BatchTypeError, ColumnNotFoundError, DataError, FileFormatError

pytestmark = pytest.mark.usefixtures("cluster")


# -- databases -----------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    """Opens connections to a database with a table of 25,000 rows."""

    def connect():
        return sqlite3.connect(tmp_path / "numbers.db", timeout=60)

    connection = connect()
    connection.execute("CREATE TABLE numbers (n INTEGER, half REAL, name TEXT)")
    connection.executemany("INSERT INTO numbers VALUES (?, ?, ?)", [(n, n / 2, None if n < 20_000 else f"n{n}") for n in range(25_000)])
    connection.commit()
    connection.close()
    return connect


def test_a_query_gives_rows_with_the_types_of_their_values(database):
    ds = shoal.data.read_sql("SELECT n, half, name FROM numbers ORDER BY n", database)
    assert ds.columns() == ["n", "half", "name"]
    assert ds.count() == 25_000
    assert ds.sum("n") == sum(range(25_000))
    rows = ds.take_all()
    assert rows[0] == {"n": 0, "half": 0.0, "name": None}
    assert rows[-1] == {"n": 24_999, "half": 12_499.5, "name": "n24999"}
    few = shoal.data.read_sql("SELECT n FROM numbers WHERE n < ? ORDER BY n", database, sql_params=(3,))
    assert [row["n"] for row in few.take_all()] == [0, 1, 2]
    assert few.limit(2).take_all() == [{"n": 0}, {"n": 1}]
    assert shoal.data.read_sql("SELECT n FROM numbers WHERE n < 0", database).take_all() == []


def test_statements_that_fail_and_those_without_rows_are_told(database):
    with pytest.raises(sqlite3.OperationalError, match="no such table: absent"):
        shoal.data.read_sql("SELECT 1 FROM absent", database).take()
    with pytest.raises(DataError, match="this gives no rows, where a query is wanted: DELETE FROM numbers WHERE n < 0"):
        shoal.data.read_sql("DELETE FROM numbers WHERE n < 0", database).take()


def test_rows_are_written_to_a_database(database):
    connection = database()
    connection.execute("CREATE TABLE copies (n INTEGER, text TEXT)")
    connection.commit()
    ds = shoal.data.range(1000, override_num_blocks=4).map(lambda row: {"n": row["id"], "text": f"t{row['id']}"})
    ds.write_sql("INSERT INTO copies VALUES (?, ?)", database, concurrency=2)
    assert connection.execute("SELECT COUNT(*), SUM(n), MAX(text) FROM copies").fetchone() == (1000, 499_500, "t999")
    connection.close()
    with pytest.raises(sqlite3.OperationalError, match="has 2 columns but 1 values were supplied"):
        ds.select_columns(["n"]).write_sql("INSERT INTO copies VALUES (?)", database)


# -- sources of users ----------------------------------------------------------------------------------------


class Squares(Datasource):
    """Asked for, it notes what for."""

    def __init__(self):
        self.asked = []

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):
        self.asked.append((parallelism, per_task_row_limit, data_context is not None))

        def read(start):
            yield {"square": np.arange(start, start + 5) ** 2}
            yield pd.DataFrame({"square": np.arange(start + 5, start + 10) ** 2})

        return [ReadTask(partial(read, start), BlockMetadata(num_rows=10, size_bytes=80)) for start in range(0, 10 * parallelism, 10)]


def test_a_source_of_ones_own_is_read_by_its_tasks_in_their_order():
    source = Squares()
    ds = shoal.data.read_datasource(source, override_num_blocks=3)
    assert not source.asked, "a dataset is lazy"
    assert [row["square"] for row in ds.take_all()] == [n * n for n in range(30)]
    assert ds.limit(7).map(lambda row: {"root": row["square"] ** 0.5}).take_all() == [{"root": float(n)} for n in range(7)]
    assert source.asked == [(3, None, True), (3, 7, True)]
    with pytest.raises(TypeError, match="read_datasource takes a shoal.data.datasource.Datasource, and got int"):
        shoal.data.read_datasource(3)


def test_a_source_may_take_nothing_but_the_parallelism_and_what_it_gives_is_checked():
    class Plain(Datasource):
        def __init__(self, tasks):
            self.tasks = tasks

        def get_read_tasks(self, parallelism):
            return self.tasks

    limited = ReadTask(lambda: iter([pa.table({"x": range(100)})]), BlockMetadata(), per_task_row_limit=4)
    assert shoal.data.read_datasource(Plain([limited, limited])).count() == 8
    with pytest.raises(BatchTypeError, match="read_fn of a ReadTask: a batch must be a dict of arrays"):
        shoal.data.read_datasource(Plain([ReadTask(lambda: [3], BlockMetadata())])).take()
    with pytest.raises(TypeError, match=r"Plain.get_read_tasks must give ReadTask objects, and gave type"):
        shoal.data.read_datasource(Plain([list])).take()


class Notes(Datasink):
    """Writes a file for each call, and notes in the program what became of it."""

    def __init__(self, folder, fail=None, rows=None):
        self.folder, self.fail, self.rows, self.seen = folder, fail, rows, []

    def on_write_start(self, schema=None):
        self.seen.append(("start", None if schema is None else schema.names))

    def write(self, blocks, ctx: TaskContext):
        rows = [row["id"] for block in blocks for row in block.to_pylist()]
        if self.fail in rows:
            raise RuntimeError(f"{self.fail} is refused")
        (self.folder / f"{rows[0]}").write_text(f"{ctx.task_idx} {len(rows)}")
        return sum(rows)

    def on_write_complete(self, write_result):
        self.seen.append(("complete", write_result.num_rows, write_result.size_bytes, sorted(write_result.write_returns)))

    def on_write_failed(self, error):
        self.seen.append(("failed", error))

    @property
    def min_rows_per_write(self):
        return self.rows


def test_a_sink_of_ones_own_gets_every_block_and_hears_how_it_ended(tmp_path):
    ds = shoal.data.range(100, override_num_blocks=4)
    sink = Notes(tmp_path)
    ds.write_datasink(sink)
    parts = [sum(range(start, start + 25)) for start in (0, 25, 50, 75)]
    assert sink.seen == [("start", ["id"]), ("complete", 100, 800, parts)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "0 25", "25": "1 25", "50": "2 25", "75": "3 25"}
    gathering = Notes(tmp_path, rows=50)
    ds.write_datasink(gathering, concurrency=1)
    assert gathering.seen[1] == ("complete", 100, 800, [sum(range(50)), sum(range(50, 100))])
    failing = Notes(tmp_path, fail=60)
    with pytest.raises(RuntimeError, match="60 is refused"):
        ds.write_datasink(failing)
    ((what, error),) = failing.seen[1:]
    assert what == "failed" and isinstance(error, RuntimeError) and "60 is refused" in str(error)
    with pytest.raises(TypeError, match="write_datasink takes a shoal.data.datasource.Datasink, and got str"):
        ds.write_datasink("here")


# -- PyTorch -------------------------------------------------------------------------------------------------


class Points:
    """As torch.utils.data.Dataset: with indices."""

    def __len__(self):
        return 2500

    def __getitem__(self, i):
        return i * 2


def test_datasets_of_pytorch_become_items():
    import torch

    assert [row["item"] for row in shoal.data.from_torch(Points()).take_all()] == list(range(0, 5000, 2))
    pairs = shoal.data.from_torch(torch.utils.data.TensorDataset(torch.arange(12).reshape(6, 2), torch.arange(6)))
    items = [row["item"] for row in pairs.take_all()]
    assert [(tensor.tolist(), int(label)) for tensor, label in items] == [([2 * i, 2 * i + 1], i) for i in range(6)]

    class Counting(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([torch.full((2,), i) for i in range(5)])

    assert [row["item"].tolist() for row in shoal.data.from_torch(Counting()).take_all()] == [[i, i] for i in range(5)]
    with pytest.raises(TypeError, match="from_torch takes a torch.utils.data.Dataset, and int has neither"):
        shoal.data.from_torch(3)


# -- formats -------------------------------------------------------------------------------------------------


def test_orc_files_come_back(tmp_path):
    ds = shoal.data.range(1000, override_num_blocks=3).map(lambda row: {"id": row["id"], "name": f"n{row['id']}", "list": [row["id"]] * 2})
    ds.write_orc(str(tmp_path / "orc"))
    assert len(list((tmp_path / "orc").iterdir())) == 3
    back = shoal.data.read_orc(str(tmp_path / "orc"))
    assert back.sort("id").take_all() == ds.take_all()
    assert shoal.data.read_orc(str(tmp_path / "orc"), columns=["name"]).columns() == ["name"]
    with pytest.raises(ColumnNotFoundError, match="'nam'"):
        shoal.data.read_orc(str(tmp_path / "orc"), columns=["nam"]).take()
    (tmp_path / "bad.orc").write_bytes(b"ORC?")
    with pytest.raises(FileFormatError, match=r"bad.orc cannot be read"):
        shoal.data.read_orc(str(tmp_path / "bad.orc")).take()
    with pytest.raises(DataError, match="write_orc: column 'data' is .*, which ORC cannot hold"):
        shoal.data.range_tensor(3).write_orc(str(tmp_path / "tensors"))


def test_a_column_is_written_as_numpy_files(tmp_path):
    ds = shoal.data.range_tensor(10, shape=(2, 2), override_num_blocks=2)
    ds.write_numpy(str(tmp_path / "npy"), column="data")
    back = shoal.data.read_numpy(str(tmp_path / "npy")).take_all()
    assert sorted(row["data"].tolist() for row in back) == [[[i, i], [i, i]] for i in range(10)]
    with pytest.raises(DataError, match="the rows of column 'item', string, make no array of numbers"):
        shoal.data.from_items(["a", "b"]).write_numpy(str(tmp_path / "text"), column="item")
    with pytest.raises(ColumnNotFoundError, match="'dat'"):
        ds.write_numpy(str(tmp_path / "other"), column="dat")
    assert sorted(os.listdir(tmp_path)) == ["npy", "text"]


def test_each_row_is_written_as_an_image(tmp_path):
    def image(row):
        return {"image": np.full((4, 5, 3), row["id"] * 20, dtype=np.uint8)}

    shoal.data.range(6, override_num_blocks=2).map(image).write_images(str(tmp_path / "png"), "image")
    assert len(list((tmp_path / "png").glob("*.png"))) == 6
    back = [row["image"] for row in shoal.data.read_images(str(tmp_path / "png")).take_all()]
    assert sorted(array[0, 0, 0] for array in back) == [0, 20, 40, 60, 80, 100]
    assert {array.shape for array in back} == {(4, 5, 3)}
    shoal.data.range(2).map(image).write_images(str(tmp_path / "jpg"), "image", "jpg")
    assert len(list((tmp_path / "jpg").glob("*.jpg"))) == 2
    seven, gray = np.zeros((2, 2, 7), np.uint8), np.zeros((2, 2), np.uint8)
    with pytest.raises(DataError, match=r"column 'image', uint8 of shape \(2, 2, 7\), cannot be written as 'png'"):
        shoal.data.from_items([{"image": seven}]).write_images(str(tmp_path / "wrong"), "image")
    with pytest.raises(DataError, match="cannot be written as 'nothing'"):
        shoal.data.from_items([{"image": gray}]).write_images(str(tmp_path / "wrong"), "image", "nothing")
