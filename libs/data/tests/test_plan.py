"""Decisions that need no cluster: the optimizer, the budget, expressions, how rows are dealt out, and what tables are made of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shoal.data._block import tables, tensors
from shoal.data._block.batches import NumpyForm, batches
from shoal.data._block.meta import BlockMeta, Bundle
from shoal.data._io.parquet import ParquetSource, may_match
from shoal.data._io.paths import File, find_files, grouped
from shoal.data._io.sources import RangeSource
from shoal.data._ops import steps
from shoal.data._ops.arrange import ByHash, Sorted, SortKey, boundaries, hash_buckets
from shoal.data._plan import logical
from shoal.data._plan.optimizer import optimize
from shoal.data._plan.physical import Planner, even_edges, row_cuts
from shoal.data._run.budget import Budget, actors_that_fit
from shoal.data._run.split import Deal
from shoal.data.context import DataContext
from shoal.data.expressions import col, lit, parse

TABLE = pa.table({"id": [1, 2, 3, None], "s": ["a", "b", None, "d"], "x": [0.5, 1.5, 2.5, 3.5]})


# -- the optimizer


@pytest.fixture
def read(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    filesystem, files = find_files(str(tmp_path), None, ["parquet"], False, True)
    return logical.Read((), ParquetSource.open(filesystem, files, None, False, None, {}))


def filtered(node, text):
    return logical.Map((node,), steps.FilterExpression(parse(text)))


def selected(node, **outputs):
    return logical.Map((node,), steps.Project(list(outputs.items()), False, "Select"))


def test_filters_and_columns_reach_the_reader(read):
    plan = optimize(filtered(selected(read, y=col("x"), id=col("id")), "y > 1 and id is not None"))
    assert isinstance(plan.input, logical.Read)
    assert repr(plan.input.source.filter) == "((col('x') > lit(1)) & is_valid(col('id')))"
    assert plan.input.source.columns == ("id", "x")


def test_a_filter_on_what_the_reader_does_not_know_stays_where_it_is(read):
    computed = logical.Map((read,), steps.Project([("z", col("x") * 2)], True, "WithColumn"))
    plan = optimize(filtered(computed, "z > 3"))
    assert plan.step.name == "WithColumn" and isinstance(plan.input.step, steps.FilterExpression)
    assert repr(plan.input.step.expr) == "((col('x') * lit(2)) > lit(3))"
    opaque = logical.Map((read,), steps.MapBatches(steps.UserFunction(len), None, "numpy", False, "MapBatches"))
    assert isinstance(optimize(filtered(opaque, "x > 1")).step, steps.FilterExpression)


def test_limits_pass_what_keeps_rows_and_join_a_sort(read):
    doubled = logical.Map((read,), steps.RowSteps([steps.RowFunction("map", steps.UserFunction(len), "Map")]))
    plan = optimize(logical.Limit((logical.Limit((doubled,), 7),), 3))
    assert isinstance(plan, logical.Map) and isinstance(plan.input, logical.Limit) and plan.input.limit == 3
    assert plan.input.input.source.limit == 3
    flat = logical.Map((read,), steps.RowSteps([steps.RowFunction("flat_map", steps.UserFunction(len), "FlatMap")]))
    assert isinstance(optimize(logical.Limit((flat,), 3)), logical.Limit)
    assert optimize(logical.Limit((logical.Sort((read,), SortKey(("id",), (False,))),), 3)).input.limit == 3
    assert optimize(filtered(logical.Limit((read,), 3), "id > 1")).step is not None  # the filter may not run first


def test_aggregates_read_only_their_columns(read):
    from shoal.data.aggregate import Count, Mean

    assert optimize(logical.Aggregate((read,), ("s",), (Mean("x"),))).input.source.columns == ("s", "x")
    assert optimize(logical.Aggregate((read,), (), (Count(),))).input.source.columns == ("id",)


def test_neighbours_run_in_one_task_unless_they_want_other_resources(read):
    def planned(node):
        return [operator.name for operator in Planner(DataContext(), Budget(1 << 30, 2)).plan(node)]

    plain = logical.Map((read,), steps.MapBatches(steps.UserFunction(len), None, "numpy", False, "A"))
    assert planned(logical.Map((plain,), steps.Drop(["x"]))) == ["ReadParquet->A->Drop(x)"]
    large = logical.Map((plain,), steps.MapBatches(steps.UserFunction(len), None, "numpy", False, "B"), {"num_cpus": 2})
    again = logical.Map((large,), steps.MapBatches(steps.UserFunction(len), None, "numpy", False, "C"), {"num_gpus": 1})
    assert planned(again) == ["ReadParquet->A->B", "C"]
    assert planned(logical.Sort((plain,), SortKey(("id",), (False,)))) == ["ReadParquet->A->SortBlocks", "Sort(id)"]


def test_row_groups_whose_statistics_exclude_a_filter_are_not_read():
    known = {"id": (10, 20), "s": ("b", "d")}
    for text, expected in [
        ("id > 20", False), ("id >= 20", True), ("id < 10", False), ("20 <= id", True), ("21 <= id", False), ("id == 15", True), ("id == 9", False),
        ("id in [1, 2]", False), ("id in [1, 12]", True), ("s == 'a'", False), ("id > 20 or s == 'c'", True), ("id > 20 and s == 'c'", False),
        ("other == 1", True), ("id > 'x'", True), ("not id > 20", True), ("id != 15", True),
    ]:  # fmt: skip
        assert may_match(parse(text), known) is expected, text


# -- the budget


def test_a_task_starts_if_it_fits_or_if_nothing_else_runs():
    budget = Budget(limit_bytes=100, cpus=2)
    assert budget.admits(1000)
    budget.started(60)
    assert budget.admits(40) and not budget.admits(41)
    budget.held_bytes = 40
    assert not budget.admits(1)
    budget.ended(60)
    assert budget.admits(61)  # alone


def test_outputs_wait_when_too_much_is_held_unless_somebody_starves():
    budget = Budget(limit_bytes=100, cpus=2, held_bytes=101)
    assert not budget.takes(first_of_its_operator=True, consumer_starves=False)
    assert not budget.takes(first_of_its_operator=False, consumer_starves=True)
    assert budget.takes(first_of_its_operator=True, consumer_starves=True)
    budget.held_bytes = 100
    assert budget.takes(False, False)


def test_stages_before_others_leave_them_a_cpu():
    assert Budget(1, cpus=4).tasks_at_once(1, streams_into_tasks=True) == 3
    assert Budget(1, cpus=4).tasks_at_once(1, streams_into_tasks=False) == 8
    assert Budget(1, cpus=4).tasks_at_once(2, streams_into_tasks=False) == 4
    assert Budget(1, cpus=1).tasks_at_once(1, streams_into_tasks=True) == 1
    assert Budget(1, cpus=2).tasks_at_once(0, streams_into_tasks=False) == 4
    assert (actors_that_fit(4, 1, 4, 1), actors_that_fit(2, 2, 2, 1), actors_that_fit(9, 0, 2, 1), actors_that_fit(2, 0.5, 2, 1)) == (3, 0, 9, 2)


def test_blocks_are_small_where_memory_is():
    assert Budget(10 << 30, 2).block_bytes(128 << 20) == 128 << 20
    assert Budget(60 << 20, 2).block_bytes(128 << 20) == 10 << 20


# -- expressions


def test_expressions_give_what_python_gives():
    rows = TABLE.slice(0, 2)
    for expr, expected in [
        (col("id") + 1, [2, 3]), (1 - col("id"), [0, -1]), (col("id") / 2, [0.5, 1.0]), (col("id") % 2, [1, 0]), (col("x") // 1, [0.0, 1.0]),
        (-col("id"), [-1, -2]),
        (col("id") ** 2, [1, 4]), (col("s") + "!", ["a!", "b!"]), (col("id").is_in([2]), [False, True]), (col("s").not_in(["a"]), [False, True]),
        ((col("id") > 1) | (col("s") == "a"), [True, True]), (~(col("id") != 1), [True, False]), (col("id").cast("string"), ["1", "2"]),
        (col("x").round(), [0, 2]),
        ((col("x") - 1).abs(), [0.5, 0.5]), (col("id").is_null(), [False, False]),
    ]:  # fmt: skip
        assert expr.evaluate(rows).to_pylist() == expected, expr
    assert lit(3).evaluate(rows).as_py() == 3
    assert (col("id") + 1).alias("n").name == "n"
    assert (col("id") > 2).evaluate(TABLE).to_pylist() == [False, False, True, None]
    assert (col("a") + 1).structurally_equals(col("a") + 1) and not (col("a") + 1).structurally_equals(col("a") + 2)


def test_expressions_as_text():
    for text in ("id > 1 and s == 'b'", "id in [2, 9]", "not (id < 2 or id > 2)", "1 < id < 3", "s is not None and s != 'a' and id < 3", "abs(1) == 1"):
        if text.startswith("abs"):
            with pytest.raises(ValueError, match=r"has 'abs\(1\)', which is unknown"):
                parse(text)
        else:
            assert TABLE.filter(parse(text).evaluate(TABLE))["id"].to_pylist() == [2], text
    with pytest.raises(ValueError, match="is no Python"):
        parse("id >")
    with pytest.raises(TypeError, match="no truth value"):
        bool(col("id") > 1)


# -- partitions


def test_hashes_do_not_depend_on_the_width_of_a_type():
    small, large = (pa.chunked_array([pa.array([1, 2, None], type=kind)]) for kind in (pa.int16(), pa.int64()))
    assert hash_buckets([small], 3).tolist() == hash_buckets([large], 3).tolist()
    words, coded = pa.chunked_array([pa.array(["a", "b"])]), pa.chunked_array([pa.array(["a", "b"]).dictionary_encode()])
    assert hash_buckets([words], 2).tolist() == hash_buckets([coded], 2).tolist()
    zeros = pa.chunked_array([pa.array([0.0, -0.0])])
    assert len(set(hash_buckets([zeros], 2).tolist())) == 1


def test_partitions_have_about_equal_bytes_and_cover_all_buckets():
    block, places = ByHash(["id"])(pa.table({"id": np.arange(10_000)}), 0, 0)
    bundles = [Bundle(None, BlockMeta(block.num_rows, block.nbytes, None, places))]
    for parts in (1, 3, 7, 256):
        edges = even_edges(bundles, parts)
        assert edges[0] == 0 and edges[-1] == 256 and len(edges) == parts + 1 and edges == sorted(set(edges))
    sizes = np.diff(places[even_edges(bundles, 4)])
    assert sizes.sum() == 10_000 and sizes.max() < 1.5 * sizes.min()


def test_boundaries_cut_a_sort_into_even_runs_even_if_keys_repeat():
    key = SortKey(("x",), (False,))
    samples = [Sorted(key)(pa.table({"x": np.random.default_rng(i).integers(0, 1000, 5000)}), 0, 0)[1] for i in range(4)]
    found = [keys[0] for keys in boundaries(samples, key, 4)]
    assert [abs(value - expected) < 60 for value, expected in zip(found, (250, 500, 750), strict=True)] == [True] * 3
    same = [Sorted(key)(pa.table({"x": [5] * 100}), 0, 0)[1]]
    assert len(boundaries(same, key, 4)) <= 1


def test_rows_are_dealt_equally_whatever_the_blocks():
    for sizes in ([10, 1, 7, 3], [1] * 10, [2, 2, 2], [5]):
        deal = Deal(3, equal=True)
        dealt = [0, 0, 0]
        seen = set()
        for ref, rows in enumerate(sizes):
            for i, parts in enumerate(deal.parts(ref, rows)):
                dealt[i] += sum(part.rows for part in parts)
                for part in parts:
                    rows_of_part = {(part.ref, part.start + row) for row in range(part.rows)}
                    assert not rows_of_part & seen
                    seen |= rows_of_part
        assert dealt == [sum(sizes) // 3] * 3


def test_rows_over_several_blocks():
    bundles = [Bundle(name, BlockMeta(rows, rows)) for name, rows in (("a", 3), ("b", 4), ("c", 2))]

    def cut(start, end):
        taken, cuts = row_cuts(bundles, start, end)
        return [(bundle.ref, cut.rows) for bundle, cut in zip(taken, cuts, strict=True)]

    assert cut(0, 9) == [("a", (0, 3)), ("b", (0, 4)), ("c", (0, 2))]
    assert cut(2, 5) == [("a", (2, 3)), ("b", (0, 2))]
    assert cut(5, 5) == [("a", (0, 0))]


def test_files_are_grouped_by_their_bytes():
    assert grouped(list("abcd"), [1, 1, 1, 3], 2) == [["a", "b", "c"], ["d"]]
    assert grouped(list("ab"), [1, 1], 5) == [["a"], ["b"]]
    assert sum(grouped(list(range(10)), [0] * 10, 3), []) == list(range(10))  # noqa: RUF017
    assert File("x", 1).partition == ()


def test_ranges_are_cut_into_reads():
    reads = RangeSource(10).reads(3, DataContext(), False)
    assert [row for read, _ in reads for table in read.read() for row in table["id"].to_pylist()] == list(range(10))
    assert len(RangeSource(1 << 28).reads(2, DataContext(), False)) == 16  # 2 GiB in blocks of 128 MiB
    assert len(RangeSource(0).reads(4, DataContext(), False)) == 1


# -- tables


def test_batches_share_memory_within_a_block():
    values = np.arange(100)
    made = list(batches(iter([(100, {"x": values})]), NumpyForm(), 30, False))
    assert [len(batch["x"]) for batch in made] == [30, 30, 30, 10]
    assert np.shares_memory(made[1]["x"], values)


def test_a_slice_is_copied_before_it_is_stored():
    whole = pa.table({"x": np.arange(100_000), "s": [str(i) for i in range(100_000)]})
    part = whole.slice(10, 100)
    assert tables.compact(whole) is whole
    small = tables.compact(part)
    assert small.equals(part) and small.get_total_buffer_size() < 20_000


def test_blocks_are_built_to_their_size():
    pieces = [pa.table({"x": np.arange(1000)}) for _ in range(10)]
    sizes = [block.num_rows for block in tables.build(iter(pieces), 24_000)]
    assert sum(sizes) == 10_000 and max(sizes) * 8 <= 36_000
    assert [block.num_rows for block in tables.build(iter([pieces[0].slice(0, 0)]), 100)] == [0]
    assert max(block.num_rows for block in tables.build(iter([pa.concat_tables(pieces)]), 8000)) == 1000


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "float16", "uint64"])
def test_tensors_keep_shape_and_type(dtype):
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    column = pa.chunked_array([tensors.from_ndarray(array)])
    back = tensors.to_ndarray(column)
    assert back.dtype == array.dtype and (back == array).all()
    assert (tensors.to_ndarray(column.slice(1, 2)) == array[1:3]).all()
    ragged = pa.chunked_array([tensors.from_ragged([array[0], array[:, 0], None])])
    assert [None if one is None else one.shape for one in tensors.to_list(ragged.slice(1))] == [(4, 2), None]


def test_tables_of_different_schemas_are_put_together():
    joined = tables.concat([pa.table({"a": [1]}), pa.table({"a": [2.5], "b": ["x"]})])
    assert joined.to_pylist() == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]
    fixed = [pa.table({"t": tensors.from_ndarray(np.ones((1, *shape)))}) for shape in ((2,), (3,))]
    assert [one.shape for one in tensors.to_list(tables.concat(fixed)["t"])] == [(2,), (3,)]


def test_importing_the_library_is_cheap():
    import subprocess
    import sys

    code = "import sys, shoal.data; print([name for name in ('numpy', 'pyarrow', 'pandas', 'polars', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


def test_a_setting_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="Did you mean 'target_max_block_size'"):
        DataContext().target_max_blocksize = 3
