"""Jobs and key-value records."""

from __future__ import annotations

import pytest
from gcs_states import Rig, every, node, node_id, only, worker_id
from shoal_gcs.state import Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.state.kv import MAX_KEY_BYTES
from shoal_gcs.v1 import gcs_pb2 as pb


def put(rig: Rig, key: bytes, value: bytes = b"v", *, overwrite: bool = True, job: bytes = b"", namespace: str = "n") -> list[do.Effect]:
    return rig(on.KeyPut(pb.KvPutRequest(namespace=namespace, key=key, value=value, overwrite=overwrite, job_id=job)))


def test_job_ids_count_from_one_and_go_on_after_a_restart() -> None:
    rig = Rig()
    ids = [only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id for _ in range(3)]
    assert ids == [b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"]
    after = rig.restarted()
    assert only(after(on.JobAdded(pb.Job())), do.Answer).message.job_id == b"\4\0\0\0"
    assert len(list(after.cluster.jobs)) == 4


def test_a_driver_that_asks_again_gets_the_job_it_has_also_of_a_control_store_that_was_started_again() -> None:
    rig = Rig()
    asked = pb.Job(driver_worker_id=worker_id(1), driver_node_id=node_id(1), entrypoint="x.py")
    first = only(rig(on.JobAdded(pb.Job.FromString(asked.SerializeToString()))), do.Answer).message.job_id
    after = rig.restarted()
    effects = after(on.JobAdded(pb.Job.FromString(asked.SerializeToString())))
    assert only(effects, do.Answer).message.job_id == first
    assert not every(effects, do.Persist) and not every(effects, do.Publish)
    assert only(after(on.JobAdded(pb.Job(driver_worker_id=worker_id(2)))), do.Answer).message.job_id == b"\2\0\0\0"
    after(on.JobFinished(first))
    assert only(after(on.JobAdded(asked)), do.Answer).message.finished, "nobody is left who would end another one"
    assert len(list(after.cluster.jobs)) == 2


def test_a_finished_job_is_published_told_to_every_raylet_and_its_keys_go() -> None:
    rig = Rig(nodes=2)
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id
    put(rig, b"own", job=job)
    put(rig, b"other")
    effects = rig(on.JobFinished(job))
    assert {effect.node_id for effect in every(effects, do.FinishJobOn)} == {node_id(1), node_id(2)}
    assert pb.Job.FromString(only(effects, do.Publish).payload).finished
    assert rig.cluster.kv.keys("n", b"") == [b"other"]
    assert rig.stored["kv"].keys() == {b"n\0other"}
    assert rig(on.JobFinished(job)) == []


def test_a_node_that_comes_back_is_told_again_which_jobs_have_ended() -> None:
    rig = Rig(nodes=1)
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id
    rig(on.JobFinished(job))
    after = rig.restarted()
    assert only(after(on.NodeRegistered(node(1))), do.FinishJobOn).job_id == job
    assert not every(after(on.NodeRegistered(node(2))), do.FinishJobOn)


def test_finishing_an_unknown_job_is_refused() -> None:
    with pytest.raises(Refused, match="no job 07000000"):
        Rig()(on.JobFinished(b"\7\0\0\0"))


def test_a_job_ends_with_its_driver_or_its_drivers_node() -> None:
    rig = Rig(nodes=2)
    for n in (1, 2):
        rig(on.JobAdded(pb.Job(driver_worker_id=worker_id(n), driver_node_id=node_id(n))))
    rig(on.WorkerDied(pb.ReportWorkerDeathRequest(worker_id=worker_id(1), node_id=node_id(1))))
    assert [job.finished for job in rig.cluster.jobs] == [True, False]
    rig(on.NodeLeft(node_id(2), "power"))
    assert [job.finished for job in rig.cluster.jobs] == [True, True]


def test_put_tells_whether_the_key_is_new_and_overwrites_only_when_asked() -> None:
    rig = Rig()
    assert only(put(rig, b"k", b"1"), do.Answer).message.added
    assert not only(put(rig, b"k", b"2", overwrite=False), do.Answer).message.added
    assert rig.cluster.kv.get("n", b"k") == b"1"
    effects = put(rig, b"k", b"3")
    assert not only(effects, do.Answer).message.added
    assert only(effects, do.WakeKeyWaiters).key == b"k"
    assert rig.cluster.kv.get("n", b"k") == b"3"
    assert rig.cluster.kv.size_bytes == 1


def test_who_asks_again_for_a_key_that_it_has_added_is_told_so_also_by_a_control_store_that_was_started_again() -> None:
    def claim(rig: Rig, value: bytes, request_id: bytes) -> bool:
        asked = pb.KvPutRequest(namespace="n", key=b"k", value=value, request_id=request_id)
        return bool(only(rig(on.KeyPut(asked)), do.Answer).message.added)

    rig = Rig()
    assert claim(rig, b"mine", b"first") and not claim(rig, b"mine", b"second") and claim(rig, b"mine", b"first")
    after = rig.restarted()
    assert claim(after, b"mine", b"first") and not claim(after, b"yours", b"second")
    assert after.cluster.kv.get("n", b"k") == b"mine"
    put(after, b"k", b"theirs")
    assert not claim(after, b"mine", b"first")  # it is not the claim's any more
    after(on.KeyDeleted(pb.KvDeleteRequest(namespace="n", key=b"k")))
    assert claim(after, b"yours", b"second") and not claim(after, b"mine", b"first")
    with pytest.raises(Refused, match="at most 64 bytes"):
        claim(after, b"x", b"i" * 65)


def test_keys_are_apart_by_namespace_and_deleted_by_prefix() -> None:
    rig = Rig()
    for key in (b"a/1", b"a/2", b"b/1"):
        put(rig, key)
    put(rig, b"a/1", namespace="m")
    deleted = rig(on.KeyDeleted(pb.KvDeleteRequest(namespace="n", key=b"a/", prefix=True)))
    assert only(deleted, do.Answer).message.deleted == 2
    assert rig.cluster.kv.keys("n", b"") == [b"b/1"]
    assert rig.cluster.kv.keys("m", b"") == [b"a/1"]
    assert only(rig(on.KeyDeleted(pb.KvDeleteRequest(namespace="n", key=b"a/1"))), do.Answer).message.deleted == 0


def test_a_key_that_a_later_put_took_from_a_job_outlives_it() -> None:
    rig = Rig()
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id
    put(rig, b"k", job=job)
    put(rig, b"k")
    rig(on.JobFinished(job))
    assert rig.cluster.kv.get("n", b"k") == b"v"


@pytest.mark.parametrize(("namespace", "key"), [("n", b""), ("n", b"k" * (MAX_KEY_BYTES + 1)), ("a\0b", b"k")])
def test_a_key_that_cannot_be_is_refused(namespace: str, key: bytes) -> None:
    with pytest.raises(Refused, match="a key has 1 to"):
        put(Rig(), key, namespace=namespace)


def test_keys_and_their_jobs_survive_a_restart() -> None:
    rig = Rig()
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id
    put(rig, b"own", b"1", job=job)
    put(rig, b"other", b"2")
    after = rig.restarted()
    assert after.cluster.kv.get("n", b"own") == b"1"
    after(on.JobFinished(job))
    assert after.cluster.kv.keys("n", b"") == [b"other"]
