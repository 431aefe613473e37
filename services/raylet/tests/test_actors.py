"""Actors and bundles on one node."""

import pytest
from raylet_world import HERE, THERE, World, node, one, only, spec
from shoal_base.errors import Code
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(30)
ACTOR = b"actor-----------"
GROUP = b"group-----------"


def start(world: World, actor: bytes = ACTOR, incarnation: int = 0, held: dict[str, int] | None = None, request: int | None = None, **fields):
    number = world.request() if request is None else request
    return world.feed(on.ActorRequested(number, actor, incarnation, spec(**fields), held or {}, b"the task", name="A"))


def test_an_actor_gets_a_worker_its_lease_and_its_task_and_answers_when_init_has_ended():
    world = World()
    effects = start(world)
    begin, create = one(effects, do.BeginLease), one(effects, do.CreateActorOn)
    assert create.worker_id == begin.worker_id and create.creation_task == b"the task"
    answer = one(world.feed(on.ActorCreated(create.worker_id, ACTOR, True)), do.AnswerActor)
    assert (answer.status, answer.worker_id) == (pb.STARTED, create.worker_id)
    assert world.core.available() == {"CPU": 20_000}, "placed by one CPU, keeps none"


def test_two_hundred_actors_fit_a_node_of_two_cpus():
    world = World(cpus=2)
    for n in range(200):
        assert one(start(world, b"actor%011d" % n), do.CreateActorOn)
    assert len(world.core.leases) == 200


def test_asking_twice_starts_once():
    world = World()
    create = one(start(world, request=1), do.CreateActorOn)
    assert start(world, request=2) == []
    answers = only(world.feed(on.ActorCreated(create.worker_id, ACTOR, True)), do.AnswerActor)
    assert [answer.request for answer in answers] == [1, 2]
    assert one(start(world, request=3), do.AnswerActor).worker_id == create.worker_id


def test_an_init_that_raises_answers_its_error_and_ends_the_worker():
    world = World()
    create = one(start(world, held={"CPU": 10_000}), do.CreateActorOn)
    effects = world.feed(on.ActorCreated(create.worker_id, ACTOR, False, b"pickled"))
    answer = one(effects, do.AnswerActor)
    assert (answer.status, answer.error, answer.code) == (pb.INIT_RAISED, b"pickled", Code.INIT_RAISED)
    assert one(effects, do.ExitWorker).worker_id == create.worker_id
    told = one(world.die(create.worker_id, 0, "exit code 0"), do.TellWorkerDied)
    assert told.actors == [] and told.intended
    assert world.core.available() == {"CPU": 20_000}


def test_a_worker_that_dies_in_init_answers_once_and_is_not_reported_as_an_actors_death():
    world = World()
    create = one(start(world), do.CreateActorOn)
    effects = world.die(create.worker_id, 1, "signal 9 (SIGKILL)")
    answer = one(effects, do.AnswerActor)
    assert (answer.status, answer.reason) == (pb.WORKER_DIED, "signal 9 (SIGKILL)")
    assert one(effects, do.TellWorkerDied).actors == []


def test_a_living_actors_death_names_it():
    world = World()
    create = one(start(world), do.CreateActorOn)
    world.feed(on.ActorCreated(create.worker_id, ACTOR, True))
    assert one(world.die(create.worker_id), do.TellWorkerDied).actors == [ACTOR]
    assert not world.core.actors


def test_a_later_incarnation_replaces_and_an_earlier_one_is_refused():
    world = World()
    first = one(start(world), do.CreateActorOn)
    world.feed(on.ActorCreated(first.worker_id, ACTOR, True))
    effects = start(world, incarnation=1)
    assert one(effects, do.KillWorker).worker_id == first.worker_id and one(effects, do.CreateActorOn).worker_id != first.worker_id
    assert one(start(world, incarnation=0), do.AnswerActor).code == Code.FENCED
    assert one(world.die(first.worker_id), do.TellWorkerDied).actors == [], "the actor lives on in its next incarnation"
    assert ACTOR in world.core.actors


def test_a_busy_node_reclaims_for_an_actor_and_says_no_after_a_while():
    world = World(cpus=1, actor_wait_s=1.0)
    world.demand(spec=spec())
    assert one(start(world, held={"CPU": 10_000}), do.ReclaimLease)
    assert only(world.tick(0.5), do.AnswerActor) == []
    answer = one(world.tick(0.6), do.AnswerActor)
    assert answer.status == pb.NO_RESOURCES and "free of CPU 1" in answer.reason


def test_an_actor_that_holds_nothing_starts_on_a_busy_node_and_takes_nobodys_lease():
    world = World(cpus=1)
    world.demand(spec=spec())
    effects = start(world, held={})
    assert one(effects, do.CreateActorOn)
    assert only(effects, do.ReclaimLease) == []


def test_what_can_never_fit_is_answered_at_once():
    world = World(cpus=1)
    answer = one(start(world, held={"GPU": 10_000}), do.AnswerActor)
    assert answer.status == pb.NO_RESOURCES and "GPU 1" in answer.reason


def test_killing_an_actor_that_has_not_begun_answers_its_start():
    world = World(auto=False)
    start(world)
    effects = world.feed(on.KillRequested(b"", ACTOR, True, "ray.kill"))
    assert one(effects, do.AnswerActor).code == Code.KILLED_BY_USER
    assert not world.core.unmanned and world.core.unmanned_actors == 0


def test_a_kill_names_its_reason_as_the_cause():
    world = World()
    create = one(start(world), do.CreateActorOn)
    world.feed(on.ActorCreated(create.worker_id, ACTOR, True))
    assert one(world.feed(on.KillRequested(b"", ACTOR, True, "killed by shoal.kill()")), do.KillWorker)
    told = one(world.die(create.worker_id, 1, "signal 9"), do.TellWorkerDied)
    assert (told.code, told.cause, told.intended) == (Code.KILLED_BY_USER, "killed by shoal.kill()", True)


def test_detached_actors_outlive_their_job():
    world = World()
    kept = one(world.feed(on.ActorRequested(1, ACTOR, 0, spec(), {}, detached=True)), do.CreateActorOn)
    gone = one(start(world, b"actor-2---------"), do.CreateActorOn)
    for create in (kept, gone):
        world.feed(on.ActorCreated(create.worker_id, create.actor_id, True))
    effects = world.feed(on.JobFinished(b"job1"))
    assert {effect.worker_id for effect in only(effects, do.KillWorker) + only(effects, do.ExitWorker)} == {gone.worker_id}


# -- bundles ------------------------------------------------------------------------------------------


def bundle(world: World, cpus: float = 1, index: int = 0, commit: bool = True):
    effects = world.feed(on.BundlesRequested(world.request(), GROUP, {index: {"CPU": int(cpus * 10_000)}}))
    if commit:
        effects += world.feed(on.BundlesCommitted(world.request(), GROUP, [index]))
    return effects


def test_a_wish_for_a_group_waits_for_its_bundle_and_uses_nothing_else():
    world = World(cpus=2)
    assert only(world.demand(spec=spec(placement_group_id=GROUP, bundle_index=-1)), do.GrantLease) == []
    assert one(bundle(world), do.GrantLease)
    assert world.core.available() == {"CPU": 10_000}
    assert only(world.demand(want=1), do.GrantLease) == []
    assert one(world.demand(b"other", spec=spec()), do.GrantLease)


def test_a_bundle_elsewhere_is_asked_there():
    world = World(cpus=2)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 2})]))
    world.feed(on.GroupChanged(GROUP, {0: (THERE, {"CPU": 10_000}), 1: (HERE, {"CPU": 10_000})}, True, False))
    bundle(world, index=1)
    assert one(world.demand(spec=spec(placement_group_id=GROUP, bundle_index=0)), do.RequestRemoteLease).node_id == THERE
    assert one(world.demand(class_id=2, spec=spec(placement_group_id=GROUP, bundle_index=-1)), do.GrantLease)


def test_a_removed_group_kills_what_runs_in_it_and_fails_what_waits_for_it():
    world = World(cpus=2)
    bundle(world)
    running = one(world.demand(spec=spec(placement_group_id=GROUP)), do.GrantLease)
    world.demand(want=2)
    effects = world.feed(on.GroupChanged(GROUP, {}, False, True))
    assert one(effects, do.KillWorker).worker_id == running.worker_id
    assert one(effects, do.RefuseLease).code == Code.PLACEMENT_GROUP_REMOVED
    assert world.core.available() == {"CPU": 10_000}, "until its worker is dead"
    world.die(running.worker_id)
    assert world.core.available() == {"CPU": 20_000}
    assert one(world.demand(want=1), do.RefuseLease).code == Code.PLACEMENT_GROUP_REMOVED


def test_a_preparation_that_nobody_commits_runs_out():
    world = World(cpus=1, prepare_timeout_s=10.0)
    bundle(world, commit=False)
    world.tick(11.0)
    assert world.core.available() == {"CPU": 10_000}
    assert "not prepared" in one(world.feed(on.BundlesCommitted(9, GROUP, [0])), do.AnswerBundles).reason


def test_a_bundle_index_that_the_group_lacks_is_unschedulable():
    world = World(cpus=2, infeasible_timeout_s=1.0)
    world.feed(on.GroupChanged(GROUP, {0: (HERE, {"CPU": 10_000})}, True, False))
    bundle(world)
    world.demand(spec=spec(placement_group_id=GROUP, bundle_index=3))
    world.tick(0.1)
    assert one(world.tick(1.1), do.RefuseLease).code == Code.UNSCHEDULABLE
