"""One transfer for many askers, without a network."""

from __future__ import annotations

from shoal_objectstore.pulls import Answer, AskerLeft, CopyGone, Origin, PullEnded, Pulls, PullWanted, StartPull

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
