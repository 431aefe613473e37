"""What a process holds of its job's limits is counted right, whatever becomes of its objects: lost, made again, failed, passed on, let go."""

from __future__ import annotations

from shoal._core.driven import Driven

NODE, WORKER, OTHER = bytes([1]) * 16, bytes([7]) * 16, bytes([8]) * 16


def counted(driven: Driven) -> tuple[int, int]:
    mine, found = driven.holdings()
    assert mine == found
    return mine


def test_objects_count_until_nobody_counts_them() -> None:
    driven = Driven(worker_id=WORKER, node_id=NODE, kind=1)
    first, second = driven.put((1, 1, 300_000)), driven.put((2, 1, 500_000))
    driven.put(b"small values lie with their owner")
    assert counted(driven) == (0, 800_000)
    driven.drop(first)
    assert counted(driven) == (0, 500_000)
    driven.drop(second)
    assert counted(driven) == (0, 0)


def test_what_others_own_is_theirs() -> None:
    driven = Driven(worker_id=WORKER, node_id=NODE, kind=1)
    theirs = bytes(20)
    driven.borrow(theirs, OTHER + NODE)
    assert counted(driven) == (0, 0)
    driven.drop(theirs)
    assert counted(driven) == (0, 0)


def test_tasks_count_until_they_end_also_when_they_are_cancelled() -> None:
    driven = Driven(worker_id=WORKER, node_id=NODE, kind=1)
    number = driven.lease_class(b"class")
    refs = [driven.submit(number)[0] for _ in range(3)]
    assert counted(driven) == (3, 0)
    for ref in refs:
        driven.cancel(ref[:16])
    assert counted(driven) == (0, 0)
