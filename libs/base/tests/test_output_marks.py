"""Marks come out of a stream whole, wherever it is cut."""

from __future__ import annotations

import pytest
from shoal_base.output_marks import MARK, Unmarked, mark, marked_name

TEXT = b"before\n" + mark("f") + b"one\ntwo \x1e not a mark\n" + mark("A.b\nc") + b"three"


@pytest.mark.parametrize("size", [1, 2, 7, 13, 1000])
def test_marks_are_taken_out_of_pieces_of_any_size(size):
    unmarked = Unmarked()
    out = b"".join(unmarked.feed(TEXT[at : at + size]) for at in range(0, len(TEXT), size)) + unmarked.rest()
    assert out == b"before\none\ntwo \x1e not a mark\nthree"


def test_a_cut_mark_at_the_end_is_dropped_and_a_lone_separator_is_not():
    unmarked = Unmarked()
    assert unmarked.feed(b"a\n" + MARK + b"half") + unmarked.rest() == b"a\n"
    assert unmarked.feed(b"a\n\x1e") + unmarked.rest() == b"a\n\x1e"


def test_a_name_is_one_line_and_bounded():
    assert marked_name(mark("x\ny").rstrip(b"\n")) == "x y"
    assert len(mark("n" * 10_000)) < 300
    assert marked_name(b"output") is None
