"""Spilled objects on disk: directories, files that hold many objects, and the journal from which a successor of this process goes on.

Blocking and thread-safe; to be called from threads. A file is written once, whole, by direct I/O where the file system has it, so that cold objects do not push
anything out of the system's cache. Objects begin at multiples of BLOCK; the space of a dead one is punched out, and the file goes with its last.

The journal of a directory is appended to after the data it speaks of was written:
    WRITTEN  the bytes are in that file; the arena may still have them
    EVICTED  the arena no longer has them, and that was the store's doing
    DROPPED  its owner freed it
Entries of one object may come in any order but for WRITTEN, which is first; slot and generation name an object for good. Nothing is synchronised to the
disk: what outlives a process is in the page cache, and what would need more, a crash of the machine, takes the arena with it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ._arena import allocate_ahead, crc32c, punch_hole

_log = logging.getLogger(__name__)

BLOCK = 4096
# One read or write; a checksum is made of what is still in the processor's cache.
STEP = 4 << 20
# A directory that failed is left alone for so long, if there is another one.
SHUN_S = 5.0
# The journal is written anew when it has so many records, and so many times as many as objects live.
COMPACT_RECORDS, COMPACT_SHARE = 65_536, 4

WRITTEN, EVICTED, DROPPED = 1, 2, 3
_ENTRY = struct.Struct("<B3xIIIQQI32s")
_ENTRY_CHECK = struct.Struct("<I")
ENTRY_SIZE = _ENTRY.size + _ENTRY_CHECK.size
_PREFIX = "shoal-spill-"

Location = tuple[int, int]
NOBODY = bytes(32)  # the owner of what no process's or node's end would end


class SpillFailed(Exception):
    """No directory takes what is to be spilled; the text says why."""


class Damaged(Exception):
    """A spilled object is not what was written, or cannot be read."""


@dataclass(slots=True)
class Record:
    """Where the bytes of one object lie."""

    slot: int
    generation: int
    size: int
    directory: int
    file: int
    offset: int
    checksum: int
    evicted: bool = False  # the arena has them no more
    owner: bytes = NOBODY

    @property
    def location(self) -> Location:
        return self.slot, self.generation


@dataclass(frozen=True, slots=True)
class Source:
    """An object to be written: its bytes, and their address, on which direct I/O depends."""

    slot: int
    generation: int
    view: memoryview
    address: int
    owner: bytes = NOBODY


@dataclass(slots=True)
class _File:
    objects: int = 0
    blocks: int = 0  # bytes on disk, dead objects' included where they cannot be punched out


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


_bounce = threading.local()


def _buffer() -> memoryview:
    """Memory of this thread, aligned for direct I/O."""
    if not hasattr(_bounce, "view"):
        _bounce.view = memoryview(mmap.mmap(-1, STEP))
    return _bounce.view  # type: ignore[no-any-return]


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def _entry(kind: int, record: Record) -> bytes:
    body = _ENTRY.pack(kind, record.slot, record.generation, record.file, record.offset, record.size, record.checksum, record.owner)
    return body + _ENTRY_CHECK.pack(zlib.crc32(body))


class Directory:
    """One place for spilled objects, for one node."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.shunned_until = 0.0
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}
        self._next_file = 1
        self._direct = os.O_DIRECT
        self._punches = True
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._journal = os.open(path / "journal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._journal_size = self._journal_room = 0
        self._entries = 0
        self._living: dict[Location, Record] = {}

    def close(self) -> None:
        os.close(self._journal)

    @property
    def disk_bytes(self) -> int:
        return sum(f.blocks for f in self._files.values())

    @property
    def files(self) -> int:
        return len(self._files)

    def file_path(self, file: int) -> Path:
        return self.path / f"{file:08d}.spill"

    # -- the journal -----------------------------------------------------------------------------------

    def recover(self) -> list[Record]:
        """What a predecessor wrote and did not drop. Files in which nothing lives go."""
        found: dict[Location, Record] = {}
        evicted: set[Location] = set()
        dropped: set[Location] = set()
        data = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        whole = len(data) // ENTRY_SIZE * ENTRY_SIZE
        for at in range(0, whole, ENTRY_SIZE):
            body = data[at : at + _ENTRY.size]
            if _ENTRY_CHECK.unpack_from(data, at + _ENTRY.size)[0] != zlib.crc32(body):
                _log.error("%s: the entry at byte %d is damaged and is left out", self.path / "journal", at)
                continue
            kind, slot, generation, file, offset, size, checksum, owner = _ENTRY.unpack(body)
            # Also of files that are gone: one may have gone a moment before the journal was to say so, and what is dropped again must not meet another's bytes.
            self._next_file = max(self._next_file, file + 1)
            if kind == WRITTEN:
                found[slot, generation] = Record(slot, generation, size, self.number, file, offset, checksum, owner=owner)
            else:
                (evicted if kind == EVICTED else dropped).add((slot, generation))
        self._journal_size, self._entries = whole, whole // ENTRY_SIZE
        records = [r for location, r in found.items() if location not in dropped]
        for record in records:
            record.evicted = record.location in evicted
            self._count(record)
        self._remove_strays()
        return records

    def _count(self, record: Record) -> None:
        file = self._files.setdefault(record.file, _File())
        file.objects += 1
        file.blocks += _blocks(record.size)
        self._living[record.location] = record

    def _remove_strays(self) -> None:
        for path in self.path.glob("*.spill"):
            number = int(path.stem) if path.stem.isdecimal() else 0
            self._next_file = max(self._next_file, number + 1)
            if number not in self._files:
                path.unlink(missing_ok=True)

    def _append(self, kind: int, records: Sequence[Record]) -> None:
        """All or nothing. Raises OSError."""
        data = b"".join(_entry(kind, r) for r in records)
        self._ahead(len(data))
        try:
            _write_all(self._journal, memoryview(data), self._journal_size)
        except OSError:
            os.ftruncate(self._journal, self._journal_size)
            raise
        self._journal_size += len(data)
        self._entries += len(records)

    def _ahead(self, size: int) -> None:
        """Room for what must be written even when the disk is full: each object that is written will be evicted and dropped."""
        if self._journal_size + 3 * size <= self._journal_room:
            return
        room = self._journal_size + 3 * size + (1 << 16)
        with contextlib.suppress(OSError):  # a file system without it, or no space; then writing itself says so
            allocate_ahead(self._journal, self._journal_size, room - self._journal_size)
            self._journal_room = room

    def _compact(self) -> None:
        """Writes the journal anew from what lives. On failure the old one goes on."""
        path = self.path / "journal.new"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                data = b"".join(_entry(WRITTEN, r) + (_entry(EVICTED, r) if r.evicted else b"") for r in self._living.values())
                _write_all(fd, memoryview(data), 0)
                os.rename(path, self.path / "journal")
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            _log.warning("%s cannot be compacted: %s", self.path / "journal", error)
            return
        os.close(self._journal)
        self._journal, self._journal_size, self._journal_room = fd, len(data), 0
        self._entries = len(data) // ENTRY_SIZE

    # -- objects ---------------------------------------------------------------------------------------

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, flags | self._direct | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0  # a file system without direct I/O
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def write(self, objects: Sequence[Source]) -> list[Record]:
        """Into one new file. Raises OSError, and then nothing is left of it."""
        with self._lock:
            number = self._next_file
            self._next_file += 1
        path = self.file_path(number)
        try:
            fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                records, offset = [], 0
                for source in objects:
                    checksum = self._write_one(fd, source, offset)
                    size = len(source.view)
                    records.append(Record(source.slot, source.generation, size, self.number, number, offset, checksum, owner=source.owner))
                    offset += _blocks(size)
            finally:
                os.close(fd)
            with self._lock:
                self._append(WRITTEN, records)
                for record in records:
                    self._count(record)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return records

    def _write_one(self, fd: int, source: Source, offset: int) -> int:
        checksum, view, bounce = 0, source.view, _buffer()
        for at in range(0, len(view), STEP):
            part = view[at : at + STEP]
            checksum = crc32c(part, checksum)
            straight = len(part) // BLOCK * BLOCK if source.address % BLOCK == 0 or not self._direct else 0
            if straight:
                _write_all(fd, part[:straight], offset + at)
            if rest := len(part) - straight:
                bounce[:rest] = part[straight:]
                _write_all(fd, bounce[: _blocks(rest)], offset + at + straight)
        return checksum

    def read(self, record: Record, into: memoryview, address: int) -> None:
        """Raises Damaged."""
        path, checksum, bounce = self.file_path(record.file), 0, _buffer()
        what = f"the object of {record.size:,} bytes at byte {record.offset:,} of {path}"
        try:
            fd = self._open(path, os.O_RDONLY)
        except OSError as error:
            raise Damaged(f"{what} cannot be read: {error.strerror}") from error
        try:
            for at in range(0, record.size, STEP):
                part = into[at : at + STEP]
                straight = len(part) // BLOCK * BLOCK if address % BLOCK == 0 or not self._direct else 0
                _read_all(fd, part[:straight], record.offset + at)
                if rest := len(part) - straight:
                    _read_all(fd, bounce[: _blocks(rest)], record.offset + at + straight)
                    part[straight:] = bounce[:rest]
                checksum = crc32c(part, checksum)
        except EOFError as error:
            raise Damaged(f"{what} is damaged: the file ends before it") from error
        except OSError as error:
            raise Damaged(f"{what} cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        if checksum != record.checksum:
            raise Damaged(f"{what} is damaged: its CRC-32C is {checksum:08x}, {record.checksum:08x} was written")

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        with self._lock:
            self._append(EVICTED, records)

    def drop(self, records: Sequence[Record]) -> None:
        """Their space is free, then the journal says so: on a full disk the first makes room for the second."""
        with self._lock:
            for record in records:
                self._release(record)
            try:
                self._append(DROPPED, records)
            except OSError as error:
                _log.warning("%s takes no more: %s", self.path / "journal", error)
            if self._entries > COMPACT_RECORDS and self._entries > COMPACT_SHARE * len(self._living):
                self._compact()

    def _release(self, record: Record) -> None:
        file, path = self._files[record.file], self.file_path(record.file)
        del self._living[record.location]
        file.objects -= 1
        if not file.objects:
            del self._files[record.file]
            path.unlink(missing_ok=True)
            return
        if self._punches and record.size:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    punch_hole(fd, record.offset, _blocks(record.size))
                finally:
                    os.close(fd)
                file.blocks -= _blocks(record.size)
            except OSError as error:
                self._punches = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)

    @property
    def packs(self) -> bool:
        """Whether several objects may share a file: where holes cannot be punched, the space of one returns only with its file."""
        return self._punches


def _read_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        n = os.preadv(fd, [view], offset)
        if not n:
            raise EOFError
        view, offset = view[n:], offset + n


class Disk:
    """All directories of one node."""

    def __init__(self, places: Sequence[Path], node_dir: Path, node_id: bytes) -> None:
        """`places`: where to; empty: in the node's directory. Raises OSError."""
        name = _PREFIX + node_id.hex()
        for place in places:
            remove_strays(place)
        self.directories = [Directory(n, p) for n, p in enumerate([place / name for place in places] or [node_dir / "spill"])]
        if places:
            # Whoever removes the node's directory removes these, too.
            (node_dir / "elsewhere").write_text("".join(f"{directory.path.absolute()}\n" for directory in self.directories))
        for directory in self.directories:
            (directory.path / "node.json").write_text(json.dumps({"node_dir": str(node_dir)}))
        self._turn = 0

    @property
    def disk_bytes(self) -> int:
        return sum(d.disk_bytes for d in self.directories)

    @property
    def files(self) -> int:
        return sum(d.files for d in self.directories)

    @property
    def packs(self) -> bool:
        return all(d.packs for d in self.directories)

    def recover(self) -> list[Record]:
        return [record for directory in self.directories for record in directory.recover()]

    def write(self, objects: Sequence[Source]) -> list[Record]:
        """Into the next directory that takes them. Raises SpillFailed."""
        self._turn += 1
        turn = self._turn % len(self.directories)
        order = self.directories[turn:] + self.directories[:turn]
        now = time.monotonic()
        why = []
        for directory in sorted(order, key=lambda d: d.shunned_until > now):
            try:
                return directory.write(objects)
            except OSError as error:
                directory.shunned_until = now + SHUN_S
                free = _free_bytes(directory.path)
                why.append(f"{directory.path}: {error.strerror} ({free:,} bytes free)" if free >= 0 else f"{directory.path}: {error.strerror}")
        raise SpillFailed(f"{sum(len(o.view) for o in objects):,} bytes of the object store could not be spilled to disk: {'; '.join(why)}")

    def read(self, record: Record, into: memoryview, address: int) -> None:
        """Raises Damaged."""
        self.directories[record.directory].read(record, into, address)

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        for directory in self.directories:
            mine = [r for r in records if r.directory == directory.number]
            if mine:
                directory.evicted(mine)

    def drop(self, records: Sequence[Record]) -> None:
        for directory in self.directories:
            mine = [r for r in records if r.directory == directory.number]
            if mine:
                directory.drop(mine)

    def close(self) -> None:
        for directory in self.directories:
            directory.close()

    def remove(self) -> None:
        """Everything of this node: nobody wants it any more."""
        for directory in self.directories:
            shutil.rmtree(directory.path, ignore_errors=True)


def _free_bytes(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return -1
    return found.f_bavail * found.f_frsize


def remove_strays(place: Path) -> None:
    """What nodes that are no more left in a directory which outlives them."""
    for path in place.glob(_PREFIX + "*"):
        try:
            node_dir = Path(json.loads((path / "node.json").read_text())["node_dir"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if path.stat().st_uid == os.getuid() and not node_dir.exists():
            _log.info("%s belonged to a node that is no more: removed", path)
            shutil.rmtree(path, ignore_errors=True)
