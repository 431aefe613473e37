"""Placement groups: strategies, one and two phases, lost nodes, removal."""

from __future__ import annotations

import pytest
from gcs_states import CPU, Rig, actor_id, every, group, group_id, node, node_id, only
from shoal_gcs.state import Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.state.events import BundleStep as Step
from shoal_gcs.v1 import gcs_pb2 as pb


def query(n: int) -> pb.PlacementGroupQuery:
    return pb.PlacementGroupQuery(placement_group_id=group_id(n))


def places(record: pb.PlacementGroup) -> list[bytes]:
    return [bundle.node_id for bundle in record.bundles]


def steps(effects: list[do.Effect]) -> list[tuple[Step, bytes]]:
    return [(change.step, change.node_id) for change in every(effects, do.ChangeBundles)]


def refuse(change: do.ChangeBundles, reason: str = "busy") -> on.BundlesChanged:
    return on.BundlesChanged(change.node_id, change.step, change.group_id, change.attempt, False, reason)


def agree(change: do.ChangeBundles) -> on.BundlesChanged:
    return on.BundlesChanged(change.node_id, change.step, change.group_id, change.attempt, True)


def test_a_group_on_one_node_takes_one_phase() -> None:
    rig = Rig(nodes=2)
    effects = rig(on.GroupRequested(group(1, [1, 1], "STRICT_PACK")))
    change = only(effects, do.ChangeBundles)
    assert change.step is Step.PREPARE_AND_COMMIT
    assert [bundle.index for bundle in change.bundles] == [0, 1]
    later = rig.done(effects)
    assert only(later, do.WakeGroupWaiters).group_id == group_id(1)
    assert rig.group(1).state == pb.PG_CREATED
    assert places(rig.group(1)) == [change.node_id] * 2
    assert pb.PlacementGroup.FromString(rig.stored["groups"][group_id(1)]).state == pb.PG_CREATED


def test_a_group_on_several_nodes_is_committed_once_all_are_prepared() -> None:
    rig = Rig(nodes=3)
    effects = rig(on.GroupRequested(group(1, [1, 1, 1], "STRICT_SPREAD")))
    changes = every(effects, do.ChangeBundles)
    assert {change.step for change in changes} == {Step.PREPARE}
    assert rig(agree(changes[0])) == []
    assert rig(agree(changes[1])) == []
    commits = every(rig(agree(changes[2])), do.ChangeBundles)
    assert {change.step for change in commits} == {Step.COMMIT}
    for commit in commits:
        assert rig.group(1).state == pb.PG_PENDING
        rig(agree(commit))
    assert rig.group(1).state == pb.PG_CREATED
    assert len(set(places(rig.group(1)))) == 3


def test_one_refusal_cancels_what_was_prepared_and_another_place_is_found() -> None:
    rig = Rig(nodes=3)
    changes = every(rig(on.GroupRequested(group(1, [3, 3], "STRICT_SPREAD"))), do.ChangeBundles)
    rig(agree(changes[0]))
    effects = rig(refuse(changes[1]))
    cancelled = {change.node_id for change in every(effects, do.ChangeBundles) if change.step is Step.CANCEL}
    assert cancelled == {change.node_id for change in changes}
    prepared = {change.node_id for change in every(effects, do.ChangeBundles) if change.step is Step.PREPARE}
    assert len(prepared) == 2
    assert changes[1].node_id not in prepared
    assert rig(agree(changes[1])) == []  # an answer of the attempt that was given up
    rig.done([change for change in effects if isinstance(change, do.ChangeBundles) and change.step is Step.PREPARE])
    assert rig.group(1).state == pb.PG_CREATED


def test_a_group_that_fits_nowhere_now_waits_and_is_made_when_resources_are_free() -> None:
    rig = Rig(nodes=1)
    rig.beat(1, 1)
    assert steps(rig(on.GroupRequested(group(1, [2])))) == []
    assert "CPU 2" in rig.group(1).pending_reason
    assert steps(rig.beat(1, 2)) == [(Step.PREPARE_AND_COMMIT, node_id(1))]


def test_a_group_that_no_nodes_could_ever_hold_says_so_and_goes_on_waiting() -> None:
    rig = Rig(nodes=1)
    rig(on.GroupRequested(group(1, [64])))
    rig.wait(20_000, 1)
    assert rig.group(1).state == pb.PG_PENDING
    assert "could ever hold it" in rig.group(1).pending_reason
    assert "CPU 64" in rig.group(1).pending_reason
    assert len(steps(rig(on.NodeRegistered(node(2, cpus=64))))) == 1


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (group(1, [1], "SCATTER"), "'SCATTER'.*PACK"),
        (group(1, []), "1 to 10000 bundles, got 0"),
        (group(1, [1, 0]), "bundle 1 asks for nothing"),
        (group(1, [-1]), "bundle 0"),
        (pb.PlacementGroup(placement_group_id=b"x", strategy="PACK"), "16"),
        (pb.PlacementGroup(placement_group_id=group_id(1), strategy="PACK", bundles=[pb.Bundle(resources={"CPU": 1}, label_selector={"a": "in("})]), "'a'"),
    ],
)
def test_a_bad_group_is_refused_by_name(record: pb.PlacementGroup, match: str) -> None:
    rig = Rig(nodes=1)
    with pytest.raises(Refused, match=match):
        rig(on.GroupRequested(record))
    assert not rig.cluster.groups.groups


def test_bundles_follow_their_label_selectors() -> None:
    rig = Rig()
    for n, zone in ((1, "a"), (2, "b")):
        rig(on.NodeRegistered(node(n, labels={"zone": zone})))
    record = group(1, [1, 1])
    record.bundles[0].label_selector["zone"] = "b"
    record.bundles[1].label_selector["zone"] = "a"
    rig.done(rig(on.GroupRequested(record)))
    assert places(rig.group(1)) == [node_id(2), node_id(1)]


def test_removal_gives_the_place_back_at_once_and_in_order() -> None:
    rig = Rig(nodes=1)
    for n in range(1, 200):
        rig.done(rig(on.GroupRequested(group(n, [4]))))
        assert rig.group(n).state == pb.PG_CREATED
        assert rig.free(1) == 0
        effects = rig(on.GroupRemovalRequested(query(n)))
        assert steps(effects) == [(Step.CANCEL, node_id(1))]
        assert only(effects, do.WakeGroupWaiters).group_id == group_id(n)
        assert rig.free(1) == 4
    assert rig.stored["groups"] == {}


def test_removal_lets_the_next_group_in() -> None:
    rig = Rig(nodes=1)
    rig.done(rig(on.GroupRequested(group(1, [4]))))
    rig(on.GroupRequested(group(2, [4])))
    assert steps(rig(on.GroupRemovalRequested(query(1)))) == [(Step.CANCEL, node_id(1)), (Step.PREPARE_AND_COMMIT, node_id(1))]


def test_a_group_removed_while_it_is_made_is_cancelled_and_stays_removed() -> None:
    rig = Rig(nodes=2)
    changes = every(rig(on.GroupRequested(group(1, [1, 1], "STRICT_SPREAD"))), do.ChangeBundles)
    rig(agree(changes[0]))
    assert {step for step, _ in steps(rig(on.GroupRemovalRequested(query(1))))} == {Step.CANCEL}
    assert steps(rig(agree(changes[1]))) == []
    assert rig.group(1).state == pb.PG_REMOVED
    assert rig.free(1) == rig.free(2) == 4


def test_removing_twice_is_no_error_and_removing_the_unknown_is() -> None:
    rig = Rig(nodes=1)
    rig(on.GroupRequested(group(1, [1])))
    rig(on.GroupRemovalRequested(query(1)))
    assert rig(on.GroupRemovalRequested(query(1))) == []
    with pytest.raises(Refused, match="no placement group"):
        rig(on.GroupRemovalRequested(query(2)))


def test_only_the_lost_bundles_move_when_a_node_dies() -> None:
    rig = Rig(nodes=3)
    rig.done(rig(on.GroupRequested(group(1, [1, 1], "STRICT_SPREAD"))))
    before = places(rig.group(1))
    effects = rig(on.NodeLeft(before[0], "power"))
    assert rig.group(1).state == pb.PG_RESCHEDULING
    ((step, where),) = steps(effects)
    assert step is Step.PREPARE_AND_COMMIT
    assert where not in before
    rig.done(effects)
    assert rig.group(1).state == pb.PG_CREATED
    assert places(rig.group(1)) == [where, before[1]]


def test_lost_bundles_wait_for_a_node_where_the_strategy_allows() -> None:
    rig = Rig(nodes=2)
    rig.done(rig(on.GroupRequested(group(1, [1, 1], "STRICT_SPREAD"))))
    assert steps(rig(on.NodeLeft(node_id(1), "power"))) == []
    assert rig.group(1).state == pb.PG_RESCHEDULING
    rig.done(rig(on.NodeRegistered(node(3))))
    assert set(places(rig.group(1))) == {node_id(2), node_id(3)}


def test_a_node_that_dies_while_bundles_are_prepared_on_it_costs_only_the_attempt() -> None:
    rig = Rig(nodes=2)
    changes = every(rig(on.GroupRequested(group(1, [1, 1], "STRICT_SPREAD"))), do.ChangeBundles)
    rig(agree(changes[0]))
    rig(on.NodeLeft(changes[1].node_id, "power"))
    assert rig.group(1).state == pb.PG_PENDING
    rig.done(rig(on.NodeRegistered(node(3))))
    assert rig.group(1).state == pb.PG_CREATED
    assert rig.cluster.nodes.living[changes[0].node_id].in_flight == {}


def test_groups_of_a_finished_job_go_unless_detached() -> None:
    rig = Rig(nodes=1)
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message
    rig.done(rig(on.GroupRequested(group(1, [1], job_id=job.job_id))))
    rig.done(rig(on.GroupRequested(group(2, [1], job_id=job.job_id, detached=True))))
    rig(on.JobFinished(job.job_id))
    assert (rig.group(1).state, rig.group(2).state) == (pb.PG_REMOVED, pb.PG_CREATED)


def test_groups_go_with_the_actor_that_made_them_unless_detached() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1)
    rig.done(rig(on.GroupRequested(group(1, [1], creator_actor_id=actor_id(1)))))
    rig.done(rig(on.GroupRequested(group(2, [1], creator_actor_id=actor_id(1), detached=True))))
    rig(on.ActorKillRequested(actor_id(1), True, True, ""))
    assert (rig.group(1).state, rig.group(2).state) == (pb.PG_REMOVED, pb.PG_CREATED)


def test_names_are_unique_and_free_after_removal() -> None:
    rig = Rig(nodes=1)
    rig(on.GroupRequested(group(1, [1], name="mine", namespace="ns")))
    with pytest.raises(Refused, match="'mine'"):
        rig(on.GroupRequested(group(2, [1], name="mine", namespace="ns")))
    assert rig.cluster.groups.find(pb.PlacementGroupQuery(name="mine", namespace="ns")) is rig.group(1)
    rig(on.GroupRemovalRequested(pb.PlacementGroupQuery(name="mine", namespace="ns")))
    rig(on.GroupRequested(group(2, [1], name="mine", namespace="ns")))


def test_a_restarted_store_keeps_groups_makes_pending_ones_and_cancels_what_it_does_not_know() -> None:
    rig = Rig(nodes=1)
    rig.done(rig(on.GroupRequested(group(1, [1]))))
    rig(on.GroupRequested(group(2, [1])))
    after = rig.restarted()
    assert after.group(1).state == pb.PG_CREATED
    effects = after(on.NodeRegistered(node(1), live_groups=(group_id(1), group_id(2), group_id(3))))
    cancelled = {change.group_id for change in every(effects, do.ChangeBundles) if change.step is Step.CANCEL}
    assert cancelled == {group_id(2), group_id(3)}
    after.done(effects)
    assert after.group(2).state == pb.PG_CREATED
    assert (group_id(1), 0) in after.cluster.nodes.living[node_id(1)].view.bundles


def test_bundles_on_a_node_that_stays_away_after_a_restart_move() -> None:
    rig = Rig(nodes=1)
    rig.done(rig(on.GroupRequested(group(1, [1]))))
    after = rig.restarted()
    after(on.NodeRegistered(node(2)))
    after.done(after.wait(11_000, 2))
    assert (after.group(1).state, places(after.group(1))) == (pb.PG_CREATED, [node_id(2)])


def test_thousands_of_waiting_groups_of_a_shape_are_decided_by_one_look() -> None:
    rig = Rig(nodes=1)
    rig.done(rig(on.GroupRequested(group(1, [4]))))
    for n in range(2, 1000):
        rig(on.GroupRequested(group(n, [1])))
    effects = rig(on.GroupRemovalRequested(query(1)))
    assert len([step for step, _ in steps(effects) if step is Step.PREPARE_AND_COMMIT]) == 4
    assert rig.cluster.nodes.living[node_id(1)].in_flight == {"CPU": 4 * CPU}


def test_a_group_behind_tasks_is_sent_where_they_give_way_and_the_raylet_may_take_a_moment() -> None:
    rig = Rig(nodes=1)
    rig.beat(1, 1, lent=3)
    change = only(rig(on.GroupRequested(group(1, [3]))), do.ChangeBundles)
    assert (change.step, change.wait_ms) == (Step.PREPARE_AND_COMMIT, 1000)
    # What is on its way there takes what is lent.
    assert steps(rig(on.GroupRequested(group(2, [3])))) == []
    rig(agree(change))
    assert rig.group(1).state == pb.PG_CREATED
    assert steps(rig.beat(1, 1, lent=0)) == []


def test_of_a_group_on_several_nodes_only_the_busy_ones_wait() -> None:
    rig = Rig(nodes=2)
    rig.beat(1, 4)
    rig.beat(2, 0, lent=4)
    changes = every(rig(on.GroupRequested(group(1, [4, 4], "STRICT_SPREAD"))), do.ChangeBundles)
    assert {change.node_id: change.wait_ms for change in changes} == {node_id(1): 0, node_id(2): 1000}
    rig(agree(changes[0]))
    commits = every(rig(agree(changes[1])), do.ChangeBundles)
    assert [(commit.step, commit.wait_ms) for commit in commits] == [(Step.COMMIT, 0)] * 2


def test_a_group_waits_where_the_tasks_are_long_and_comes_once_they_end() -> None:
    rig = Rig(nodes=1)
    rig.beat(1, 0, lent=4)
    change = only(rig(on.GroupRequested(group(1, [4]))), do.ChangeBundles)
    assert steps(rig(refuse(change))) == [(Step.CANCEL, node_id(1))]
    assert "busy" in rig.group(1).pending_reason
    assert steps(rig.beat(1, 0, lent=0)) == [], "they were asked, and are long"
    assert steps(rig.beat(1, 4)) == [(Step.PREPARE_AND_COMMIT, node_id(1))]
