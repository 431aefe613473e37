"""Spilled objects: the places where they go, local directories first, and files that hold many objects. Blocking and thread-safe; to be called from threads.

A file of a directory is written once, whole, by direct I/O where the file system has it, so that cold objects do not push anything out of the system's cache.
Objects begin at multiples of BLOCK; the space of a dead one is punched out, and the file goes with its last. `remote` tells of the places that are not local.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ._arena import crc32c, punch_hole
from .journal import Damaged, OutOfReach, Record, Source, SpillFailed, write_all
from .ledger import Ledger
from .remote import Remote, is_remote

_log = logging.getLogger(__name__)

BLOCK = 4096
# One read or write; a checksum is made of what is still in the processor's cache.
STEP = 4 << 20
# A directory that failed is left alone for so long, if there is another one.
SHUN_S = 5.0
# Where there is a remote place, too, local file systems keep this part free.
FREE_SHARE = 20
_PREFIX = "shoal-spill-"
# What this process or the machine lacks for a moment says nothing of a file.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


_bounce = threading.local()


def _buffer() -> memoryview:
    """Memory of this thread, aligned for direct I/O."""
    if not hasattr(_bounce, "view"):
        _bounce.view = memoryview(mmap.mmap(-1, STEP))
    return _bounce.view  # type: ignore[no-any-return]


class Directory:
    """One local place for spilled objects, for one node."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.shunned_until = 0.0
        self._direct = os.O_DIRECT
        self._punches = True
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger = Ledger(path / "journal", number, lambda record: _blocks(record.size), punched=True)

    def close(self) -> None:
        self._ledger.close()

    @property
    def disk_bytes(self) -> int:
        return self._ledger.file_bytes

    @property
    def files(self) -> int:
        return self._ledger.files

    def file_path(self, file: int) -> Path:
        return self.path / f"{file:08d}.spill"

    def recover(self) -> list[Record]:
        """What a predecessor wrote and did not drop. Files in which nothing lives go."""
        living = self._ledger.recover()
        self._remove_strays()
        return living

    def _remove_strays(self) -> None:
        for path in self.path.glob("*.spill"):
            number = int(path.stem) if path.stem.isdecimal() else 0
            self._ledger.beyond(number)
            if not self._ledger.has(number):
                path.unlink(missing_ok=True)

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
        number = self._ledger.new_file()
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
            self._ledger.written(records)
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
                write_all(fd, part[:straight], offset + at)
            if rest := len(part) - straight:
                bounce[:rest] = part[straight:]
                write_all(fd, bounce[: _blocks(rest)], offset + at + straight)
        return checksum

    def read(self, record: Record, into: memoryview, address: int) -> None:
        """Raises Damaged, OutOfReach."""
        path, checksum, bounce = self.file_path(record.file), 0, _buffer()
        what = f"the object of {record.size:,} bytes at byte {record.offset:,} of {path}"
        try:
            fd = self._open(path, os.O_RDONLY)
        except OSError as error:
            raise _unread(what, error) from error
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
            raise _unread(what, error) from error
        finally:
            os.close(fd)
        if checksum != record.checksum:
            raise Damaged(f"{what} is damaged: its CRC-32C is {checksum:08x}, {record.checksum:08x} was written")

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        self._ledger.evicted(records)

    def drop(self, records: Sequence[Record]) -> None:
        """Their space is free."""
        self._ledger.drop(records, self._release)

    def _release(self, record: Record, last: bool) -> int:
        path = self.file_path(record.file)
        if last:
            path.unlink(missing_ok=True)
        elif self._punches and record.size:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    punch_hole(fd, record.offset, _blocks(record.size))
                finally:
                    os.close(fd)
                return _blocks(record.size)
            except OSError as error:
                self._punches = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)
        return 0

    @property
    def packs(self) -> bool:
        """Whether several objects may share a file: where holes cannot be punched, the space of one returns only with its file."""
        return self._punches


def _unread(what: str, error: OSError) -> Damaged | OutOfReach:
    if error.errno in _SHORT:
        return OutOfReach(f"{what} cannot be read now: {error.strerror}; it stays there, ask again")
    return Damaged(f"{what} cannot be read: {error.strerror}")


def _read_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        n = os.preadv(fd, [view], offset)
        if not n:
            raise EOFError
        view, offset = view[n:], offset + n


class Place(Protocol):
    """What Directory and Remote have in common."""

    number: int
    shunned_until: float

    def file_path(self, file: int) -> Path | str: ...
    def recover(self) -> list[Record]: ...
    def write(self, objects: Sequence[Source]) -> list[Record]: ...
    def read(self, record: Record, into: memoryview, address: int) -> None: ...
    def evicted(self, records: Sequence[Record]) -> None: ...
    def drop(self, records: Sequence[Record]) -> None: ...
    def close(self) -> None: ...


P = TypeVar("P", bound=Place)


class Disk:
    """All places of one node."""

    def __init__(self, places: Sequence[str | Path], node_dir: Path, node_id: bytes, local_bytes: int = 0) -> None:
        """`places`: directories and URIs of remote file systems; empty: the node's directory. `local_bytes`: files in directories may have so many together,
        more is for remote places; 0: as many as their file systems take. Raises OSError."""
        name = _PREFIX + node_id.hex()
        uris = [str(place) for place in places if is_remote(place)]
        local = [Path(place) for place in places if not is_remote(place)]
        for folder in local:
            remove_strays(folder)
        self.directories = [Directory(n, p) for n, p in enumerate([folder / name for folder in local] or ([] if uris else [node_dir / "spill"]))]
        if local:
            # Whoever removes the node's directory removes these, too.
            (node_dir / "elsewhere").write_text("".join(f"{directory.path.absolute()}\n" for directory in self.directories))
        for directory in self.directories:
            (directory.path / "node.json").write_text(json.dumps({"node_dir": str(node_dir)}))
        self.remotes = [Remote(len(self.directories) + n, uri, name, node_dir) for n, uri in enumerate(uris)]
        self._places: list[Place] = [*self.directories, *self.remotes]
        self._local_bytes = local_bytes
        self._begun_bytes = 0  # that are being written to directories
        self._lock = threading.Lock()
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

    def is_remote(self, record: Record) -> bool:
        return record.place >= len(self.directories)

    def file_path(self, record: Record) -> str:
        return str(self._places[record.place].file_path(record.file))

    def recover(self) -> list[Record]:
        return [record for place in self._places for record in place.recover()]

    def write(self, objects: Sequence[Source]) -> list[Record]:
        """Into the next directory that takes them. Raises SpillFailed."""
        nbytes = sum(_blocks(len(o.view)) for o in objects)
        now = time.monotonic()
        why = []
        for directory in self._in_turn(self.directories, now):
            full = self._begin(directory, nbytes)
            if full:
                why.append(f"{directory.path}: {full}")
                continue
            try:
                return directory.write(objects)
            except OSError as error:
                directory.shunned_until = now + SHUN_S
                free, _ = _free_bytes(directory.path)
                why.append(f"{directory.path}: {error.strerror} ({free:,} bytes free)" if free >= 0 else f"{directory.path}: {error.strerror}")
            finally:
                with self._lock:
                    self._begun_bytes -= nbytes
        raise SpillFailed(sum(len(o.view) for o in objects), why)

    def send(self, objects: Sequence[Source], why: Sequence[str] = ()) -> list[Record]:
        """To the next remote place that takes them. `why` no directory did. Raises SpillFailed."""
        told = list(why)
        for remote in self._in_turn(self.remotes, time.monotonic()):
            try:
                return remote.write(objects)
            except OutOfReach as error:
                told.append(str(error))
        raise SpillFailed(sum(len(o.view) for o in objects), told)

    def _in_turn(self, places: Sequence[P], now: float) -> list[P]:
        """From the next one on; last those that have just failed."""
        self._turn += 1
        turn = self._turn % (len(places) or 1)
        return sorted([*places[turn:], *places[:turn]], key=lambda place: place.shunned_until > now)

    def _begin(self, directory: Directory, nbytes: int) -> str:
        """Why a directory is left alone, although it may have room: another place has it, too. Else it is counted on."""
        with self._lock:
            used = self.disk_bytes + self._begun_bytes
            free, total = _free_bytes(directory.path)
            if self.remotes and self._local_bytes and used + nbytes > self._local_bytes:
                return f"{used:,} of {self._local_bytes:,} bytes are used"
            if self.remotes and 0 <= free < nbytes + total // FREE_SHARE:
                return f"only {free:,} bytes of its file system are free"
            self._begun_bytes += nbytes
        return ""

    def read(self, record: Record, into: memoryview, address: int) -> None:
        """Raises Damaged, OutOfReach."""
        self._places[record.place].read(record, into, address)

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        for place in self._places:
            mine = [r for r in records if r.place == place.number]
            if mine:
                place.evicted(mine)

    def drop(self, records: Sequence[Record]) -> None:
        for place in self._places:
            mine = [r for r in records if r.place == place.number]
            if mine:
                place.drop(mine)

    def hurry(self) -> None:
        """The end is near: whoever waits for a remote place gets an error."""
        for remote in self.remotes:
            remote.hurry()

    def close(self) -> None:
        for place in self._places:
            place.close()


def _free_bytes(path: Path) -> tuple[int, int]:
    """(free, of all); -1 where nobody knows."""
    try:
        found = os.statvfs(path)
    except OSError:
        return -1, 0
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


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
