"""What has ended is remembered by count and by age, and the state does not grow with what has lived."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from gcs_states import Rig, actor_id, actor_request, node, node_id, worker_id
from shoal_gcs.state import History
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb

pytestmark = pytest.mark.timeout(120)
LITTLE = History(dead_actors=20, dead_nodes=10, finished_jobs=10, age_ms=3_600_000)


def rig(history: History = LITTLE) -> Rig:
    made = Rig(nodes=1, history=history)
    made.now_ms = 1_000_000
    return made


def live_a_life(cluster: Rig, n: int) -> None:
    """A job with a driver, an actor with a name and a restart, a key, and a node that comes and goes."""
    cluster.now_ms += 1
    job = pb.Job(driver_worker_id=worker_id(10_000 + n), driver_node_id=node_id(1))
    cluster(on.JobAdded(job))
    cluster.alive_actor(n, worker=2 * n, name=f"name-{n}", max_restarts=1, job_id=job.job_id, owner_worker_id=worker_id(10_000 + n), owner_node_id=node_id(1))
    report = pb.ReportWorkerDeathRequest(worker_id=worker_id(2 * n), node_id=node_id(1), cause="killed")
    cluster.started(n, cluster(on.WorkerDied(report)), worker=2 * n + 1)
    cluster(on.KeyPut(pb.KvPutRequest(namespace="n", key=b"%d" % n, value=b"v" * 100, job_id=job.job_id)))
    cluster(on.NodeRegistered(node(1_000 + n)))
    cluster(on.NodeLeft(node_id(1_000 + n), "it left"))
    cluster(on.JobFinished(job.job_id))
    cluster(on.ResourceTickCame())
    cluster(on.TimePassed())
    cluster.beat(1)


def test_the_state_after_three_hundred_lives_is_as_large_as_after_two_hundred() -> None:
    cluster = rig()
    sizes = []
    tracemalloc.start()
    try:
        for n in range(1, 301):
            live_a_life(cluster, n)
            if n % 100 == 0:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    state = cluster.cluster
    assert (len(state.actors.lives), len(state.actors.dead)) == (0, 20)
    assert (len(state.nodes.living), len(state.nodes.dead)) == (1, 10)
    assert len(list(state.jobs)) == 10
    # Workers that died are remembered by a count of their own, 20,000, which this test does not reach: some 300 bytes each.
    assert sizes[2] - sizes[1] < 200 * 400, f"{sizes} bytes after 100, 200 and 300"
    assert {table: len(rows) for table, rows in cluster.stored.items() if rows} == {"nodes": 11, "jobs": 10, "meta": 1}


def test_dead_workers_are_remembered_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_gcs.state.actors.MAX_DEAD_WORKERS", 50)
    cluster = rig()
    for n in range(200):
        cluster(on.WorkerDied(pb.ReportWorkerDeathRequest(worker_id=worker_id(n), node_id=node_id(1), cause="killed")))
    assert len(cluster.cluster.actors._dead_workers) == 50


def test_what_ended_long_ago_goes_and_what_lives_stays() -> None:
    cluster = rig()
    live_a_life(cluster, 1)
    cluster.alive_actor(900, max_restarts=1)
    cluster.wait(2_000, 1)
    assert cluster.cluster.actors.get(actor_id(1)) is not None
    cluster.now_ms += LITTLE.age_ms
    cluster.beat(1)
    cluster(on.TimePassed())
    state = cluster.cluster
    assert (len(state.actors.dead), len(state.nodes.dead), len(list(state.jobs))) == (0, 0, 0)
    assert cluster.actor(900).state == pb.ACTOR_ALIVE


def test_after_a_restart_the_oldest_go_first_whatever_the_storage_s_order() -> None:
    cluster = rig()
    for n in range(1, 6):
        cluster.now_ms += 1_000
        cluster.alive_actor(n, worker=n)
        cluster(on.ActorKillRequested(actor_id(n), True, True, "test"))
    cluster.stored["actors"] = dict(sorted(cluster.stored["actors"].items(), reverse=True))
    after = cluster.restarted(history=History(dead_actors=3))
    after.now_ms += 20_000
    after(on.TimePassed())
    assert list(after.cluster.actors.dead) == [actor_id(3), actor_id(4), actor_id(5)]
    assert after.stored["actors"].keys() == {actor_id(3), actor_id(4), actor_id(5)}


def test_an_actor_that_is_forgotten_is_unknown_and_its_name_was_free_before() -> None:
    cluster = rig(History(dead_actors=0))
    cluster.alive_actor(1, name="n")
    cluster(on.ActorKillRequested(actor_id(1), True, True, "test"))
    assert cluster.cluster.actors.get(actor_id(1)) is None
    cluster(on.ActorRequested(actor_request(2, name="n")))
    assert cluster.cluster.actors.named("ns", "n") is not None
