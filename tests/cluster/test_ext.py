"""What libraries may use beyond the user API."""

from __future__ import annotations

import queue

import pytest
import shoal
from shoal import ext

pytestmark = pytest.mark.timeout(90)


def until(changes, condition):
    """The first change that fits, within 30 s."""
    while True:
        change = changes.get(timeout=30)
        if condition(change):
            return change


def test_keys_are_put_got_listed_and_deleted(cluster):
    assert ext.kv_get(b"k", namespace="lib") is None
    assert ext.kv_put(b"k", b"1", namespace="lib")
    assert not ext.kv_put(b"k", b"2", namespace="lib", overwrite=False)
    assert ext.kv_get(b"k", namespace="lib") == b"1"
    assert ext.kv_get(b"k", namespace="other") is None
    ext.kv_put(b"k2", b"", namespace="lib")
    assert sorted(ext.kv_keys(b"k", namespace="lib")) == [b"k", b"k2"]
    assert ext.kv_delete(b"k", namespace="lib", prefix=True) == 2
    assert ext.kv_get(b"k", namespace="lib", wait_s=0.05) is None


def test_keys_are_reached_from_tasks_and_go_with_their_job(cluster):
    @shoal.remote
    def store():
        return ext.kv_put(b"from task", b"x", namespace="lib", with_job=True)

    assert shoal.get(store.remote(), timeout=30)
    assert ext.kv_get(b"from task", namespace="lib", wait_s=5) == b"x"
    shoal.shutdown()
    shoal.init(address=cluster.address, log_to_driver=False)
    assert ext.kv_get(b"from task", namespace="lib") is None


def test_nodes_are_watched_from_what_is_to_what_comes(cluster):
    changes: queue.Queue[ext.NodeChange] = queue.Queue()
    with ext.watch_nodes(changes.put):
        first = until(changes, lambda change: change.alive)
        assert first.node_id == cluster.head_node.node_id
        assert first.resources["CPU"] == 2
        node = cluster.add_node(labels={"zone": "b"})
        assert until(changes, lambda change: change.node_id == node.node_id).labels["zone"] == "b"
        cluster.remove_node(node)
        gone = until(changes, lambda change: change.node_id == node.node_id and not change.alive)
        assert gone.cause


def test_a_second_watch_gets_the_present_too_and_an_ended_one_nothing(cluster):
    first: queue.Queue[ext.NodeChange] = queue.Queue()
    second: queue.Queue[ext.NodeChange] = queue.Queue()
    watch = ext.watch_nodes(first.put)
    until(first, lambda change: change.alive)
    with ext.watch_nodes(second.put):
        until(second, lambda change: change.alive)
        watch.close()
        while not first.empty():
            first.get_nowait()
        node = cluster.add_node()
        until(second, lambda change: change.node_id == node.node_id)
        assert first.empty()


def test_actors_are_watched(cluster):
    changes: queue.Queue[ext.ActorChange] = queue.Queue()

    @shoal.remote
    class Worker:
        def pid(self):
            import os

            return os.getpid()

    with ext.watch_actors(changes.put):
        actor = Worker.options(name="watched").remote()
        pid = shoal.get(actor.pid.remote(), timeout=30)
        alive = until(changes, lambda change: change.state == "ALIVE")
        assert (alive.name, alive.pid, alive.class_name) == ("watched", pid, "Worker")
        shoal.kill(actor)
        assert until(changes, lambda change: change.state == "DEAD").actor_id == alive.actor_id


def test_an_objects_size_and_places_are_known_once_it_is_ready(cluster):
    small, large = shoal.put("x"), shoal.put(bytes(3 << 20))
    here = cluster.head_node.node_id
    assert 1 <= ext.object_size(small) < 100
    assert 3 << 20 <= ext.object_size(large) < (3 << 20) + 4096
    (small_places, large_places) = ext.object_places([small, large])
    assert [(place.node_id, place.inline) for place in small_places] == [(here, True)]
    assert [(place.node_id, place.inline) for place in large_places] == [(here, False)]

    @shoal.remote
    def never(path):
        import time

        while True:
            time.sleep(0.01)

    running = never.remote("")
    assert ext.object_size(running) is None
    assert ext.object_places([running]) == [[]]
    shoal.cancel(running, force=True)


def test_places_follow_a_copy_to_the_node_that_read_it(cluster):
    node = cluster.add_node(num_cpus=1, resources={"there": 1})

    @shoal.remote(resources={"there": 1})
    def make():
        return bytes(3 << 20)

    ref = make.remote()
    shoal.wait([ref], fetch_local=False, timeout=30)
    assert [place.node_id for place in ext.object_places([ref])[0]] == [node.node_id]
    assert len(shoal.get(ref, timeout=30)) == 3 << 20
    assert node.node_id in {place.node_id for place in ext.object_places([ref])[0]}
    assert ext.object_size(ref) == ext.object_places([ref])[0][0].size_bytes


def test_without_a_connection_it_says_so():
    with pytest.raises(shoal.exceptions.RaySystemError, match="init"):
        ext.kv_get(b"k", namespace="lib")
