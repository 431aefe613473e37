"""What a node that is to go decides: nothing new, leases asked back, actors that move, and when nothing is left."""

from __future__ import annotations

import pytest
from raylet_world import HERE, World, one, only, spec
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.draining import left
from shoal_raylet.store import primary_bytes
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(30)
ACTOR = b"actor-----------"


def actor(world: World, **options: object) -> do.CreateActorOn:
    held = {"CPU": 10_000}
    create = one(world.feed(on.ActorRequested(world.request(), ACTOR, 0, spec(), held, b"the task", name="A")), do.CreateActorOn)
    world.feed(on.ActorCreated(create.worker_id, ACTOR, True))
    return create


def test_an_idle_node_has_nothing_left_at_once():
    world = World()
    world.feed(on.DrainStarted("maintenance"))
    assert left(world.core) == []


def test_running_tasks_are_asked_back_and_counted_until_they_are_returned():
    world = World()
    grant, other = only(world.demand(want=2, spec=spec()), do.GrantLease)
    effects = world.feed(on.DrainStarted("maintenance"))
    assert [reclaim.lease_id for reclaim in only(effects, do.ReclaimLease)] == [grant.lease_id, other.lease_id]
    assert left(world.core) == ["2 tasks"]
    assert not only(world.feed(on.DrainStarted("again")), do.ReclaimLease)
    world.give_back(grant)
    assert left(world.core) == ["1 task"]
    world.give_back(other)
    assert left(world.core) == []


def test_an_actor_that_waits_for_room_is_refused_at_once_so_that_it_goes_elsewhere():
    world = World(cpus=1)
    world.demand(spec=spec())
    world.feed(on.ActorRequested(7, ACTOR, 0, spec(), {"CPU": 10_000}, b"the task", name="A"))
    answer = one(world.feed(on.DrainStarted("maintenance")), do.AnswerActor)
    assert (answer.request, answer.status) == (7, pb.NO_RESOURCES)
    assert "draining: maintenance" in answer.reason


def test_an_actor_that_moves_ends_after_its_call_and_its_end_is_told_as_a_move():
    world = World()
    create = actor(world)
    world.feed(on.DrainStarted("maintenance"))
    assert left(world.core) == ["1 actor"]
    told = one(world.feed(on.KillRequested(create.worker_id, ACTOR, False, "moves", migrate=True)), do.ExitWorker)
    assert (told.patient, told.force) == (True, False)
    death = one(world.die(create.worker_id, 0, "exit code 0"), do.TellWorkerDied)
    assert (death.migrated, death.actors) == (True, [ACTOR])
    assert left(world.core) == []


def test_an_actor_that_moves_does_not_stay_for_objects_of_its_own():
    world = World()
    create = actor(world)
    world.feed(on.DrainStarted("maintenance"))
    world.feed(on.KillRequested(create.worker_id, ACTOR, False, "moves", migrate=True))
    assert one(world.feed(on.OwnershipChanged(create.worker_id, True, True)), do.KillWorker).worker_id == create.worker_id


def test_a_worker_whose_objects_others_hold_is_left_and_named():
    world = World()
    grant = one(world.demand(spec=spec()), do.GrantLease)
    world.feed(on.OwnershipChanged(grant.worker_id, True, False))
    world.give_back(grant)
    world.feed(on.DrainStarted("maintenance"))
    assert left(world.core) == ["1 process whose objects others hold"]
    world.feed(on.OwnershipChanged(grant.worker_id, False, False))
    assert left(world.core) == []
    assert grant.node_id == HERE


def test_what_lies_on_a_node_alone_is_read_from_its_store_s_figures():
    from shoal_objectstore.v1 import objectstore_pb2 as store

    stats = store.StatsReply(capacity_bytes=1 << 40, sealed_bytes=5_000_000, copies_bytes=2_000_000, created_bytes=7, on_disk_bytes=300, fragmentation=0.5)
    assert primary_bytes(stats.SerializeToString()) == 3_000_307
    assert primary_bytes(store.StatsReply().SerializeToString()) == 0
    assert primary_bytes(store.StatsReply(sealed_bytes=1, copies_bytes=2).SerializeToString()) == 0, "figures of different moments"
    with pytest.raises(ValueError, match="wire type 2"):
        primary_bytes(b"\x0a\x01x")
