"""Which service may die, and what the program sees of it."""

from __future__ import annotations

import os
import signal
import time

import pytest
import shoal
from shoal.cluster_utils import Cluster
from shoal.testing import wait_until

BOUND_S = 30.0


def double(x):
    return 2 * x


def service(node, name):
    try:
        return node.pid_of(name)
    except LookupError:
        return None


def restarted(node, name, old):
    return wait_until(lambda: (service(node, name) or old) != old, BOUND_S, f"{name} runs again")


@pytest.mark.timeout(90)
def test_work_goes_on_while_the_control_store_is_restarted_on_its_port(cluster):
    task = shoal.remote(double)
    assert shoal.get(task.remote(1), timeout=30) == 2
    node = cluster.head_node
    old = node.kill("gcs")
    assert shoal.get([task.remote(i) for i in range(20)], timeout=30) == [2 * i for i in range(20)]
    restarted(node, "gcs", old)
    cluster.wait_for_nodes()
    assert shoal.nodes()[0]["Alive"]

    @shoal.remote
    class Counter:
        def next(self):
            return 1

    assert shoal.get(Counter.remote().next.remote(), timeout=30) == 1


@pytest.mark.timeout(90)
def test_a_killed_head_comes_back_with_names_and_actors_and_running_work_does_not_notice(cluster):
    """On SQLite, the default: the same process, at its port, with its records."""

    @shoal.remote(num_cpus=0)
    class Keeper:
        def __init__(self):
            self.count = 0

        def next(self):
            self.count += 1
            return self.count

        def sleep(self, seconds):
            time.sleep(seconds)
            return "slept"

    keeper = Keeper.options(name="kept", lifetime="detached").remote()
    sleeper = Keeper.remote()
    assert shoal.get(keeper.next.remote(), timeout=30) == 1
    assert shoal.get(sleeper.next.remote(), timeout=30) == 1
    running = sleeper.sleep.remote(2.0)
    node = cluster.head_node
    began = time.monotonic()
    old = node.kill("gcs")
    calls = 1
    while time.monotonic() - began < 2.0:  # calls go from process to process
        calls += 1
        assert shoal.get(keeper.next.remote(), timeout=30) == calls
    assert shoal.get(shoal.get_actor("kept").next.remote(), timeout=30) == calls + 1
    restarted(node, "gcs", old)
    assert shoal.get(running, timeout=30) == "slept"
    assert [row["state"] for row in cluster.states()] == ["ALIVE"]
    assert shoal.get(Keeper.options(name="new").remote().next.remote(), timeout=30) == 1
    shoal.kill(keeper)


@pytest.mark.timeout(90)
def test_a_head_whose_records_vanish_does_not_begin_anew_with_none(home):
    settings = {"supervisor": {"max_failures": 2}}
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "system_config": settings}) as cluster:
        node = cluster.head_node
        os.kill(node.supervisor_pid, signal.SIGSTOP)
        node.kill("gcs")
        for name in ("gcs.sqlite", "gcs.sqlite-wal", "gcs.sqlite-shm"):
            path = os.path.join(node.cluster_dir, name)
            if os.path.exists(path):
                os.unlink(path)
        os.kill(node.supervisor_pid, signal.SIGCONT)
        wait_until(lambda: node.process.poll() is not None, BOUND_S, "the node gives up")
        assert node.process.returncode == 1


@pytest.mark.timeout(90)
def test_sealed_objects_outlive_the_store(cluster):
    ref = shoal.put(bytes(5 << 20))
    node = cluster.head_node
    restarted(node, "objectstore", node.kill("objectstore"))
    assert len(shoal.get(ref, timeout=30)) == 5 << 20


@pytest.mark.timeout(90)
def test_puts_ride_over_a_restart_of_the_store(cluster):
    node = cluster.head_node
    for _ in range(3):
        old = node.kill("objectstore")
        refs = [shoal.put(bytes([i]) * (8 << 20)) for i in range(3)]
        assert [shoal.get(ref, timeout=30)[-1] for ref in refs] == [0, 1, 2]
        restarted(node, "objectstore", old)


@pytest.mark.timeout(90)
def test_a_dead_raylet_is_a_dead_node_and_comes_back_under_a_new_id(cluster):
    node = cluster.add_node(num_cpus=1, resources={"there": 1})

    @shoal.remote(resources={"there": 1}, max_retries=3)
    def where():
        return shoal.get_runtime_context().get_node_id()

    assert shoal.get(where.remote(), timeout=30) == node.node_id
    restarted(node, "raylet", node.kill("raylet"))

    def renewed():
        rows = {row["node_id"]: row["state"] for row in cluster.states()}
        return rows.get(node.node_id) == "DEAD" and sum(state == "ALIVE" for state in rows.values()) == 2

    wait_until(renewed, BOUND_S, "the old node is dead and a new one alive")
    new = shoal.get(where.remote(), timeout=30)
    assert new != node.node_id
    assert not os.path.exists(node.node_dir)


@pytest.mark.timeout(90)
def test_the_http_server_comes_back_at_the_next_request(cluster):
    assert cluster.states()
    node = cluster.head_node
    old = node.kill("http")
    wait_until(lambda: service(node, "http") != old, BOUND_S, "it is gone")

    def answers():
        try:
            return cluster.states()
        except OSError:
            return False

    wait_until(answers, BOUND_S, "it answers again")


@pytest.mark.timeout(90)
def test_a_node_gives_up_on_a_service_that_never_comes_up(home):
    import socket

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "system_config": {"supervisor": {"max_failures": 3}}}) as cluster:
        node = cluster.head_node
        supervisor = node.process
        port = int(node.gcs_address.rpartition(":")[2])
        os.kill(node.supervisor_pid, signal.SIGSTOP)
        node.kill("gcs")
        taken = socket.socket()
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_until(lambda: _bind(taken, port), BOUND_S, "the port is free")
            taken.listen(1)
            os.kill(node.supervisor_pid, signal.SIGCONT)
            wait_until(lambda: supervisor.poll() is not None, BOUND_S, "the supervisor gives up")
            assert supervisor.returncode == 1
        finally:
            taken.close()


def _bind(sock, port):
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
