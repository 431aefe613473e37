"""Owners that are killed: what others hold of theirs is there as before, and what cannot be had is one error, soon."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import shoal
from shoal.exceptions import OwnerDiedError
from shoal.testing import wait_until

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
BOUND_S = 40.0
NOTICE_S = 1.0
GRACE = {"objectstore": {"owner_grace_s": 1.0}}
TRIES = 4  # on a machine with much other work one of them is quick enough


def head_arguments(tmp_path):
    return {"system_config": GRACE}


@shoal.remote(num_cpus=0)
def endless():
    time.sleep(600)


@shoal.remote(num_cpus=0)
def add(n):
    return n + 1


@shoal.remote(num_cpus=0)
class Owner:
    def pid(self):
        return os.getpid()

    def lend(self, mib):
        """References to a small value, to the result of a task of this actor's, and to an array."""
        return [shoal.put("small"), add.remote(1), shoal.put(np.full(mib * MIB // 8, 7))]

    def lend_what_never_comes(self):
        return [endless.remote()]


@shoal.remote(num_cpus=0)
class Holder:
    def hold(self, refs):
        self.refs = refs

    def read(self):
        return [str(value) if np.ndim(value) == 0 else int(value[-1]) for value in shoal.get(self.refs, timeout=20)]


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def told_after(ref, end):
    """Seconds from `end()`, which returns its time, until a get that waits for it raises; and the error."""
    killed: list[float] = []
    killer = threading.Timer(0.3, lambda: killed.append(end()))
    killer.start()
    with pytest.raises(OwnerDiedError) as raised:
        shoal.get(ref, timeout=30)
    took = time.monotonic()
    killer.join()
    return took - killed[0], str(raised.value)


@pytest.mark.parametrize("where", ["here", "there"])
def test_whoever_waits_for_a_killed_owners_object_hears_within_a_second_whose_it_was_and_why(cluster, where):
    cluster.add_node(num_cpus=1, resources={"there": 1})
    took = []
    while not took or (min(took) > NOTICE_S and len(took) < TRIES):
        owner = Owner.options(resources={"there": 0.1} if where == "there" else {}).remote()
        pid = shoal.get(owner.pid.remote(), timeout=30)
        [ref] = shoal.get(owner.lend_what_never_comes.remote(), timeout=30)
        seconds, text = told_after(ref, lambda pid=pid: kill(pid))
        took.append(seconds)
        assert f"pid {pid}" in text and "SIGKILL" in text, text
    assert min(took) <= NOTICE_S, took


def test_whoever_waits_for_an_object_of_a_node_that_is_lost_hears_within_a_second(cluster):
    took = []
    while not took or (min(took) > NOTICE_S and len(took) < TRIES):
        node = cluster.add_node(num_cpus=1, resources={"there": 1})
        owner = Owner.options(resources={"there": 0.1}).remote()
        [ref] = shoal.get(owner.lend_what_never_comes.remote(), timeout=30)
        raylet = node.pid_of("raylet")
        seconds, text = told_after(ref, lambda raylet=raylet: kill(raylet))
        took.append(seconds)
        assert node.node_id[:12] in text, text
        cluster.remove_node(node)
    assert min(took) <= NOTICE_S, took


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_a_killed_owner_had_lent_on_is_there_for_who_holds_it_and_for_whom_it_is_passed_on_to(cluster, where):
    node = cluster.add_node(num_cpus=1, resources={"there": 1}, system_config=GRACE)
    owner = Owner.options(resources={"there": 0.1} if where == "there" else {}).remote()
    pid = shoal.get(owner.pid.remote(), timeout=30)
    refs = shoal.get(owner.lend.remote(8), timeout=30)
    ready, _ = shoal.wait(refs, num_returns=3, timeout=30, fetch_local=False)
    assert len(ready) == 3
    os.kill(pid, signal.SIGKILL)
    time.sleep(3.0)  # the stores let go of what nobody holds after the grace, and once a second
    small, two, array = shoal.get(refs, timeout=30)
    assert (small, two, int(array[-1])) == ("small", 2, 7)
    holder = Holder.options(resources={"there": 0.1}).remote()  # a process that has never heard of the owner, on the other node
    shoal.get(holder.hold.remote(refs), timeout=30)
    assert shoal.get(holder.read.remote(), timeout=30) == ["small", "2", 7]
    del ready, refs, array
    assert shoal.get(holder.read.remote(), timeout=30) == ["small", "2", 7]
    assert node.alive()


def test_a_reference_that_nobody_read_outlives_its_owner(cluster):
    """The value that it came in was never got either."""
    owner = Owner.remote()
    pid = shoal.get(owner.pid.remote(), timeout=30)
    outer = owner.lend.remote(1)
    shoal.wait([outer], timeout=30)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _is_dead(owner), BOUND_S, "its death is known")
    small, two, array = shoal.get(shoal.get(outer, timeout=30), timeout=30)
    assert (small, two, int(array[-1])) == ("small", 2, 7)


def _is_dead(actor):
    try:
        shoal.get(actor.pid.remote(), timeout=10)
    except shoal.exceptions.RayActorError:
        return True
    return False
