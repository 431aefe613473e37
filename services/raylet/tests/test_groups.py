"""Bundles and large actors behind tasks that never end: leases come back for them, and nobody takes what came back."""

from __future__ import annotations

from raylet_world import World, one, only, spec
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.v1 import raylet_pb2 as pb

GROUP = b"group-----------"
OTHER = b"group-other-----"
ACTOR = b"actor-----------"
CPU = 10_000


def reserve(world: World, cpus: float, group: bytes = GROUP, wait_s: float = 1.0, request: int = 77) -> list[do.Effect]:
    return world.feed(on.BundlesRequested(request, group, {0: {"CPU": int(cpus * CPU)}}, wait_s))


def endless(world: World, leases: int) -> list[do.GrantLease]:
    """A client that holds so many leases and wishes ever more."""
    return only(world.demand(want=1000, spec=spec()), do.GrantLease)[:leases]


def test_bundles_get_what_tasks_give_back_and_the_tasks_do_not_take_it_again():
    world = World(cpus=2)
    first, second = endless(world, 2)
    effects = reserve(world, 2)
    assert {effect.lease_id for effect in only(effects, do.ReclaimLease)} == {first.lease_id, second.lease_id}
    assert not only(effects, do.AnswerBundles)
    assert not only(world.give_back(first), do.GrantLease), "one CPU alone is too little for the bundle, and yet it is the bundle's"
    effects = world.give_back(second)
    assert one(effects, do.AnswerBundles) == do.AnswerBundles(77)
    assert not only(effects, do.GrantLease)
    world.feed(on.BundlesCommitted(78, GROUP, [0]))
    world.feed(on.BundlesCancelled(GROUP))
    assert len(only(world.log, do.GrantLease)) == 4, "the tasks have their CPUs again"
    assert not world.core.aside


def test_without_patience_the_answer_comes_at_once_and_nothing_is_asked_back():
    world = World(cpus=1)
    endless(world, 1)
    effects = reserve(world, 1, wait_s=0.0)
    assert "CPU 1" in one(effects, do.AnswerBundles).reason
    assert not only(effects, do.ReclaimLease)


def test_what_could_never_fit_is_refused_at_once():
    world = World(cpus=1)
    endless(world, 1)
    effects = reserve(world, 2)
    assert "CPU 2" in one(effects, do.AnswerBundles).reason
    assert not only(effects, do.ReclaimLease)


def test_behind_a_long_task_the_wait_ends_and_what_comes_back_later_is_kept_for_a_moment():
    world = World(cpus=1, aside_s=1.0)
    (grant,) = endless(world, 1)
    reserve(world, 1)
    assert not only(world.tick(0.5), do.AnswerBundles)
    assert world.scheduler.reclaimable(world.now) == {"CPU": CPU}
    assert "CPU 1" in one(world.tick(0.6), do.AnswerBundles).reason
    assert world.scheduler.reclaimable(world.now) == {}, "a long task: whoever waits for it would wait in vain"
    world.tick(30)
    assert not only(world.give_back(grant), do.GrantLease)
    assert world.core.available() == {"CPU": CPU}, "the control store sees it, and asks once more"
    assert one(reserve(world, 1, request=78), do.AnswerBundles) == do.AnswerBundles(78)


def test_what_nobody_came_for_goes_back_to_the_tasks():
    world = World(cpus=1, aside_s=1.0)
    (grant,) = endless(world, 1)
    reserve(world, 1)
    world.tick(1.1)
    world.give_back(grant)
    assert "kept for" in world.scheduler.explain(world.core.queue.all()[0])
    assert not only(world.tick(0.9), do.GrantLease)
    assert one(world.tick(0.2), do.GrantLease)


def test_bundles_that_are_given_up_while_they_wait_are_answered_and_hold_nothing():
    world = World(cpus=1)
    (grant,) = endless(world, 1)
    reserve(world, 1)
    assert "given up" in one(world.feed(on.BundlesCancelled(GROUP)), do.AnswerBundles).reason
    world.give_back(grant)
    world.tick(1.1)
    assert len(world.core.leases) == 1


def test_the_same_bundles_asked_for_twice_are_made_once():
    world = World(cpus=1)
    (grant,) = endless(world, 1)
    reserve(world, 1)
    assert "once more" in one(reserve(world, 1, request=78), do.AnswerBundles).reason
    assert one(world.give_back(grant), do.AnswerBundles) == do.AnswerBundles(78)
    assert one(reserve(world, 1, request=79), do.AnswerBundles) == do.AnswerBundles(79), "idempotent"
    assert world.core.available() == {"CPU": 0}


def test_a_draining_node_answers_bundles_that_wait():
    world = World(cpus=1)
    endless(world, 1)
    reserve(world, 1)
    assert "draining" in one(world.feed(on.DrainStarted("spot")), do.AnswerBundles).reason


def test_two_groups_that_wait_both_get_theirs():
    world = World(cpus=2)
    grants = endless(world, 2)
    reserve(world, 1)
    reserve(world, 1, OTHER, request=78)
    answers = [answer for grant in grants for answer in only(world.give_back(grant), do.AnswerBundles)]
    assert answers == [do.AnswerBundles(77), do.AnswerBundles(78)]


def test_an_actor_of_several_cpus_gets_them_one_by_one_and_keeps_what_came():
    world = World(cpus=2)
    first, second = endless(world, 2)
    whole = {"CPU": 2 * CPU}
    assert len(only(world.feed(on.ActorRequested(1, ACTOR, 0, spec(2), whole)), do.ReclaimLease)) == 2
    assert not only(world.give_back(first), do.GrantLease)
    effects = world.give_back(second)
    assert one(effects, do.CreateActorOn).actor_id == ACTOR
    assert not only(effects, do.GrantLease)
    world.feed(on.ActorCreated(one(effects, do.CreateActorOn).worker_id, ACTOR, True))
    assert only(world.log, do.AnswerActor)[-1].status == pb.STARTED


def test_an_actor_that_holds_nothing_takes_nothing_from_the_tasks():
    world = World(cpus=1)
    (grant,) = endless(world, 1)
    world.feed(on.ActorRequested(1, ACTOR, 0, spec(), {}))
    assert one(world.log, do.CreateActorOn), "it waited for nobody"
    assert one(world.give_back(grant), do.GrantLease).client == b"client"


def test_what_is_kept_aside_is_no_obstacle_for_what_needs_something_else():
    world = World(cpus=1, resources={"GPU": 1})
    (grant,) = endless(world, 1)
    reserve(world, 1)
    world.tick(1.1)
    world.give_back(grant)
    assert one(world.demand(b"other", 5, spec=spec(0, resources={"GPU": 1})), do.GrantLease)


def test_a_class_that_spreads_is_told_over_how_many_nodes():
    from raylet_world import THERE, node

    world = World(cpus=2)
    assert one(world.demand(b"alone", spec=spec(strategy="SPREAD")), do.GrantLease).spread_over == 1
    world.feed(on.ViewChanged([node(THERE, {"CPU": 2}), node(b"node-full-------", {"CPU": 0}, {"CPU": 2})]))
    asked = only(world.demand(want=2, spec=spec(strategy="SPREAD")), do.RequestRemoteLease)
    granted = only(world.log, do.GrantLease)[1:]
    assert granted or asked
    for effect in asked:
        granted += only(world.feed(on.RemoteLeaseAnswered(effect.request, True, 9, b"w" * 16, effect.node_id, "h:1")), do.GrantLease)
    assert {grant.spread_over for grant in granted} == {2}, "the full node does not count"
    assert one(world.demand(b"plain", spec=spec(0)), do.GrantLease).spread_over == 0
