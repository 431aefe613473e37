"""Checkpoints of actors: when they are due, what is answered again, and files that were cut short or have gone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import shoal
from shoal._core.engine import KIND_PICKLE, ObjectRef, Payload
from shoal._worker import checkpoint_rules as rules
from shoal._worker.checkpoint_places import AtPath
from shoal._worker.checkpoint_rules import AppliedCalls, Schedule, answer_of

ACTOR = b"a" * 16
CALLER = b"c" * 32
ANSWER = (0, [(KIND_PICKLE, b"value", [])])


# -- when


def test_every_third_call_is_due_and_nothing_before():
    schedule = Schedule(3, 0.0)
    due = []
    for now in range(7):
        schedule.ran(now)
        due.append(schedule.due_after_call(now))
        if due[-1]:
            schedule.kept()
    assert due == [False, False, True, False, False, True, False]
    assert schedule.wait_s(1e9) == -1
    assert not schedule.due_idle(1e9)


def test_time_counts_from_the_first_call_that_is_not_kept_and_wakes_an_idle_actor():
    schedule = Schedule(0, 10.0)
    assert schedule.wait_s(0.0) == -1
    schedule.ran(100.0)
    schedule.ran(104.0)
    assert not schedule.due_after_call(104.0)
    assert schedule.wait_s(104.0) == 6.0
    assert schedule.due_after_call(110.0)
    assert schedule.due_idle(110.0)
    schedule.kept()
    assert schedule.wait_s(111.0) == -1


def test_what_could_not_be_kept_is_tried_again_after_a_pause_and_with_the_next_call():
    schedule = Schedule(1, 5.0)
    schedule.ran(0.0)
    schedule.failed(6.0)
    assert not schedule.due_idle(6.5)
    assert schedule.wait_s(6.5) == 0.5
    assert schedule.due_idle(7.0)
    assert schedule.due_after_call(6.5)
    assert Schedule(1, 0.0).wait_s(0.0) == -1


# -- at most once


class Network:
    """What the engine knows of answers on their way."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.dead: set[bytes] = set()

    def arrived(self, caller: bytes, connection: int, number: int) -> bool:
        return caller in self.dead or number <= self.acknowledged


def call_id(n: int) -> bytes:
    return n.to_bytes(16, "little")


@pytest.fixture
def network() -> Network:
    return Network()


def test_a_call_in_the_checkpoint_is_answered_again_by_the_next_life(network: Network):
    first = AppliedCalls(network.arrived)
    first.add(call_id(1), CALLER, ANSWER, 5, 0.0)
    kept = first.dump(0.0)
    first.add(call_id(2), CALLER, ANSWER, 5, 0.0)  # not in the checkpoint: its state is lost, and so it runs again
    second = AppliedCalls(network.arrived)
    second.load(kept, 1.0)
    assert second.find(call_id(1)) == (True, ANSWER)
    assert second.find(call_id(2)) == (False, None)


def test_an_answer_that_arrived_is_forgotten_and_its_call_may_run_again_for_a_lost_result(network: Network):
    calls = AppliedCalls(network.arrived)
    for n in (1, 2, 3):
        calls.add(call_id(n), CALLER, ANSWER, 5, 0.0)
        calls.answered(call_id(n), (7, n))
    network.acknowledged = 2
    assert calls.find(call_id(2)) == (False, None)
    assert calls.find(call_id(3)) == (True, ANSWER)
    assert [task for task, _, _ in calls.dump(0.0)] == [call_id(3)]
    assert len(calls) == 1


def test_a_dead_caller_and_one_that_never_asks_are_forgotten(network: Network):
    calls = AppliedCalls(network.arrived)
    calls.add(call_id(1), b"d" * 32, ANSWER, 5, 0.0)
    calls.answered(call_id(1), (7, 1))
    network.dead.add(b"d" * 32)
    calls.add(call_id(2), CALLER, ANSWER, 5, 0.0)  # of a former life: nobody knows where its answer went
    assert [task for task, _, _ in calls.dump(rules.FORGET_S - 1)] == [call_id(2)]
    assert calls.dump(rules.FORGET_S) == []


def test_calls_and_the_bytes_of_their_answers_are_bounded_and_the_fact_outlives_the_answer(network: Network, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rules, "MAX_CALLS", 3)
    monkeypatch.setattr(rules, "MAX_ANSWER_BYTES", 100)
    calls = AppliedCalls(network.arrived)
    for n in range(5):
        calls.add(call_id(n), CALLER, ANSWER, 45, 0.0)
    assert calls.find(call_id(1)) == (False, None)
    assert calls.find(call_id(2)) == (True, None)
    assert calls.find(call_id(4)) == (True, ANSWER)


def test_the_same_call_again_replaces_its_answer(network: Network):
    calls = AppliedCalls(network.arrived)
    calls.add(call_id(1), CALLER, ANSWER, 5, 0.0)
    calls.answered(call_id(1), (7, 1))
    network.acknowledged = 1
    calls.add(call_id(1), CALLER, None, 0, 0.0)  # run again, since its result was lost
    assert calls.find(call_id(1)) == (True, None)


def test_streams_and_references_cannot_be_answered_again():
    assert answer_of(0, [Payload(KIND_PICKLE, b"x", [b"yy"])], False) == (0, [(KIND_PICKLE, b"x", [b"yy"])])
    assert answer_of(0, [Payload(KIND_PICKLE, b"x")], True) is None
    assert answer_of(0, [Payload(KIND_PICKLE, b"x", [], [ObjectRef.__new__(ObjectRef)])], False) is None
    assert answer_of(0, [Payload(KIND_PICKLE, bytes(rules.MAX_ANSWER_BYTES))], False) is None


# -- files


class Noted:
    """What the control store knows of the folder."""

    def __init__(self, incarnation: int = 0) -> None:
        self.incarnation = incarnation
        self.known = SimpleNamespace(incarnation=0, number=0)
        self.notes = 0

    def keep(self, number: int, state: bytes) -> None:
        assert not state
        self.notes += 1
        self.known = SimpleNamespace(incarnation=self.incarnation, number=number)

    def last(self) -> SimpleNamespace:
        return self.known


def test_the_newest_file_is_read_two_are_left_and_the_control_store_hears_once_a_life(tmp_path):
    noted = Noted()
    place = AtPath(str(tmp_path), ACTOR, noted)
    assert place.fetch() is None
    for n in range(1, 6):
        place.keep(n, b"state %d" % n)
    assert noted.notes == 1
    assert len(list((tmp_path / ACTOR.hex()).iterdir())) == 2
    noted.incarnation = 1
    after = AtPath(str(tmp_path), ACTOR, noted)
    assert after.fetch() == b"state 5"
    after.keep(1, b"second life")
    assert AtPath(str(tmp_path), ACTOR, noted).fetch() == b"second life"


def test_a_former_life_that_still_writes_is_not_newer(tmp_path):
    former, later = Noted(0), Noted(1)
    AtPath(str(tmp_path), ACTOR, later).keep(1, b"later")
    AtPath(str(tmp_path), ACTOR, former).keep(99, b"former")
    assert AtPath(str(tmp_path), ACTOR, later).fetch() == b"later"


def test_a_folder_that_has_gone_and_another_one_at_its_path_are_noticed(tmp_path):
    noted = Noted()
    AtPath(str(tmp_path / "shared"), ACTOR, noted).keep(1, b"state")
    with pytest.raises(FileNotFoundError, match="no checkpoint as new as number 1 of life 0.*every node sees"):
        AtPath(str(tmp_path / "local"), ACTOR, noted).fetch()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_an_error_that_names_it_and_never_an_older_state(tmp_path, damage):
    noted = Noted()
    place = AtPath(str(tmp_path), ACTOR, noted)
    place.keep(1, b"older")
    place.keep(2, b"newer state")
    path = tmp_path / ACTOR.hex() / "000000-000000000002.checkpoint"
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-3], "changed": raw[:-1] + b"?", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"000000-000000000002.checkpoint is damaged.*move it away"):
        place.fetch()
    path.unlink()
    assert place.fetch() == b"older"


def test_what_was_being_written_when_the_process_died_is_not_read(tmp_path):
    noted = Noted()
    place = AtPath(str(tmp_path), ACTOR, noted)
    place.keep(1, b"whole")
    (tmp_path / ACTOR.hex() / ".000000-000000000002.checkpoint.77").write_bytes(b"half")
    assert place.fetch() == b"whole"


# -- options


class Kept:
    def __shoal_save__(self):
        return 1

    def __shoal_restore__(self, state):
        pass


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint_every": 1}, "checkpoint_every needs an actor that can restart.*max_restarts"),
        ({"checkpoint_every_s": 1.0, "max_restarts": 0}, "checkpoint_every_s needs an actor that can restart"),
        ({"checkpoint_path": "/somewhere", "max_restarts": 1}, "give checkpoint_every"),
        ({"checkpoint_every": 0, "max_restarts": 1}, "checkpoint_every"),
        ({"checkpoint_every": 1, "max_restarts": 1, "max_concurrency": 2}, "max_concurrency=2"),
        ({"checkpoint_every": 1, "max_restarts": 1, "concurrency_groups": {"io": 1}}, "concurrency_groups"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        shoal.remote(**options)(Kept)
