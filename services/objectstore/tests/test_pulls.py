"""One transfer for many askers, without a network."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_objectstore.pulls import ARGUMENTS, GET, MAX_RUNNING, WAIT, Answer, AskerLeft, CopyGone, Forget, Origin, PullEnded, Pulls, PullWanted, StartPull

ORIGIN = Origin(b"n" * 16, 7, 3)


def wanted(asker: str, request: int = 1) -> PullWanted:
    return PullWanted(asker, request, ORIGIN, bytes(20), 100, "host:1")


def test_all_askers_get_the_answer_of_one_transfer() -> None:
    pulls = Pulls()
    assert pulls.handle(wanted("a")) == [StartPull(ORIGIN, bytes(20), 100, "host:1")]
    assert pulls.handle(wanted("b", 9)) == []
    assert pulls.handle(PullEnded(ORIGIN, 0, 5, 6)) == [Answer("a", 1, 0, 5, 6, ""), Answer("b", 9, 0, 5, 6, "")]
    assert pulls.running == 0


def test_a_copy_answers_at_once_until_it_is_gone() -> None:
    pulls = Pulls()
    pulls.handle(wanted("a"))
    pulls.handle(PullEnded(ORIGIN, 0, 5, 6))
    assert pulls.handle(wanted("b")) == [Answer("b", 1, 0, 5, 6, "")]
    pulls.handle(CopyGone(ORIGIN))
    assert [type(e) for e in pulls.handle(wanted("c"))] == [StartPull]


def test_a_failure_is_told_to_all_and_the_next_one_tries_again() -> None:
    pulls = Pulls()
    pulls.handle(wanted("a"))
    assert pulls.handle(PullEnded(ORIGIN, 63, text="unreachable")) == [Answer("a", 1, 63, 0, 0, "unreachable")]
    assert [type(e) for e in pulls.handle(wanted("a"))] == [StartPull]


def test_whoever_left_is_not_answered() -> None:
    pulls = Pulls()
    pulls.handle(wanted("a"))
    pulls.handle(wanted("b"))
    pulls.handle(AskerLeft("a"))
    assert [e.asker for e in pulls.handle(PullEnded(ORIGIN, 0, 5, 6)) if isinstance(e, Answer)] == ["b"]


def wanted_of(n: int, size: int, priority: int = 0) -> PullWanted:
    return PullWanted("one", n, Origin(bytes(16), n, 1), bytes(20), size, "host:1", priority)


def started(effects: list[object]) -> list[int]:
    return [e.origin.slot for e in effects if isinstance(e, StartPull)]


def test_bytes_on_their_way_are_limited_but_one_object_always_goes() -> None:
    pulls = Pulls(100)
    assert started(pulls.handle(wanted_of(1, 500))) == [1]
    assert started(pulls.handle(wanted_of(2, 60))) == []
    assert started(pulls.handle(wanted_of(3, 30))) == []
    assert (pulls.running, pulls.running_bytes, pulls.queued) == (1, 500, 2)
    assert started(pulls.handle(PullEnded(Origin(bytes(16), 1, 1), 0, 5, 1))) == [2, 3]
    assert pulls.running_bytes == 90


def test_what_comes_from_disk_does_not_wait_for_transfers_nor_they_for_it() -> None:
    here = b"h" * 16
    pulls = Pulls(100, here)

    def of_disk(n: int, size: int) -> PullWanted:
        return PullWanted("one", n, Origin(here, n, 1), bytes(20), size, "", ARGUMENTS)

    assert started(pulls.handle(wanted_of(1, 90))) == [1]
    assert started(pulls.handle(wanted_of(2, 90))) == []
    assert started(pulls.handle(of_disk(3, 60))) == [3]
    assert started(pulls.handle(of_disk(4, 60))) == []
    assert (pulls.running, pulls.running_bytes, pulls.queued) == (2, 150, 2)
    assert started(pulls.handle(PullEnded(Origin(here, 3, 1), 0, 5, 1))) == [4]
    assert started(pulls.handle(PullEnded(Origin(bytes(16), 1, 1), 0, 5, 1))) == [2]
    pulls.handle(PullEnded(Origin(here, 4, 1), 0, 5, 1))
    pulls.handle(PullEnded(Origin(bytes(16), 2, 1), 0, 5, 1))
    assert (pulls.running, pulls.running_bytes, pulls.queued) == (0, 0, 0)


def test_transfers_at_once_are_limited_and_the_urgent_go_first() -> None:
    pulls = Pulls()
    for n in range(MAX_RUNNING):
        assert started(pulls.handle(wanted_of(n, 1))) == [n]
    assert started([*pulls.handle(wanted_of(100, 1, ARGUMENTS)), *pulls.handle(wanted_of(101, 1, WAIT)), *pulls.handle(wanted_of(102, 1, GET))]) == []
    assert [started(pulls.handle(PullEnded(Origin(bytes(16), n, 1), 0))) for n in range(3)] == [[102], [101], [100]]


def test_a_second_asker_makes_a_waiting_pull_more_urgent() -> None:
    pulls = Pulls(1)
    pulls.handle(wanted_of(1, 1))
    pulls.handle(wanted_of(2, 1, WAIT))
    pulls.handle(wanted_of(3, 1, ARGUMENTS))
    pulls.handle(wanted_of(3, 1, GET))
    assert started(pulls.handle(PullEnded(Origin(bytes(16), 1, 1), 0))) == [3]


def test_a_waiting_pull_goes_with_its_last_asker_and_a_running_one_stays() -> None:
    pulls = Pulls(1)
    pulls.handle(wanted_of(1, 1))
    pulls.handle(wanted_of(2, 1))
    assert pulls.handle(AskerLeft("one")) == []
    assert (pulls.running, pulls.queued) == (1, 0)
    assert pulls.handle(PullEnded(Origin(bytes(16), 1, 1), 0, 5, 1)) == []
    assert pulls.copy(Origin(bytes(16), 1, 1)) == (5, 1)


def test_a_copy_beyond_the_limit_is_given_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.pulls.MAX_COPIES", 1)
    pulls = Pulls()
    for n in (1, 2):
        pulls.handle(wanted_of(n, 1))
    pulls.handle(PullEnded(Origin(bytes(16), 1, 1), 0, 5, 1))
    assert Forget(5, 1) in pulls.handle(PullEnded(Origin(bytes(16), 2, 1), 0, 6, 1))


# (what, which object, by whom, how urgent)
askers = st.sampled_from("abc")
wants = st.tuples(st.just("want"), st.integers(0, 9), askers, st.integers(0, 2))
steps = st.lists(wants | st.tuples(st.just("end"), st.integers(0, 9)) | st.tuples(st.just("leave"), askers), max_size=60)


@given(steps)
def test_the_next_one_is_always_the_first_asked_for_of_the_most_urgent(steps: list[tuple[object, ...]]) -> None:
    pulls = Pulls(1)  # one at once
    running: int | None = None
    waiting: dict[int, tuple[int, int, set[str]]] = {}  # object -> (priority, when asked for first, by whom)
    for when, (what, *values) in enumerate(steps):
        if what == "want":
            n, asker, priority = values
            effects = pulls.handle(PullWanted(asker, when, Origin(b"", n, 1), b"", 1, "", priority))
            if n != running:
                known = waiting.get(n, (priority, when, set()))
                waiting[n] = (min(known[0], priority), known[1], known[2] | {asker})
        elif what == "leave":
            effects = pulls.handle(AskerLeft(values[0]))
            waiting = {n: (priority, first, left) for n, (priority, first, askers) in waiting.items() if (left := askers - {values[0]})}
        elif values[0] == running:
            effects = pulls.handle(PullEnded(Origin(b"", values[0], 1), 63))
            running = None
        else:
            continue
        expected = []
        if running is None and waiting:
            running = min(waiting, key=lambda n: waiting[n][:2])
            del waiting[running]
            expected = [running]
        assert started(effects) == expected
        assert pulls.queued == len(waiting)


def test_a_long_queue_costs_no_more_for_each() -> None:
    def seconds_for_each(count: int) -> float:
        pulls = Pulls()
        began = time.process_time()
        under_way = [n for m in range(count) for n in started(pulls.handle(wanted_of(m, 1, m % 3)))]
        for n in under_way:
            under_way += started(pulls.handle(PullEnded(Origin(bytes(16), n, 1), 63)))
        assert len(under_way) == count
        return (time.process_time() - began) / count

    assert seconds_for_each(20_000) < 10 * seconds_for_each(200)
