"""What is done, and when, to a task that runs too long."""

from __future__ import annotations

from shoal._worker.time_limit import Countdown, Step

TASK, NEXT = b"a" * 16, b"b" * 16


def test_a_task_is_interrupted_once_and_ended_after_the_grace():
    countdown = Countdown(grace_s=2.0)
    countdown.begin(TASK, 5.0, now=100.0)
    assert [countdown.due(now) for now in (100.0, 104.9)] == [Step.NOTHING] * 2
    assert not countdown.interrupted(TASK)
    assert [countdown.due(now) for now in (105.0, 106.9, 107.0, 120.0)] == [Step.INTERRUPT, Step.NOTHING, Step.END, Step.NOTHING]
    assert countdown.interrupted(TASK)


def test_nothing_is_due_once_the_task_has_ended():
    countdown = Countdown()
    countdown.begin(TASK, 1.0, now=0.0)
    countdown.end()
    assert countdown.wait_s(10.0) is None
    assert countdown.due(10.0) is Step.NOTHING


def test_the_next_task_has_its_own_time_and_is_not_taken_for_the_one_before():
    countdown = Countdown()
    countdown.begin(TASK, 1.0, now=0.0)
    assert countdown.due(1.0) is Step.INTERRUPT
    countdown.end()
    countdown.begin(NEXT, 10.0, now=1.5)
    assert countdown.due(3.5) is Step.NOTHING
    assert countdown.wait_s(3.5) == 8.0
    assert not countdown.interrupted(NEXT)
