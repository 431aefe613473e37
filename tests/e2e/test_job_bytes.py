"""A job's limit of object bytes holds over its processes and nodes, over the control store's death, and what dies gives its share back."""

from __future__ import annotations

import os
import re
import signal

import pytest
import shoal
from shoal.cluster_utils import Cluster
from shoal.exceptions import JobStoreLimitExceeded, ObjectStoreFullError
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.timeout(120)
BOUND_S = 40.0
LIMIT = {"max_object_bytes": 20_000_000}


@pytest.fixture
def limited():
    with shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, job_config=LIMIT):
        yield


@pytest.fixture
def two_nodes():
    """(cluster, its other node), and a job of this process on it."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        other = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with shoal.init(address=cluster.address, log_to_driver=False, job_config=LIMIT):
            yield cluster, other


MEGABYTE = bytes(1_000_000)


@shoal.remote
class Keeper:
    def put(self, count):
        self.refs = [shoal.put(MEGABYTE) for _ in range(count)]
        return os.getpid()

    def let_go(self):
        del self.refs


def room():
    """How many megabytes the driver can put now."""
    refs = []
    try:
        while True:
            refs.append(shoal.put(MEGABYTE))
    except JobStoreLimitExceeded:
        return len(refs)


def test_bytes_of_all_processes_count_together_and_come_back_by_their_end(limited, wait_until):
    assert room() == 19  # of 20 million, and each object has a header
    keeper = Keeper.remote()
    pid = shoal.get(keeper.put.remote(12))
    kept = [shoal.put(MEGABYTE) for _ in range(7)]
    with pytest.raises(JobStoreLimitExceeded) as full:
        shoal.put(MEGABYTE)
    assert isinstance(full.value, ObjectStoreFullError)
    text = str(full.value)
    assert re.search(r"job \w{8} has 19\d{6} bytes of objects, 10000\d\d more are wanted, and its JobConfig\(max_object_bytes=20000000\) allows no more", text)
    assert re.search(rf"; 12\d{{6}} of them are of .*Keeper.put.* \(pid {pid} on node \w+\)\. Let references go, or set a higher max_obj", text), text
    shoal.get(keeper.let_go.remote())
    kept.extend(shoal.put(MEGABYTE) for _ in range(12))
    with pytest.raises(JobStoreLimitExceeded, match="of them are of the driver"):
        shoal.get(keeper.put.remote(1))
    del kept
    shoal.get(keeper.put.remote(15))
    assert room() == 4
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: room() == 19)
    shoal.kill(keeper)


def test_a_result_that_does_not_fit_is_its_tasks_error_and_results_count_for_their_owner(limited):
    @shoal.remote
    def make(size):
        return bytes(size)

    @shoal.remote
    def items(count):
        for _ in range(count):
            yield MEGABYTE

    assert len(shoal.get(make.remote(18_000_000))) == 18_000_000
    kept = [make.remote(1_000_000) for _ in range(15)]
    shoal.wait(kept, num_returns=15, timeout=30)
    assert room() == 4
    with pytest.raises(JobStoreLimitExceeded, match=r"a result of .*make: job .* has 15\d{6} bytes of objects, 9000\d{3} more") as full:
        shoal.get(make.remote(9_000_000))
    assert "_core" not in str(full.value), "the runtime's frames are no news"
    with pytest.raises(JobStoreLimitExceeded):
        make.remote(bytes(9_000_000))
    stream = items.remote(10)
    came = []
    with pytest.raises(JobStoreLimitExceeded):
        for ref in stream:
            shoal.get(ref)
            came.append(ref)
    assert len(came) == 4
    del kept, came, stream, ref
    assert len(shoal.get(make.remote(18_000_000))) == 18_000_000


def test_a_loop_that_lets_go_of_what_it_makes_never_meets_the_limit(limited):
    @shoal.remote
    def make(_):
        return MEGABYTE

    for n in range(60):
        assert len(shoal.get(make.remote(shoal.put(MEGABYTE)))) == len(MEGABYTE), n


def test_nodes_count_together_also_with_a_new_control_store_and_a_dead_one_counts_no_more(two_nodes, wait_until):
    cluster, other = two_nodes
    assert room() == 19
    keeper = Keeper.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other.unique_id, soft=False)).remote()
    shoal.get(keeper.put.remote(12), timeout=BOUND_S)
    assert room() == 7
    cluster.head_node.kill("gcs")
    assert room() == 7
    cluster.remove_node(other, allow_graceful=False)
    wait_until(lambda: room() == 19, BOUND_S, "the dead node's share to come back")
