"""Sorting, grouping, joining, shuffling, and datasets put together: each compared with the same in plain Python or pandas."""

import math
import random
import statistics
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shoal.data
from shoal.data import DataContext
from shoal.data._block import tables
from shoal.data._ops import arrange
from shoal.data.aggregate import AbsMax, AggregateFn, AsList, Count, CountDistinct, Max, Mean, Min, Quantile, Std, Sum, Unique
from shoal.data.exceptions import SchemaMismatchError

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(params=["one task", "many tasks"])
def tasks(request):
    """Small data in one reducer, or as if it were large."""
    context = DataContext.get_current()
    before = context.single_task_threshold, context.target_max_block_size, context.broadcast_join_threshold
    if request.param == "many tasks":
        context.single_task_threshold, context.target_max_block_size, context.broadcast_join_threshold = 0, 2000, 0
    yield request.param
    context.single_task_threshold, context.target_max_block_size, context.broadcast_join_threshold = before


def rows_of(n=500, seed=0):
    rng = random.Random(seed)
    return [{"k": rng.choice([1, 2, 3, 5, None]), "s": rng.choice("abc"), "v": rng.choice([rng.random(), rng.random(), None]), "i": i} for i in range(n)]


def blocks(rows, n=5):
    return shoal.data.from_items(rows, override_num_blocks=n)


def nulls_last(value):
    return (value is None, 0 if value is None else value)


# -- sort


def test_sort_by_one_key_keeps_equal_rows_in_order_and_puts_nulls_last(tasks):
    rows = rows_of()
    assert blocks(rows).sort("v").take_all() == sorted(rows, key=lambda row: nulls_last(row["v"]))
    assert [row["i"] for row in blocks(rows).sort("s").take_all()] == [row["i"] for row in sorted(rows, key=lambda row: row["s"])]
    down = [row["v"] for row in blocks(rows).sort("v", descending=True).take_all()]
    assert down == sorted((row["v"] for row in rows if row["v"] is not None), reverse=True) + [None] * sum(row["v"] is None for row in rows)


def test_sort_by_several_keys_with_own_orders(tasks):
    rows = rows_of()
    got = blocks(rows).sort(["s", "k", "i"], descending=[True, False, True]).take_all()
    assert got == sorted(sorted(sorted(rows, key=lambda row: -row["i"]), key=lambda row: nulls_last(row["k"])), key=lambda row: row["s"], reverse=True)


def test_sort_where_all_keys_are_the_same_and_where_columns_are_tensors(tasks):
    ds = shoal.data.from_numpy([np.arange(60).reshape(20, 3), np.arange(60, 120).reshape(20, 3)]).map_batches(
        lambda batch: {"x": batch["data"], "same": np.zeros(len(batch["data"])), "first": -batch["data"][:, 0]}
    )
    assert [row["x"].tolist() for row in ds.sort("same").take_all()] == np.arange(120).reshape(40, 3).tolist()
    assert [row["x"].tolist() for row in ds.sort("first").take_all()] == np.arange(120).reshape(40, 3)[::-1].tolist()


def test_the_first_rows_of_a_sort_need_not_sort_all(tasks):
    ds = blocks(rows_of()).sort("i", descending=True).limit(3)
    assert [row["i"] for row in ds.take_all()] == [499, 498, 497]
    assert "first 3" in ds._explained()


# -- group


def test_builtin_aggregates_are_what_pandas_says(tasks):
    frame = pd.DataFrame(rows_of()).astype({"k": "Int64"})
    got = shoal.data.from_pandas([frame.iloc[:200], frame.iloc[200:]]).groupby("k").aggregate(
        Count(), Sum("v"), Min("v"), Max("v"), Mean("v"), Std("v"), AbsMax("v"), Quantile("v", q=0.3), CountDistinct("s"), Min("i", alias_name="least")
    )  # fmt: skip
    for row in got.take_all():
        group = frame[frame["k"].isna() if row["k"] is None else (frame["k"] == row["k"]).fillna(False)]
        values = group["v"].dropna().astype(float)
        expected = [len(group), values.sum(), values.min(), values.max(), values.mean(), values.std(), values.abs().max(), values.quantile(0.3)]
        np.testing.assert_allclose(list(row.values())[1:9], expected)
        assert row["count_distinct(s)"] == group["s"].nunique()
        assert row["least"] == group["i"].min()
    assert sorted(got.columns()) == sorted(
        ["k", "count()", "sum(v)", "min(v)", "max(v)", "mean(v)", "std(v)", "abs_max(v)", "quantile(v)", "count_distinct(s)", "least"]
    )
    assert got.count() == frame["k"].nunique(dropna=False)


def test_groups_by_several_keys_and_shorthands(tasks):
    rows = rows_of()
    got = blocks(rows).groupby(["k", "s"]).mean("i").take_all()
    expected = {(k, s): statistics.mean(row["i"] for row in rows if (row["k"], row["s"]) == (k, s)) for k, s in {(row["k"], row["s"]) for row in rows}}
    assert {(row["k"], row["s"]): row["mean(i)"] for row in got} == pytest.approx(expected)
    ds = blocks(rows).groupby("s")
    assert ds.count().sort("s").take(1) == [{"s": "a", "count()": sum(row["s"] == "a" for row in rows)}]
    assert set(ds.sum().columns()) == {"s", "sum(k)", "sum(v)", "sum(i)"}
    assert ds.max(["i", "k"]).sort("max(i)", descending=True).take(1)[0]["max(i)"] == 499
    assert ds.std("i").count() == ds.min("i").count() == 3


def test_many_groups(tasks):
    n = 20_000
    ds = shoal.data.range(n, override_num_blocks=4).map_batches(lambda batch: {"k": batch["id"] % (n // 2), "v": batch["id"]})
    got = {row["k"]: row["sum(v)"] for row in ds.groupby("k").sum("v").take_all()}
    assert got == {k: 2 * k + n // 2 for k in range(n // 2)}


def test_nulls_count_when_they_are_not_ignored():
    ds = blocks([{"x": 1.0}, {"x": None}, {"x": 3.0}], n=2)
    assert (ds.sum("x"), ds.mean("x"), ds.min("x")) == (4.0, 2.0, 1.0)
    assert ds.aggregate(Sum("x", ignore_nulls=False), Mean("x", ignore_nulls=False), Count("x"), Count("x", ignore_nulls=True, alias_name="n")) == {
        "sum(x)": None, "mean(x)": None, "count(x)": 3, "n": 2,
    }  # fmt: skip
    assert ds.aggregate(Quantile("x", ignore_nulls=False), Std("x", ignore_nulls=False)) == {"quantile(x)": None, "std(x)": None}


def test_aggregates_of_all_rows(tasks):
    ds = shoal.data.range(1000, override_num_blocks=7)
    assert (ds.sum("id"), ds.min("id"), ds.max("id"), ds.mean("id")) == (499500, 0, 999, 499.5)
    assert ds.std("id") == pytest.approx(np.arange(1000).std(ddof=1))
    assert ds.sum(["id"]) == {"sum(id)": 499500}
    assert ds.sum() == 499500
    assert ds.aggregate(Count(), Max("id")) == {"count()": 1000, "max(id)": 999}
    assert sorted(ds.map(lambda row: {"x": row["id"] % 5}).unique("x")) == [0, 1, 2, 3, 4]


def test_a_deviation_keeps_its_digits_beside_a_large_mean():
    values = np.random.default_rng(0).random(1000) + 1e9
    got = shoal.data.from_numpy(np.array_split(values, 10)).std("data")
    assert got == pytest.approx(values.std(ddof=1), rel=1e-6)


def test_aggregates_that_keep_values_and_own_ones(tasks):
    rows = rows_of(60)
    longest = AggregateFn(init=lambda key: 0, accumulate_row=lambda a, row: max(a, row["i"]), merge=max, finalize=lambda a: a * 10, name="longest")
    total = AggregateFn(init=lambda key: 0, accumulate_block=lambda a, block: a + block.num_rows, merge=lambda a, b: a + b, name="rows")
    for row in blocks(rows, 3).groupby("s").aggregate(AsList("i"), Unique("k"), longest, total).take_all():
        mine = [one for one in rows if one["s"] == row["s"]]
        assert row["list(i)"] == [one["i"] for one in mine]
        assert set(row["unique(k)"]) == {one["k"] for one in mine} and len(row["unique(k)"]) == len(set(row["unique(k)"]))
        assert (row["longest"], row["rows"]) == (max(one["i"] for one in mine) * 10, len(mine))


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_functions_on_groups_get_all_rows_of_each(tasks, batch_format):
    rows = rows_of()

    def summary(group):
        return {"s": group["s"][:1], "n": [len(group["i"])]}

    got = {row["s"]: row["n"] for row in blocks(rows).groupby("s").map_groups(summary, batch_format=batch_format).take_all()}
    assert got == {s: sum(row["s"] == s for row in rows) for s in "abc"}


class Numbered:
    def __call__(self, group):
        return {"k": group["k"][:1], "n": [len(group["k"])]}


def test_classes_on_groups_and_one_group_of_all(tasks):
    rows = [{"k": i % 3} for i in range(100)]
    assert sorted(row["n"] for row in blocks(rows).groupby("k").map_groups(Numbered, concurrency=1).take_all()) == [33, 33, 34]
    assert blocks(rows).groupby(None).map_groups(Numbered, concurrency=1).take_all() == [{"k": 0, "n": 100}]
    assert blocks(rows).groupby(None).count().take_all() == [{"count()": 100}]


# -- join


@pytest.mark.parametrize("kind", ["inner", "left_outer", "right_outer", "full_outer", "left_semi", "right_semi", "left_anti", "right_anti"])
def test_joins_are_what_plain_python_says(tasks, kind):
    left = [{"k": i % 7, "l": i} for i in range(40)]
    right = [{"k": k, "r": f"r{n}"} for n, k in enumerate([1, 3, 3, 5, 11, 12])]
    got = blocks(left).join(blocks(right, 2), kind, 3, on="k").take_all()
    pairs = [{"k": a["k"], "l": a["l"], "r": b["r"]} for a in left for b in right if a["k"] == b["k"]]
    only_left = [a for a in left if a["k"] not in {b["k"] for b in right}]
    only_right = [b for b in right if b["k"] not in {a["k"] for a in left}]
    lone_left, lone_right = [{**a, "r": None} for a in only_left], [{"l": None, **b} for b in only_right]
    expected = {
        "inner": pairs, "left_outer": pairs + lone_left, "right_outer": pairs + lone_right, "full_outer": pairs + lone_left + lone_right,
        "left_semi": [a for a in left if a not in only_left],
        "right_semi": [b for b in right if b not in only_right], "left_anti": only_left, "right_anti": only_right,
    }[kind]  # fmt: skip

    def canonical(rows):
        return sorted(str(sorted(row.items())) for row in rows)

    assert sorted(map(str, canonical([dict(sorted(row.items())) for row in got]))) == sorted(
        map(str, canonical([dict(sorted(row.items())) for row in expected]))
    )


def test_joins_with_other_names_suffixes_types_and_columns_that_acero_does_not_carry(tasks):
    left = shoal.data.from_items([{"a": i, "x": i, "t": np.full(2, i)} for i in range(10)])
    right = shoal.data.from_arrow(pa.table({"b": pa.array([3, 4, 4], type=pa.int32()), "x": ["p", "q", "r"], "l": [[1], [2], [3]]}))
    got = left.join(right, "inner", 2, on="a", right_on="b", right_suffix="_r").sort(["a", "x_r"]).take_all()
    assert [(row["a"], row["x"], row["x_r"], row["l"], row["t"].tolist()) for row in got] == [
        (3, 3, "p", [1], [3, 3]), (4, 4, "q", [2], [4, 4]), (4, 4, "r", [3], [4, 4]),
    ]  # fmt: skip
    with pytest.raises(SchemaMismatchError, match=r"both sides have columns \['x'\]"):
        left.join(right, "inner", 2, on="a", right_on="b").take()


def test_a_join_says_what_is_wrong():
    ds = shoal.data.range(3)
    for wrong, match in [
        (lambda: ds.join(ds, "outer", 2), "join_type must be one of"),
        (lambda: ds.join(ds, "inner", 2, on=("idd",)), "Did you mean 'id'"),
        (lambda: ds.join(ds, "inner", 2, on=("id",), right_on=("id", "x")), "1 keys on the left"),
        (lambda: ds.join(shoal.data.from_items([{"id": "x"}]), "inner", 2).take(), "different types"),
    ]:
        with pytest.raises(ValueError, match=match):
            wrong()


# -- order, blocks, and several datasets


def test_a_shuffle_keeps_all_rows_and_its_seed_decides_the_order(tasks):
    ds = shoal.data.range(1000, override_num_blocks=4)
    first, again, other = ([row["id"] for row in ds.random_shuffle(seed=seed).take_all()] for seed in (1, 1, 2))
    assert sorted(first) == list(range(1000))
    assert first == again != other
    assert first != list(range(1000))
    # Rows come from everywhere: the mean place of the first hundred is near the middle.
    assert 350 < statistics.mean(first[:100]) < 650
    assert ds.random_shuffle(num_blocks=3).materialize().num_blocks() == 3
    assert ds.random_shuffle().count() == 1000


def test_blocks_in_random_order_keep_their_rows():
    ds = shoal.data.range(40, override_num_blocks=8).randomize_block_order(seed=5)
    got = [row["id"] for row in ds.take_all()]
    assert sorted(got) == list(range(40)) != got
    assert all(got[i : i + 5] == list(range(got[i], got[i] + 5)) for i in range(0, 40, 5))


def test_repartition_keeps_the_order_and_makes_the_blocks_asked_for():
    ds = shoal.data.range(100, override_num_blocks=7)
    for made, count in [(ds.repartition(3), 3), (ds.repartition(20), 20), (ds.repartition(target_num_rows_per_block=30), 4)]:
        made = made.materialize()
        assert [row["id"] for row in made.take_all()] == list(range(100))
        assert made.num_blocks() == count
    assert sorted(row["id"] for row in ds.repartition(4, shuffle=True).take_all()) == list(range(100))


def test_repartition_by_keys_brings_equal_keys_together():
    ds = shoal.data.range(100, override_num_blocks=5).map(lambda row: {"k": row["id"] % 10, "id": row["id"]})
    made = ds.repartition(4, keys=["k"], sort=True).materialize()
    seen = {}
    for number, batch in enumerate(made.iter_batches(batch_size=None)):
        assert batch["k"].tolist() == sorted(batch["k"].tolist())
        for key in set(batch["k"].tolist()):
            assert seen.setdefault(key, number) == number
    assert len(seen) == 10


def test_union_is_one_after_the_other_and_fills_missing_columns():
    a, b = shoal.data.range(3), shoal.data.from_items([{"id": 7, "x": "y"}])
    assert a.union(b, a).to_pandas()["id"].tolist() == [0, 1, 2, 7, 0, 1, 2]
    assert a.union(b).count() == 4
    assert [row["id"] for row in a.union(b).map(lambda row: {"id": row["id"] + 1}).take_all()] == [1, 2, 3, 8]


def test_union_of_types_that_do_not_go_together_is_refused_and_names_the_column():
    with pytest.raises(SchemaMismatchError, match=r"column 'id' is int64 in one dataset and string in dataset 2"):
        shoal.data.range(3).union(shoal.data.from_items([{"id": "x"}]))


def test_zip_puts_columns_side_by_side_whatever_the_blocks():
    a, b = shoal.data.range(100, override_num_blocks=3), shoal.data.range(100, override_num_blocks=7).map(lambda row: {"id": -row["id"], "x": 1})
    assert a.zip(b).take_all() == [{"id": i, "id_1": -i, "x": 1} for i in range(100)]


def test_zip_of_unequal_lengths_says_both():
    with pytest.raises(SchemaMismatchError, match="different numbers of rows: 3, 4"):
        shoal.data.range(3).zip(shoal.data.range(4))
    with pytest.raises(SchemaMismatchError, match="different numbers of rows: 3, 2"):
        shoal.data.range(3).zip(shoal.data.range(4).filter(lambda row: row["id"] > 1)).take()


def test_a_nan_is_the_largest_number_in_a_sort(tasks):
    got = [row["x"] for row in blocks([{"x": x} for x in [2.0, math.nan, 1.0, 3.0]], 2).sort("x").take_all()]
    assert got[:3] == [1.0, 2.0, 3.0] and math.isnan(got[3])


def test_a_shuffle_keeps_rows_whole_and_mixes_all_blocks():
    n, blocks = 60_000, 4

    def more(batch):
        ids = batch["id"]
        text = [None if i % 7 == 0 else f"n{i}" for i in ids.tolist()]
        return {"id": ids, "half": ids / 2, "text": text, "even": ids % 2 == 0, "small": ids.astype(np.uint8), "pair": np.stack([ids, -ids], axis=1)}

    ds = shoal.data.range(n, override_num_blocks=blocks).map_batches(more)
    for partitions in (None, 1, 3):
        table = pa.concat_tables(ds.random_shuffle(seed=5, num_blocks=partitions).iter_batches(batch_size=None, batch_format="pyarrow"))
        batch = tables.to_numpy(table)
        ids = batch["id"]
        assert sorted(ids.tolist()) == list(range(n))
        assert (batch["half"] == ids / 2).all()
        assert batch["text"].tolist() == [None if i % 7 == 0 else f"n{i}" for i in ids.tolist()]
        assert (batch["even"] == (ids % 2 == 0)).all()
        assert (batch["small"] == ids.astype(np.uint8)).all()
        assert (batch["pair"] == np.stack([ids, -ids], axis=1)).all()
        # By chance about n / (parts * blocks) = 1,500 rows of each block are in each tenth of the result, give or take 34 (one standard deviation).
        for part in np.array_split(ids, 10):
            assert (abs(np.bincount(part * blocks // n, minlength=blocks) - n / 10 / blocks) < 250).all()
        assert (np.diff(ids) == 1).sum() < 15, "neighbours stay together about once in n pairs"
    again = [row["id"] for row in ds.select_columns(["id"]).random_shuffle(seed=5).take(100)]
    assert again == [row["id"] for row in ds.select_columns(["id"]).random_shuffle(seed=5).take(100)]
    assert again != [row["id"] for row in ds.select_columns(["id"]).random_shuffle(seed=6).take(100)]


def test_every_order_of_a_few_rows_comes_about_equally_often():
    seen = Counter()
    for seed in range(1200):
        runs = [np.array([0, 1, 2]), np.array([0, 0, 2])]
        parts = [pa.table({"x": [0, 1]}), pa.table({"x": [2, 3]})]
        (made,) = arrange.Permuted(seed, 0, runs)([parts])
        seen[tuple(made["x"].to_pylist())] += 1
    # Bucket 0 holds row 0, bucket 1 the others; both are permuted together, as few as they are.
    assert len(seen) == 24
    assert min(seen.values()) > 20 and max(seen.values()) < 90
