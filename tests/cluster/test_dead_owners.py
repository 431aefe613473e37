"""Objects whose owner died: their memory returns, what borrowers hold stays for as long as they do, and frees outlive the store's process."""

from __future__ import annotations

import gc
import json
import os
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import shoal
from shoal.testing import wait_until
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MIB = 1 << 20
SIZE = 8 * MIB
ROOM = 128 * MIB
BOUND_S = 40.0
GRACE = {"objectstore": {"owner_grace_s": 3.0}}


def head_arguments(tmp_path: Path) -> dict:
    settings = {"objectstore": {"spill_dirs": [str(tmp_path / "disk")], **GRACE["objectstore"]}}
    return {"num_cpus": 4, "object_store_memory": ROOM, "system_config": settings}


pytestmark = pytest.mark.timeout(120)


def array(n):
    return np.full(SIZE // 8, n)


@shoal.remote
class Owner:
    def put(self, count):
        self.refs = [shoal.put(array(n)) for n in range(count)]
        return self.refs

    def pid(self):
        return os.getpid()


@shoal.remote
class Holder:
    def hold(self, refs):
        self.refs = refs
        return [ref.hex() for ref in refs]

    def read(self):
        return [float(shoal.get(ref, timeout=20)[-1]) for ref in self.refs]

    def drop(self):
        self.refs = []
        gc.collect()


def restarted(node, old):
    def again():
        try:
            return node.pid_of("objectstore") != old
        except LookupError:
            return False

    wait_until(again, BOUND_S, "the store runs again")


class Stores:
    """What the head's HTTP server tells of all stores."""

    def __init__(self, cluster):
        self._cluster = cluster

    def rows(self):
        head = self._cluster.head_node
        secrets = json.loads(Path(head.node_dir, "node.json").read_text())["secrets_dir"]
        token = Path(secrets, "user.token").read_text().strip()
        request = urllib.request.Request(f"http://{head.http_address}/api/v0/memory", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return {row["node_id"]: row for row in json.load(response)["stores"]}

    def bytes_of(self, node):
        row = self.rows().get(node.node_id)
        return None if row is None else row["sealed_bytes"] + row["on_disk_bytes"]


def test_the_memory_of_a_killed_actors_objects_returns_but_for_what_a_borrower_holds(cluster):
    stores, head = Stores(cluster), cluster.head_node
    owner, holder = Owner.remote(), Holder.remote()
    refs = shoal.get(owner.put.remote(6), timeout=30)
    shoal.get(holder.hold.remote(refs[:2]), timeout=30)
    assert shoal.get(holder.read.remote(), timeout=30) == [0.0, 1.0]
    del refs
    gc.collect()
    wait_until(lambda: stores.bytes_of(head) >= 6 * SIZE, BOUND_S, "they are seen")
    pid = shoal.get(owner.pid.remote(), timeout=30)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stores.bytes_of(head) < 3 * SIZE, BOUND_S, "what nobody holds is gone")
    assert shoal.get(holder.read.remote(), timeout=30) == [0.0, 1.0]
    shoal.get(holder.drop.remote(), timeout=30)
    wait_until(lambda: stores.bytes_of(head) < SIZE, BOUND_S, "all is gone")


def test_what_a_dead_actor_had_put_on_another_node_goes_there_and_is_brought_to_who_holds_it(cluster):
    there = cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=ROOM, system_config=GRACE)
    owner = Owner.options(resources={"there": 0.1}, num_cpus=0).remote()
    [ref] = shoal.get(owner.put.remote(1), timeout=30)
    stores = Stores(cluster)
    wait_until(lambda: stores.bytes_of(there) >= SIZE, BOUND_S, "it is seen")
    os.kill(shoal.get(owner.pid.remote(), timeout=30), signal.SIGKILL)
    wait_until(lambda: stores.bytes_of(there) < SIZE, BOUND_S, "it is gone")
    assert float(shoal.get(ref, timeout=30)[-1]) == 0.0
    del ref
    gc.collect()
    wait_until(lambda: stores.bytes_of(cluster.head_node) < SIZE, BOUND_S, "the copy here has gone with its last reference")


def test_results_that_lie_on_other_nodes_go_with_the_driver_that_owned_them(cluster):
    there = cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=ROOM, system_config=GRACE)
    stores = Stores(cluster)

    @shoal.remote(resources={"there": 0.1}, num_cpus=0)
    def make(n):
        return array(n)

    refs = [make.remote(n) for n in range(4)] + [shoal.put(array(9))]
    shoal.wait(refs, num_returns=5, timeout=60, fetch_local=False)
    wait_until(lambda: stores.bytes_of(there) >= 4 * SIZE, BOUND_S, "they are seen")
    shoal.shutdown()
    wait_until(lambda: stores.bytes_of(there) < SIZE and stores.bytes_of(cluster.head_node) < SIZE, BOUND_S, "both stores are empty")
    del refs


def test_objects_owned_on_a_node_that_died_go_everywhere(cluster):
    owner_node = cluster.add_node(num_cpus=1, resources={"owner": 1}, object_store_memory=ROOM, system_config=GRACE)
    stores, head = Stores(cluster), cluster.head_node
    asker = asker_for(head.node_id).options(resources={"owner": 0.1}, num_cpus=0).remote()
    shoal.get(asker.ask.remote(4), timeout=60)
    wait_until(lambda: stores.bytes_of(head) >= 4 * SIZE, BOUND_S, "they are seen")
    cluster.remove_node(owner_node)
    wait_until(lambda: stores.bytes_of(head) < SIZE, BOUND_S, "what the dead node owned is gone")


def asker_for(node_id):
    """An actor that owns what tasks on that node make."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)

    @shoal.remote(num_cpus=0, scheduling_strategy=strategy)
    def make(n):
        return array(n)

    @shoal.remote
    class Asker:
        def ask(self, count):
            self.refs = [make.remote(n) for n in range(count)]
            shoal.wait(self.refs, num_returns=count, fetch_local=False)

    return Asker


def test_a_free_that_a_killed_store_had_not_done_is_done_by_its_successor(cluster, tmp_path):
    node, stores = cluster.head_node, Stores(cluster)
    refs = [shoal.put(array(n)) for n in range(24)]
    assert list((tmp_path / "disk").glob("*/*.spill"))
    old = node.pid_of("objectstore")
    os.kill(old, signal.SIGSTOP)  # it takes nothing any more
    del refs
    gc.collect()
    node.kill("objectstore")
    restarted(node, old)
    wait_until(lambda: stores.bytes_of(node) == 0, BOUND_S, "nothing is left")
    wait_until(lambda: not list((tmp_path / "disk").glob("*/*.spill")), BOUND_S, "nor on disk")


def test_a_copy_that_outlived_its_original_is_not_lost_when_memory_runs_short(cluster):
    there = cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=ROOM, system_config=GRACE)

    @shoal.remote(resources={"there": 0.1}, num_cpus=0, max_retries=0)
    def make(n):
        return array(n)

    refs = [make.remote(n) for n in range(4)]
    assert [float(value[-1]) for value in shoal.get(refs, timeout=60)] == [0.0, 1.0, 2.0, 3.0]
    cluster.remove_node(there)
    wait_until(lambda: sum(row["state"] == "ALIVE" for row in cluster.states()) == 1, BOUND_S, "the node is dead")
    fill = [shoal.put(array(10 + n)) for n in range(24)]
    assert [float(shoal.get(ref, timeout=30)[-1]) for ref in refs] == [0.0, 1.0, 2.0, 3.0]
    del fill
