"""What the harness decides without a cluster: schedules, the ways of frames, and whether a ledger keeps its promises."""

import pytest
from chaos.faults import FAULTS, kinds
from chaos.ledger import Calls, broken_promises
from chaos.relay import Lanes, Rules, mac
from chaos.schedule import each, plan

MACHINES = {"head": [1], "home": [2], "any": [1, 2, 3, 4], "victim": [3, 4]}


def frame(target):
    return bytes.fromhex(mac(target).replace(":", "")) + b"rest"


def test_the_same_seed_gives_the_same_schedule_and_every_kind_comes_before_any_comes_twice():
    found = kinds(10.0, standby=True)
    events = plan(7, 3600.0, found, MACHINES)
    assert events == plan(7, 3600.0, found, MACHINES)
    assert events != plan(8, 3600.0, found, MACHINES)
    for first in range(0, len(events) - len(FAULTS), len(FAULTS)):
        assert {event.kind for event in events[first : first + len(FAULTS)]} == set(FAULTS)
    assert all(event.at_s + event.lasts_s <= 3600.0 for event in events)


def test_no_machine_has_two_faults_at_a_time_and_the_heads_and_the_drivers_are_not_lost():
    events = plan(3, 3600.0, kinds(10.0), MACHINES)
    over = dict.fromkeys(range(1, 5), 0.0)
    for event in sorted(events, key=lambda event: event.at_s):
        hit = [3, 4] if event.kind == "partition of two" else [event.machine]
        assert all(event.at_s >= over[machine] for machine in hit)
        over |= dict.fromkeys(hit, event.at_s + event.lasts_s)
        assert event.machine > 2 or not FAULTS[event.kind].loses_node


def test_figures_take_every_kind_the_same_number_of_times():
    events = each(1, 3, kinds(10.0, standby=True), MACHINES)
    assert sorted(event.kind for event in events) == sorted(list(FAULTS) * 3)
    assert "head lost" not in {kind.name for kind in kinds(10.0)}, "without a standby there would be no head"


def test_short_faults_leave_a_node_its_lease_and_long_ones_do_not():
    for kind in kinds(10.0):
        least, most = kind.lasts_s
        assert most < 5.0 or FAULTS[kind.name].loses_node or FAULTS[kind.name].stops_a_program
        assert least > 10.0 or not FAULTS[kind.name].loses_node or most == 0.0


def test_a_frame_goes_where_its_address_says_and_a_broadcast_to_all_others():
    lanes = Lanes([1, 2, 3], 0)
    assert lanes.targets(1, frame(3)) == [3]
    assert lanes.targets(1, frame(9)) == []
    assert lanes.targets(2, b"\xff" * 6) == [1, 3]


def test_a_cut_is_for_one_direction():
    lanes = Lanes([1, 2], 0)
    lanes.rules = Rules(cut={(1, 2)})
    assert lanes.arrivals(1, 2, 5.0) == []
    assert lanes.arrivals(2, 1, 5.0) == [5.0]


def test_late_frames_keep_their_order():
    lanes = Lanes([1, 2], 0)
    lanes.rules = Rules(delay_s={(1, 2): (0.01, 0.5)})
    times = [lanes.arrivals(1, 2, now / 1000)[0] for now in range(500)]
    assert times == sorted(times)
    assert all(0.0099 <= when - now / 1000 <= 1.0 for now, when in enumerate(times))


def test_frames_are_lost_and_repeated_as_often_as_told():
    lanes = Lanes([1, 2], 0)
    lanes.rules = Rules.from_line(Rules(lost={(1, 2): 0.25}, repeated={(1, 2): 0.5}).to_line())
    came = [len(lanes.arrivals(1, 2, 0.0)) for _ in range(4000)]
    assert 800 < came.count(0) < 1200
    assert 1300 < came.count(2) < 1700


LIVES = ["a 1 t1", "a 2 t2", "b 1 t3"]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (LIVES, ""),
        (["a 1 t1", "b 1 t3", "a 2 t2"], "the actor lived twice"),
        (["a 1 t1", "a 2 t1", "b 1 t3"], "t1 was applied 2 times"),
        (["a 1 t1", "a 3 t2", "b 1 t3"], "t2 is number 3 of life a"),
        (["a 1 t1", "a 2 t2"], "t3 was answered as number 1 of life b, and was not applied so"),
        ([*LIVES, "b 2 t9"], "t9 was applied, and nobody called it"),
        ([*LIVES, "b 2 t1"], "its call must not be retried"),
    ],
)
def test_a_ledger_shows_which_promise_was_broken(lines, wrong):
    calls = Calls(False, answered={"t1": ("a", 1), "t3": ("b", 1)}, unknown={"t2", "t4"})
    found = broken_promises(lines, calls)
    assert any(wrong in text for text in found) if wrong else not found


def test_calls_that_are_retried_for_ever_may_be_applied_in_two_lives_and_must_be_answered():
    calls = Calls(True, answered={"t1": ("b", 1)})
    assert not broken_promises(["a 1 t1", "b 1 t1"], calls)
    calls.unknown.add("t2")
    assert broken_promises(["a 1 t1", "b 1 t1"], calls) == ["t2 was never answered, though its call is retried for ever"]
