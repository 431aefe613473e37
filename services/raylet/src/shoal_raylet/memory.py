"""The two memfds of a node: the arena (the store's to format) and the control pages."""

from __future__ import annotations

import contextlib
import heapq
import mmap
import os
import struct

import msgspec

from .allowances import ALLOWANCE_BYTES, Allowance

RECORD_BYTES = 256
RECORDS = 4096
_RECORD = struct.Struct("<IIQ16sQQ16s96s96s")
_TASK = struct.Struct("<16sQ")  # at 16: running task, blocked since
_TASK_AT = 16
_BLOCKED = struct.Struct("<Q")
_BLOCKED_AT = 32
_NONE = bytes(16)


class Record(msgspec.Struct):
    pid: int
    started: int
    task_id: bytes
    blocked_since_ns: int
    started_at_ns: int
    actor_id: bytes
    task_name: str
    last_words: str


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


class Numbers:
    """The lowest free number first, so that what is indexed by them stays dense."""

    def __init__(self, first: int, count: int) -> None:
        self._free = list(range(first, first + count))

    def take(self) -> int | None:
        return heapq.heappop(self._free) if self._free else None

    def give_back(self, number: int) -> None:
        heapq.heappush(self._free, number)


class ControlPages:
    """One record for each worker and driver; the process that owns a record alone writes it. Read here without its help, also after its death.

    Behind them a page that this process writes and all read: until when the node's lease holds. Behind that the records' allowances (`allowances`).
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("shoal-control", os.MFD_CLOEXEC)
        allowances_at = RECORDS * RECORD_BYTES + mmap.PAGESIZE
        os.ftruncate(self.fd, allowances_at + RECORDS * ALLOWANCE_BYTES)
        self._map = mmap.mmap(self.fd, RECORDS * RECORD_BYTES)
        self._lease_page = mmap.mmap(self.fd, mmap.PAGESIZE, offset=RECORDS * RECORD_BYTES)
        self._lease = memoryview(self._lease_page).cast("Q")
        self._allowances_map = mmap.mmap(self.fd, RECORDS * ALLOWANCE_BYTES, offset=allowances_at)
        self.allowances = memoryview(self._allowances_map).cast("Q")
        self._numbers = Numbers(0, RECORDS)

    def take(self) -> int | None:
        """A cleared record, or None: all are in use."""
        index = self._numbers.take()
        if index is not None:
            self._map[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = bytes(RECORD_BYTES)
        return index

    def allowance(self, index: int) -> Allowance:
        return Allowance(self.allowances, index)

    def give_back(self, index: int) -> None:
        self.allowance(index).clear()
        self._numbers.give_back(index)

    def read(self, index: int) -> Record:
        _magic, pid, started, task, blocked, started_at, actor, name, words = _RECORD.unpack_from(self._map, index * RECORD_BYTES)
        return Record(pid, started, task, blocked, started_at, actor, _text(name), _text(words))

    def blocked_since(self, index: int) -> int:
        """CLOCK_MONOTONIC in ns; 0: not blocked."""
        return int(_BLOCKED.unpack_from(self._map, index * RECORD_BYTES + _BLOCKED_AT)[0])

    def runs_a_task(self, index: int) -> bool:
        at = index * RECORD_BYTES + _TASK_AT
        return self._map[at : at + 16] != _NONE

    def lend_until(self, until_ns: int) -> None:
        """CLOCK_MONOTONIC. One store of a word: it is read at any moment."""
        self._lease[0] = until_ns

    def lent_until(self) -> int:
        return self._lease[0]

    def close(self) -> None:
        self.allowances.release()
        self._allowances_map.close()
        self._lease.release()
        self._lease_page.close()
        self._map.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)


def make_arena() -> int:
    """An empty memfd: its size and layout are the store's to give, which finds the capacity in `Registered`."""
    return os.memfd_create("shoal-arena", os.MFD_CLOEXEC)


def arena_is_formatted(fd: int) -> bool:
    """Whoever attached before would find no layout: the store writes its first word last."""
    return any(os.pread(fd, 8, 0))
