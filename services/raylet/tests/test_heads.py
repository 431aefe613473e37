"""Which head is asked: given, learnt, followed."""

from __future__ import annotations

import pytest
from shoal_raylet.heads import MAX_LEARNT, Heads


def test_one_that_does_not_answer_is_left_for_the_next_and_only_once():
    heads = Heads(["a:1", "b:1"])
    heads.failed("a:1", 0)
    heads.failed("a:1", 0)  # another call that was under way there
    assert heads.current == "b:1"
    heads.failed("b:1", 0)
    assert heads.current == "a:1"


def test_a_single_head_is_asked_again():
    heads = Heads(["a:1"])
    heads.failed("a:1", 0)
    assert heads.current == "a:1"


def test_a_standby_names_the_leader_who_is_remembered():
    heads = Heads(["a:1"])
    heads.failed("a:1", 0, "b:1")
    assert (heads.current, heads.known) == ("b:1", ("a:1", "b:1"))
    heads.failed("a:1", 0, "c:1")  # an old answer changes nothing
    assert heads.current == "b:1"


def test_a_head_that_names_itself_is_left():
    heads = Heads(["a:1", "b:1"])
    heads.failed("a:1", 0, "a:1")
    assert heads.current == "b:1"


def test_what_was_asked_before_a_head_said_that_it_leads_tells_nothing_about_it():
    heads = Heads(["a:1", "b:1"])
    turn = heads.turn
    heads.lead("a:1")
    heads.failed("a:1", turn)  # the call that waited for it while it stood by was given up
    heads.failed("a:1", turn, "b:1")  # what it answered while it stood by
    assert heads.current == "a:1"
    heads.failed("a:1", heads.turn)
    assert heads.current == "b:1"


def test_what_is_learnt_is_bounded_and_what_was_given_stays():
    heads = Heads(["a:1"])
    for n in range(100):
        heads.lead(f"learnt:{n + 1}")
    assert len(heads.known) == 1 + MAX_LEARNT
    assert heads.known[0] == "a:1"
    assert heads.current == "learnt:100"
    heads.failed("learnt:100", heads.turn)
    assert heads.current == "a:1"


def test_without_an_address_it_says_so():
    with pytest.raises(ValueError, match="no address"):
        Heads([])
