"""CRC-32C: the same by the processor's instruction and by tables, in one piece and in many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_objectstore._arena import crc32c


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
    ids=["empty", "check", "zeros", "ones", "ascending"],
)
def test_the_known_values_come_out(data: bytes, expected: int, portable: bool) -> None:
    """Those of RFC 3720, B.4."""
    assert crc32c(data, portable=portable) == expected


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_both_ways_agree_and_pieces_make_the_whole(data: bytes, cut: int, before: int) -> None:
    whole = crc32c(data, before)
    assert crc32c(data, before, portable=True) == whole
    assert crc32c(data[cut:], crc32c(data[:cut], before)) == whole
