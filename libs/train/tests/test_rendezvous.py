"""Ranks that must make the same calls."""

import pytest
from shoal.train._run.rendezvous import BARRIER, REPORT, Call, Mismatch, Rendezvous


def test_all_ranks_meet():
    meeting = Rendezvous(2)
    first = Call(REPORT, {"a": 1})
    assert meeting.called(1, first) is None
    assert meeting.waiting == {1}
    together = meeting.called(0, Call(REPORT))
    assert together is not None
    assert together[1] is first
    assert not meeting.waiting


def test_a_rank_that_returned_is_not_waited_for():
    meeting = Rendezvous(4)
    for rank in range(4):
        meeting.called(rank, Call(REPORT))
    for rank in (0, 1, 2):
        meeting.called(rank, Call(REPORT))
    with pytest.raises(Mismatch, match=r"ranks 0-2 called report\(\), but rank 3 returned.*ranks 0-2: 2, rank 3: 1"):
        meeting.returned(3)


def test_a_call_after_another_rank_returned_is_told_at_once():
    meeting = Rendezvous(2)
    meeting.returned(0)
    with pytest.raises(Mismatch, match=r"rank 1 called report\(\), but rank 0 returned.*rank 1: 1, rank 0: 0"):
        meeting.called(1, Call(REPORT))


def test_different_calls_are_told_at_once():
    meeting = Rendezvous(3)
    meeting.called(0, Call(REPORT))
    with pytest.raises(Mismatch, match=r"rank 2 called barrier\(\); rank 0 called report\(\)"):
        meeting.called(2, Call(BARRIER))


def test_all_may_return():
    meeting = Rendezvous(2)
    meeting.returned(0)
    meeting.returned(1)
