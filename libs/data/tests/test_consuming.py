"""Batches, tensors, writing, and parts of datasets."""

import json
import os
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shoal
import shoal.data
from shoal.data import SaveMode
from shoal.data.exceptions import ColumnNotFoundError

pytestmark = pytest.mark.usefixtures("cluster")


def test_batches_of_one_size_over_blocks_of_others():
    ds = shoal.data.range(100, override_num_blocks=7)
    for prefetch in (0, 1, 3):
        found = [batch["id"].tolist() for batch in ds.iter_batches(batch_size=30, prefetch_batches=prefetch)]
        assert [len(ids) for ids in found] == [30, 30, 30, 10]
        assert [i for ids in found for i in ids] == list(range(100))
    assert [len(batch["id"]) for batch in ds.iter_batches(batch_size=30, drop_last=True)] == [30, 30, 30]
    assert sum(len(batch["id"]) for batch in ds.iter_batches(batch_size=None)) == 100
    assert [len(batch["id"]) for batch in shoal.data.range(600).iter_batches()] == [256, 256, 88]


@pytest.mark.parametrize(("batch_format", "kind"), [("numpy", dict), ("pandas", pd.DataFrame), ("pyarrow", pa.Table)])
def test_batches_in_each_form(batch_format, kind):
    ds = shoal.data.range_tensor(10, shape=(2,), override_num_blocks=3)
    batches = list(ds.iter_batches(batch_size=4, batch_format=batch_format))
    assert all(isinstance(batch, kind) for batch in batches)
    assert len(batches) == 3
    rows = [row for batch in batches for row in (shoal.data.from_arrow(batch).take_batch()["data"] if kind is pa.Table else batch["data"])]
    assert np.stack(rows).tolist() == [[i, i] for i in range(10)]


def test_a_batch_iterable_can_be_used_again_and_abandoned():
    batches = shoal.data.range(1000, override_num_blocks=20).iter_batches(batch_size=10)
    for _ in range(3):
        for batch in batches:
            assert batch["id"][0] == 0
            break
    assert sum(len(batch["id"]) for batch in batches) == 1000
    before = threading.active_count()
    iter(batches)  # and never used
    assert threading.active_count() == before


def test_rows_one_by_one():
    assert [row["id"] for row in shoal.data.range(10, override_num_blocks=3).iter_rows()] == list(range(10))
    iterator = iter(shoal.data.range(10**6).iter_rows())
    assert next(iterator) == {"id": 0}


def test_local_shuffle_mixes_neighbours_and_keeps_all_rows():
    ds = shoal.data.range(1000, override_num_blocks=4)

    def order(seed):
        return [i for batch in ds.iter_batches(batch_size=50, local_shuffle_buffer_size=200, local_shuffle_seed=seed) for i in batch["id"].tolist()]

    first = order(1)
    assert sorted(first) == list(range(1000)) != first
    assert first == order(1) != order(2)
    assert max(first[:50]) < 500


def test_torch_batches_are_writable_tensors_of_the_types_asked_for():
    torch = pytest.importorskip("torch")
    ds = shoal.data.range(100, override_num_blocks=3).map_batches(
        lambda batch: {"x": batch["id"] / 2, "y": batch["id"], "t": np.ones((len(batch["id"]), 2, 2))}
    )
    batches = list(ds.iter_torch_batches(batch_size=40, dtypes={"x": torch.float32}))
    assert [len(batch["x"]) for batch in batches] == [40, 40, 20]
    assert (batches[0]["x"].dtype, batches[0]["y"].dtype, batches[0]["t"].shape) == (torch.float32, torch.int64, (40, 2, 2))
    batches[0]["x"][:] = 7
    assert torch.cat([batch["y"] for batch in batches]).tolist() == list(range(100))
    assert next(iter(ds.iter_torch_batches(dtypes=torch.float64, device="cpu")))["y"].dtype == torch.float64


def test_torch_batches_by_a_collate_fn_and_what_no_tensor_can_be():
    torch = pytest.importorskip("torch")
    ds = shoal.data.range(100).map_batches(lambda batch: {"id": batch["id"], "s": [str(i) for i in batch["id"]]})
    sums = [total.item() for total in ds.iter_torch_batches(batch_size=50, collate_fn=lambda batch: torch.tensor(batch["id"].sum()))]
    assert sums == [sum(range(50)), sum(range(50, 100))]
    with pytest.raises(TypeError, match="column 's' holds object values"):
        next(iter(ds.iter_torch_batches()))
    with pytest.raises(ValueError, match="either collate_fn or dtypes"):
        ds.iter_torch_batches(collate_fn=len, dtypes=torch.float32)


def test_first_rows_and_whole_frames():
    ds = shoal.data.range(30, override_num_blocks=4)
    assert [row["id"] for row in ds.take(3)] == [0, 1, 2]
    assert len(ds.take()) == 20
    assert ds.take_batch(5)["id"].tolist() == list(range(5))
    assert ds.take_batch(5, batch_format="pandas")["id"].tolist() == list(range(5))
    with pytest.raises(ValueError, match="more than the limit of 10"):
        ds.take_all(limit=10)
    with pytest.raises(ValueError, match="more than the limit of 10"):
        ds.to_pandas(limit=10)
    with pytest.raises(ValueError, match="has no rows"):
        ds.filter(lambda row: False).take_batch()
    assert ds.to_pandas()["id"].tolist() == list(range(30))
    assert sum(shoal.get(ref).num_rows for ref in ds.to_arrow_refs()) == 30
    assert sum(len(frame) for frame in shoal.get(ds.to_pandas_refs())) == 30
    assert sum(array.sum() for array in shoal.get(ds.to_numpy_refs(column="id"))) == 435
    assert ds.size_bytes() == 240


def test_a_materialized_dataset_is_not_computed_again(tmp_path):
    def trace(row):
        (tmp_path / f"{row['id']}-{os.urandom(4).hex()}").touch()
        return row

    made = shoal.data.range(5).map(trace).materialize()
    assert made.count() == 5 and made.take_all() == made.take_all()
    assert len(list(tmp_path.iterdir())) == 5


# -- files


def test_written_files_come_back_and_nothing_else_is_left(tmp_path):
    ds = shoal.data.range(100, override_num_blocks=4).map(lambda row: {"id": row["id"], "s": f"s{row['id']}", "l": [row["id"]]})
    ds.write_parquet(str(tmp_path / "p"))
    assert shoal.data.read_parquet(str(tmp_path / "p")).take_all() == ds.take_all()
    ds.write_json(str(tmp_path / "j"))
    assert shoal.data.read_json(str(tmp_path / "j")).take_all() == ds.take_all()
    ds.drop_columns("l").write_csv(str(tmp_path / "c"))
    assert shoal.data.read_csv(str(tmp_path / "c")).take_all() == ds.drop_columns("l").take_all()
    assert all(len(list((tmp_path / name).iterdir())) == 4 for name in "pjc")


def test_tensors_come_back_from_parquet(tmp_path):
    shoal.data.range_tensor(10, shape=(2, 3)).write_parquet(str(tmp_path))
    batch = shoal.data.read_parquet(str(tmp_path)).take_batch()
    assert batch["data"].shape == (10, 2, 3) and batch["data"][7].tolist() == [[7] * 3] * 2


def test_options_of_the_writer_and_rows_per_file(tmp_path):
    shoal.data.range(100, override_num_blocks=10).write_parquet(str(tmp_path), compression="zstd", min_rows_per_file=40)
    files = sorted(tmp_path.iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [40, 40, 20]
    assert pq.read_metadata(files[0]).row_group(0).column(0).compression == "ZSTD"


def test_what_happens_to_files_that_are_there(tmp_path):
    path, ds = str(tmp_path), shoal.data.range(3, override_num_blocks=1)
    ds.write_parquet(path)
    ds.write_parquet(path)
    assert shoal.data.read_parquet(path).count() == 6
    ds.write_parquet(path, mode=SaveMode.IGNORE)
    assert shoal.data.read_parquet(path).count() == 6
    with pytest.raises(FileExistsError, match="has files already"):
        ds.write_parquet(path, mode="error")
    ds.write_parquet(path, mode="overwrite")
    assert shoal.data.read_parquet(path).count() == 3
    with pytest.raises(FileNotFoundError, match="try_create_dir"):
        ds.write_csv(f"{path}/other", try_create_dir=False)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        ds.write_csv(f"{path}/file")
    with pytest.raises(ValueError, match="'append_'"):
        ds.write_csv(path, mode="append_")


def test_a_write_that_fails_leaves_no_file(tmp_path):
    def fails(row):
        if row["id"] == 90:
            raise RuntimeError("at 90")
        return row

    with pytest.raises(RuntimeError, match="at 90"):
        shoal.data.range(100, override_num_blocks=10).map(fails).write_parquet(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_json_values_and_csv_columns_that_cannot_be_written(tmp_path):
    shoal.data.from_numpy(np.arange(4.0).reshape(2, 2)).write_json(str(tmp_path / "j"))
    lines = [line for file in (tmp_path / "j").iterdir() for line in file.read_text().splitlines()]
    assert [json.loads(line)["data"] for line in lines] == [[0.0, 1.0], [2.0, 3.0]]
    with pytest.raises(shoal.data.exceptions.DataError, match="column 'data' is .*which CSV cannot hold"):
        shoal.data.from_numpy(np.ones((2, 2))).write_csv(str(tmp_path / "c"))


# -- parts


def test_splits_have_all_rows_in_order():
    ds = shoal.data.range(103, override_num_blocks=4)

    def rows(parts):
        return [[row["id"] for row in part.take_all()] for part in parts]

    everything = list(range(103))
    assert [i for part in rows(ds.split(3)) for i in part] == everything
    assert [len(part) for part in rows(ds.split(4, equal=True))] == [25] * 4
    assert rows(ds.split_at_indices([10, 10, 50])) == [everything[:10], [], everything[10:50], everything[50:]]
    assert [len(part) for part in rows(ds.split_proportionately([0.2, 0.5]))] == [20, 52, 31]
    train, test = rows(ds.train_test_split(0.25))
    assert (len(train), len(test)) == (77, 26) and train + test == everything
    train, test = rows(ds.train_test_split(10, shuffle=True, seed=1))
    assert len(test) == 10 and sorted(train + test) == everything and train != everything[:93]
    for wrong in (
        lambda: ds.split(0),
        lambda: ds.split_at_indices([5, 2]),
        lambda: ds.split_proportionately([0.5, 0.6]),
        lambda: ds.train_test_split(1.5),
        lambda: ds.train_test_split(103),
    ):
        with pytest.raises(ValueError):
            wrong()


@shoal.remote(num_cpus=0)
def epochs(iterator, times):
    return [[i for batch in iterator.iter_batches(batch_size=16) for i in batch["id"].tolist()] for _ in range(times)]


def test_a_streaming_split_gives_each_row_to_one_worker_in_every_epoch():
    ds = shoal.data.range(1000, override_num_blocks=10).map(lambda row: row)
    seen = shoal.get([epochs.remote(part, 3) for part in ds.streaming_split(3)], timeout=60)
    for epoch in range(3):
        assert sorted(i for worker in seen for i in worker[epoch]) == list(range(1000))


def test_an_equal_streaming_split_gives_all_workers_as_many_rows():
    ds = shoal.data.range(1000, override_num_blocks=13).filter(lambda row: row["id"] != 7)
    seen = shoal.get([epochs.remote(part, 2) for part in ds.streaming_split(2, equal=True)], timeout=60)
    for epoch in range(2):
        assert [len(worker[epoch]) for worker in seen] == [499, 499]
        assert len({i for worker in seen for i in worker[epoch]}) == 998


def test_a_streaming_split_is_used_by_threads_too_with_hints_and_torch():
    torch = pytest.importorskip("torch")
    node = shoal.get_runtime_context().get_node_id()
    parts = shoal.data.range(200, override_num_blocks=4).streaming_split(2, locality_hints=[node, node])
    sums: list = [None, None]

    def consume(i):
        sums[i] = sum(batch["id"].sum() for batch in parts[i].iter_torch_batches(batch_size=10))

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(sums) == torch.arange(200).sum()
    assert parts[0].schema().names == ["id"] and "ReadRange" in parts[0].stats()


def test_an_error_in_a_streaming_split_comes_to_every_worker():
    def fails(row):
        raise KeyError("no such thing")

    parts = shoal.data.range(10).map(fails).streaming_split(2)
    for ref in [epochs.remote(part, 1) for part in parts]:
        with pytest.raises(KeyError, match="no such thing"):
            shoal.get(ref, timeout=60)


def test_an_iterator_travels_to_a_worker():
    assert shoal.get(epochs.remote(shoal.data.range(20).map(lambda row: row).iterator(), 2), timeout=60) == [list(range(20))] * 2


def test_a_stratified_split_keeps_the_shares_of_every_value():
    ds = shoal.data.range(300, override_num_blocks=4).map(lambda row: {"id": row["id"], "kind": "rare" if row["id"] % 10 == 0 else "common"})
    for options in ({}, {"shuffle": True, "seed": 3}):
        train, test = ds.train_test_split(0.2, stratify="kind", **options)
        assert sorted(row["id"] for part in (train, test) for row in part.take_all()) == list(range(300))
        assert train.columns() == test.columns() == ["id", "kind"]
        shares = [{row["kind"]: row["count()"] for row in part.groupby("kind").count().take_all()} for part in (train, test)]
        assert shares == [{"common": 216, "rare": 24}, {"common": 54, "rare": 6}]
    few, rest = ds.train_test_split(30, stratify="kind")
    assert (few.count(), rest.count()) == (270, 30)
    with pytest.raises(ColumnNotFoundError, match=r"train_test_split\(stratify=...\)"):
        ds.train_test_split(0.5, stratify="knid")
