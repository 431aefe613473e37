"""What is done, and when, to tasks that run too long."""

from __future__ import annotations

from shoal._worker.time_limit import GRACE_S, Countdown, Countdowns, Step

TASK, NEXT = b"a" * 16, b"b" * 16


def test_a_task_is_interrupted_once_and_ended_after_the_grace():
    countdown = Countdown(5.0, now=100.0, grace_s=2.0)
    assert [countdown.due(now) for now in (100.0, 104.9)] == [Step.NOTHING] * 2
    assert not countdown.interrupted
    assert [countdown.due(now) for now in (105.0, 106.9, 107.0, 120.0)] == [Step.INTERRUPT, Step.NOTHING, Step.END, Step.NOTHING]
    assert countdown.interrupted and countdown.kill_at == 109.0


def test_nothing_is_due_once_the_task_has_ended():
    all_ = Countdowns()
    all_.begin(TASK, 1.0, now=0.0)
    all_.end(TASK)
    all_.end(TASK)
    assert all_.wait_s(10.0) is None and all_.first_to_kill() is None
    assert all_.due(10.0) == []


def test_the_next_task_has_its_own_time_and_is_not_taken_for_the_one_before():
    all_ = Countdowns()
    all_.begin(TASK, 1.0, now=0.0)
    assert all_.due(1.0) == [(TASK, Step.INTERRUPT)]
    all_.end(TASK)
    all_.begin(NEXT, 10.0, now=1.5)
    assert all_.due(3.5) == []
    assert all_.wait_s(3.5) == 8.0
    assert all_.interrupted(NEXT) is None


def test_calls_at_once_each_have_their_time_and_the_first_to_be_late_is_the_first_to_be_killed_for():
    all_ = Countdowns()
    all_.begin(TASK, 10.0, now=0.0)
    all_.begin(NEXT, 1.0, now=0.5)
    assert all_.wait_s(0.5) == 1.0
    first = all_.first_to_kill()
    assert first is not None and (first.limit_s, first.kill_at) == (1.0, 1.5 + 2 * GRACE_S)
    assert all_.due(1.5) == [(NEXT, Step.INTERRUPT)]
    assert (all_.interrupted(NEXT), all_.interrupted(TASK)) == (1.0, None)
    assert all_.due(10.0) == [(TASK, Step.INTERRUPT), (NEXT, Step.END)]
