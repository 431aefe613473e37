"""Other nodes: spill-over, hops, affinity, labels, what a lost node takes along."""

import pytest
from raylet_world import HERE, THERE, World, node, one, only, spec
from shoal_base.errors import Code
from shoal_raylet import effects as do
from shoal_raylet import events as on

pytestmark = pytest.mark.timeout(30)


def granted(request: do.RequestRemoteLease, lease: int = 7) -> on.RemoteLeaseAnswered:
    return on.RemoteLeaseAnswered(request.request, True, lease, b"worker-far------", request.node_id, "1.2.3.4:5", free={"CPU": 0})


def test_here_first_then_elsewhere():
    world = World(cpus=1)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 4})]))
    effects = world.demand(want=3, spec=spec())
    assert one(effects, do.GrantLease).node_id == HERE
    asked = only(effects, do.RequestRemoteLease)
    assert [(r.node_id, r.hops, r.client, r.client_node) for r in asked] == [(THERE, 1, b"client", HERE)] * 2
    grant = one(world.feed(granted(asked[0])), do.GrantLease)
    assert (grant.lease_id, grant.address, grant.node_id) == (7, "1.2.3.4:5", THERE)


def test_what_is_asked_of_a_node_is_not_asked_twice():
    world = World(cpus=0)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 2})]))
    asked = [r for r in only(world.demand(want=5, spec=spec()), do.RequestRemoteLease) if r.wait_s == 0]
    assert len(asked) == 2


def test_a_refusal_is_not_repeated_at_once_and_is_tried_again_later():
    world = World(cpus=1)
    world.demand(b"holder", spec=spec())
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    request = one(world.demand(spec=spec()), do.RequestRemoteLease)
    assert only(world.feed(on.RemoteLeaseAnswered(request.request, False, reason="busy")), do.RequestRemoteLease) == []
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    assert only(world.tick(0.1), do.RequestRemoteLease) == []
    assert one([*world.tick(0.2), *world.tick(0.2)], do.RequestRemoteLease)


def test_a_lease_that_nobody_wants_any_more_goes_back():
    world = World(cpus=0)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    request = one(world.demand(spec=spec()), do.RequestRemoteLease)
    world.demand(want=0)
    assert one(world.feed(granted(request)), do.ReturnRemoteLease) == do.ReturnRemoteLease(THERE, 7)


def test_a_return_of_a_far_lease_goes_to_its_node_whenever_it_comes():
    world = World(cpus=0)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    grant = one(world.feed(granted(one(world.demand(spec=spec()), do.RequestRemoteLease))), do.GrantLease)
    assert one(world.give_back(grant), do.ReturnRemoteLease).lease_id == 7
    assert one(world.give_back(grant), do.ReturnRemoteLease).lease_id == 7  # once more, which that node ignores


def test_a_client_that_dies_gives_its_far_leases_back():
    world = World(cpus=0)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    world.feed(granted(one(world.demand(spec=spec()), do.RequestRemoteLease)))
    assert one(world.feed(on.ClientGone(b"client")), do.ReturnRemoteLease) == do.ReturnRemoteLease(THERE, 7, client_gone=True)


def test_what_only_another_node_could_run_waits_there():
    world = World(cpus=1)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 4, "GPU": 0}, {"CPU": 4, "GPU": 1})]))
    request = one(world.demand(spec=spec(resources={"GPU": 1})), do.RequestRemoteLease)
    assert request.wait_s > 0


def ask(world: World, wait_s: float = 0.0, hops: int = 1, **fields):
    return world.feed(on.RemoteLeaseRequested(world.request(), spec(**fields), hops, b"far-client", THERE, wait_s))


def test_a_guest_is_served_like_anyone_and_its_node_reclaims_and_returns():
    world = World(cpus=1)
    answer = one(ask(world), do.AnswerLease)
    assert answer.lease_id and answer.node_id == HERE
    reclaim = one(world.demand(spec=spec()), do.ReclaimLease)
    assert (reclaim.client, reclaim.client_node, reclaim.lease_id) == (b"far-client", THERE, answer.lease_id)
    assert one(world.feed(on.LeaseReturned(answer.lease_id, HERE)), do.GrantLease)


def test_a_guest_that_will_not_wait_is_refused_with_the_reason():
    world = World(cpus=1)
    world.demand(spec=spec())
    answer = one(ask(world), do.AnswerLease)
    assert answer.lease_id == 0 and "free of CPU 1" in answer.reason


def test_a_guest_that_waits_is_refused_when_its_time_is_over():
    world = World(cpus=1)
    world.demand(spec=spec())
    assert only(ask(world, wait_s=1.0), do.AnswerLease) == []
    assert only(world.tick(0.5), do.AnswerLease) == []
    assert one(world.tick(0.6), do.AnswerLease).lease_id == 0


def test_a_guest_goes_on_to_a_third_node_and_no_further():
    third = b"node-third------"
    world = World(cpus=1)
    world.demand(spec=spec())
    world.feed(on.ViewChanged([node(third, {"CPU": 1})]))
    request = one(ask(world, hops=1), do.RequestRemoteLease)
    assert (request.node_id, request.hops, request.client_node) == (third, 2, THERE)
    answer = one(world.feed(granted(request)), do.AnswerLease)
    assert (answer.lease_id, answer.node_id, answer.address) == (7, third, "1.2.3.4:5")
    world.feed(on.ViewChanged([node(third, {"CPU": 1})]))
    assert one(ask(world, hops=2), do.AnswerLease).lease_id == 0


def test_hard_affinity_goes_nowhere_else():
    world = World(cpus=4)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 0}, {"CPU": 1}), node(b"node-third------", {"CPU": 9})]))
    assert one(world.demand(spec=spec(node_id=THERE)), do.RequestRemoteLease).node_id == THERE
    assert only(world.demand(class_id=2, want=9, spec=spec(node_id=HERE)), do.RequestRemoteLease) == []


def test_hard_affinity_to_a_dead_node_fails_at_once():
    world = World()
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    world.feed(on.NodeLost(THERE, "its lease ended"))
    refused = one(world.demand(spec=spec(node_id=THERE)), do.RefuseLease)
    assert refused.code == Code.NODE_AFFINITY_FAILED and "its lease ended" in refused.reason


def test_soft_affinity_falls_back():
    world = World(cpus=1)
    assert one(world.demand(spec=spec(node_id=THERE, soft=True)), do.GrantLease).node_id == HERE


def test_labels_send_it_where_they_match():
    world = World(cpus=4, labels={"zone": "a"})
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1}, labels={"zone": "b"})]))
    assert one(world.demand(spec=spec(label_selector={"zone": "b"})), do.RequestRemoteLease).node_id == THERE
    assert one(world.demand(class_id=2, spec=spec(label_selector={"zone": "!b"})), do.GrantLease).node_id == HERE


def test_spread_uses_every_node():
    world = World(cpus=4)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 4})]))
    effects = world.demand(want=8, spec=spec(strategy="SPREAD"))
    assert len(only(effects, do.GrantLease)) == 4 and len(only(effects, do.RequestRemoteLease)) == 4


def test_a_lost_node_frees_what_it_held_here_and_is_not_waited_for():
    world = World(cpus=1)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    guest = one(ask(world), do.AnswerLease)
    request = one(world.demand(spec=spec()), do.RequestRemoteLease)
    effects = world.feed(on.NodeLost(THERE, "gone"))
    assert one(effects, do.KillWorker).worker_id == guest.worker_id
    world.die(guest.worker_id)
    assert len(only(world.log, do.GrantLease)) == 1
    assert one(world.feed(granted(request)) or [do.ReturnRemoteLease(THERE, 7)], do.ReturnRemoteLease)


def test_a_draining_node_grants_nothing_and_sends_its_own_elsewhere():
    world = World(cpus=4)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 4})]))
    world.feed(on.DrainStarted("maintenance"))
    assert one(world.demand(spec=spec()), do.RequestRemoteLease).node_id == THERE
    assert "maintenance" in one(ask(world, wait_s=5.0), do.AnswerLease).reason


def test_a_node_that_refuses_without_reporting_is_asked_again():
    world = World(cpus=1)
    world.demand(b"holder", spec=spec())
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    request = one(world.demand(spec=spec()), do.RequestRemoteLease)
    world.feed(on.RemoteLeaseAnswered(request.request, False, reason="its worker limit is reached"))
    assert one([*world.tick(0.3), *world.tick(0.05)], do.RequestRemoteLease).node_id == THERE


def test_a_lease_given_back_before_that_node_reported_leaves_it_usable():
    world = World(cpus=0)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    grant = one(world.feed(granted(one(world.demand(spec=spec()), do.RequestRemoteLease))), do.GrantLease)
    world.give_back(grant)
    world.tick(1.1)
    assert one(world.demand(want=1), do.RequestRemoteLease).wait_s == 0


def test_a_soft_affinity_waits_for_a_busy_node_and_leaves_only_one_that_could_never_run_it():
    world = World(cpus=1)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 4})]))
    world.demand(b"other", spec=spec())
    effects = world.demand(spec=spec(node_id=HERE, soft=True))
    assert not only(effects, do.RequestRemoteLease)
    assert one(effects, do.ReclaimLease)
    assert one(world.demand(class_id=2, spec=spec(2, node_id=HERE, soft=True)), do.RequestRemoteLease).node_id == THERE


def test_a_soft_affinity_to_another_node_outlasts_its_refusal():
    world = World(cpus=1)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    asked = one(world.demand(spec=spec(node_id=THERE, soft=True)), do.RequestRemoteLease)
    effects = world.feed(on.RemoteLeaseAnswered(asked.request, False, node_id=THERE, reason="busy"))
    assert not only(effects, do.GrantLease)
    assert "is busy" in world.scheduler.explain(world.core.queue.all()[0])
    assert one(world.tick(0.3), do.RequestRemoteLease).node_id == THERE
    effects = world.feed(on.NodeLost(THERE, "power"))
    assert one(effects + world.feed(on.RemoteLeaseAnswered(asked.request + 1, False, reason="gone")) + world.tick(0.3), do.GrantLease).node_id == HERE


def test_what_went_back_to_a_node_counts_as_free_before_it_says_so():
    world = World(cpus=1, word_s=0.5)
    spread = spec(strategy="SPREAD")
    world.feed(on.ViewChanged([node(THERE, {"CPU": 1})]))
    asked = one(world.demand(want=2, spec=spread), do.RequestRemoteLease)
    far = one(world.feed(on.RemoteLeaseAnswered(asked.request, True, 7, b"w" * 16, THERE, "h:1", free={"CPU": 0})), do.GrantLease)
    world.feed(on.ViewChanged([node(THERE, {"CPU": 0}, {"CPU": 1})]))
    assert far.spread_over == 2
    world.give_back(far)
    world.feed(on.NodeSpoke(THERE, {"CPU": 10_000}))
    world.feed(on.ViewChanged([node(THERE, {"CPU": 0}, {"CPU": 1})]))  # of before, and late
    assert one(world.demand(b"next", spec=spread), do.RequestRemoteLease).node_id == THERE
    world.tick(0.6)
    assert world.core.view.nodes[THERE].available == {"CPU": 0}
