"""Serve over two nodes: replicas and a proxy on each, and one node dies."""

import os
import signal

import httpx
import pytest
import shoal
from shoal import serve
from shoal.cluster_utils import Cluster


@pytest.fixture
def nodes():
    with Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1}) as cluster:
        yield cluster, cluster.add_node(num_cpus=1)


@serve.deployment(num_replicas=2, max_ongoing_requests=20, graceful_shutdown_wait_loop_s=0.05)
class Where:
    async def __call__(self, request=None):
        return shoal.get_runtime_context().get_node_id()


def test_both_nodes_serve_and_one_goes_on_without_the_other(nodes, wait_until):
    cluster, other = nodes
    serve.start(http_options={"port": 0})
    handle = serve.run(Where.bind())
    ids = {node["NodeID"] for node in shoal.nodes()}
    wait_until(lambda: serve.status().proxies == dict.fromkeys(ids, "HEALTHY"), what="a proxy on each node")
    assert {handle.remote().result(timeout_s=30) for _ in range(50)} == ids
    for node_id in ids:
        host, port = shoal.get(shoal.get_actor(f"SERVE_PROXY_ACTOR::{node_id}", "serve").start.remote(), timeout=30)
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
            assert {client.get("/").text for _ in range(50)} == ids

    address = serve.http_address()
    os.kill(other.pid_of("raylet"), signal.SIGKILL)
    cluster.remove_node(other)
    with httpx.Client(base_url=address, timeout=30) as client:
        left = ids - {other.unique_id}
        wait_until(lambda: {client.get("/").text for _ in range(10)} == left, what="answers of the node that is left")
        assert {client.get("/").status_code for _ in range(50)} == {200}
    assert wait_until(lambda: serve.status().applications["default"].message, what="the reason")
    serve.shutdown()
