"""The life of a run, event by event."""

import pytest
from shoal.train._run.rendezvous import BARRIER, BROADCAST, REPORT, Call
from shoal.train._run.state import (
    FAILURE_GRACE_S,
    LAST_PAUSE_S,
    Called,
    End,
    Failure,
    GroupNotStarted,
    GroupReady,
    NotRecorded,
    Phase,
    Record,
    Release,
    Returned,
    Run,
    StartGroup,
    StopGroup,
    TellFailure,
    TimePassed,
    Warn,
    WorkerFailed,
)
from shoal.train.errors import CollectiveMismatchError, ControllerError, WorkerEndedError, WorkerGroupError


def started(workers=2, max_failures=0, **kwargs):
    run = Run(max_failures, **kwargs)
    assert run.begin() == [StartGroup(0, 0.0)]
    assert run.handle(GroupReady(workers), 0) == []
    return run


def raised(text="boom"):
    return Failure(ValueError(text), f"Traceback: {text}")


LOST = Failure(WorkerEndedError("killed"), "was killed by SIGKILL", lost=True)


def test_a_run_ends_when_all_have_returned():
    run = started()
    assert run.handle(Returned(1, None), 1) == []
    assert run.handle(Returned(0, 7), 2) == [StopGroup(failed=False), End(None, 7)]
    assert run.phase is Phase.ENDED
    assert run.handle(WorkerFailed(1, LOST), 3) == []


def test_a_report_is_recorded_when_all_have_made_it():
    run = started()
    assert run.handle(Called(1, Call(REPORT, {"a": 1}, staged=True, dir_name="x")), 1) == []
    assert run.handle(Called(0, Call(REPORT, {"a": 0})), 2) == [Record([{"a": 0}, {"a": 1}], "x", frozenset({1}))]
    assert run.deadline() is None


def test_collectives_release_all():
    run = started()
    run.handle(Called(1, Call(BROADCAST)), 1)
    assert run.handle(Called(0, Call(BROADCAST, data=5)), 1) == [Release(5)]
    run.handle(Called(0, Call(BARRIER)), 2)
    assert run.handle(Called(1, Call(BARRIER)), 2) == [Release(None)]


def test_unequal_reports_end_the_run_without_another_attempt():
    run = started(max_failures=5)
    run.handle(Returned(1, None), 1)
    stop, end = run.handle(Called(0, Call(REPORT, {})), 2)
    assert stop == StopGroup(failed=True)
    assert isinstance(end.error, WorkerGroupError)
    assert isinstance(end.error.worker_failures[0], CollectiveMismatchError)
    assert "rank 0: 1, rank 1: 0" in str(end.error)


def test_different_names_of_one_checkpoint_end_the_run():
    run = started()
    run.handle(Called(0, Call(REPORT, {}, True, "a")), 1)
    *_, end = run.handle(Called(1, Call(REPORT, {}, True, "b")), 1)
    assert "rank 0: 'a', rank 1: 'b'" in str(end.error)


def test_a_rank_that_never_comes_is_warned_of_and_then_an_error():
    run = started(collective_timeout_s=100, warn_after_s=30)
    run.handle(Called(0, Call(REPORT, {})), 10)
    assert run.deadline() == 40
    [warning] = run.handle(TimePassed(), 40)
    assert isinstance(warning, Warn)
    assert "rank 0 wait(s) in report() for rank 1" in warning.text
    assert run.deadline() == 70
    run.handle(TimePassed(), 70)
    run.handle(TimePassed(), 100)
    assert run.deadline() == 110
    _, end = run.handle(TimePassed(), 110)
    assert "after 100 s rank 0 wait(s)" in str(end.error)


def test_what_raised_waits_a_moment_for_the_cause():
    run = started(max_failures=0)
    assert run.handle(WorkerFailed(0, raised("connection closed by peer")), 5) == []
    assert run.phase is Phase.FAILING
    assert run.deadline() == 5 + FAILURE_GRACE_S
    tell, stop, end = run.handle(WorkerFailed(1, LOST), 5.2)
    assert isinstance(tell, TellFailure)
    assert not tell.again
    assert stop == StopGroup(failed=True)
    assert str(end.error).startswith("rank 1 failed: was killed by SIGKILL\nAlso failed: rank 0: ValueError: connection closed by peer")
    assert list(end.error.worker_failures) == [1, 0]
    assert isinstance(end.error.__cause__, WorkerEndedError)


def test_the_moment_ends():
    run = started(workers=3)
    run.handle(WorkerFailed(2, raised()), 5)
    assert run.handle(TimePassed(), 5.1) == []
    *_, end = run.handle(TimePassed(), 5 + FAILURE_GRACE_S)
    assert isinstance(end, End)
    assert "max_failures=0" in str(end.error)


def test_nothing_is_waited_for_when_all_others_wait():
    run = started()
    run.handle(Called(0, Call(REPORT, {})), 1)
    assert isinstance(run.handle(WorkerFailed(1, raised()), 1)[-1], End)


def test_failures_are_made_good_as_often_as_allowed():
    run = started(max_failures=2)
    for attempt in (1, 2):
        tell, stop, start = run.handle(WorkerFailed(0, LOST), attempt)
        assert tell.again
        assert stop == StopGroup(failed=True)
        assert start.attempt == attempt
        run.handle(GroupReady(2), attempt)
    *_, end = run.handle(WorkerFailed(0, LOST), 3)
    assert "failure 3" in str(end.error)


def test_pauses_grow_until_there_is_a_checkpoint():
    run = started(workers=1, max_failures=-1)

    def pause():
        *_, start = run.handle(WorkerFailed(0, LOST), 1)
        run.handle(GroupReady(1), 1)
        return start.pause_s

    pauses = [pause() for _ in range(12)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S
    run.handle(Called(0, Call(REPORT, {}, staged=True)), 1)
    assert pause() == 0


def test_a_group_that_does_not_start_is_a_failure_of_its_ranks_or_of_the_run():
    run = Run(max_failures=1)
    run.begin()
    *_, start = run.handle(GroupNotStarted(RuntimeError("x"), {1: raised()}), 1)
    assert start.attempt == 1
    stop, end = run.handle(GroupNotStarted(RuntimeError("no room")), 1)
    assert stop == StopGroup(failed=True)
    assert isinstance(end.error, ControllerError)
    assert "no room" in str(end.error)


def test_storage_that_refuses_ends_the_run():
    run = started()
    *_, end = run.handle(NotRecorded(OSError("disk full")), 1)
    assert isinstance(end.error, ControllerError)


def test_news_of_a_failing_group_is_not_acted_on():
    run = started(workers=3, max_failures=1)
    run.handle(WorkerFailed(0, raised()), 1)
    assert run.handle(Called(1, Call(REPORT, {})), 1) == []
    tell, *_ = run.handle(Returned(2, None), 1) or run.handle(TimePassed(), 1 + FAILURE_GRACE_S)
    assert set(tell.failures) == {0}


@pytest.mark.parametrize("count", [1, 20])
def test_the_text_of_many_failures_is_bounded(count):
    run = started(workers=count)
    effects = [effect for rank in range(count) for effect in run.handle(WorkerFailed(rank, raised()), 1)]
    text = str(effects[-1].error)
    assert ("and 12 more" in text) == (count == 20)
