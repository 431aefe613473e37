"""Which requests a replica has started, readable after it was killed.

A ring of the numbers of the last requests lies in memory without a name (memfd) that routers on the same node map as well. When the replica dies, a router
looks there: a request that is not in it had not begun, and can be sent to another replica without being carried out twice. The memory goes with the last
process that has it mapped.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
from typing import Any

import shoal

# Limit: requests that are under way at a time in one replica; of more it is not known whether they began.
ENTRIES = 8192
_SIZE = ENTRIES * 8
# Numbers of requests, unlike those of every other process.
_numbers = itertools.count(random.getrandbits(62) | 1)


def new_number() -> int:
    """For one attempt of one request; never 0."""
    return next(_numbers)


class Journal:
    """The replica's side."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("shoal-serve-journal", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _SIZE)
        self._map = mmap.mmap(self._fd, _SIZE)
        self._ring = memoryview(self._map).cast("Q")
        self._next = 0

    def place(self) -> tuple[str, int, int]:
        """Node, process and descriptor: where others find it."""
        return shoal.get_runtime_context().get_node_id(), os.getpid(), self._fd

    def started(self, number: int) -> None:
        self._ring[self._next] = number
        self._next = (self._next + 1) % ENTRIES


class JournalReader:
    """A router's side. Without access (another node) every request may have begun."""

    def __init__(self, place: tuple[str, int, int] | None) -> None:
        self._ring: Any = None
        if place is None or place[0] != shoal.get_runtime_context().get_node_id():
            return
        try:
            fd = os.open(f"/proc/{place[1]}/fd/{place[2]}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # it has gone already, or belongs to another user's namespace
        try:
            if os.fstat(fd).st_size == _SIZE:
                self._ring = memoryview(mmap.mmap(fd, _SIZE, prot=mmap.PROT_READ)).cast("Q")
        finally:
            os.close(fd)

    def may_have_started(self, number: int) -> bool:
        return self._ring is None or number in self._ring
