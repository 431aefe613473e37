"""Raylets with the real control store: registration, jobs, actors and groups end to end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

import pytest
from raylet_node import wait_for
from shoal_base.frames import Type
from shoal_base.wire import Event
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.v1 import raylet_pb2 as pb

pytest.importorskip("shoal_gcs.__main__")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def control_store(place):
    ready_r, ready_w = os.pipe()
    command = [sys.executable, "-m", "shoal_gcs", "--secrets-dir", str(place.secrets_dir), "--storage", "memory", "--lease-s", "3", "--heartbeat-s", "0.3"]
    process = subprocess.Popen([*command, "--ready-fd", str(ready_w)], pass_fds=[ready_w])
    os.close(ready_w)
    with open(ready_r) as ready:
        assert select.select([ready], [], [], 30)[0], "the GCS was not ready within 30 s"
        address = json.loads(ready.readline())["address"]
    yield place, address
    for client in place.clients:
        client.close()
    for node in place.nodes:
        node.stop()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


def ask(client, method, request, reply):
    answer = client.call(f"gcs/{method}", request.SerializeToString())
    assert answer.code == 0, answer.text
    return reply.FromString(answer.payload)


def create_actor(client, actor, do="ok", **placement):
    task = json.dumps({"actor": actor.hex(), "do": do}).encode()
    record = gcs.Actor(actor_id=actor, job_id=client.job, class_name="A", owner_worker_id=client.id, owner_node_id=client.registered.node_id)
    where = gcs.Placement(resources={"CPU": 10_000}, bundle_index=-1, **placement)
    client.call("raylet/Subscribe", pb.SubscribeChannels(add=[f"actor:{actor.hex()}"]).SerializeToString())
    ask(client, "CreateActor", gcs.CreateActorRequest(actor=record, creation_task=task, placement=where), gcs.Actor)


def until(client, actor, state):
    while True:
        event = Event.unpack(client.expect(Type.EVENT))
        record = gcs.Actor.FromString(event.payload)
        if event.channel == f"actor:{actor.hex()}" and record.state == state:
            return record


def test_an_actor_is_created_killed_and_told(control_store):
    place, address = control_store
    node = place.node(gcs_address=address)
    driver = place.client(node)
    actor = os.urandom(16)
    create_actor(driver, actor)
    record = until(driver, actor, gcs.ACTOR_ALIVE)
    assert (record.node_id, record.address) == (node.node_id, node.address)
    os.kill(record.pid, signal.SIGKILL)
    dead = until(driver, actor, gcs.ACTOR_DEAD)
    assert "SIGKILL" in dead.death_cause


def test_an_init_that_raises_reaches_the_owner_with_its_error(control_store):
    place, address = control_store
    driver = place.client(place.node(gcs_address=address))
    actor = os.urandom(16)
    create_actor(driver, actor, "raise")
    assert until(driver, actor, gcs.ACTOR_DEAD).death_error == b"its error"


def test_a_group_spreads_over_two_nodes_and_its_leases_follow(control_store):
    place, address = control_store
    here, there = place.node(cpus=1, gcs_address=address), place.node(cpus=1, gcs_address=address)
    driver = place.client(here)
    wait_for(lambda: len(ask(driver, "ListNodes", gcs.Empty(), gcs.NodeList).nodes) == 2, "both nodes")
    bundles = [gcs.Bundle(index=i, resources={"CPU": 10_000}) for i in range(2)]
    group = gcs.PlacementGroup(placement_group_id=os.urandom(16), strategy="STRICT_SPREAD", bundles=bundles, job_id=driver.job)
    ask(driver, "CreatePlacementGroup", gcs.CreatePlacementGroupRequest(group=group), gcs.PlacementGroup)
    wait = gcs.WaitPlacementGroupRequest(placement_group_id=group.placement_group_id, timeout_ms=5000)
    made = ask(driver, "WaitPlacementGroup", wait, gcs.PlacementGroup)
    assert made.state == gcs.PG_CREATED
    places = {bundle.index: bundle.node_id for bundle in made.bundles}
    assert set(places.values()) == {here.node_id, there.node_id}
    for index, node_id in places.items():
        driver.demand(class_id=10 + index, placement_group_id=group.placement_group_id, bundle_index=index)
        assert driver.grant().node_id == node_id
    ask(driver, "RemovePlacementGroup", gcs.PlacementGroupQuery(placement_group_id=group.placement_group_id), gcs.Empty)
    for node in (here, there):
        wait_for(lambda node=node: node.state().available["CPU"] == 10_000, "the bundles' return")


def test_events_that_are_told_together_arrive_each_and_in_order(control_store):
    place, address = control_store
    node = place.node(gcs_address=address)
    teller, listener = place.client(node), place.client(node)
    listener.call("raylet/Subscribe", pb.SubscribeChannels(add=["mine"]).SerializeToString())
    for number in range(300):
        teller.send_call("gcs/Publish", gcs.Event(channel="mine", payload=b"%d" % number).SerializeToString())
    assert [Event.unpack(listener.expect(Type.EVENT)).payload for _ in range(300)] == [b"%d" % number for number in range(300)]


def test_a_raylet_that_is_killed_is_a_dead_node_for_the_others(control_store):
    place, address = control_store
    here, there = place.node(gcs_address=address), place.node(gcs_address=address)
    driver = place.client(here)
    wait_for(lambda: len(ask(driver, "ListNodes", gcs.Empty(), gcs.NodeList).nodes) == 2, "both nodes")
    there.process.kill()
    there.process.wait()
    assert driver.expect(Type.NODE_DIED, 15.0)[:16] == there.node_id


def test_the_end_of_a_driver_ends_its_job_everywhere(control_store):
    place, address = control_store
    here, there = place.node(cpus=1, gcs_address=address), place.node(cpus=2, gcs_address=address)
    driver, other = place.client(here), place.client(there)
    wait_for(lambda: len(ask(driver, "ListNodes", gcs.Empty(), gcs.NodeList).nodes) == 2, "both nodes")
    driver.demand(want=3)
    workers = {driver.grant().worker_id for _ in range(3)}
    driver.close()
    wait_for(lambda: ask(other, "GetJob", gcs.JobQuery(job_id=driver.job), gcs.Job).finished, "the job's end")
    for node in (here, there):
        wait_for(lambda node=node: not workers & {info.worker_id for info in node.state().workers}, "the workers' end", 5.0)
