"""Which worker of a pool gets what."""

from shoal.util.multiprocessing.dispatch import AHEAD, Dispatch


def pool(workers: int, most: int = 0) -> Dispatch:
    dispatch = Dispatch(most)
    for worker in range(workers):
        dispatch.added(worker)
    return dispatch


def test_work_goes_round_before_anybody_gets_more_than_one():
    dispatch = pool(3)
    for chunk in "abcd":
        dispatch.submitted(chunk)
    assert dispatch.assignments() == [(0, "a"), (1, "b"), (2, "c"), (0, "d")]


def test_nobody_gets_more_than_one_ahead_so_that_a_slow_one_holds_nothing_back():
    dispatch = pool(2)
    for chunk in range(10):
        dispatch.submitted(chunk)
    assert len(dispatch.assignments()) == 2 * (1 + AHEAD)
    assert dispatch.assignments() == []
    dispatch.finished(1)
    assert dispatch.assignments() == [(1, 4)]


def test_a_worn_worker_gets_nothing_more_and_is_replaced_when_idle():
    dispatch = pool(1, most=2)
    for chunk in "abc":
        dispatch.submitted(chunk)
    assert dispatch.assignments() == [(0, "a"), (0, "b")]
    assert not dispatch.finished(0)
    assert dispatch.finished(0)
    dispatch.removed(0)
    assert dispatch.assignments() == []
    dispatch.added(1)
    assert dispatch.assignments() == [(1, "c")]


def test_what_a_removed_worker_finishes_is_nothing():
    dispatch = pool(1)
    dispatch.submitted("a")
    dispatch.assignments()
    dispatch.removed(0)
    assert not dispatch.finished(0)
