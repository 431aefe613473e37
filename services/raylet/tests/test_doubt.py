"""A raylet without its control store: down, or cut off?"""

import pytest
from shoal_raylet.doubt import Doubt

LEASE_S = 10.0


def rounds(answers, silent=(6.0, 7.0, 8.5, 9.5)):
    doubt = Doubt()
    return next((why for s in silent if (why := doubt.judge(s, [s if a else None for a in answers], LEASE_S))), "")


def test_when_nobody_hears_it_it_is_down_and_work_goes_on():
    assert rounds([True, True, True]) == ""


def test_who_hears_it_later_than_we_did_shows_that_we_are_cut_off():
    doubt = Doubt()
    assert not doubt.judge(5.5, [5.5, 1.0], LEASE_S)
    assert "while other nodes have one" in doubt.judge(6.5, [6.5, 1.0], LEASE_S)


def test_a_new_head_that_others_have_heard_a_moment_earlier_is_no_proof():
    doubt = Doubt()
    assert not doubt.judge(5.5, [5.5, 0.1], LEASE_S)
    doubt.over()  # it has told us that it leads
    assert not doubt.judge(6.0, [6.0, 0.1], LEASE_S)
    assert doubt.judge(7.0, [7.0, 0.5], LEASE_S), "and who never gets an answer of it is cut off in time"


@pytest.mark.parametrize("answers", [[False], [False, False], [True, False, False], [True, True, False, False, False]])
def test_a_minority_that_hears_only_itself_is_cut_off_before_its_lease_is_over(answers):
    assert "this node is cut off" in rounds(answers)
    assert rounds(answers, silent=(5.5, 6.0, 6.5, 7.0)) == "", "and not long before it"


@pytest.mark.parametrize("answers", [[True], [True, False], [True, True, False], [True, True, True, False, False]])
def test_a_control_store_that_is_down_may_take_some_nodes_along(answers):
    assert rounds(answers) == ""


def test_one_silent_round_proves_nothing_and_an_alone_node_is_never_cut_off():
    doubt = Doubt()
    assert not doubt.judge(8.5, [None, None], LEASE_S)
    assert not doubt.judge(9.0, [9.0, 9.0], LEASE_S)
    assert not doubt.judge(9.2, [None, None], LEASE_S)
    doubt.over()
    assert not doubt.judge(9.4, [None, None], LEASE_S)
    assert rounds([]) == ""
