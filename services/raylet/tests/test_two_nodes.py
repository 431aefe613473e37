"""Two real raylets: spill-over, reclaim across nodes, deaths told everywhere."""

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest
from raylet_node import alive, wait_for
from shoal_base.frames import Type
from shoal_base.wire import LeaseReclaim, NodeDied, WorkerDied
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet import effects as do
from shoal_raylet.cluster import Cluster
from shoal_raylet.leases import LeaseSpec
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def two(place):
    here, there = place.node(cpus=1), place.node(cpus=2)
    return place, here, there


def pid_of(node, worker):
    return next(info.pid for info in node.state().workers if info.worker_id == worker)


def test_what_does_not_fit_here_is_granted_there_and_comes_back(two):
    place, here, there = two
    driver = place.client(here)
    driver.demand(want=3)
    grants = [driver.grant() for _ in range(3)]
    assert sorted(grant.node_id == here.node_id for grant in grants) == [False, False, True]
    far = [grant for grant in grants if grant.node_id == there.node_id]
    assert {grant.address for grant in far} == {there.address}
    assert there.order(far[0].worker_id, "leases") == [far[0].lease_id]
    for grant in grants:
        driver.give_back(grant)
    wait_for(lambda: there.state().available["CPU"] == 20_000, "the far leases' return")


def test_a_far_holder_is_asked_to_give_back(two):
    place, here, there = two
    guest, local = place.client(here), place.client(there)
    guest.demand(want=3)
    grants = {grant.lease_id: grant for grant in [guest.grant() for _ in range(3)] if grant.node_id == there.node_id}
    local.demand()
    reclaim = LeaseReclaim.unpack(guest.expect(Type.LEASE_RECLAIM))
    assert reclaim.node_id == there.node_id
    guest.give_back(grants[reclaim.lease_id])
    assert local.grant().node_id == there.node_id


def test_a_far_workers_death_reaches_its_client(two):
    place, here, there = two
    driver = place.client(here)
    driver.demand(node_id=there.node_id)
    worker = driver.grant().worker_id
    task = os.urandom(16)
    there.order(worker, "task", task.hex(), "far.away")
    os.kill(pid_of(there, worker), signal.SIGKILL)
    died = WorkerDied.unpack(driver.expect(Type.WORKER_DIED))
    assert (died.worker_id, died.node_id, died.task_id) == (worker, there.node_id, task)


def test_a_client_that_goes_ends_the_far_worker_that_runs_for_it(two):
    place, here, there = two
    driver = place.client(here)
    driver.demand(node_id=there.node_id)
    worker = driver.grant().worker_id
    there.order(worker, "task", os.urandom(16).hex(), "far.away")
    pid = pid_of(there, worker)
    driver.close()
    wait_for(lambda: not alive(pid), "the far worker's end", 5.0)


def test_a_node_that_dies_is_told_and_its_guests_leases_end(two):
    place, here, there = two
    guest = place.client(there)
    guest.demand(node_id=here.node_id)
    worker = guest.grant().worker_id
    watcher = place.client(here)
    there.process.kill()
    there.process.wait()
    node = place.gcs.nodes[there.node_id]
    node.alive, node.death_cause, node.end_ms = False, "its lease ended", 1
    place.gcs.publish("nodes", node.SerializeToString())
    died = NodeDied.unpack(watcher.expect(Type.NODE_DIED))
    assert (died.node_id, died.cause) == (there.node_id, "its lease ended")
    wait_for(lambda: worker not in [info.worker_id for info in here.state().workers], "the guest's worker's end")
    assert here.state().available["CPU"] == 10_000


def test_a_worker_that_may_end_in_its_own_time_hears_of_the_nodes_that_die_until_then(two):
    place, here, there = two
    driver = place.client(here)
    driver.demand(node_id=here.node_id)
    grant = driver.grant()
    here.order(grant.worker_id, "leave")
    driver.give_back(grant)
    wait_for(lambda: "ENDING" in [info.state for info in here.state().workers if info.worker_id == grant.worker_id], "its end to be awaited")
    node = place.gcs.nodes[there.node_id]
    node.alive, node.death_cause, node.end_ms = False, "its lease ended", 1
    place.gcs.publish("nodes", node.SerializeToString())
    wait_for(lambda: here.order(grant.worker_id, "dead nodes") == [there.node_id.hex()], "the news at the worker")


def test_the_address_of_a_node_that_is_too_new_for_the_raylet_is_the_control_stores(two):
    place, here, there = two
    driver = place.client(here)
    new = place.gcs.nodes[b"n" * 16] = gcs.Node(node_id=b"n" * 16, address="127.0.0.1:1", alive=True)

    def address(node_id):
        answer = driver.call("raylet/NodeAddress", pb.NodeQuery(node_id=node_id).SerializeToString())
        assert answer.code == 0
        return pb.NodeAddress.FromString(answer.payload)

    assert address(new.node_id) == pb.NodeAddress(address="127.0.0.1:1", alive=True)
    assert address(b"m" * 16) == pb.NodeAddress()
    node = place.gcs.nodes[there.node_id]
    node.alive, node.death_cause, node.end_ms = False, "its lease ended", 1
    place.gcs.publish("nodes", node.SerializeToString())
    driver.expect(Type.NODE_DIED)
    assert address(there.node_id) == pb.NodeAddress()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("the channel is closed")], ids=lambda error: type(error).__name__)
def test_a_request_for_a_lease_that_comes_to_nothing_is_answered_whatever_the_reason(error):
    async def call(*_):
        raise error

    heard = []
    raylet = SimpleNamespace(peers=SimpleNamespace(call=call), closing=False, feed=heard.append)
    cluster = Cluster(raylet)
    cluster.nodes[b"n" * 16] = gcs.Node(node_id=b"n" * 16, address="127.0.0.1:1", alive=True)
    asked = do.RequestRemoteLease(7, b"n" * 16, LeaseSpec.read(pb.LeaseClass()), 1, b"client", b"h" * 16, 0.0)
    with pytest.raises(type(error)):
        asyncio.run(cluster.request_lease(asked))
    assert [(answer.request, answer.granted) for answer in heard] == [(7, False)]


def test_gpus_that_only_the_other_node_has_are_waited_for_there(place):
    here, there = place.node(cpus=1), place.node(cpus=1, resources={"GPU": 1})
    first, second = place.client(here), place.client(here)
    first.demand(resources={"GPU": 1}, cpus=0)
    grant = first.grant()
    assert grant.node_id == there.node_id
    second.demand(resources={"GPU": 1}, cpus=0)
    assert LeaseReclaim.unpack(first.expect(Type.LEASE_RECLAIM)).lease_id == grant.lease_id
    first.give_back(grant)
    assert second.grant().node_id == there.node_id


def test_the_gcs_hears_of_resources_soon(two):
    place, _here, there = two
    driver = place.client(there)
    driver.demand(want=2)
    driver.grant(), driver.grant()
    wait_for(lambda: place.gcs.heartbeats[there.node_id].available.get("CPU") == 0, "the report", 2.0)
    assert isinstance(place.gcs.heartbeats[there.node_id], gcs.HeartbeatRequest)


def test_a_draining_node_takes_no_more(two):
    place, here, there = two
    here.stub.Drain(pb.DrainRequest(reason="maintenance"))
    driver = place.client(here)
    driver.demand()
    assert driver.grant().node_id == there.node_id


def test_a_lease_whose_grant_never_reached_the_other_node_comes_back_though_nobody_waits_for_it(two):
    _place, here, there = two
    request = pb.RequestLeaseRequest(
        lease_class=pb.LeaseClass(resources={"CPU": 10_000}, job_id=b"job1", name="f", bundle_index=-1).SerializeToString(), hops=1,
        client_worker_id=os.urandom(16), client_node_id=here.node_id,
    )  # fmt: skip
    assert there.stub.RequestLease(request).granted, "the answer ends here, as with a connection that breaks: `here` never hears of it"
    wait_for(lambda: there.state().available["CPU"] == 20_000, "the lease's return", 20.0)


def test_what_was_lent_to_a_client_of_another_node_ends_when_the_cluster_hears_of_its_death(two):
    place, here, there = two
    client = os.urandom(16)
    request = pb.RequestLeaseRequest(
        lease_class=pb.LeaseClass(resources={"CPU": 10_000}, job_id=b"job1", name="f", bundle_index=-1).SerializeToString(), hops=1,
        client_worker_id=client, client_node_id=here.node_id,
    )  # fmt: skip
    lent = there.stub.RequestLease(request)
    there.order(lent.worker_id, "task", os.urandom(16).hex(), "for.the.dead")
    pid = pid_of(there, lent.worker_id)
    place.gcs.publish("workers", gcs.ReportWorkerDeathRequest(worker_id=client, node_id=here.node_id).SerializeToString())
    wait_for(lambda: not alive(pid), "the end of the worker that ran for it")
