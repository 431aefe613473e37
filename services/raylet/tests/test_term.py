"""Until when the workers of a node may count what they do."""

from __future__ import annotations

import pytest
from shoal_raylet.memory import RECORDS, ControlPages
from shoal_raylet.term import Term

LEASE_S = 10.0


@pytest.fixture
def ends() -> list[float]:
    return []


@pytest.fixture
def term(ends: list[float]) -> Term:
    return Term(lambda until_ns: ends.append(until_ns / 1e9))


def test_an_answer_counts_from_when_it_was_asked_for(term: Term, ends: list[float]) -> None:
    term.answered(100.0, LEASE_S)
    term.answered(101.0, LEASE_S)
    assert ends == [110.0, 111.0]


def test_an_older_end_never_replaces_a_later_one(term: Term, ends: list[float]) -> None:
    term.answered(101.0, LEASE_S)
    term.answered(100.0, LEASE_S)
    assert ends == [111.0]


def test_while_the_control_store_is_down_it_goes_on_in_small_steps(term: Term, ends: list[float]) -> None:
    term.answered(100.0, LEASE_S)
    for now in range(101, 120):
        term.goes_on(float(now), now - 100.0, LEASE_S)
    assert ends == [110.0, *(now + 4.0 for now in range(107, 120))]  # at 106 the lease itself lasts as long
    assert all(later - now <= 4.0 for now, later in zip(range(107, 120), ends[1:], strict=True))


def test_the_word_lies_behind_all_records_and_taking_one_does_not_touch_it() -> None:
    pages = ControlPages()
    try:
        pages.lend_until(12_345)
        taken = [pages.take() for _ in range(RECORDS)]
        assert taken[-1] == RECORDS - 1
        assert pages.take() is None
        assert pages.lent_until() == 12_345
    finally:
        pages.close()
