"""Which copies nobody may know of, without an arena."""

from __future__ import annotations

from shoal_objectstore.copies import TOLD_S, Copies
from shoal_objectstore.pulls import Origin

HERE, OTHER = (7, 1), (8, 1)
ORIGIN = Origin(b"n" * 16, 3, 1)
LONG = TOLD_S + 1


def copies() -> Copies:
    made = Copies()
    made.made(HERE, 100, ORIGIN)
    return made


def test_a_copy_of_which_nobody_was_told_is_doubtful() -> None:
    made = copies()
    assert made.doubtful == [HERE]
    made.told(HERE, 5, gets=0, at=0.0)
    assert made.doubtful == []


def test_an_asker_that_left_before_it_read_anything_may_not_have_told_the_owner() -> None:
    made = copies()
    made.told(HERE, 5, gets=3, at=0.0)
    made.asker_left(5, gets=3, at=1000.0)
    assert made.doubtful == [HERE]


def test_an_asker_that_left_at_once_may_not_have_told_the_owner() -> None:
    made = copies()
    made.told(HERE, 5, gets=3, at=0.0)
    made.asker_left(5, gets=4, at=TOLD_S)
    assert made.doubtful == [HERE]


def test_an_asker_that_read_and_went_on_has_told_the_owner() -> None:
    made = copies()
    made.told(HERE, 5, gets=3, at=0.0)
    made.asker_left(5, gets=4, at=LONG)
    made.told(HERE, 6, gets=0, at=LONG)
    made.asker_left(6, gets=0, at=LONG)
    assert made.doubtful == [], "whoever else leaves"


def test_the_last_asker_to_leave_decides() -> None:
    made = copies()
    made.told(HERE, 5, gets=0, at=0.0)
    made.told(HERE, 6, gets=0, at=0.0)
    made.asker_left(5, gets=0, at=LONG)
    assert made.doubtful == []
    made.asker_left(6, gets=0, at=LONG)
    assert made.doubtful == [HERE]
    made.asker_left(6, gets=0, at=LONG)  # its connection, then its process
    assert made.doubtful == [HERE]


def test_a_copy_that_is_asked_for_again_is_no_longer_doubtful() -> None:
    made = copies()
    made.told(HERE, 5, gets=0, at=0.0)
    made.asker_left(5, gets=0, at=1.0)
    made.told(HERE, 6, gets=0, at=2.0)
    assert made.doubtful == []


def test_what_the_contract_was_told_of_is_its_callers_affair() -> None:
    made = copies()
    made.told(HERE, 0, gets=0, at=0.0)
    made.told(HERE, 5, gets=0, at=0.0)
    made.asker_left(5, gets=0, at=0.0)
    assert made.doubtful == []


def test_the_sum_of_bytes_follows() -> None:
    made = copies()
    made.made(OTHER, 50)
    assert (made.bytes, len(made), made.origin(HERE), made.origin(OTHER)) == (150, 2, ORIGIN, None)
    made.gone([HERE, HERE, (9, 9)])
    assert (made.bytes, made.locations, made.doubtful) == (50, [OTHER], [OTHER])
    made.told((9, 9), 5, gets=0, at=0.0)
    made.asker_left(5, gets=0, at=0.0)
    assert made.doubtful == [OTHER]
