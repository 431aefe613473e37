"""The journal of one place for spilled objects: what a successor of this process goes on from. Always on a local disk, wherever the objects lie.

It is appended to after the data it speaks of was written:
    WRITTEN  the bytes are in that file; the arena may still have them
    EVICTED  the arena no longer has them, and that was the store's doing
    DROPPED  its owner freed it
and, where files are far away and cannot be looked for:
    BEGUN    before a file is written: it may exist, whole or in part
    REMOVED  it does not exist any more
Entries of one object may come in any order but for WRITTEN, which is first; slot and generation name an object for good. Nothing is synchronised to the
disk: what outlives a process is in the page cache, and what would need more, a crash of the machine, takes the arena with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from ._arena import allocate_ahead

_log = logging.getLogger(__name__)

# The journal is written anew when it has so many entries, and so many times as many as objects live.
COMPACT_ENTRIES, COMPACT_SHARE = 65_536, 4

WRITTEN, EVICTED, DROPPED, BEGUN, REMOVED = 1, 2, 3, 4, 5
_ENTRY = struct.Struct("<B3xIIIQQQI32s")
_ENTRY_CHECK = struct.Struct("<I")
ENTRY_SIZE = _ENTRY.size + _ENTRY_CHECK.size

Location = tuple[int, int]
NOBODY = bytes(32)  # the owner of what no process's or node's end would end


class Record(msgspec.Struct):
    """Where the bytes of one object lie."""

    slot: int
    generation: int
    size: int
    place: int
    file: int
    offset: int
    checksum: int
    evicted: bool = False  # the arena has them no more
    owner: bytes = NOBODY
    stored: int = 0  # bytes in the file, where they are not as many as the object has

    @property
    def location(self) -> Location:
        return self.slot, self.generation


class Source(msgspec.Struct, frozen=True):
    """An object to be written: its bytes, and their address, on which direct I/O depends."""

    slot: int
    generation: int
    view: memoryview
    address: int
    owner: bytes = NOBODY


class SpillFailed(Exception):
    """No place takes what is to be spilled; `why`, place by place."""

    def __init__(self, nbytes: int, why: Sequence[str]) -> None:
        super().__init__(f"{nbytes:,} bytes of the object store could not be spilled to disk: {'; '.join(why)}")
        self.why = list(why)


class Damaged(Exception):
    """A spilled object is not what was written, or is gone."""


class OutOfReach(Exception):
    """A spilled object cannot be read now, and perhaps later."""


class Replayed(msgspec.Struct):
    """What a journal tells."""

    living: list[Record] = msgspec.field(default_factory=list)
    begun: set[int] = msgspec.field(default_factory=set)  # files that may exist
    next_file: int = 1


def _entry(kind: int, record: Record) -> bytes:
    body = _ENTRY.pack(kind, record.slot, record.generation, record.file, record.offset, record.size, record.stored, record.checksum, record.owner)
    return body + _ENTRY_CHECK.pack(zlib.crc32(body))


def of_file(file: int) -> Record:
    """What BEGUN and REMOVED tell."""
    return Record(0, 0, 0, 0, file, 0, 0)


def replay(entries: Iterable[tuple[int, Record]]) -> Replayed:
    """Entries in their order to what lives.

    >>> a = Record(1, 1, 10, 0, 7, 0, 0)
    >>> told = replay([(BEGUN, of_file(7)), (WRITTEN, a), (BEGUN, of_file(8)), (EVICTED, a)])
    >>> [(r.slot, r.evicted) for r in told.living], told.begun, told.next_file
    ([(1, True)], {8, 7}, 9)
    """
    told = Replayed()
    found: dict[Location, Record] = {}
    evicted: set[Location] = set()
    dropped: set[Location] = set()
    for kind, record in entries:
        # Also of files that are gone: one may have gone a moment before the journal was to say so, and what is dropped again must not meet another's bytes.
        told.next_file = max(told.next_file, record.file + 1)
        if kind == WRITTEN:
            found[record.location] = record
        elif kind == BEGUN:
            told.begun.add(record.file)
        elif kind == REMOVED:
            told.begun.discard(record.file)
        else:
            (evicted if kind == EVICTED else dropped).add(record.location)
    told.living = [r for location, r in found.items() if location not in dropped]
    for record in told.living:
        record.evicted = record.location in evicted
    return told


class Journal:
    """Not thread-safe; its place has a lock."""

    def __init__(self, path: Path, place: int) -> None:
        """`place`: the number that its records get. Raises OSError."""
        self.path = path
        self._place = place
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = self._room = 0
        self.entries = 0

    def close(self) -> None:
        os.close(self._fd)

    def recover(self) -> Replayed:
        """What a predecessor wrote; the half of an entry at the end is cut off by what is written next."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self._size = len(data) // ENTRY_SIZE * ENTRY_SIZE
        self.entries = self._size // ENTRY_SIZE
        return replay(self._parse(data[: self._size]))

    def _parse(self, data: bytes) -> Iterator[tuple[int, Record]]:
        for at in range(0, len(data), ENTRY_SIZE):
            body = data[at : at + _ENTRY.size]
            if _ENTRY_CHECK.unpack_from(data, at + _ENTRY.size)[0] != zlib.crc32(body):
                _log.error("%s: the entry at byte %d is damaged and is left out", self.path, at)
                continue
            kind, slot, generation, file, offset, size, stored, checksum, owner = _ENTRY.unpack(body)
            yield kind, Record(slot, generation, size, self._place, file, offset, checksum, owner=owner, stored=stored)

    def append(self, kind: int, records: Sequence[Record]) -> None:
        """All or nothing. Raises OSError."""
        data = b"".join(_entry(kind, r) for r in records)
        self.ahead(len(data))
        try:
            write_all(self._fd, memoryview(data), self._size)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self.entries += len(records)

    def ahead(self, size: int) -> None:
        """Room for what must be written even when the disk is full: each object that is written will be evicted and dropped."""
        if self._size + 3 * size <= self._room:
            return
        room = self._size + 3 * size + (1 << 16)
        with contextlib.suppress(OSError):  # a file system without it, or no space; then writing itself says so
            allocate_ahead(self._fd, self._size, room - self._size)
            self._room = room

    def is_long(self, living: int) -> bool:
        return self.entries > COMPACT_ENTRIES and self.entries > COMPACT_SHARE * living

    def rewrite(self, entries: Iterable[tuple[int, Record]]) -> None:
        """Anew, from what lives. On failure the old one goes on."""
        path = self.path.with_suffix(".new")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                data = b"".join(_entry(kind, record) for kind, record in entries)
                write_all(fd, memoryview(data), 0)
                os.rename(path, self.path)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            _log.warning("%s cannot be compacted: %s", self.path, error)
            return
        os.close(self._fd)
        self._fd, self._size, self._room = fd, len(data), 0
        self.entries = len(data) // ENTRY_SIZE


def write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
