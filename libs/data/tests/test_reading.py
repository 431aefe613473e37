"""Files that are read: what is found, what is in them, and what is not read because nobody needs it."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shoal
import shoal.data
from shoal.data.exceptions import ColumnNotFoundError, FileFormatError
from shoal.data.expressions import col

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def parquet(tmp_path):
    """Four files of 25 rows, each of five row groups."""
    for i in range(4):
        numbers = np.arange(i * 25, (i + 1) * 25)
        pq.write_table(pa.table({"id": numbers, "value": numbers / 2, "name": [f"n{n}" for n in numbers]}), tmp_path / f"part-{i}.parquet", row_group_size=5)
    return tmp_path


def ids(ds):
    return [row["id"] for row in ds.take_all()]


def test_parquet_folders_files_and_patterns(parquet):
    everything = shoal.data.read_parquet(str(parquet))
    assert ids(everything) == list(range(100))
    assert everything.count() == 100
    assert everything.columns() == ["id", "value", "name"]
    assert ids(shoal.data.read_parquet([parquet / "part-3.parquet", parquet / "part-0.parquet"])) == [*range(75, 100), *range(25)]
    assert ids(shoal.data.read_parquet(f"{parquet}/part-[12].parquet")) == list(range(25, 75))
    assert ids(shoal.data.read_parquet(f"file://{parquet}/part-0.parquet")) == list(range(25))
    assert [file.rpartition("/")[2] for file in everything.input_files()] == [f"part-{i}.parquet" for i in range(4)]


def test_parquet_columns_filters_and_limits_are_read_no_further_than_needed(parquet):
    ds = shoal.data.read_parquet(str(parquet))
    narrowed = ds.filter(expr=col("id") >= 60).select_columns(["value"]).limit(3)
    assert narrowed.take_all() == [{"value": 30.0}, {"value": 30.5}, {"value": 31.0}]
    optimized = narrowed._explained().split("(Optimized)")[1]
    assert "ReadParquet(columns value; where (col('id') >= lit(60))" in optimized and "Filter" not in optimized
    assert shoal.data.read_parquet(str(parquet), columns=["name"]).take(1) == [{"name": "n0"}]
    assert ids(shoal.data.read_parquet(str(parquet), filter=col("name") == "n42")) == [42]
    assert ids(shoal.data.read_parquet(str(parquet), filter="id < 2 or id == 99")) == [0, 1, 99]
    assert ds.filter(expr="id > 1000").take_all() == [] and ds.filter(expr="id > 1000").columns() == ["id", "value", "name"]
    assert ds.groupby("name").count().count() == 100
    assert "columns name)" in ds.groupby("name").count()._explained()
    assert ds.filter(expr="id > 97").count() == 2


def test_parquet_files_are_split_over_tasks_and_put_together(parquet):
    for blocks in (1, 3, 20):
        made = shoal.data.read_parquet(str(parquet), override_num_blocks=blocks).materialize()
        assert ids(made) == list(range(100))
        assert made.num_blocks() == blocks


def test_parquet_with_paths_and_partition_folders(tmp_path):
    ds = shoal.data.range(30).map(lambda row: {"id": row["id"], "year": 2000 + row["id"] % 3, "kind": "ab"[row["id"] % 2] if row["id"] % 5 else None})
    ds.write_parquet(str(tmp_path / "out"), partition_cols=["year", "kind"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["year=2000", "year=2001", "year=2002"]
    back = shoal.data.read_parquet(str(tmp_path / "out"), include_paths=True)
    rows = back.sort("id").take_all()
    assert [(row["id"], row["year"], row["kind"]) for row in rows] == [(i, 2000 + i % 3, "ab"[i % 2] if i % 5 else None) for i in range(30)]
    assert all(f"year={row['year']}/" in row["path"] for row in rows)
    assert sorted(ids(back.filter(expr="year == 2001 and id < 10"))) == [1, 4, 7]
    assert "year" not in shoal.data.read_parquet(str(tmp_path / "out"), partitioning=None).columns()


def test_a_column_that_only_later_files_have_is_null_before(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [2], "b": ["x"]}), tmp_path / "2.parquet")
    schema = pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert shoal.data.read_parquet(str(tmp_path), schema=schema).take_all() == [{"a": 1.0, "b": None}, {"a": 2.0, "b": "x"}]


def test_csv_json_text_binary_and_numpy(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("x;y\n3;c\n")
    assert shoal.data.read_csv(str(tmp_path / "a.csv")).take_all() == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
    import pyarrow.csv

    semicolons = shoal.data.read_csv(str(tmp_path / "b.csv"), parse_options=pyarrow.csv.ParseOptions(delimiter=";"))
    assert semicolons.take_all() == [{"x": 3, "y": "c"}]
    (tmp_path / "a.jsonl").write_text('{"x": 1, "l": [1]}\n{"x": 2, "l": []}\n')
    (tmp_path / "b.json").write_text(json.dumps([{"x": 3, "l": [3]}]))
    assert [row["x"] for row in shoal.data.read_json([str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]).take_all()] == [1, 2, 3]
    (tmp_path / "t.txt").write_bytes("eins\n\r\nzwei ä\r\n".encode())
    assert [row["text"] for row in shoal.data.read_text(str(tmp_path / "t.txt")).take_all()] == ["eins", "zwei ä"]
    assert shoal.data.read_text(str(tmp_path / "t.txt"), drop_empty_lines=False).count() == 3
    found = shoal.data.read_binary_files(str(tmp_path / "t.txt"), include_paths=True).take_all()
    assert found == [{"bytes": (tmp_path / "t.txt").read_bytes(), "path": str(tmp_path / "t.txt")}]
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert [row["data"].tolist() for row in shoal.data.read_numpy(str(tmp_path)).take_all()] == [[0, 1, 2], [3, 4, 5]]


def test_images_as_arrays(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i, size in enumerate([(4, 6), (8, 2)]):
        image.fromarray(np.full((*size, 3), i * 100, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    shapes = [row["image"].shape for row in shoal.data.read_images(str(tmp_path)).take_all()]
    assert shapes == [(4, 6, 3), (8, 2, 3)]
    batch = shoal.data.read_images(str(tmp_path), size=(5, 7), mode="L").take_batch()
    assert batch["image"].shape == (2, 5, 7) and batch["image"].dtype == np.uint8
    assert batch["image"][1, 0, 0] == 100


def test_which_files_of_a_folder_are_read(tmp_path):
    for name in ("a.csv", "b.tsv", ".hidden.csv", "_success.csv"):
        (tmp_path / name).write_text("x\n1\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.csv").write_text("x\n2\n")
    assert shoal.data.read_csv(str(tmp_path)).count() == 3
    assert shoal.data.read_csv(str(tmp_path), file_extensions=["csv"]).count() == 2
    with pytest.raises(FileNotFoundError, match=r"no files with the extensions \['json'\]"):
        shoal.data.read_json(str(tmp_path), file_extensions=["json"])


def test_a_missing_path_names_itself_and_what_is_near(parquet):
    with pytest.raises(FileNotFoundError, match=r"part-7.parquet does not exist. Did you mean .*part-"):
        shoal.data.read_parquet(str(parquet / "part-7.parquet"))
    with pytest.raises(FileNotFoundError, match="nowhere/at/all does not exist. Neither does"):
        shoal.data.read_csv("/nowhere/at/all")
    paths = [str(parquet / "part-7.parquet"), str(parquet / "part-0.parquet")]
    assert shoal.data.read_parquet(paths, ignore_missing_paths=True).count() == 25
    with pytest.raises(FileNotFoundError, match="there are no files"):
        shoal.data.read_parquet(paths[:1], ignore_missing_paths=True)


def test_a_missing_column_names_itself_and_what_is_near(parquet):
    ds = shoal.data.read_parquet(str(parquet))
    for wrong in (
        lambda: shoal.data.read_parquet(str(parquet), columns=["valeu"]), lambda: ds.select_columns("valeu"), lambda: ds.sort("valeu"),
        lambda: ds.groupby("valeu"),
        lambda: ds.filter(expr="valeu > 1"), lambda: ds.drop_columns(["valeu"]), lambda: ds.groupby("id").mean("valeu"), lambda: ds.unique("valeu"),
    ):  # fmt: skip
        with pytest.raises(ColumnNotFoundError, match=r"no column 'valeu'. Did you mean 'value'\? The columns are \['id', 'value', 'name'\]"):
            wrong()
    with pytest.raises(ValueError, match="no column 'valeu'"):  # found out where it runs
        ds.map(lambda row: row).select_columns("valeu").take()


def test_a_damaged_footer_names_the_file(parquet):
    good = (parquet / "part-2.parquet").read_bytes()
    for name, content in (("part-2.parquet", good[:-20] + b"\0" * 20), ("part-2.parquet", good[:100]), ("part-2.parquet", b"")):
        (parquet / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=r"part-2.parquet cannot be read as Parquet"):
            shoal.data.read_parquet(str(parquet)).materialize()
    (parquet / "part-0.parquet").write_bytes(b"nonsense")
    with pytest.raises(FileFormatError, match=r"part-0.parquet cannot be read as Parquet"):
        shoal.data.read_parquet(str(parquet))


def test_other_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1\n")
    (tmp_path / "b.json").write_text('{"x": 1}\n{"x": ')
    with pytest.raises(FileFormatError, match=r"a.csv cannot be read \(ReadCSV\)"):
        shoal.data.read_csv(str(tmp_path / "a.csv")).take()
    with pytest.raises(FileFormatError, match=r"b.json cannot be read"):
        shoal.data.read_json(str(tmp_path / "b.json")).take()
    with pytest.raises(TypeError, match="'parse_option'. Did you mean 'parse_options'"):
        shoal.data.read_csv(str(tmp_path / "a.csv"), parse_option=1)


def test_from_what_a_program_has():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    table = pa.table({"a": [1, 2]})
    assert shoal.data.from_pandas(frame).take_all() == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert shoal.data.from_pandas([frame, frame]).num_blocks() == 2
    assert shoal.data.from_arrow([table, table]).count() == 4
    assert shoal.data.from_numpy(np.ones((2, 3), dtype=np.float32)).take_batch()["data"].dtype == np.float32
    assert shoal.data.from_items([1, "a"]).take_all() == [{"item": 1}, {"item": "a"}]
    assert shoal.data.from_items(list(range(10)), override_num_blocks=5).num_blocks() == 5
    assert shoal.data.from_items([]).take_all() == []
    assert shoal.data.from_pandas_refs([shoal.put(frame)]).columns() == ["a", "b"]
    assert shoal.data.from_arrow_refs([shoal.put(table)]).count() == 2
    assert shoal.data.from_numpy_refs(shoal.put(np.arange(3))).sum("data") == 3
    assert [row["data"].tolist() for row in shoal.data.range_tensor(2, shape=(1, 2)).take_all()] == [[[0, 0]], [[1, 1]]]
    for wrong in (
        lambda: shoal.data.range(-1),
        lambda: shoal.data.range(2.5),
        lambda: shoal.data.range_tensor(3, shape=()),
        lambda: shoal.data.range(3, override_num_blocks=0),
    ):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(TypeError, match=r"pyarrow.Table, and got dict"):
        shoal.data.from_arrow({"a": [1]})
