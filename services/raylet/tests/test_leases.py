"""Grants, queues, reclaims: one event in, exactly these effects out."""

import pytest
from raylet_world import HERE, JOB, THERE, World, node, one, only, spec
from shoal_base.errors import Code
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.unreturned import Unreturned

pytestmark = pytest.mark.timeout(30)


def test_an_idle_worker_is_granted_at_once_and_knows_its_lease_before_the_grant():
    world = World(prestart=1)
    world.feed(on.Started())
    begin, grant = world.demand(spec=spec())
    assert isinstance(begin, do.BeginLease) and isinstance(grant, do.GrantLease)
    assert (begin.lease_id, begin.worker_id, begin.owner, begin.owner_node) == (grant.lease_id, grant.worker_id, b"client", b"")
    assert grant.node_id == HERE and grant.address == ""


def test_a_grant_waits_for_its_worker_and_no_more_workers_are_forked_than_fit():
    world = World(cpus=2, auto=False)
    forks = only(world.demand(want=5, spec=spec()), do.ForkWorker)
    assert len(forks) == 2
    assert only(world.register(forks[0].fork), do.GrantLease)
    assert only(world.register(forks[1].fork), do.GrantLease)
    assert world.core.queue.all()[0].open == 3


def test_a_grant_lowers_want_and_a_repeated_demand_changes_nothing():
    world = World(cpus=4)
    assert len(only(world.demand(want=2, spec=spec()), do.GrantLease)) == 2
    assert world.core.wishes[b"client"][1].want == 0
    assert world.demand(want=0) == []


def test_withdrawn_wishes_give_their_reserved_resources_back():
    world = World(cpus=2, auto=False)
    world.demand(want=2, spec=spec())
    assert world.core.available() == {"CPU": 0}
    world.demand(want=1)
    assert world.core.available() == {"CPU": 10_000}
    world.demand(want=0)
    assert world.core.available() == {"CPU": 20_000} and not world.core.unmanned


def test_a_worker_that_comes_too_late_for_a_withdrawn_wish_serves_the_next():
    world = World(cpus=1, auto=False)
    fork = one(world.demand(spec=spec()), do.ForkWorker)
    world.demand(want=0)
    world.register(fork.fork)
    assert one(world.demand(want=1), do.GrantLease)


def test_a_returned_worker_is_used_again_for_its_job_and_never_for_another():
    world = World(cpus=1)
    first = one(world.demand(spec=spec()), do.GrantLease)
    world.give_back(first)
    again = one(world.demand(want=1), do.GrantLease)
    assert again.worker_id == first.worker_id and again.lease_id != first.lease_id
    world.give_back(again)
    other = one(world.demand(b"other", spec=spec(job=b"job2")), do.GrantLease)
    assert other.worker_id != first.worker_id


def test_a_lease_returned_for_good_ends_its_worker():
    world = World(cpus=1)
    grant = one(world.demand(spec=spec()), do.GrantLease)
    assert one(world.give_back(grant, discard=True), do.ExitWorker).worker_id == grant.worker_id
    assert world.core.available() == {"CPU": 0}, "it may still run"
    world.die(grant.worker_id, 0, "exit code 0")
    assert world.core.available() == {"CPU": 10_000}


def test_workers_of_another_environment_are_not_exchanged():
    world = World(cpus=2)
    plain = one(world.demand(spec=spec()), do.GrantLease)
    world.give_back(plain)
    effects = world.demand(class_id=2, spec=spec(runtime_env='{"env_vars": {"A": "1"}}'))
    assert one(effects, do.ForkWorker).environment == '{"env_vars":{"A":"1"}}'
    assert one(effects, do.GrantLease).worker_id != plain.worker_id


def test_one_lease_is_reclaimed_for_each_that_waits_longest_held_first():
    world = World(cpus=3)
    grants = only(world.demand(want=3, spec=spec()), do.GrantLease)
    assert only(world.demand(b"other", want=1, spec=spec()), do.ReclaimLease) == [do.ReclaimLease(b"client", b"", grants[0].lease_id, HERE)]
    assert only(world.tick(), do.ReclaimLease) == [], "one for each that waits"
    assert only(world.demand(b"third", want=1, spec=spec()), do.ReclaimLease)[0].lease_id == grants[1].lease_id
    assert one(world.give_back(grants[0]), do.GrantLease).client == b"other"


def test_nothing_is_reclaimed_for_the_holder_itself():
    world = World(cpus=1)
    world.demand(want=5, spec=spec())
    assert only(world.tick(), do.ReclaimLease) == []


def test_equal_holders_do_not_change_places_for_ever():
    world = World(cpus=2)
    world.demand(b"a", want=1, spec=spec())
    world.demand(b"b", want=1, spec=spec(job=b"job2"))
    assert only(world.demand(b"a", want=3), do.ReclaimLease) == []
    assert only(world.demand(b"b", want=3), do.ReclaimLease) == []


def test_a_wish_for_all_reclaims_as_many_as_it_needs():
    world = World(cpus=3)
    world.demand(want=3, spec=spec())
    assert len(only(world.demand(b"big", spec=spec(3)), do.ReclaimLease)) == 3


def test_jobs_take_turns():
    world = World(cpus=1)
    grant = one(world.demand(b"holder", spec=spec(job=b"job0")), do.GrantLease)
    world.demand(b"a", want=3, spec=spec(job=b"job1"))
    world.demand(b"b", want=3, spec=spec(job=b"job2"))
    order = []
    for _ in range(6):
        grant = one(world.give_back(grant), do.GrantLease)
        order.append(grant.client)
    assert order == [b"a", b"b"] * 3


def test_the_deepest_goes_first_once_somebody_is_blocked():
    world = World(cpus=1)
    parent = one(world.demand(b"driver", spec=spec()), do.GrantLease)
    world.demand(b"driver", 1, want=5)
    world.demand(parent.worker_id, 9, spec=spec(depth=1, name="child"))
    effects = world.feed(on.WorkerBlocked(parent.worker_id))
    assert one(effects, do.GrantLease).client == parent.worker_id


def test_a_blocked_worker_lends_its_cpu_and_takes_it_again():
    world = World(cpus=1)
    parent = one(world.demand(spec=spec()), do.GrantLease)
    assert only(world.demand(parent.worker_id, 7, spec=spec(depth=1)), do.GrantLease) == []
    child = one(world.feed(on.WorkerBlocked(parent.worker_id)), do.GrantLease)
    world.feed(on.WorkerUnblocked(parent.worker_id))
    assert world.core.pool.free["CPU"] == -10_000 and world.core.available()["CPU"] == 0
    world.give_back(child)
    assert world.core.pool.free["CPU"] == 0
    world.give_back(parent)
    assert world.core.pool.free["CPU"] == 10_000


def test_gpus_are_not_lent_by_the_blocked():
    world = World(cpus=1, resources={"GPU": 1}, gpus={"0": 10_000})
    parent = one(world.demand(spec=spec(resources={"GPU": 1})), do.GrantLease)
    world.feed(on.WorkerBlocked(parent.worker_id))
    assert world.core.available() == {"CPU": 10_000, "GPU": 0}


def test_all_workers_blocked_at_the_limit_is_an_error_that_names_the_depth():
    world = World(cpus=1, worker_limit=3, limit_grace_s=1.0)
    client = b"driver"
    for depth in range(3):
        grant = one(world.demand(client, depth, spec=spec(depth=depth, name="recurse")), do.GrantLease)
        client = grant.worker_id
        world.feed(on.WorkerBlocked(client))
    world.demand(client, 3, spec=spec(depth=3, name="recurse"))
    assert only(world.tick(0.5), do.RefuseLease) == []
    refused = one([*world.tick(0.6), *world.tick(0.6)], do.RefuseLease)
    assert refused.code == Code.LIMIT_REACHED and "depth 3" in refused.reason and "all 3 workers" in refused.reason


def test_the_limit_is_only_a_queue_while_a_worker_runs():
    world = World(cpus=1, worker_limit=2, limit_grace_s=0.1)
    grants = only(world.demand(want=3, spec=spec(0)), do.GrantLease)
    assert len(grants) == 2
    assert only(world.tick(5.0), do.RefuseLease) == []
    assert "worker limit" in world.core.queue.all()[0].reason
    assert only(world.give_back(grants[0]), do.GrantLease)


def test_idle_workers_of_another_job_make_room_at_the_limit():
    world = World(cpus=2, worker_limit=2)
    for grant in only(world.demand(want=2, spec=spec(job=b"job1")), do.GrantLease):
        world.give_back(grant)
    effects = world.demand(b"other", spec=spec(job=b"job2"))
    assert one(effects, do.ExitWorker) and one(effects, do.GrantLease)


def test_what_no_node_can_run_is_refused_after_ten_seconds_naming_the_wish_and_the_largest_node():
    world = World(cpus=2)
    world.demand(spec=spec(64, name="huge"))
    world.feed(on.ViewChanged([node(THERE, {"CPU": 8})]))
    assert only(world.tick(5.0), do.RefuseLease) == []
    assert "fits no node" in world.core.queue.all()[0].reason
    refused = one([*world.tick(6.0), *world.tick(6.0)], do.RefuseLease)
    assert refused.code == Code.UNSCHEDULABLE
    assert "huge needs CPU 64" in refused.reason and THERE.hex()[:12] in refused.reason and "CPU 8" in refused.reason


def test_a_node_that_joins_in_time_saves_it():
    world = World(cpus=2)
    world.demand(spec=spec(64))
    world.tick(9.0)
    assert one(world.feed(on.ViewChanged([node(THERE, {"CPU": 64})])), do.RequestRemoteLease).node_id == THERE
    assert only([*world.tick(6.0), *world.tick(6.0)], do.RefuseLease) == []


def test_with_an_autoscaler_it_waits():
    world = World(cpus=2, autoscaler=True)
    world.demand(spec=spec(64))
    assert only([*world.tick(100.0), *world.tick(100.0)], do.RefuseLease) == []
    assert "autoscaler" in world.core.queue.all()[0].reason


def test_a_client_that_dies_leaves_idle_workers_usable_and_running_ones_dead():
    world = World(cpus=3)
    first, second = only(world.demand(want=2, spec=spec()), do.GrantLease)
    world.demand(want=3)
    effects = world.feed(on.ClientGone(b"client", frozenset([second.worker_id])))
    assert one(effects, do.KillWorker).worker_id == second.worker_id
    told = one(world.die(second.worker_id), do.TellWorkerDied)
    assert told.code == Code.OWNER_DIED and told.intended
    assert not world.core.leases and not world.core.queue and world.core.available() == {"CPU": 30_000}
    assert one(world.demand(b"next", spec=spec()), do.GrantLease).worker_id in (first.worker_id, b"worker%010d" % 3)


def test_a_worker_that_dies_is_told_with_its_cause_and_replaced():
    world = World(cpus=1)
    grant = one(world.demand(spec=spec()), do.GrantLease)
    told = one(world.die(grant.worker_id, 1, "signal 11 (SIGSEGV)"), do.TellWorkerDied)
    assert (told.code, told.cause, told.intended, told.actors) == (1, "signal 11 (SIGSEGV)", False, [])
    assert one(world.demand(want=1), do.GrantLease).worker_id != grant.worker_id


def test_a_worker_that_cannot_start_fails_the_wish_after_three_tries():
    world = World(cpus=1, auto=False)
    fork = one(world.demand(spec=spec(runtime_env='{"env_vars":{"A":"1"}}')), do.ForkWorker).fork
    for _ in range(2):
        fork = one(world.feed(on.ForkFailed(fork, "exit code 3")), do.ForkWorker).fork
    refused = one(world.feed(on.ForkFailed(fork, "exit code 3")), do.RefuseLease)
    assert refused.code == Code.ENVIRONMENT_FAILED and "exit code 3" in refused.reason
    assert world.core.available() == {"CPU": 10_000}


def test_the_end_of_a_job_ends_its_workers_and_wishes_and_no_others():
    world = World(cpus=2)
    mine = one(world.demand(b"a", spec=spec()), do.GrantLease)
    other = one(world.demand(b"b", spec=spec(job=b"job2")), do.GrantLease)
    world.demand(b"a", want=5)
    effects = world.feed(on.JobFinished(JOB))
    assert [effect.worker_id for effect in only(effects, do.ExitWorker)] == [mine.worker_id] != [other.worker_id]
    assert one(world.die(mine.worker_id, 0, "exit code 0"), do.TellWorkerDied).code == Code.JOB_FINISHED
    assert not world.core.queue


def test_a_big_wish_is_not_starved_by_small_ones():
    world = World(cpus=4, hold_s=1.0)
    running = only(world.demand(b"small", want=4, spec=spec(1)), do.GrantLease)
    world.demand(b"small", want=1000)
    world.demand(b"big", spec=spec(4, job=b"job2"))
    for _ in range(200):
        effects = [*world.tick(0.05), *world.give_back(running.pop(0))] if running else world.tick(0.05)
        grants = only(effects, do.GrantLease)
        if any(grant.client == b"big" for grant in grants):
            return
        running += grants
    pytest.fail("the big one never got its turn")


def test_recursion_stays_deep_however_long_the_shallow_wait():
    """A binary tree of tasks, each blocked until its children are done: one branch at a time, though every sibling waits past the time of being held for."""
    world = World(cpus=1, hold_s=0.5)
    grant = one(world.demand(b"root", spec=spec(depth=0)), do.GrantLease)
    for depth in range(1, 12):
        parent = grant.worker_id
        world.demand(parent, want=2, spec=spec(depth=depth))
        effects = world.feed(on.WorkerBlocked(parent))
        while not (grants := only(effects, do.GrantLease)):
            effects = world.tick(0.1)
        (grant,) = grants
        assert grant.client == parent, f"a sibling was begun while depth {depth} waited"
        for _ in range(15):  # the child works: nobody else comes to run
            assert only(world.tick(0.1), do.GrantLease) == []
    assert len(world.core.leases) == 12


def test_idle_workers_beyond_the_cpus_end_after_their_grace():
    world = World(cpus=1, idle_grace_s=5.0)
    grants = only(world.demand(want=3, spec=spec(0)), do.GrantLease)
    for grant in grants:
        world.give_back(grant)
    assert only(world.tick(4.0), do.ExitWorker) == []
    assert len(only(world.tick(1.5), do.ExitWorker)) == 2
    assert only(world.tick(10.0), do.ExitWorker) == []


def test_a_few_workers_are_started_in_advance_and_kept():
    world = World(cpus=8, prestart=-1)
    assert len(only(world.feed(on.Started()), do.ForkWorker)) == 4
    for worker in world.scheduler.workers():
        world.die(worker.id)
    assert len(only(world.tick(), do.ForkWorker)) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_selector": {"zone": "in("}}, "zone"),
        ({"strategy": "BEST"}, "BEST"),
        ({"resources": {"CPU": -1}}, "negative"),
        ({"runtime_env": "{"}, "runtime_env"),
        ({"runtime_env": "[]"}, "runtime_env"),
    ],
)
def test_a_class_that_makes_no_sense_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        spec(**fields)


def test_a_worker_that_comes_free_after_its_jobs_end_does_not_stay():
    world = World(cpus=2)
    grant = one(world.demand(spec=spec()), do.GrantLease)
    world.feed(on.JobFinished(JOB))
    world.die(grant.worker_id)
    late = one(world.demand(b"late", spec=spec()), do.GrantLease)
    world.give_back(late)
    assert one(world.tick(1.1), do.ExitWorker).force


def test_the_end_of_the_job_does_not_wait_for_a_patient_end():
    world = World(cpus=1)
    actor = b"actor-----------"
    create = one(world.feed(on.ActorRequested(1, actor, 0, spec(), {})), do.CreateActorOn)
    world.feed(on.ActorCreated(create.worker_id, actor, True))
    assert one(world.feed(on.KillRequested(b"", actor, False, "out of scope")), do.ExitWorker).patient
    assert one(world.feed(on.JobFinished(JOB)), do.KillWorker).worker_id == create.worker_id


def test_a_lease_names_its_own_gpus_and_only_those():
    world = World(cpus=2, resources={"GPU": 2}, gpus={"4": 10_000, "7": 10_000})
    first = one(world.demand(spec=spec(resources={"GPU": 1})), do.BeginLease)
    second = one(world.demand(b"other", spec=spec(resources={"GPU": 0.5})), do.BeginLease)
    assert sorted([first.gpus, second.gpus]) == [("4",), ("7",)]


def test_an_idle_worker_that_owns_what_others_hold_is_kept_and_another_ends():
    world = World(cpus=1, idle_grace_s=5.0)
    grants = only(world.demand(want=3, spec=spec(0)), do.GrantLease)
    owner = grants[0].worker_id
    world.feed(on.OwnershipChanged(owner, True, False))
    for grant in grants:
        world.give_back(grant)
    ended = {effect.worker_id for effect in only(world.tick(6.0), do.ExitWorker)}
    assert owner not in ended
    assert len(ended) == 2
    world.feed(on.OwnershipChanged(owner, False, False))
    assert only(world.tick(6.0), do.ExitWorker) == []  # the node keeps as many as it has CPUs


def test_a_worker_that_leaves_with_objects_gives_its_resources_back_and_is_lent_to_nobody():
    world = World(cpus=1)
    (grant,) = only(world.demand(want=1, spec=spec()), do.GrantLease)
    world.feed(on.OwnershipChanged(grant.worker_id, True, True))
    effects = world.give_back(grant)
    assert one(effects, do.ExitWorker).patient
    assert world.core.leases == {}
    again = only(world.demand(want=1), do.GrantLease)
    assert grant.worker_id not in {other.worker_id for other in again}
    world.die(grant.worker_id)


def test_a_worker_that_is_not_to_be_used_again_stays_for_its_objects():
    world = World(cpus=1)
    (grant,) = only(world.demand(want=1, spec=spec()), do.GrantLease)
    world.feed(on.OwnershipChanged(grant.worker_id, True, False))
    effects = world.give_back(grant, discard=True)
    assert one(effects, do.ExitWorker).patient
    assert world.core.leases == {}


def test_a_lease_that_its_client_does_not_return_is_taken_back_and_lent_to_who_waits():
    world = World(cpus=1)
    grant = one(world.demand(b"stopped", spec=spec()), do.GrantLease)
    assert world.scheduler.doubtful() == []
    assert one(world.demand(b"waiting", spec=spec(name="g")), do.ReclaimLease).lease_id == grant.lease_id
    assert world.scheduler.doubtful() == [(grant.lease_id, grant.worker_id, True)]
    again = one(world.feed(on.LeaseIdle(grant.lease_id)), do.GrantLease)
    assert (again.client, again.worker_id) == (b"waiting", grant.worker_id)
    assert world.give_back(grant) == [], "what it returns later is not known any more"
    assert world.feed(on.LeaseIdle(again.lease_id)) == [], "one that nobody has asked back stays"


def lend_far(world, client=b"far"):
    """To a client of another node; the answer on its way."""
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    return one(world.feed(on.RemoteLeaseRequested(world.request(), spec(), 1, client, THERE, 0.0)), do.AnswerLease)


def test_a_lease_whose_grant_was_lost_on_the_way_to_another_node_is_asked_for_until_it_comes_back():
    world = World(cpus=1)
    lent = lend_far(world)
    assert world.scheduler.doubtful() == [(lent.lease_id, lent.worker_id, False)]
    for _ in range(2):
        asked = one(world.feed(on.LeaseIdle(lent.lease_id)), do.ReclaimLease)
        assert (asked.client_node, asked.lease_id, asked.node_id) == (THERE, lent.lease_id, HERE)
    world.feed(on.LeaseReturned(lent.lease_id, HERE))
    assert world.core.leases == {} and world.scheduler.available() == {"CPU": 10_000}


def test_a_node_that_is_asked_for_a_lease_that_it_never_got_returns_it():
    world = World(cpus=1)
    returned = one(world.feed(on.ReclaimPassedOn(b"client", 7, THERE)), do.ReturnRemoteLease)
    assert (returned.node_id, returned.lease_id) == (THERE, 7)


def ask_far(world):
    """A wish that only another node can fulfil: the request on its way there."""
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    return one(world.demand(spec=spec()), do.RequestRemoteLease)


def test_what_was_borrowed_and_given_back_between_two_reports_can_be_borrowed_again_at_once():
    """The lender, busy and free again in between, has nothing to report."""
    world = World(cpus=0)
    asked = ask_far(world)
    world.feed(on.RemoteLeaseAnswered(asked.request, True, 7, b"worker", THERE, "there:1", free={"CPU": 0}))
    assert world.core.view.nodes[THERE].available["CPU"] == 0
    world.feed(on.LeaseReturned(7, THERE))
    assert world.core.view.nodes[THERE].available["CPU"] == 0, "it does not know yet"
    world.feed(on.NodeSpoke(THERE, {"CPU": 10_000}))
    assert one(world.demand(want=1), do.RequestRemoteLease).node_id == THERE


def test_a_lease_that_is_asked_back_before_its_grant_is_here_goes_back_with_the_grant_and_not_before():
    """Else its worker is lent again, to that worker's own task perhaps, while our client's task runs there."""
    world = World(cpus=0)
    asked = ask_far(world)
    assert world.feed(on.ReclaimPassedOn(b"client", 7, THERE)) == []
    told = world.feed(on.RemoteLeaseAnswered(asked.request, True, 7, b"worker", THERE, "there:1"))
    returned = one(told, do.ReturnRemoteLease)
    assert (returned.node_id, returned.lease_id) == (THERE, 7)
    assert not any(isinstance(effect, do.GrantLease) for effect in told)
    assert not world.core.borrowed and not any(world.core.overtaken.values())


def test_a_lease_that_is_asked_back_and_whose_grant_was_lost_goes_back_when_nothing_can_come_any_more():
    world = World(cpus=0)
    asked = ask_far(world)
    assert world.feed(on.ReclaimPassedOn(b"client", 7, THERE)) == []
    returned = one(world.feed(on.RemoteLeaseAnswered(asked.request, False, reason="the connection broke")), do.ReturnRemoteLease)
    assert (returned.node_id, returned.lease_id) == (THERE, 7)
    assert not world.core.overtaken


def test_a_lease_of_a_third_node_that_nobody_waits_for_any_more_goes_back_there():
    world = World(cpus=1)
    returned = one(world.feed(on.LeaseReturned(7, THERE)), do.ReturnRemoteLease)
    assert (returned.node_id, returned.lease_id) == (THERE, 7)


def test_nothing_is_lent_to_a_node_that_is_dead():
    world = World(cpus=1)
    lent = lend_far(world)
    world.feed(on.NodeLost(THERE, "its lease ended"))
    world.die(lent.worker_id)
    late = one(world.feed(on.RemoteLeaseRequested(world.request(), spec(), 1, b"far", THERE, 0.0)), do.AnswerLease)
    assert late.lease_id == 0 and "dead" in late.reason
    assert world.core.leases == {} and not world.core.guests


@pytest.mark.parametrize("runs", [False, True])
def test_what_a_client_of_another_node_had_goes_back_when_its_death_is_told(runs):
    world = World(cpus=1)
    lent = lend_far(world)
    running = frozenset([lent.worker_id] if runs else [])
    effects = world.feed(on.WorkerDiedElsewhere(b"far", running))
    assert len(only(effects, do.KillWorker)) == runs
    if runs:
        world.die(lent.worker_id)
    assert world.core.leases == {} and world.scheduler.available() == {"CPU": 10_000}


def test_what_a_dead_client_of_another_node_waits_for_is_refused():
    world = World(cpus=1)
    world.demand(spec=spec())
    request = world.request()
    world.feed(on.RemoteLeaseRequested(request, spec(), 1, b"far", THERE, 5.0))
    assert one(world.feed(on.WorkerDiedElsewhere(b"far")), do.AnswerLease).lease_id == 0
    assert not world.core.guests and not world.core.queue


def test_leases_are_late_when_their_workers_ran_nothing_for_long():
    unreturned = Unreturned()
    assert unreturned.late(0.0, [(1, 5, False), (2, 5, False)]) == []
    assert unreturned.late(1.0, [(1, 5, False), (2, 6, False)]) == [], "the other one has run something"
    assert unreturned.late(2.0, [(1, 5, False), (2, 6, False)]) == [1]
    assert unreturned.late(3.0, [(1, 5, True), (2, 6, False)]) == [2], "whoever was asked has as long to answer"
    assert unreturned.late(5.0, [(1, 5, True)]) == [1]
    assert unreturned.late(6.0, []) == [] and unreturned.late(9.0, [(1, 5, True)]) == []
