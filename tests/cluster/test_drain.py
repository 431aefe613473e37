"""A node that is drained: what runs there ends there, what can go elsewhere goes, and the node ends in time."""

from __future__ import annotations

import json
import queue
import time
from pathlib import Path

import numpy as np
import pytest
import shoal
from shoal import ext
from shoal.testing import wait_until
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.timeout(120)
BOUND_S = 60.0


@pytest.fixture
def node(cluster):
    return cluster.add_node(num_cpus=2, node_name="leaving")


def on(node, **options):
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=True), **options}


def ended(cluster, node):
    """Why it ended."""
    wait_until(lambda: not node.alive(), BOUND_S, "its supervisor has ended")
    row = wait_until(lambda: next((row for row in cluster.states() if row["node_id"] == node.node_id and row["state"] == "DEAD"), None), BOUND_S, "it is dead")
    cluster.worker_nodes.remove(node)
    return row["state_message"]


@shoal.remote(num_cpus=1, max_retries=0)
def wait_and_tell(started: str, end: str):
    Path(started).touch()
    while not Path(end).exists():
        time.sleep(0.01)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote(num_cpus=1)
class Counter:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count

    def where(self):
        return shoal.get_runtime_context().get_node_id()


def test_the_command_ends_an_idle_node_by_its_name_and_waits_for_it(home, cluster, node):
    out = home.cli("drain", "leaving", "--reason", "new kernel", "--wait", "--address", cluster.head_node.http_address)
    assert "drains; it ends within 600 s" in out
    assert "has ended: drained: new kernel" in out
    assert ended(cluster, node) == "drained: new kernel"


def test_a_running_task_ends_there_and_what_waits_runs_elsewhere(cluster, node, tmp_path):
    started, end = tmp_path / "started", tmp_path / "end"
    running = wait_and_tell.options(**on(node)).remote(str(started), str(end))
    wait_until(started.exists, BOUND_S, "the task runs")
    ext.drain_node(node.node_id, reason="test")
    wait_until(lambda: any(row["draining"] for row in cluster.states()), BOUND_S, "it drains")

    @shoal.remote(num_cpus=1)
    def where():
        return shoal.get_runtime_context().get_node_id()

    elsewhere = shoal.get([where.options(**on(node)).remote() for _ in range(8)], timeout=60)
    assert set(elsewhere) == {cluster.head_node.node_id}
    assert node.alive()
    end.touch()
    assert shoal.get(running, timeout=60) == node.node_id
    assert ended(cluster, node) == "drained: test"


def test_objects_that_lie_there_alone_move_and_nothing_is_made_again(cluster, node, tmp_path):
    @shoal.remote(num_cpus=1)
    def make(n):
        (tmp_path / f"{n}-{time.monotonic_ns()}").touch()
        return np.full(1 << 18, n)

    @shoal.remote
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def total(self):
            return int(sum(array[-1] for array in shoal.get(self.refs, timeout=60)))

    refs = [make.options(**on(node)).remote(n) for n in range(6)]
    shoal.wait(refs, num_returns=6, timeout=60, fetch_local=False)
    assert {places[0].node_id for places in ext.object_places(refs)} == {node.node_id}
    shoal.get(refs[0], timeout=60)  # one of which there is a copy here already
    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote(refs), timeout=60)
    ext.drain_node(node.node_id, reason="test")
    assert ended(cluster, node) == "drained: test"
    assert {place.node_id for places in ext.object_places(refs) for place in places} == {cluster.head_node.node_id}
    assert shoal.get(keeper.total.remote(), timeout=60) == sum(range(6))
    assert [int(array[-1]) for array in shoal.get(refs, timeout=60)] == list(range(6))
    assert len(list(tmp_path.iterdir())) == 6


def test_an_object_of_an_owner_that_leaves_too_is_waited_for(cluster, node):
    @shoal.remote(num_cpus=1)
    class Stays:
        def put(self):
            self.ref = shoal.put(bytes(2 << 20))

        def drop(self):
            del self.ref

    stays = Stays.options(**on(node)).remote()
    shoal.get(stays.put.remote(), timeout=60)
    ext.drain_node(node.node_id, reason="test", deadline_s=4.0)
    time.sleep(2.0)
    assert node.alive()
    assert "at the deadline" in ended(cluster, node)


def test_a_restartable_actor_moves_uncharged_and_keeps_its_name(cluster, node):
    actor = Counter.options(name="moves", max_restarts=1, max_task_retries=-1, **on(node)).remote()
    assert shoal.get(actor.where.remote(), timeout=60) == node.node_id
    changes: queue.Queue[ext.ActorChange] = queue.Queue()
    with ext.watch_actors(changes.put):
        ext.drain_node(node.node_id, reason="test")
        assert ended(cluster, node) == "drained: test"
        assert shoal.get(shoal.get_actor("moves").where.remote(), timeout=60) == cluster.head_node.node_id
        head = cluster.head_node.node_id
        last = wait_until(lambda: next((c for c in _taken(changes) if c.state == "ALIVE" and c.node_id == head), None), BOUND_S, "its new life")
    assert last.restarts == 0


def _taken(changes):
    while not changes.empty():
        yield changes.get()


def test_at_the_deadline_the_node_ends_with_what_could_not_move(cluster, node, tmp_path):
    stays = Counter.options(**on(node)).remote()
    assert shoal.get(stays.where.remote(), timeout=60) == node.node_id
    began = time.monotonic()
    ext.drain_node(node.node_id, reason="test", deadline_s=2.0)
    assert shoal.get(stays.next.remote(), timeout=60) == 1
    cause = ended(cluster, node)
    assert time.monotonic() - began >= 2.0
    assert cause == "drained: test; at the deadline there still were 1 actor"
    with pytest.raises(shoal.exceptions.ActorDiedError, match="drained: test"):
        shoal.get(stays.next.remote(), timeout=60)


def test_the_only_head_is_not_drained_and_wrong_questions_are_told_why(home, cluster):
    head = cluster.head_node
    with pytest.raises(shoal.exceptions.RayError, match="no other head stands by: the cluster would end with it"):
        ext.drain_node(head.node_id)
    with pytest.raises(shoal.exceptions.RayError, match="no living node"):
        ext.drain_node("ab" * 16)
    with pytest.raises(ValueError, match="is no hexadecimal id"):
        ext.drain_node("head")
    with pytest.raises(ValueError, match="deadline_s=-1"):
        ext.drain_node(head.node_id, deadline_s=-1)
    assert "0 living nodes have an id that begins with 'nobody'" in home.cli("drain", "nobody", "--address", head.http_address, code=1)
    assert "no other head stands by" in home.cli("drain", head.node_id, "--address", head.http_address, code=1)
    assert json.loads(home.cli("status", "--json", "--address", head.http_address))["nodes"][0]["state"] == "ALIVE"
