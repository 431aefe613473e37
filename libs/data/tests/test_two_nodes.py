"""Plans over two nodes: blocks travel, and actors and tasks run on both."""

import numpy as np
import pytest
import shoal
import shoal.data
from shoal.cluster_utils import Cluster


@pytest.fixture(autouse=True, scope="module")
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    shoal.init(address=cluster.address, log_to_driver=False)
    yield
    shoal.shutdown()
    cluster.shutdown()


@shoal.remote(scheduling_strategy="SPREAD", num_cpus=0)
def rows_and_node(part):
    return [i for batch in part.iter_batches(batch_size=100) for i in batch["id"].tolist()], shoal.get_runtime_context().get_node_id()


def test_exchanges_read_blocks_of_both_nodes():
    ds = shoal.data.range(200_000, override_num_blocks=8).map_batches(
        lambda batch: {"id": batch["id"], "k": batch["id"] % 10, "node": np.full(len(batch["id"]), shoal.get_runtime_context().get_node_id())}
    )
    assert ds.groupby("k").sum("id").sum("sum(id)") == 199_999 * 100_000
    made = ds.random_shuffle(seed=1).sort("id").materialize()
    assert made.to_pandas()["id"].tolist() == list(range(200_000))
    joined = ds.join(shoal.data.range(1000).rename_columns({"id": "k"}), "inner", 4, on="k")
    assert joined.count() == 200_000


def test_parts_of_a_streaming_split_are_used_on_both():
    parts = shoal.data.range(20_000, override_num_blocks=8).streaming_split(2, equal=True)
    answers = shoal.get([rows_and_node.remote(part) for part in parts], timeout=60)
    assert sorted(i for rows, _ in answers for i in rows) == list(range(20_000))
