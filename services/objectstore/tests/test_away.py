"""What stores of other nodes are told: in order, again until it is done, and to no dead node."""

from __future__ import annotations

import pytest
from shoal_objectstore import away
from shoal_objectstore.away import Answer, Away, Delivered, Errand, Failed, NodeDied, Send, Ticked, Wanted

A, B = b"a" * 16, b"b" * 16


def want(number: int, *slots: int, node: bytes = A, errand: Errand = Errand.FREE) -> Wanted:
    return Wanted("asker", number, node, f"{node[:1].decode()}:1", errand, tuple((slot, 1) for slot in slots))


def slots(*numbers: int) -> tuple[tuple[int, int], ...]:
    return tuple((n, 1) for n in numbers)


def test_what_gathers_behind_a_message_goes_in_one_and_is_answered_one_by_one() -> None:
    state = Away()
    assert state.handle(want(1, 5)) == [Send(A, "a:1", Errand.FREE, slots(5))]
    assert state.handle(want(2, 6)) == []
    assert state.handle(want(3, 7, 8)) == []
    assert state.handle(Delivered(A)) == [Answer("asker", 1), Send(A, "a:1", Errand.FREE, slots(6, 7, 8))]
    assert state.handle(Delivered(A)) == [Answer("asker", 2), Answer("asker", 3)]
    assert state.objects == 0


def test_nodes_do_not_wait_for_each_other() -> None:
    state = Away()
    assert len(state.handle(want(1, 5))) == 1
    assert state.handle(want(2, 5, node=B)) == [Send(B, "b:1", Errand.FREE, slots(5))]


def test_a_copy_that_is_kept_and_then_freed_is_told_in_that_order() -> None:
    state = Away()
    state.handle(want(1, 1))
    for event in (want(2, 2, errand=Errand.KEEP), want(3, 3, errand=Errand.KEEP), want(4, 2)):
        assert state.handle(event) == []
    assert state.handle(Delivered(A))[1:] == [Send(A, "a:1", Errand.KEEP, slots(2, 3))]
    assert state.handle(Delivered(A))[2:] == [Send(A, "a:1", Errand.FREE, slots(2))]


def test_what_failed_is_told_again_with_growing_pauses_and_keeps_its_place() -> None:
    state = Away()
    state.handle(want(1, 5))
    state.handle(want(2, 6, errand=Errand.KEEP))
    now, pauses = 100.0, []
    for _ in range(10):
        assert state.handle(Failed(A, now)) == []
        began = now
        assert state.handle(want(0, 9)) == []  # nothing goes before its time
        while not (effects := state.handle(Ticked(now))):
            now += 0.1
        assert effects == [Send(A, "a:1", Errand.FREE, slots(5))]
        pauses.append(now - began)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(away.MOST_PAUSE_S, abs=0.2)
    assert state.handle(Delivered(A)) == [Answer("asker", 1), Send(A, "a:1", Errand.KEEP, slots(6))]


def test_a_dead_node_has_nothing_any_more() -> None:
    state = Away()
    state.handle(want(1, 5))
    state.handle(want(2, 6))
    assert state.handle(NodeDied(A)) == [Answer("asker", 1), Answer("asker", 2)]
    assert state.handle(Failed(A, 1.0)) == state.handle(Delivered(A)) == state.handle(Ticked(99.0)) == []
    assert state.handle(want(3, 7)) == [Answer("asker", 3)]
    assert state.objects == 0


def test_beyond_its_limit_nothing_is_taken_and_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "MAX_OBJECTS", 3)
    state = Away()
    state.handle(want(1, 1, 2))
    assert state.handle(want(2, 3, 4)) == []
    assert (state.objects, state.refused) == (2, 2)
    assert state.handle(Delivered(A)) == [Answer("asker", 1)]
    assert state.handle(want(2, 3, 4)) == [Send(A, "a:1", Errand.FREE, slots(3, 4))]


def test_a_message_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "BATCH_OBJECTS", 4)
    state = Away()
    state.handle(want(1, 0))
    for n in range(2, 5):
        state.handle(want(n, 10 * n, 10 * n + 1))
    assert state.handle(want(5, *range(100, 110))) == []
    assert [e.slots for e in state.handle(Delivered(A)) if isinstance(e, Send)] == [slots(20, 21, 30, 31)]
    assert [e.slots for e in state.handle(Delivered(A)) if isinstance(e, Send)] == [slots(40, 41)]
    assert [len(e.slots) for e in state.handle(Delivered(A)) if isinstance(e, Send)] == [10]  # one errand is not divided
