"""Functions on rows and batches, columns, and fewer rows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shoal.data
from shoal.data import ActorPoolStrategy, TaskPoolStrategy
from shoal.data.expressions import col, lit

pytestmark = pytest.mark.usefixtures("cluster")


def ids(ds):
    return [row["id"] for row in ds.take_all()]


def test_rows_are_mapped_filtered_and_multiplied_in_order():
    ds = shoal.data.range(100, override_num_blocks=5)
    assert ids(ds.map(lambda row: {"id": row["id"] * 2})) == [i * 2 for i in range(100)]
    assert ids(ds.filter(lambda row: row["id"] % 7 == 0)) == list(range(0, 100, 7))
    assert ids(ds.flat_map(lambda row: [row] * (row["id"] % 3))) == [i for i in range(100) for _ in range(i % 3)]
    mixed = ds.map(lambda row: {"id": row["id"] + 1}).filter(lambda row: row["id"] > 90).flat_map(lambda row: [row, row])
    assert ids(mixed) == [i for i in range(91, 101) for _ in range(2)]


def test_functions_take_more_arguments():
    assert ids(shoal.data.range(3).map(lambda row, a, b: {"id": row["id"] * a + b}, fn_args=[10], fn_kwargs={"b": 1})) == [1, 11, 21]
    doubled = shoal.data.range(3).map_batches(lambda batch, a, b=0: {"id": batch["id"] * a + b}, fn_args=[10], fn_kwargs={"b": 1})
    assert ids(doubled) == [1, 11, 21]


@pytest.mark.parametrize(("batch_format", "kind"), [("default", dict), ("numpy", dict), ("pandas", pd.DataFrame), ("pyarrow", pa.Table), (None, pa.Table)])
def test_batches_have_the_form_that_is_asked_for(batch_format, kind):
    def check(batch):
        assert isinstance(batch, kind), type(batch)
        return batch

    assert ids(shoal.data.range(10).map_batches(check, batch_format=batch_format)) == list(range(10))


def test_batches_have_the_size_that_is_asked_for_also_over_several_blocks():
    def size(batch):
        return {"n": [len(batch["id"])]}

    blocks = shoal.data.from_arrow([pa.table({"id": range(3)}) for _ in range(4)])
    assert [row["n"] for row in blocks.map_batches(size, batch_size=5).take_all()] == [5, 1, 5, 1]
    one = shoal.data.range(10, override_num_blocks=1)
    assert [row["n"] for row in one.map_batches(size, batch_size=4).take_all()] == [4, 4, 2]
    assert [row["n"] for row in one.map_batches(size).take_all()] == [10]


def test_a_function_on_batches_may_yield_several():
    def halves(batch):
        middle = len(batch["id"]) // 2
        yield {"id": batch["id"][:middle]}
        yield {"id": batch["id"][middle:]}

    assert ids(shoal.data.range(9).map_batches(halves)) == list(range(9))


def test_batches_are_views_unless_copies_are_wanted():
    def writes(batch):
        batch["id"][:] = 7
        return batch

    blocks = shoal.data.from_numpy(np.arange(100_000)).rename_columns({"data": "id"}).materialize()
    with pytest.raises(ValueError, match="read-only"):
        blocks.map_batches(writes).materialize()
    assert set(ids(blocks.map_batches(writes, zero_copy_batch=False))) == {7}


class AddOffset:
    """Knows how many objects were made in its process."""

    made = 0

    def __init__(self, offset, *, factor=1):
        type(self).made += 1
        self.offset = offset
        self.factor = factor

    def __call__(self, batch):
        return {"id": batch["id"] * self.factor + self.offset, "made": np.full(len(batch["id"]), type(self).made)}


@pytest.mark.parametrize("how", [{"concurrency": 2}, {"concurrency": (1, 2)}, {"compute": ActorPoolStrategy(size=1)}, {}], ids=str)
def test_objects_of_a_class_are_made_once_for_each_actor(how):
    ds = shoal.data.range(100, override_num_blocks=10)
    rows = ds.map_batches(AddOffset, batch_size=5, fn_constructor_args=[5], fn_constructor_kwargs={"factor": 2}, **how).take_all()
    assert [row["id"] for row in rows] == [i * 2 + 5 for i in range(100)]
    assert {row["made"] for row in rows} == {1}


class IsOdd:
    def __call__(self, row):
        return row["id"] % 2 == 1


def test_classes_work_on_rows_too_and_between_other_stages():
    ds = shoal.data.range(20, override_num_blocks=4).map(lambda row: {"id": row["id"] + 1}).filter(IsOdd, concurrency=1).map(lambda row: {"id": -row["id"]})
    assert ids(ds) == [-i for i in range(1, 21, 2)]
    assert ids(ds.sort("id").map_batches(AddOffset, fn_constructor_args=[0], concurrency=1).select_columns("id")) == sorted(-i for i in range(1, 21, 2))


def test_two_pools_in_one_pipeline_share_the_cpus():
    ds = shoal.data.range(40, override_num_blocks=8)
    for offset in (1, 10):
        ds = ds.map_batches(AddOffset, fn_constructor_args=[offset], concurrency=2)
    assert ids(ds.random_shuffle(seed=0).sort("id")) == [i + 11 for i in range(40)]


def test_settings_that_contradict_each_other_are_refused_where_they_are_given():
    ds = shoal.data.range(3)
    for wrong, match in [
        (lambda: ds.map_batches(AddOffset, compute=TaskPoolStrategy()), "needs actors"),
        (lambda: ds.map_batches(AddOffset, concurrency=0), "at least 1"),
        (lambda: ds.map(lambda row: row, concurrency=(1, 2)), "positive number of tasks"),
        (lambda: ds.map(lambda row: row, compute=ActorPoolStrategy(), concurrency=2), "either compute or concurrency"),
        (lambda: ds.map_batches(lambda batch: batch, batch_size=0), "batch_size"),
        (lambda: ds.map_batches(lambda batch: batch, batch_format="polar"), "batch_format"),
        (lambda: ds.map_batches(lambda batch: batch, fn_constructor_args=[1]), "is a function"),
        (lambda: ds.map_batches(lambda batch: batch, num_cpu=1), "num_cpu"),
        (lambda: ds.filter(), "either a function or expr"),
        (lambda: ds.limit(-1), "limit"),
        (lambda: ds.repartition(), "either"),
        (lambda: ds.repartition(0), "positive"),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            wrong()
    with pytest.raises(TypeError, match="function or a class"):
        ds.map(3)


def test_async_functions_are_refused():
    async def later(row):
        return row

    with pytest.raises(TypeError, match="not async"):
        shoal.data.range(3).map(later)


def test_a_pool_that_leaves_no_cpu_for_other_stages_is_refused_when_its_cpus_were_asked_for():
    ds = shoal.data.range(3).random_shuffle().map_batches(AddOffset, fn_constructor_args=[1], concurrency=1, num_cpus=2)
    with pytest.raises(shoal.data.exceptions.NotEnoughResourcesError, match="an actor holds 2 CPUs"):
        ds.take()


def test_columns_are_selected_dropped_renamed_and_added():
    ds = shoal.data.from_items([{"a": i, "b": i * 2, "c": "x"} for i in range(3)])
    assert ds.select_columns(["c", "a"]).columns() == ["c", "a"]
    assert ds.drop_columns("b").columns() == ["a", "c"]
    assert ds.rename_columns({"a": "z"}).columns() == ["z", "b", "c"]
    assert ds.rename_columns(["x", "y", "z"]).columns() == ["x", "y", "z"]
    assert ds.add_column("d", lambda frame: frame["a"] + frame["b"]).take(2)[1] == {"a": 1, "b": 2, "c": "x", "d": 3}
    assert ds.add_column("d", lambda batch: batch["a"] + 1, batch_format="numpy").take(1)[0]["d"] == 1
    unknown = ds.map(lambda row: {**row, "e": 1})
    assert unknown.drop_columns(["a", "b"]).rename_columns({"e": "f"}).take(1) == [{"c": "x", "f": 1}]


def test_columns_are_made_by_expressions():
    ds = shoal.data.range(4).with_column("half", col("id") / 2).with_column("id", col("id") + 10).with_column("one", lit(1))
    assert ds.take() == [{"id": 10 + i, "half": i / 2, "one": 1} for i in range(4)]
    assert ds.filter(expr=(col("half") > 0.5) & ~(col("id") == 13)).take() == [{"id": 12, "half": 1.0, "one": 1}]
    assert ids(shoal.data.range(10).filter(expr="id > 7 or id in [1, 2]")) == [1, 2, 8, 9]


def test_limit_gives_the_first_rows_and_ends_what_is_before_it(tmp_path):
    def leaves_a_trace(batch):
        (tmp_path / str(batch["id"][0])).touch()
        return batch

    ds = shoal.data.range(1000, override_num_blocks=100).map_batches(leaves_a_trace)
    assert ids(ds.limit(15)) == list(range(15))
    assert len(list(tmp_path.iterdir())) < 50
    assert ids(ds.limit(0)) == []
    assert shoal.data.range(5).limit(10).count() == 5
    assert ids(shoal.data.range(100).limit(50).limit(3).map(lambda row: {"id": row["id"] + 1})) == [1, 2, 3]


def test_a_sample_has_about_its_fraction_and_is_the_same_for_the_same_seed():
    ds = shoal.data.range(10_000)
    sample = ds.random_sample(0.1, seed=3)
    assert 800 < sample.count() < 1200
    assert ids(sample) == ids(ds.random_sample(0.1, seed=3))
    assert ids(sample) != ids(ds.random_sample(0.1, seed=4))


def test_rows_of_any_kind_come_back_as_they_were():
    rows = [
        {"int": 1, "none": None, "list": [1, 2], "dict": {"x": 1}, "bytes": b"x", "array": np.arange(3), "ragged": np.ones(1), "odd": 1 + 2j, "mixed": 1},
        {"int": 2, "none": None, "list": [], "dict": {"x": 2}, "bytes": b"", "array": np.arange(3), "ragged": np.ones((2, 2)), "odd": 3j, "mixed": "one"},
    ]
    got = shoal.data.from_items(rows).map(lambda row: row).take_all()
    for row, back in zip(rows, got, strict=True):
        assert list(back) == list(row)
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(back[name], value)
            else:
                assert back[name] == value, name


def test_rows_may_have_different_columns():
    ds = shoal.data.from_items([{"a": 1}, {"b": 2.5}, {"a": 3, "c": "x"}])
    assert ds.take_all() == [{"a": 1, "b": None, "c": None}, {"a": None, "b": 2.5, "c": None}, {"a": 3, "b": None, "c": "x"}]


def test_a_dataset_without_rows_has_its_columns():
    empty = shoal.data.range(10).filter(lambda row: False)
    assert empty.take() == []
    assert empty.columns() == ["id"]
    assert empty.count() == 0
    assert empty.sum("id") is None
    assert empty.sort("id").take() == []
    assert empty.groupby("id").count().take() == []
    assert empty.to_pandas().columns.tolist() == ["id"]
    assert empty.materialize().schema().names == ["id"]


def test_what_a_dataset_says_of_itself(capsys):
    ds = shoal.data.range(10)
    assert "num_rows=10" in repr(ds) and "id: int64" in repr(ds)
    assert "Column" in repr(ds.schema()) and ds.schema().names == ["id"]
    ds.map(lambda row: row).filter(lambda row: True).explain()
    assert "ReadRange->Map(<lambda>)->Filter(<lambda>)" in capsys.readouterr().out
    ds.show(1)
    assert capsys.readouterr().out == "{'id': 0}\n"
    made = ds.map(lambda row: row).materialize()
    assert "tasks executed" in made.stats() and "ReadRange->Map(<lambda>)" in made.stats()
    with pytest.raises(TypeError, match="count"):
        len(ds)
