"""What goes wrong while a plan runs: users' errors and killed workers."""

import os
import signal
from functools import partial

import numpy as np
import pytest
import shoal.data
import shoal.exceptions
from shoal.data import ActorPoolStrategy, Datasource, ReadTask
from shoal.data.datasource import BlockMetadata
from shoal.data.exceptions import BatchTypeError, SchemaMismatchError

MIB = 1 << 20


class OwnError(Exception):
    """A user's own."""


@pytest.mark.usefixtures("cluster")
class TestErrors:
    def test_a_function_that_raises_in_batch_7_of_10_names_the_operator_and_the_batch_and_keeps_its_class(self):
        def breaks(batch):
            if 60 in batch["id"]:
                raise OwnError("sixty")
            return batch

        ds = shoal.data.range(100, override_num_blocks=1).map(lambda row: row).map_batches(breaks, batch_size=10)
        with pytest.raises(OwnError) as caught:
            ds.materialize()
        assert "operator MapBatches(breaks), batch 7 of task 0 (rows 60 to 69)" in str(caught.value)
        assert "sixty" in str(caught.value)

    def test_functions_on_rows_groups_columns_and_in_pools_say_where_they_are(self):
        def breaks(*_):
            raise OwnError("always")

        class Breaks:
            def __call__(self, batch):
                raise OwnError("always")

        ds = shoal.data.range(10)
        for wrong, name in [
            (ds.map(breaks), r"operator Map\(breaks\)"), (ds.filter(breaks), r"operator Filter\(breaks\)"),
            (ds.flat_map(breaks), r"operator FlatMap\(breaks\)"),
            (ds.groupby("id").map_groups(breaks), r"operator MapGroups\(breaks\)"), (ds.add_column("x", breaks), r"operator AddColumn\(x\)"),
            (ds.map_batches(Breaks, compute=ActorPoolStrategy(size=1)), r"operator MapBatches\(Breaks\)"),
        ]:  # fmt: skip
            with pytest.raises(OwnError, match=name):
                wrong.take()

    def test_a_class_that_cannot_be_made_says_so(self):
        class Broken:
            def __init__(self):
                raise OwnError("no model")

            def __call__(self, batch):
                return batch

        with pytest.raises(Exception, match="no model"):
            shoal.data.range(10).map_batches(Broken, concurrency=1).take()

    def test_what_functions_may_not_return(self):
        ds = shoal.data.range(10)
        for wrong, match in [
            (ds.map(lambda row: 1), "a row must be a dict of columns, and this is int: 1"),
            (ds.map(lambda row: {1: 2}), "a column's name must be a string, and this is int: 1"),
            (ds.map_batches(lambda batch: [1]), "a batch must be a dict of arrays, a pandas.DataFrame or a pyarrow.Table, and the function returned list"),
            (ds.map_batches(lambda batch: None), "returned NoneType"),
            (ds.map_batches(lambda batch: {"x": 1}), "column 'x' of the returned batch is int, 1"),
            (ds.add_column("x", lambda frame: [1, 2, 3], batch_format="numpy"), "returned 3 values for"),
        ]:
            with pytest.raises(BatchTypeError, match=match):
                wrong.take()
        with pytest.raises(SchemaMismatchError, match=r"unequal lengths \{'a': 1, 'b': 2\}"):
            ds.map_batches(lambda batch: {"a": [1], "b": [1, 2]}).take()

    def test_blocks_of_types_that_do_not_go_together_are_told(self):
        ds = shoal.data.range(10, override_num_blocks=2).map(lambda row: {"x": row["id"] if row["id"] < 5 else "text"})
        with pytest.raises(SchemaMismatchError, match="do not fit together"):
            ds.repartition(1).materialize()

    def test_after_an_error_the_cluster_goes_on(self):
        with pytest.raises(ZeroDivisionError):
            shoal.data.range(1000, override_num_blocks=50).map(lambda row: {"x": 1 / (row["id"] - 500)}).materialize()
        assert shoal.data.range(1000, override_num_blocks=50).map(lambda row: {"x": row["id"]}).sum("x") == 499500


@pytest.mark.usefixtures("cluster")
class TestKilledWorkers:
    def test_a_killed_worker_in_mid_pipeline_loses_nothing(self, tmp_path):
        killed = tmp_path / "killed"

        def kills_once(batch):
            if 2500 in batch["id"] and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"id": batch["id"], "payload": np.ones((len(batch["id"]), 200))}

        ds = shoal.data.range(5000, override_num_blocks=10).map_batches(kills_once).random_shuffle(seed=1).map(lambda row: {"id": row["id"]})
        assert sorted(row["id"] for row in ds.take_all()) == list(range(5000))
        assert killed.exists()

    def test_a_worker_killed_between_the_blocks_of_one_task_repeats_none(self, tmp_path):
        killed = tmp_path / "killed"
        context = shoal.data.DataContext.get_current()
        before = context.target_max_block_size

        def kills_once(batch):
            if 1800 in batch["id"] and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"id": batch["id"], "payload": np.ones((len(batch["id"]), 1000))}

        context.target_max_block_size = MIB
        try:
            ds = shoal.data.range(2000, override_num_blocks=1).map_batches(kills_once, batch_size=100)
            assert [i for batch in ds.iter_batches(batch_size=None) for i in batch["id"].tolist()] == list(range(2000))
        finally:
            context.target_max_block_size = before
        assert killed.exists()

    def test_a_worker_that_always_dies_is_an_error(self):
        with pytest.raises(shoal.exceptions.WorkerCrashedError):
            shoal.data.range(10).map_batches(lambda batch: os.kill(os.getpid(), signal.SIGKILL)).take()

    def test_a_killed_actor_of_a_pool_loses_nothing(self, tmp_path):
        killed = tmp_path / "killed"

        class KillsOnce:
            def __call__(self, batch):
                if 57 in batch["id"] and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return batch

        ds = shoal.data.range(100, override_num_blocks=2).map_batches(KillsOnce, batch_size=5, concurrency=1)
        assert [row["id"] for row in ds.take_all()] == list(range(100))
        assert killed.exists()

    def test_a_worker_killed_in_mid_read_is_survived_and_no_row_is_missing_or_twice(self, tmp_path):
        killed = tmp_path / "killed"

        class Numbers(Datasource):
            def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):
                def read(first):
                    for block in range(first, first + 12):
                        if block == 19 and not killed.exists():
                            killed.touch()
                            os.kill(os.getpid(), signal.SIGKILL)
                        yield {"n": np.arange(block * 100_000, (block + 1) * 100_000)}

                return [ReadTask(partial(read, first), BlockMetadata()) for first in (0, 12)]

        context = shoal.data.DataContext.get_current()
        before = context.target_max_block_size
        context.target_max_block_size = MIB // 2  # so that each task gives many blocks, of which the consumer has taken some by then
        try:
            seen = [batch["n"] for batch in shoal.data.read_datasource(Numbers()).iter_batches(batch_size=None)]
        finally:
            context.target_max_block_size = before
        assert killed.exists()
        assert len(seen) >= 24
        assert (np.concatenate(seen) == np.arange(2_400_000)).all()

    def test_an_actor_of_a_pool_that_always_dies_is_an_error(self):
        class Dies:
            def __call__(self, batch):
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.data.range(10).map_batches(Dies, concurrency=1).take()
