"""Actors: placed, started, restarted, ended."""

from __future__ import annotations

import pytest
from gcs_states import CPU, Rig, actor_id, actor_request, every, group, group_id, node, node_id, only, worker_id
from shoal_base.errors import Code
from shoal_gcs.state import Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb

S = on.StartStatus


def answer(start: do.StartActor, status: S, **fields: object) -> on.ActorStartAnswered:
    return on.ActorStartAnswered(start.actor.actor_id, start.incarnation, start.node_id, status, **fields)  # type: ignore[arg-type]


def death(worker: int, n: int = 1, **fields: object) -> on.WorkerDied:
    fields = {"code": Code.WORKER_CRASHED, "cause": "SIGKILL", **fields}
    return on.WorkerDied(pb.ReportWorkerDeathRequest(worker_id=worker_id(worker), node_id=node_id(n), **fields))  # type: ignore[arg-type]


def test_an_actor_is_recorded_started_and_alive() -> None:
    rig = Rig(nodes=1)
    effects = rig(on.ActorRequested(actor_request(1)))
    start = only(effects, do.StartActor)
    assert (start.node_id, start.incarnation, start.spec.creation_task) == (node_id(1), 0, b"task")
    assert only(effects, do.Answer).message.state == pb.ACTOR_PENDING
    assert rig.stored["actors"].keys() == rig.stored["actor_specs"].keys() == {actor_id(1)}
    published = only(rig.started(1, effects), do.Publish)
    assert published.channels == (f"actor:{actor_id(1).hex()}", "actors")
    record = pb.Actor.FromString(published.payload)
    assert (record.state, record.worker_id, record.pid, record.address) == (pb.ACTOR_ALIVE, worker_id(1), 4001, "10.0.0.1:70")


def test_many_actors_start_at_the_same_time() -> None:
    rig = Rig(nodes=2)
    starts = [only(rig(on.ActorRequested(actor_request(n))), do.StartActor) for n in range(200)]
    assert len({start.actor.actor_id for start in starts}) == 200


def test_the_same_request_again_makes_no_second_actor() -> None:
    rig = Rig(nodes=1)
    rig(on.ActorRequested(actor_request(1)))
    again = rig(on.ActorRequested(actor_request(1)))
    assert not every(again, do.StartActor)
    assert only(again, do.Answer).message.actor_id == actor_id(1)


def test_a_taken_name_is_refused_or_its_holder_returned() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, name="counter")
    with pytest.raises(Refused, match=r"'counter' in namespace 'ns' is taken.*get_if_exists"):
        rig(on.ActorRequested(actor_request(2, name="counter")))
    found = rig(on.ActorRequested(actor_request(3, name="counter", get_if_exists=True)))
    assert only(found, do.Answer).message.actor_id == actor_id(1)
    assert rig.cluster.actors.get(actor_id(2)) is None


def test_a_name_is_free_after_its_holder_died() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, name="counter")
    rig(on.ActorKillRequested(actor_id(1), True, True, ""))
    rig(on.ActorRequested(actor_request(2, name="counter")))
    named = rig.cluster.actors.named("ns", "counter")
    assert named is not None
    assert named.actor_id == actor_id(2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"actor": {"actor_id": b"short"}}, "16"),
        ({"actor": {"max_restarts": -2}}, "max_restarts=-2"),
        ({"placement": {"label_selector": {"zone": "in("}}}, "zone"),
    ],
)
def test_a_bad_request_is_refused_by_name_and_leaves_nothing(change: dict, match: str) -> None:
    rig = Rig(nodes=1)
    request = actor_request(1)
    for part, fields in change.items():
        for name, value in fields.items():
            target = getattr(request, part)
            getattr(target, name).update(value) if isinstance(value, dict) else setattr(target, name, value)
    with pytest.raises(Refused, match=match):
        rig(on.ActorRequested(request))
    assert not list(rig.cluster.actors)
    assert not rig.stored.get("actor_specs")


def test_a_node_without_room_is_left_alone_until_something_changes_there() -> None:
    rig = Rig(nodes=2)
    first = only(rig(on.ActorRequested(actor_request(1, cpus=3))), do.StartActor)
    second = only(rig(answer(first, S.NO_RESOURCES, reason="busy")), do.StartActor)
    assert second.node_id != first.node_id
    assert not every(rig(answer(second, S.NO_RESOURCES, reason="busy")), do.StartActor)
    assert "busy" in rig.actor(1).pending_reason
    n = 1 if first.node_id == node_id(1) else 2
    assert only(rig.beat(n, 4), do.StartActor).node_id == first.node_id


def test_an_actor_that_fits_nowhere_now_waits_with_a_reason_and_starts_when_it_does() -> None:
    rig = Rig(nodes=1)
    rig.beat(1, 0)
    effects = rig(on.ActorRequested(actor_request(1, held=1)))
    assert not every(effects, do.StartActor)
    assert "busy" in rig.actor(1).pending_reason
    assert only(rig.beat(1, 1), do.StartActor).actor.actor_id == actor_id(1)
    assert rig.actor(1).pending_reason == ""


def test_an_actor_that_holds_nothing_prefers_a_node_with_room_to_place_it_and_waits_for_none() -> None:
    rig = Rig(nodes=2)
    rig.beat(1, 0)
    rig.beat(2, 1)
    assert only(rig(on.ActorRequested(actor_request(1))), do.StartActor).node_id == node_id(2)
    rig.beat(2, 0)
    waiting = rig(on.ActorRequested(actor_request(2, held=1)))
    assert not every(waiting, do.StartActor)
    assert only(rig(on.ActorRequested(actor_request(3))), do.StartActor).actor.actor_id == actor_id(3), "those that hold a CPU wait apart from it"
    assert [one.actor.actor_id for one in every(rig.beat(1, 1), do.StartActor)] == [actor_id(2)]


def test_an_actor_that_holds_nothing_is_not_placed_where_it_never_could_be() -> None:
    rig = Rig(nodes=1)
    assert not every(rig(on.ActorRequested(actor_request(1, cpus=1000))), do.StartActor)


def test_an_actor_goes_where_tasks_can_make_room_and_not_where_actors_hold_all() -> None:
    rig = Rig(nodes=2)
    rig.beat(1, 0)
    rig.beat(2, 0, lent=1)
    start = only(rig(on.ActorRequested(actor_request(1, held=1))), do.StartActor)
    assert start.node_id == node_id(2)
    # What is on its way there takes what is lent.
    assert not every(rig(on.ActorRequested(actor_request(2, held=1))), do.StartActor)
    # Its tasks ran for too long: the node is asked again when it reports anew, not before.
    assert [one.actor.actor_id for one in every(rig(answer(start, S.NO_RESOURCES, reason="busy")), do.StartActor)] == []
    assert only(rig.beat(2, 0, lent=1), do.StartActor).node_id == node_id(2)
    assert not every(rig.beat(1, 0, lent=0.5), do.StartActor)


def test_an_actor_that_no_node_can_ever_hold_is_dead_after_ten_seconds_naming_its_resources() -> None:
    rig = Rig(nodes=1)
    rig(on.ActorRequested(actor_request(1, cpus=64)))
    rig.wait(9_000, 1)
    assert rig.actor(1).state == pb.ACTOR_PENDING
    rig.wait(2_000, 1)
    record = rig.actor(1)
    assert (record.state, record.death_code) == (pb.ACTOR_DEAD, Code.UNSCHEDULABLE)
    assert "CPU 64" in record.death_cause


def test_a_node_that_joins_in_time_saves_an_unschedulable_actor() -> None:
    rig = Rig()
    rig(on.ActorRequested(actor_request(1)))
    rig.wait(8_000)
    start = only(rig(on.NodeRegistered(node(1))), do.StartActor)
    rig.wait(5_000, 1)
    rig(answer(start, S.STARTED, worker_id=worker_id(1)))
    assert rig.actor(1).state == pb.ACTOR_ALIVE


def test_hard_affinity_to_a_node_that_is_gone_fails_at_once() -> None:
    rig = Rig(nodes=2)
    rig(on.NodeLeft(node_id(2), "stopped"))
    rig(on.ActorRequested(actor_request(1, node_id=node_id(2))))
    assert rig.actor(1).death_code == Code.NODE_AFFINITY_FAILED
    assert "stopped" in rig.actor(1).death_cause


def test_soft_affinity_goes_elsewhere() -> None:
    rig = Rig(nodes=1)
    assert only(rig(on.ActorRequested(actor_request(1, node_id=node_id(2), soft=True))), do.StartActor).node_id == node_id(1)


def test_label_selectors_choose_the_node() -> None:
    rig = Rig(nodes=1)
    rig(on.NodeRegistered(node(2, labels={"zone": "b"})))
    for n in range(8):
        assert only(rig(on.ActorRequested(actor_request(n, label_selector={"zone": "b"})), rank=n / 8), do.StartActor).node_id == node_id(2)


def test_init_that_raised_is_the_end_with_the_error() -> None:
    rig = Rig(nodes=1)
    start = only(rig(on.ActorRequested(actor_request(1, max_restarts=5))), do.StartActor)
    effects = rig(answer(start, S.INIT_RAISED, error=b"pickled", reason="ValueError"))
    record = rig.actor(1)
    assert (record.state, record.death_code, record.death_error) == (pb.ACTOR_DEAD, Code.INIT_RAISED, b"pickled")
    assert not every(effects, do.KillActor)
    assert rig.stored["actor_specs"] == {}


@pytest.mark.parametrize(("max_restarts", "lives"), [(0, 1), (2, 3), (-1, 6)])
def test_a_worker_death_restarts_as_often_as_allowed(max_restarts: int, lives: int) -> None:
    rig = Rig(nodes=1)
    effects = rig(on.ActorRequested(actor_request(1, max_restarts=max_restarts)))
    seen = 0
    while starts := every(effects, do.StartActor):
        assert starts[0].incarnation == seen
        seen += 1
        rig.started(1, effects, worker=seen)
        if seen == 6:
            break
        effects = rig(death(seen))
    assert seen == lives
    assert rig.actor(1).state == (pb.ACTOR_ALIVE if max_restarts == -1 else pb.ACTOR_DEAD)
    assert rig.actor(1).restarts == lives - 1


def test_an_intended_end_is_not_restarted() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=-1)
    rig(death(1, code=Code.WORKER_EXITED, intended=True))
    assert (rig.actor(1).state, rig.actor(1).death_code) == (pb.ACTOR_DEAD, Code.WORKER_EXITED)


def test_a_death_report_that_overtakes_the_start_answer_is_not_lost() -> None:
    rig = Rig(nodes=1)
    effects = rig(on.ActorRequested(actor_request(1)))
    rig(death(1, cause="segfault"))
    rig.started(1, effects, worker=1)
    assert (rig.actor(1).state, rig.actor(1).death_cause) == (pb.ACTOR_DEAD, "segfault")


def test_a_death_report_of_an_earlier_life_changes_nothing() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=-1)
    rig.started(1, rig(death(1)), worker=2)
    assert not every(rig(death(1)), do.StartActor)
    assert rig.actor(1).state == pb.ACTOR_ALIVE


def test_actors_of_a_dead_node_restart_elsewhere_or_die() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    rig.alive_actor(2)
    rig(on.NodeRegistered(node(2)))
    effects = rig(on.NodeLeft(node_id(1), "power"))
    assert only(effects, do.StartActor).node_id == node_id(2)
    assert rig.actor(1).state == pb.ACTOR_RESTARTING
    assert (rig.actor(2).state, rig.actor(2).death_code) == (pb.ACTOR_DEAD, Code.NODE_DIED)
    assert not every(effects, do.KillActor)


def test_an_actor_that_was_starting_on_a_node_that_died_starts_elsewhere_when_it_may_restart() -> None:
    rig = Rig(nodes=1)
    rig(on.ActorRequested(actor_request(1, max_restarts=1)))
    rig(on.NodeRegistered(node(2)))
    start = only(rig(on.NodeLeft(node_id(1), "power")), do.StartActor)
    assert (start.node_id, start.incarnation) == (node_id(2), 1)


def test_an_answer_for_a_life_that_was_given_up_ends_it_there() -> None:
    rig = Rig(nodes=1)
    effects = rig(on.ActorRequested(actor_request(1)))
    killed = only(rig(on.ActorKillRequested(actor_id(1), True, True, "")), do.KillActor)
    assert (killed.node_id, killed.actor_id) == (node_id(1), actor_id(1))
    late = rig.started(1, effects)
    assert only(late, do.KillActor).worker_id == worker_id(1)
    assert rig.actor(1).state == pb.ACTOR_DEAD


def test_the_death_of_its_owner_kills_an_actor_unless_detached() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, worker=11, owner_worker_id=worker_id(9), owner_node_id=node_id(1))
    rig.alive_actor(2, worker=12, owner_worker_id=worker_id(9), owner_node_id=node_id(1), detached=True)
    effects = rig(death(9))
    assert only(effects, do.KillActor).actor_id == actor_id(1)
    assert (rig.actor(1).death_code, rig.actor(2).state) == (Code.OWNER_DIED, pb.ACTOR_ALIVE)


def test_an_actor_whose_owner_is_already_dead_is_dead_on_arrival() -> None:
    rig = Rig(nodes=1)
    rig(death(9))
    assert not every(rig(on.ActorRequested(actor_request(1, owner_worker_id=worker_id(9)))), do.StartActor)
    assert rig.actor(1).death_code == Code.OWNER_DIED


def test_the_death_of_its_owners_node_kills_an_actor_elsewhere() -> None:
    rig = Rig(nodes=2)
    start = only(rig(on.ActorRequested(actor_request(1, node_id=node_id(2), owner_worker_id=worker_id(9), owner_node_id=node_id(1)))), do.StartActor)
    rig(answer(start, S.STARTED, worker_id=worker_id(1)))
    assert only(rig(on.NodeLeft(node_id(1), "power")), do.KillActor).node_id == node_id(2)
    assert rig.actor(1).death_code == Code.OWNER_DIED


def test_kill_without_no_restart_ends_the_worker_and_lets_it_restart() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    effects = rig(on.ActorKillRequested(actor_id(1), False, True, "test"))
    assert only(effects, do.KillActor).worker_id == worker_id(1)
    assert rig.actor(1).state == pb.ACTOR_ALIVE
    assert only(rig(death(1, code=Code.KILLED_BY_USER, intended=True)), do.StartActor).incarnation == 1


def test_killing_an_unknown_actor_is_refused_and_a_dead_one_is_no_error() -> None:
    rig = Rig(nodes=1)
    with pytest.raises(Refused, match="no actor"):
        rig(on.ActorKillRequested(actor_id(1), True, True, ""))
    rig.alive_actor(1)
    rig(on.ActorKillRequested(actor_id(1), True, True, ""))
    assert rig(on.ActorKillRequested(actor_id(1), True, True, "")) == []


def test_out_of_scope_ends_it_after_its_calls_unless_detached() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1)
    rig.alive_actor(2, detached=True)
    assert only(rig(on.ActorWentOutOfScope(actor_id(1))), do.KillActor).force is False
    assert rig(on.ActorWentOutOfScope(actor_id(2))) == []
    assert rig.actor(1).death_code == Code.OUT_OF_SCOPE


def test_an_actor_whose_last_handle_went_before_its_creation_came_never_starts() -> None:
    rig = Rig(nodes=1)
    rig(on.ActorWentOutOfScope(actor_id(1)))
    effects = rig(on.ActorRequested(actor_request(1)))
    assert not [effect for effect in effects if isinstance(effect, do.StartActor)]
    assert only(effects, do.Answer).message.state == pb.ACTOR_DEAD
    assert rig.actor(1).death_code == Code.OUT_OF_SCOPE
    rig.alive_actor(2)


def test_an_actor_whose_last_handle_went_first_never_starts_even_if_the_store_was_restarted_in_between() -> None:
    rig = Rig(nodes=1)
    rig(on.ActorWentOutOfScope(actor_id(1)))
    after = rig.restarted()
    effects = after(on.ActorRequested(actor_request(1, name="n")))
    assert not [effect for effect in effects if isinstance(effect, do.StartActor)]
    assert only(effects, do.Answer).message.state == pb.ACTOR_DEAD
    assert after.cluster.actors.named("ns", "n") is None
    assert only(after(on.ActorRequested(actor_request(1, name="n"))), do.Answer).message.death_code == Code.OUT_OF_SCOPE


def test_the_end_of_a_job_kills_its_actors_and_forgets_their_records_but_not_detached_ones() -> None:
    rig = Rig(nodes=1)
    job = only(rig(on.JobAdded(pb.Job())), do.Answer).message
    for n, fields in ((1, {}), (2, {"detached": True}), (3, {})):
        rig.alive_actor(n, job_id=job.job_id, **fields)  # type: ignore[arg-type]
    rig(on.ActorKillRequested(actor_id(3), True, True, ""))
    effects = rig(on.JobFinished(job.job_id))
    assert only(effects, do.KillActor).actor_id == actor_id(1)
    assert only(effects, do.FinishJobOn).job_id == job.job_id
    assert rig.stored["actors"].keys() == {actor_id(2)}
    assert rig.actor(1).death_code == Code.JOB_FINISHED


def test_what_an_actor_holds_is_counted_until_it_dies() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, cpus=3, held=3)
    assert rig.free(1) == 1
    assert not every(rig(on.ActorRequested(actor_request(2, cpus=3, held=3))), do.StartActor)
    start = only(rig(death(1)), do.StartActor)
    assert start.actor.actor_id == actor_id(2)


def test_after_refusals_a_class_is_tried_in_growing_steps() -> None:
    rig = Rig(nodes=1)
    starts = [only(rig(on.ActorRequested(actor_request(n))), do.StartActor) for n in range(50)]
    again = []
    for start in starts:
        again += every(rig(answer(start, S.NO_RESOURCES, reason="full")), do.StartActor)
    assert again == []
    assert len(every(rig.beat(1, 4), do.StartActor)) == 4


def test_an_actor_of_a_group_waits_for_it_and_dies_with_it() -> None:
    rig = Rig(nodes=1)
    made = rig(on.GroupRequested(group(1, [1, 1])))
    rig(on.ActorRequested(actor_request(1, placement_group_id=group_id(1), bundle_index=1)))
    assert "waits for placement group" in rig.actor(1).pending_reason
    start = only(rig.done(made), do.StartActor)
    rig(answer(start, S.STARTED, worker_id=worker_id(1)))
    rig(on.GroupRemovalRequested(pb.PlacementGroupQuery(placement_group_id=group_id(1))))
    assert rig.actor(1).death_code == Code.PLACEMENT_GROUP_REMOVED


def test_actors_of_a_group_share_its_bundles_out_among_them() -> None:
    rig = Rig(nodes=3)
    rig.done(rig(on.GroupRequested(group(1, [2, 2, 2], "STRICT_SPREAD"))))
    starts = []
    for n in range(1, 7):
        effects = rig(on.ActorRequested(actor_request(n, held=1, placement_group_id=group_id(1))))
        starts += every(effects, do.StartActor)
        rig.started(n, effects)
    per_node = [sum(start.node_id == node_id(n) for start in starts) for n in (1, 2, 3)]
    assert per_node == [2, 2, 2]
    assert not every(rig(on.ActorRequested(actor_request(7, held=1, placement_group_id=group_id(1)))), do.StartActor)
    assert "busy" in rig.actor(7).pending_reason
    n = next(n for n in (1, 2, 3) if rig.actor(4).node_id == node_id(n))
    assert only(rig(death(4, n)), do.StartActor).node_id == node_id(n)


def test_an_actor_that_holds_nothing_leaves_its_bundle_free_once_it_has_started() -> None:
    rig = Rig(nodes=1)
    rig.done(rig(on.GroupRequested(group(1, [1]))))
    first = rig(on.ActorRequested(actor_request(1, placement_group_id=group_id(1))))
    assert not every(rig(on.ActorRequested(actor_request(2, placement_group_id=group_id(1)))), do.StartActor)
    assert only(rig.started(1, first), do.StartActor).actor.actor_id == actor_id(2)


def test_the_arguments_of_an_actor_that_never_restarts_are_not_kept() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1)
    rig.alive_actor(2, max_restarts=1)
    kept = [rig.cluster.actors.lives[actor_id(n)].spec.creation_task for n in (1, 2)]
    assert kept == [b"", b"task"]


def test_a_restarted_store_keeps_actors_names_and_what_raylets_confirm() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, name="kept", detached=True)
    rig.alive_actor(2, max_restarts=1)
    rig(on.ActorRequested(actor_request(3)))  # its start is under way
    rig.beat(1, 0)
    rig(on.ActorRequested(actor_request(4)))  # waits
    after = rig.restarted()
    named = after.cluster.actors.named("ns", "kept")
    assert named is not None
    assert named.worker_id == worker_id(1)
    effects = after(on.NodeRegistered(node(1), live_actors=(actor_id(1), actor_id(8))))
    starts = {start.actor.actor_id: start for start in every(effects, do.StartActor)}
    assert starts.keys() == {actor_id(2), actor_id(3), actor_id(4)}
    assert starts[actor_id(2)].incarnation == 1
    assert starts[actor_id(3)].incarnation == 0  # the raylet joins it to the start that is under way
    assert only(effects, do.KillActor).actor_id == actor_id(8)
    assert after.actor(1).state == pb.ACTOR_ALIVE


def test_after_a_restart_actors_on_a_node_that_stays_away_move() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    after = rig.restarted()
    after(on.NodeRegistered(node(2)))
    start = only(after.wait(11_000, 2), do.StartActor)
    assert (start.node_id, start.incarnation) == (node_id(2), 1)


def test_held_resources_never_hide_more_than_there_is() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, held=2, cpus=2)
    rig.beat(1, 1)
    assert rig.free(1) == 1
    rig(on.ActorRequested(actor_request(2, held=1, cpus=1)))
    rig.beat(1, 0)
    assert rig.cluster.nodes.living[node_id(1)].view.available["CPU"] == 0
    assert rig.cluster.nodes.living[node_id(1)].in_flight == {"CPU": CPU}


def test_a_job_has_as_many_living_actors_as_its_limit_and_others_go_on() -> None:
    rig = Rig(nodes=1)
    limited = only(rig(on.JobAdded(pb.Job(max_actors=1))), do.Answer).message.job_id
    free = only(rig(on.JobAdded(pb.Job())), do.Answer).message.job_id
    rig(on.ActorRequested(actor_request(1, job_id=limited)))
    with pytest.raises(Refused, match=r"1 living actors, as many as its JobConfig\(max_actors=1\) allows"):
        rig(on.ActorRequested(actor_request(2, job_id=limited)))
    rig(on.ActorRequested(actor_request(3, job_id=free)))
    rig(on.ActorRequested(actor_request(1, job_id=limited)))  # the same request again, after an answer that was lost


def test_an_actor_of_a_draining_node_starts_elsewhere_and_that_is_not_charged() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    rig(on.NodeRegistered(node(2)))
    kill = only(rig(on.NodeDrainRequested(node_id(1), "maintenance")), do.KillActor)
    assert (kill.node_id, kill.worker_id, kill.force, kill.migrate) == (node_id(1), worker_id(1), False, True)
    assert not every(rig(on.TimePassed()), do.KillActor), "told once"
    start = only(rig(death(1, intended=True, migrated=True)), do.StartActor)
    assert (start.node_id, start.incarnation) == (node_id(2), 1)
    assert (rig.actor(1).state, rig.actor(1).restarts) == (pb.ACTOR_RESTARTING, 0)


def test_a_move_that_a_control_store_began_is_ended_by_its_successor() -> None:
    rig = Rig(nodes=2)
    rig.alive_actor(1, max_restarts=1)
    here = int(rig.actor(1).node_id != node_id(1)) + 1
    rig(on.NodeDrainRequested(node_id(here), "maintenance"))
    after = rig.restarted()
    after(on.NodeRegistered(node(3 - here)))
    assert only(after(death(1, here, intended=True, migrated=True)), do.StartActor).incarnation == 1


def test_an_actor_without_another_place_stays_until_there_is_one() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=-1)
    assert not every(rig(on.NodeDrainRequested(node_id(1), "maintenance")), do.KillActor)
    rig(on.NodeRegistered(node(2)))
    assert only(rig(on.TimePassed()), do.KillActor).migrate


def test_an_actor_that_may_not_restart_stays_where_it_is() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1)
    rig(on.NodeRegistered(node(2)))
    assert not every(rig(on.NodeDrainRequested(node_id(1), "maintenance")), do.KillActor)


def test_an_actor_that_ends_itself_while_its_node_drains_is_dead() -> None:
    rig = Rig(nodes=2)
    rig.alive_actor(1, max_restarts=-1)
    rig(death(1, 1 if rig.actor(1).node_id == node_id(1) else 2, intended=True, cause="exit_actor() was called"))
    assert rig.actor(1).state == pb.ACTOR_DEAD
