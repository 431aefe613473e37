"""Where the buffers of a value lie: large ones where a copy is fast, all of them at multiples of 64, none past the room that was set aside."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_objectstore._arena import buffer_end, lay
from shoal_objectstore.values import Packed, unpack

LARGE = 1 << 20
PAGE = 4096
AREA = np.zeros(LARGE + 3 * PAGE, np.uint8)
SOURCE = np.arange(LARGE + PAGE, dtype=np.uint8)


def address(buffer: memoryview) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data


@given(st.integers(0, PAGE - 1), st.integers(0, 255), st.integers(0, PAGE - 1))
def test_a_large_buffer_begins_half_a_page_from_its_source_wherever_that_lies(start: int, at: int, source_at: int) -> None:
    to, source = memoryview(AREA)[start:], memoryview(SOURCE)[source_at : source_at + LARGE]
    offset = lay(to, at, source)
    assert offset % 64 == 0
    assert at <= offset
    assert offset + LARGE <= buffer_end(at, LARGE)
    assert PAGE // 2 - 64 < (address(to) + offset - address(source)) % PAGE <= PAGE // 2
    assert to[offset : offset + LARGE] == source


@given(st.integers(0, 255), st.integers(0, LARGE - 1))
def test_a_smaller_one_takes_the_next_multiple_of_64(at: int, nbytes: int) -> None:
    offset = lay(AREA, at, memoryview(SOURCE)[:nbytes])
    assert offset == -(-at // 64) * 64
    assert buffer_end(at, nbytes) == offset + nbytes


def test_what_has_no_room_is_refused_and_nothing_written() -> None:
    to = bytearray(100)
    with pytest.raises(ValueError, match="no room for 50 bytes at 64 of 100"):
        lay(to, 10, b"x" * 50)
    assert to == bytes(100)


def test_a_value_of_several_large_buffers_comes_back_from_the_room_that_it_asked_for() -> None:
    whole = np.arange(LARGE, dtype=np.int32)
    value = {"a": whole[3:], "small": np.arange(7), "b": whole[1001:].view(np.uint8)[: LARGE + 5], "c": whole[: LARGE // 4 - 1]}
    packed = Packed(value)
    room = bytearray(packed.nbytes + 64)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % 64
    packed.write(memoryview(room)[start : start + packed.nbytes])
    found = unpack(memoryview(room)[start : start + packed.nbytes].toreadonly())
    assert found.keys() == value.keys()
    assert all((found[key] == value[key]).all() for key in value)
    assert all(array.ctypes.data % 64 == 0 for array in found.values())
    assert room[start + packed.nbytes :] == bytes(64 - start)
