"""Connections between nodes that break while both processes live: nothing is lost, nothing runs twice."""

import gc
import os
import socket

import pytest
import shoal
from shoal import _runtime
from shoal.cluster_utils import Cluster
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@pytest.fixture(scope="module")
def far():
    """Options that place on the other node, and its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    cluster.connect()
    yield {"scheduling_strategy": NodeAffinitySchedulingStrategy(other.unique_id, soft=False)}, other.address
    shoal.shutdown()
    cluster.shutdown()


def cut(address: str) -> int:
    """Breaks every TCP connection of this process to `address`; how many there were."""
    host, _, port = address.rpartition(":")
    broken = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:
            continue
        try:
            one = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            continue
        with one:
            try:
                if one.family == socket.AF_INET and one.getpeername() == (host, int(port)):
                    one.shutdown(socket.SHUT_RDWR)
                    broken += 1
            except OSError:
                continue
    return broken


def resumed() -> int:
    return _runtime.state.engine.stats()["resumed"]


def owned() -> int:
    return _runtime.state.engine.stats()["owned"]


@shoal.remote
class Log:
    def __init__(self):
        self.seen = []
        self.kept = None

    def add(self, n):
        self.seen.append(n)
        return n

    def all(self):
        return self.seen

    def keep(self, refs):
        self.kept = refs

    def drop(self):
        self.kept = None


def test_calls_of_an_actor_without_retries_survive_and_keep_their_order(far, wait_until):
    options, address = far
    log = Log.options(**options).remote()
    assert shoal.get(log.add.remote(-1), timeout=60) == -1
    before, refs = resumed(), []
    for round_ in range(5):
        refs += [log.add.remote(round_ * 200 + n) for n in range(200)]
        assert cut(address) >= 1
        wait_until(lambda goal=before + round_: resumed() > goal, what="the connection goes on")
    assert shoal.get(refs, timeout=60) == list(range(1000))
    assert shoal.get(log.all.remote(), timeout=30) == [-1, *range(1000)]


def test_tasks_without_retries_run_once(far, wait_until, tmp_path):
    options, address = far

    @shoal.remote(max_retries=0, **options)
    def mark(path, n):
        with open(os.path.join(path, str(n)), "a") as out:
            out.write("x")
        return n

    assert shoal.get(mark.remote(str(tmp_path), "first"), timeout=60) == "first"
    before = resumed()
    refs = [mark.remote(str(tmp_path), n) for n in range(300)]
    wait_until(lambda: cut(address), what="a connection to break")
    assert shoal.get(refs, timeout=60) == list(range(300))
    wait_until(lambda: resumed() > before, what="the connection goes on")
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == {str(n): "x" for n in ["first", *range(300)]}


def test_references_are_counted_right_across_a_break(far, wait_until):
    options, address = far
    log = Log.options(**options).remote()
    shoal.get(log.add.remote(0), timeout=60)
    # What tests before this one owned may go late: only the actor's handle is left then.
    wait_until(lambda: gc.collect() >= 0 and owned() == 1, what="nothing of other tests")
    refs = [shoal.put(n) for n in range(50)]
    done = log.keep.remote(refs)
    cut(address)
    shoal.get(done, timeout=60)
    del refs, done
    assert owned() == 51
    done = log.drop.remote()
    cut(address)
    shoal.get(done, timeout=60)
    del done
    wait_until(lambda: owned() == 1, what="owned objects as before")
