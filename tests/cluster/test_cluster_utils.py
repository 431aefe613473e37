"""Several nodes on one machine."""

from __future__ import annotations

import time

import pytest
import shoal
from shoal.cluster_utils import Cluster

pytestmark = pytest.mark.timeout(120)


def test_nodes_come_work_and_go(home):
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node = cluster.add_node(num_cpus=2, resources={"special": 2}, labels={"zone": "b"}, node_name="second")
        shoal.init(address=cluster.address, log_to_driver=False)
        try:
            assert shoal.cluster_resources()["CPU"] == 3
            assert next(row for row in cluster.states() if row["node_id"] == node.node_id)["labels"]["zone"] == "b"
            where = shoal.remote(lambda: shoal.get_runtime_context().get_node_id())
            assert shoal.get(where.options(resources={"special": 1}).remote(), timeout=30) == node.node_id
            assert len(shoal.get(shoal.remote(lambda: bytes(2 << 20)).options(resources={"special": 1}).remote(), timeout=30)) == 2 << 20
            cluster.remove_node(node)
            assert [row["Alive"] for row in shoal.nodes() if row["NodeID"] == node.node_id] in ([False], [])
            third = cluster.add_node(num_cpus=1, resources={"special": 1})
            assert shoal.get(where.options(resources={"special": 1}).remote(), timeout=30) == third.node_id
            cluster.remove_node(third, allow_graceful=True)
            assert shoal.cluster_resources()["CPU"] == 1, "what is removed is counted no more at once"
        finally:
            shoal.shutdown()


def test_a_node_killed_without_warning_is_noticed_at_once(home):
    with Cluster(initialize_head=True) as cluster:
        node = cluster.add_node()
        began = time.monotonic()
        cluster.remove_node(node)
        assert time.monotonic() - began < 5  # a host that answers refuses at once; the lease of 10 s is for silent ones


def test_connect_and_shutdown(home):
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    assert shoal.is_initialized()
    assert cluster.remaining_processes_alive()
    cluster.shutdown()
    assert not shoal.is_initialized()


def test_unknown_arguments_are_named(home):
    with pytest.raises(TypeError, match="num_cpu"):
        Cluster(initialize_head=True, head_node_args={"num_cpu": 1})
    with pytest.raises(RuntimeError, match="no head"):
        _ = Cluster().address
