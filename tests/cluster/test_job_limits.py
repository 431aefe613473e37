"""A job's limit of object bytes holds over nodes, over the control store's death, and a node's share comes back with its end."""

from __future__ import annotations

import pytest
import shoal
from shoal.cluster_utils import Cluster
from shoal.exceptions import JobStoreLimitExceeded
from shoal.testing import wait_until
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MEGABYTE = bytes(1_000_000)
BOUND_S = 40.0


@shoal.remote
class Keeper:
    def put(self, count):
        self.refs = [shoal.put(MEGABYTE) for _ in range(count)]


def room():
    """How many megabytes the driver can put now."""
    refs = []
    try:
        while True:
            refs.append(shoal.put(MEGABYTE))
    except JobStoreLimitExceeded:
        return len(refs)


@pytest.mark.timeout(120)
def test_nodes_count_together_also_with_a_new_control_store_and_a_dead_one_counts_no_more(home):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        shoal.init(address=cluster.address, log_to_driver=False, job_config={"max_object_bytes": 20_000_000})
        assert room() == 19
        keeper = Keeper.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other.unique_id, soft=False)).remote()
        shoal.get(keeper.put.remote(12), timeout=BOUND_S)
        assert room() == 7
        cluster.head_node.kill("gcs")
        assert room() == 7
        cluster.remove_node(other, allow_graceful=False)
        wait_until(lambda: room() == 19, BOUND_S, "the dead node's share to come back")
    finally:
        shoal.shutdown()
        cluster.shutdown()
