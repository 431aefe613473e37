"""Nobody starves: what each gets of a cluster that is too small, as shares of the work done and not by a clock."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal
from shoal import _runtime
from shoal.cluster_utils import Cluster
from shoal.util import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from shoal_raylet.v1 import raylet_pb2

# So many of endless tasks of 3 ms may run, on two CPUs, before somebody else has what he waits for. Reports to the control store come once a second.
PATIENCE_TASKS = 3000
# In a window of so many tasks each of two must have had this share; an even one is half.
WINDOW, SHARE = 100, 0.25


def private(cpus: int) -> Any:
    """A cluster that is too small, and this process on it."""
    return shoal.init("local", num_cpus=cpus, log_to_driver=False, include_dashboard=False)


@pytest.fixture(params=[1, 2], ids=["one CPU", "two CPUs"])
def small(request):
    with private(request.param) as context:
        yield context


@pytest.fixture
def two_cpus():
    with private(2) as context:
        yield context


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A cluster of two nodes with a CPU each, and this process on the first; the other one."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        other = cluster.add_node(num_cpus=1)
        cluster.connect()
        yield cluster, other


def note(path: str, letter: str) -> None:
    """The order in which tasks end, one letter each."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, letter.encode())
    os.close(file)


@shoal.remote
def work(path, letter, seconds=0.003):
    time.sleep(seconds)
    note(path, letter)


def warm(**options: float) -> None:
    """Every worker has loaded the function: one that does so is blocked meanwhile, on a busy machine for as long as many tasks take."""
    shoal.get([work.options(**options).remote(os.devnull, "") for _ in range(20)], timeout=60)


def order(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def shares(done: str, late: str) -> dict[str, float]:
    """Of the window that begins with the first task of whoever came late."""
    begin = done.index(late)
    window = done[begin : begin + WINDOW]
    assert len(window) == WINDOW, f"only {len(window)} tasks ended after the first of {late!r}: there was nothing left to share"
    return {letter: n / WINDOW for letter, n in Counter(window).items()}


def hold_shares(done: str, early: str, late: str) -> None:
    got = shares(done, late)
    assert min(got.get(early, 0), got.get(late, 0)) >= SHARE, f"shares {got} after {late!r} came; in order {done}"


def test_two_classes_of_one_driver_share(small, tmp_path):
    path = tmp_path / "order"
    warm()
    warm(memory=1)
    first = [work.remote(str(path), "a") for _ in range(400)]
    # Another class: it asks for the same resources, and something beside them.
    second = [work.options(memory=1).remote(str(path), "b") for _ in range(100)]
    shoal.get(second, timeout=100)
    hold_shares(order(path), "a", "b")
    assert order(path).count("a") < 350, "the first class was done before the second: they did not share"
    for ref in first:
        shoal.cancel(ref)


OTHER_DRIVER = """
import os, sys, time
import shoal
address, path = sys.argv[1:]
shoal.init(address, log_to_driver=False)

@shoal.remote
def work(path):
    time.sleep(0.003)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, b"b")
    os.close(file)

shoal.get([work.remote(os.devnull) for _ in range(20)], timeout=60)
shoal.get([work.remote(path) for _ in range(100)], timeout=100)
shoal.shutdown()
"""


def test_two_drivers_share(small, tmp_path):
    path = tmp_path / "order"
    warm()
    first = [work.remote(str(path), "a") for _ in range(3000)]
    subprocess.run([sys.executable, "-c", OTHER_DRIVER, small["gcs_address"], str(path)], check=True, timeout=100)
    hold_shares(order(path), "a", "b")
    assert len(order(path)) < 3000, "the first driver was done: they did not share"
    for ref in first:
        shoal.cancel(ref)


@shoal.remote
class Actor:
    def note(self, path):
        note(path, "x")


def test_an_actor_that_waits_for_a_cpu_gets_one(small, tmp_path):
    path = tmp_path / "order"
    warm()
    first = [work.remote(str(path), "a") for _ in range(2000)]
    actors = []  # one that needs a CPU to be placed, and one that keeps it as well
    for options in ({}, {"num_cpus": 1}):
        actors.append(Actor.options(**options).remote())
        shoal.get(actors[-1].note.remote(str(path)), timeout=100)
    done = order(path)
    assert done.count("a") < 1000, f"{done.count('a')} of 2000 tasks ran before the actors were placed: {done}"
    for ref in first:
        shoal.cancel(ref)


def test_a_task_that_needs_every_cpu_is_not_overtaken_for_ever(two_cpus, tmp_path):
    path = tmp_path / "order"
    warm()
    first = [work.remote(str(path), "a", 0.02) for _ in range(1000)]  # ten seconds of them
    shoal.get(work.options(num_cpus=2).remote(str(path), "b"), timeout=100)
    done = order(path)
    assert done.count("a") < 800, f"{done.count('a')} of 1000 small tasks ran before the large one"
    for ref in first:
        shoal.cancel(ref)


class Endless:
    """Tasks without end: whenever some have ended, as many are submitted."""

    def __init__(self, ahead: int = 50) -> None:
        self.done = 0
        self._ahead = ahead
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refill)

    def __enter__(self):
        self._thread.start()
        while self.done < 20:
            assert self._thread.is_alive(), "no tasks run"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _refill(self) -> None:
        refs = [work.remote(os.devnull, "") for _ in range(self._ahead)]
        while not self._ended.is_set():
            ended, refs = shoal.wait(refs, num_returns=5, timeout=30)
            self.done += len(ended)
            refs += [work.remote(os.devnull, "") for _ in ended]
        for ref in refs:
            shoal.cancel(ref)

    def during(self, what):
        """How many of them ran meanwhile."""
        before = self.done
        what()
        return self.done - before


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_placement_group_behind_endless_tasks_gets_its_bundle(two_cpus, cpus):
    warm()
    with Endless() as tasks:
        group = placement_group([{"CPU": cpus}])
        ran = tasks.during(lambda: shoal.get(group.ready(), timeout=60))
        assert ran < PATIENCE_TASKS
        remove_placement_group(group)
        before = tasks.done
        deadline = time.monotonic() + 60
        while tasks.done < before + 20:  # the tasks have their CPUs again
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_actor_that_needs_every_cpu_gets_them_behind_endless_tasks(two_cpus, tmp_path):
    warm()
    with Endless() as tasks:
        actor = Actor.options(num_cpus=2).remote()
        ran = tasks.during(lambda: shoal.get(actor.note.remote(str(tmp_path / "order")), timeout=60))
        assert ran < PATIENCE_TASKS
        shoal.kill(actor)


def test_a_placement_group_over_two_nodes_behind_endless_tasks_gets_its_bundles():
    with two_nodes():
        warm()
        with Endless() as tasks:
            group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
            ran = tasks.during(lambda: shoal.get(group.ready(), timeout=60))
            assert ran < PATIENCE_TASKS
            remove_placement_group(group)


# -- leases of another node ------------------------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
class There:
    """A client of the node that lends: what it submits waits at that node's raylet."""

    def run(self, path, letter, tasks):
        shoal.get([work.remote(path, letter) for _ in range(tasks)], timeout=100)

    def free(self):
        state = raylet_pb2.StateReply.FromString(_runtime.state.engine.call("raylet/State", b""))
        return state.available["CPU"]


DRIVER_THERE = """
import sys
import shoal
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
address, node, path = sys.argv[1:]
shoal.init(address, log_to_driver=False)

@shoal.remote
def work(path):
    import os, time
    time.sleep(0.003)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, b"b")
    os.close(file)

@shoal.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
class There:
    def run(self, path, tasks):
        shoal.get([work.remote(path) for _ in range(tasks)], timeout=100)

there = There.remote()
shoal.get(there.run.remote("/dev/null", 20), timeout=100)
shoal.get(there.run.remote(path, 100), timeout=100)
shoal.shutdown()
"""


@pytest.fixture(scope="module")
def lender():
    """The other of two nodes, and a client of it."""
    with two_nodes() as (cluster, node):
        there = There.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote()
        shoal.get(there.run.remote(os.devnull, "", 20), timeout=60)
        yield cluster, node.node_id, there


def borrow(there, path: Path) -> list[shoal.ObjectRef]:
    """More tasks of the driver than end meanwhile, once they have both CPUs."""
    warm()
    refs = [work.remote(str(path), "a") for _ in range(3000)]
    deadline = time.monotonic() + 60
    while shoal.get(there.free.remote(), timeout=60) or not order(path):
        assert time.monotonic() < deadline, "the driver has not borrowed the other node's CPU"
    return refs


def drop(refs: list[shoal.ObjectRef]) -> None:
    for ref in refs:
        shoal.cancel(ref)
    shoal.wait(refs, num_returns=len(refs), timeout=60)


def test_a_lender_gets_its_lease_back_for_tasks_of_its_own_client(lender, tmp_path):
    _cluster, _node, there = lender
    path = tmp_path / "order"
    first = borrow(there, path)
    shoal.get(there.run.remote(str(path), "b", 100), timeout=100)
    hold_shares(order(path), "a", "b")
    assert len(order(path)) < 3000, "the borrower was done: they did not share"
    drop(first)


def test_a_lender_gets_its_lease_back_for_another_driver(lender, tmp_path):
    cluster, node, there = lender
    path = tmp_path / "order"
    first = borrow(there, path)
    subprocess.run([sys.executable, "-c", DRIVER_THERE, cluster.gcs_address, node, str(path)], check=True, timeout=100)
    hold_shares(order(path), "a", "b")
    assert len(order(path)) < 3000, "the borrower was done: they did not share"
    drop(first)


def test_a_lender_gets_its_lease_back_for_an_actor_and_for_a_bundle(lender, tmp_path):
    _cluster, node, there = lender
    path = tmp_path / "order"
    first = borrow(there, path)
    actor = Actor.options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
    shoal.get(actor.note.remote(str(path)), timeout=100)
    shoal.kill(actor)
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    shoal.get(group.ready(), timeout=60)
    remove_placement_group(group)
    assert order(path).count("a") < 3000, "the borrower was done: nobody was asked for anything"
    drop(first)
