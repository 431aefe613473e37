"""scheduling_strategy="SPREAD": as many nodes as there are, also where one could do all of it before the next has answered."""

from __future__ import annotations

from collections import Counter

import pytest
import shoal
from shoal import _runtime
from shoal.cluster_utils import Cluster
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from shoal_raylet.v1 import raylet_pb2


@pytest.fixture(scope="module")
def three():
    """The ids of three nodes with two CPUs each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    for _ in range(2):
        cluster.add_node(wait=False, num_cpus=2)
    cluster.wait_for_nodes()
    cluster.connect()
    ids = [node.unique_id for node in cluster.list_all_nodes()]
    # Each has a worker that knows the function: on a busy machine the first one takes longer than anybody is waited for.
    shoal.get([here.options(**at(node)).remote() for node in ids for _ in range(2)], timeout=60)
    yield ids
    shoal.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def idle(three, wait_until):
    """What the last test had borrowed has been given back, and no late grant is on its way."""
    engine = _runtime.state.engine

    def nothing_lent() -> bool:
        free = raylet_pb2.StateReply.FromString(engine.call("raylet/State", b"")).available
        return free["CPU"] == 20_000 and engine.stats()["leases"] == 0

    wait_until(nothing_lent, what="every lease to go back")


@shoal.remote
def here() -> str:
    return shoal.get_runtime_context().get_node_id()


def at(node: str, *, soft: bool = False) -> dict[str, NodeAffinitySchedulingStrategy]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}


def test_trivial_tasks_run_on_all_nodes(three, wait_until):
    """As soon as the head has heard that the others are free again: it hears of what went back a moment after the driver has returned it."""
    spread = here.options(scheduling_strategy="SPREAD")
    wait_until(lambda: set(shoal.get([spread.remote() for _ in range(300)], timeout=60)) == set(three), what="300 tasks to have run on three nodes")


def test_one_task_after_the_other_goes_round(three, wait_until):
    """As soon as the head has heard that the others are free again."""
    spread = here.options(scheduling_strategy="SPREAD")
    wait_until(lambda: {shoal.get(spread.remote(), timeout=60) for _ in range(30)} == set(three), what="each node to have had one of thirty tasks")


def test_tasks_that_are_not_to_spread_stay_where_they_fit(three):
    head = three[0]
    assert {shoal.get(here.remote(), timeout=60) for _ in range(30)} == {head}
    for node in three:
        for soft in (False, True):
            assert set(shoal.get([here.options(**at(node, soft=soft)).remote() for _ in range(20)], timeout=60)) == {node}


def test_a_full_node_holds_nobody_up(three, wait_until):
    """The two others share; a node without room is not waited for."""

    @shoal.remote(num_cpus=2)
    class Holder:
        def ready(self) -> str:
            return shoal.get_runtime_context().get_node_id()

    holder = Holder.options(**at(three[2])).remote()
    try:
        assert shoal.get(holder.ready.remote(), timeout=60) == three[2]
        ran = Counter(shoal.get([here.options(scheduling_strategy="SPREAD").remote() for _ in range(300)], timeout=60))
        assert set(ran) <= set(three[:2])
    finally:
        shoal.kill(holder)
        wait_until(lambda: shoal.available_resources().get("CPU") == 6, what="the room to be told of")


def test_many_that_take_time_use_every_cpu(three):
    @shoal.remote
    def slow() -> str:
        import time

        time.sleep(0.1)
        return shoal.get_runtime_context().get_node_id()

    ran = Counter(shoal.get([slow.options(scheduling_strategy="SPREAD").remote() for _ in range(24)], timeout=60))
    assert set(ran) == set(three), ran
