"""Processes that stop for a while and go on: others do not wait for them, and whoever was replaced meanwhile finds out and ends."""

from __future__ import annotations

import os
import signal
import time

import pytest
import shoal
from shoal.testing import wait_until
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.timeout(150)
BOUND_S = 90.0
LEASE_S = 3.0


def head_arguments(_):
    return {"system_config": {"gcs": {"lease_s": LEASE_S, "heartbeat_s": 0.3}}}


@shoal.remote(num_cpus=1)
class Counter:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count

    def who(self):
        return os.getpid(), shoal.get_runtime_context().get_node_id()


@shoal.remote(num_cpus=1)
def square(x):
    return x * x


def on(node_id):
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=True)}


def states(cluster):
    return {row["node_id"]: row["state"] for row in cluster.states()}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_stopped_raylet_is_replaced_and_ends_with_its_workers_when_it_goes_on(cluster):
    node = cluster.add_node(num_cpus=2)
    actor = Counter.options(max_restarts=-1, max_task_retries=-1, name="moves", **on(node.node_id)).remote()
    old_pid, where = shoal.get(actor.who.remote(), timeout=60)
    assert where == node.node_id
    raylet = node.kill("raylet", signal.SIGSTOP)
    try:
        assert shoal.get([square.remote(n) for n in range(20)], timeout=60) == [n * n for n in range(20)]
        wait_until(lambda: states(cluster)[node.node_id] == "DEAD", BOUND_S, "the stopped node is declared dead")
        new_pid, where = shoal.get(shoal.get_actor("moves").who.remote(), timeout=60)
        assert where == cluster.head_node.node_id
        assert new_pid != old_pid
    finally:
        os.kill(raylet, signal.SIGCONT)
    wait_until(lambda: gone(raylet) and gone(old_pid), BOUND_S, "the fenced raylet and its worker end")
    wait_until(lambda: sorted(states(cluster).values()) == ["ALIVE", "ALIVE", "DEAD"], BOUND_S, "the node is back under a new id")
    assert shoal.get(shoal.get_actor("moves").who.remote(), timeout=60)[0] == new_pid


@shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Ledger:
    def write(self, path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return os.getpid()


@shoal.remote(num_cpus=0)
class Caller:
    def call_for_ever(self, ledger, path):
        while True:
            shoal.get(ledger.write.remote(path))


def test_on_a_node_whose_raylet_is_stopped_no_call_is_applied_once_its_actor_may_live_elsewhere(cluster, tmp_path):
    node, path = cluster.add_node(num_cpus=2), str(tmp_path / "ledger")
    ledger = Ledger.options(name="ledger", **on(node.node_id)).remote()
    old = shoal.get(ledger.write.remote(path), timeout=60)
    caller = Caller.options(**on(node.node_id)).remote()
    calls = caller.call_for_ever.remote(ledger, path)  # between two processes of that node, which hear of nothing while their raylet is stopped

    def lines():
        with open(path) as file:
            return file.read().split()

    wait_until(lambda: len(lines()) > 20, BOUND_S, "calls are applied")
    raylet = node.kill("raylet", signal.SIGSTOP)
    try:
        wait_until(lambda: states(cluster)[node.node_id] == "DEAD", BOUND_S, "the stopped node is declared dead")
        new = shoal.get(shoal.get_actor("ledger").write.remote(path), timeout=60)
        assert new != old
        for _ in range(20):
            assert shoal.get(shoal.get_actor("ledger").write.remote(path), timeout=60) == new
            time.sleep(0.05)  # the old life has this long to go on
        seen = lines()
        assert str(old) not in seen[seen.index(str(new)) :]
        assert not gone(old)
    finally:
        os.kill(raylet, signal.SIGCONT)
    wait_until(lambda: gone(old), BOUND_S, "the old life ends")
    with pytest.raises(shoal.exceptions.RayError):
        shoal.get(calls, timeout=60)


def call_for(seconds, actors):
    """Calls them all the time. The longest that a call took."""
    longest, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        shoal.get([actor.next.remote() for actor in actors], timeout=60)
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.02)
    return longest


def test_while_no_control_store_runs_for_longer_than_a_lease_all_work_goes_on(cluster):
    actors = [Counter.options(num_cpus=0, max_restarts=restarts).remote() for restarts in (0, -1)]
    assert shoal.get([actor.next.remote() for actor in actors], timeout=60) == [1, 1]
    head = cluster.head_node
    os.kill(head.supervisor_pid, signal.SIGSTOP)  # it would start the control store again
    try:
        head.kill("gcs")
        assert call_for(3 * LEASE_S, actors) < LEASE_S / 2, "no call waited for the lease"
    finally:
        os.kill(head.supervisor_pid, signal.SIGCONT)
    wait_until(lambda: states(cluster)[head.node_id] == "ALIVE", BOUND_S, "the node is known to the new control store")
    first, second = shoal.get([actor.next.remote() for actor in actors], timeout=60)
    assert first == second > 2


def test_while_a_head_neither_answers_nor_refuses_actors_that_could_be_started_elsewhere_stand_still(cluster):
    """For all that the node knows, it is cut off from a control store that lives."""
    once, restartable = (Counter.options(num_cpus=0, max_restarts=restarts).remote() for restarts in (0, -1))
    assert shoal.get([once.next.remote(), restartable.next.remote()], timeout=60) == [1, 1]
    gcs = cluster.head_node.kill("gcs", signal.SIGSTOP)
    try:
        assert call_for(2 * LEASE_S, [once]) < LEASE_S / 2, "no call waited for the lease"
        waits = restartable.next.remote()
        assert shoal.wait([waits], timeout=1.0) == ([], [waits])
        assert shoal.get(square.remote(3), timeout=60) == 9
    finally:
        os.kill(gcs, signal.SIGCONT)
    assert shoal.get(waits, timeout=60) == 2  # the same life
    assert states(cluster)[cluster.head_node.node_id] == "ALIVE"


def test_a_raylet_that_is_stopped_for_less_than_its_lease_stays_what_it_was(cluster):
    node = cluster.add_node(num_cpus=1)
    actor = Counter.options(**on(node.node_id)).remote()
    assert shoal.get(actor.next.remote(), timeout=60) == 1
    raylet = node.kill("raylet", signal.SIGSTOP)
    time.sleep(LEASE_S / 4)
    os.kill(raylet, signal.SIGCONT)
    assert shoal.get(actor.next.remote(), timeout=60) == 2
    assert states(cluster)[node.node_id] == "ALIVE"


def test_a_stopped_worker_holds_up_only_its_own_call(cluster):
    actor, other = Counter.remote(), Counter.remote()
    pid, _ = shoal.get(actor.who.remote(), timeout=60)
    shoal.get(other.next.remote(), timeout=60)
    os.kill(pid, signal.SIGSTOP)
    try:
        held_up = actor.next.remote()
        assert shoal.get([other.next.remote() for _ in range(50)], timeout=60)[-1] == 51
        assert shoal.wait([held_up], timeout=0.5)[0] == []
        with pytest.raises(shoal.exceptions.GetTimeoutError):
            shoal.get(held_up, timeout=0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert shoal.get(held_up, timeout=60) == 1


def test_a_stopped_driver_holds_up_nobody_and_finds_its_work_done(home, cluster):
    code = """
import shoal, sys
from shoal.testing import wait_until
shoal.init(address="auto", log_to_driver=False)

@shoal.remote(num_cpus=1)
def half(x):
    return x / 2

refs = [half.remote(n) for n in range(20)]
print("READY", flush=True)
sys.stdin.readline()
assert shoal.get(refs, timeout=60) == [n / 2 for n in range(20)]
print("DONE", flush=True)
"""
    import subprocess
    import sys

    environment = {**os.environ, "SHOAL_ADDRESS": cluster.address}
    with subprocess.Popen(
        [sys.executable, "-c", code.replace('"auto"', repr(cluster.address))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdin is not None
        try:
            assert driver.stdout.readline() == "READY\n"
            os.kill(driver.pid, signal.SIGSTOP)
            time.sleep(LEASE_S + 1.0)
            assert shoal.get([square.remote(n) for n in range(20)], timeout=60) == [n * n for n in range(20)]
            os.kill(driver.pid, signal.SIGCONT)
            driver.stdin.write("go on\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "DONE\n"
            assert driver.wait(60) == 0
        finally:
            driver.kill()
