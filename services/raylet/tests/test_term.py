"""Until when the control store cannot have taken a node for dead."""

from __future__ import annotations

import socket

import pytest
from shoal_raylet.heartbeat import refuses
from shoal_raylet.memory import RECORDS, ControlPages
from shoal_raylet.term import Term

LEASE_S = 10.0


@pytest.fixture
def ends() -> list[float]:
    return []


@pytest.fixture
def term(ends: list[float]) -> Term:
    return Term(lambda until_ns: ends.append(until_ns / 1e9))


def test_an_answer_counts_from_when_it_was_asked_for_and_is_over_early(term: Term, ends: list[float]) -> None:
    assert not term.is_over(1e9)  # nobody ever gave one
    term.answered(100.0, LEASE_S)
    term.answered(101.0, LEASE_S)
    assert ends == [109.0, 110.0]
    assert not term.is_over(109.9)
    assert term.is_over(110.0)


def test_an_older_end_never_replaces_a_later_one(term: Term, ends: list[float]) -> None:
    term.answered(101.0, LEASE_S)
    term.answered(100.0, LEASE_S)
    term.refused(100.5, 102.0, LEASE_S)
    assert ends == [110.0]


def test_while_no_control_store_runs_anywhere_it_goes_on(term: Term, ends: list[float]) -> None:
    term.answered(100.0, LEASE_S)
    for now in range(105, 150, 5):
        term.refused(now - 1.0, float(now), LEASE_S)
    assert ends == [109.0, *(now + 8.0 for now in range(105, 150, 5))]


def test_once_it_is_over_no_refusal_renews_it_but_an_answer_does(term: Term, ends: list[float]) -> None:
    """The head that refuses now may have declared this node dead before it went."""
    term.answered(100.0, LEASE_S)
    term.refused(108.0, 109.0, LEASE_S)
    assert ends == [109.0]
    term.answered(120.0, LEASE_S)
    assert ends == [109.0, 129.0]


def test_a_host_without_a_control_store_refuses_and_one_that_listens_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert not refuses(address)
    assert refuses(address)


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
