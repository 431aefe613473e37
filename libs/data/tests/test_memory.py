"""More data than memory: 600 MB through an object store of 150."""

import time

import numpy as np
import pytest
import shoal
import shoal.data

MIB = 1 << 20
ROWS, WIDTH = 75_000, 1000  # float64: 8,000 bytes a row


@pytest.fixture(autouse=True, scope="module")
def small_store():
    shoal.init("local", num_cpus=2, object_store_memory=150 * MIB, log_to_driver=False, include_dashboard=False)
    yield
    shoal.shutdown()


def wide():
    def widen(batch):
        return {"id": batch["id"], "x": np.broadcast_to(batch["id"][:, None] * 1.0, (len(batch["id"]), WIDTH))}

    return shoal.data.range(ROWS).map_batches(widen, batch_size=500)


class Doubles:
    def __call__(self, batch):
        return {"id": batch["id"], "x": batch["x"] * 2}


def test_four_times_the_store_flows_through_it():
    rows = 0
    for batch in wide().iter_batches(batch_size=1000):
        rows += len(batch["id"])
        assert batch["x"].shape[1] == WIDTH
    assert rows == ROWS


def test_a_slow_consumer_holds_back_a_pipeline_of_tasks_and_actors():
    began = time.monotonic()
    seen = 0
    for i, batch in enumerate(wide().map_batches(Doubles, concurrency=1).iter_batches(batch_size=None)):
        seen += len(batch["id"])
        if i < 5:
            time.sleep(0.1)  # the slow consumer
    assert seen == ROWS
    assert time.monotonic() - began < 90


def test_an_aggregate_of_more_than_the_store_needs_little_of_it():
    assert wide().map_batches(lambda batch: {"s": batch["x"][:, 0]}).sum("s") == ROWS * (ROWS - 1) / 2
