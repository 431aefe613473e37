"""One folder of a remote file system for the spilled objects of one node: S3, or whatever else pyarrow and fsspec reach. Blocking and thread-safe.

The files are there, their journal is here, in the node's directory. What happens to a file, and what a successor makes of it when the store dies after a step:

    BEGUN in the journal     the file may exist: it is removed
    the file is written      the same
    WRITTEN in the journal   its objects are found there
    DROPPED for the last     nobody wants it: it is removed
    the file is removed      it is removed once more, which is nothing
    REMOVED in the journal   it is forgotten

So the bucket is never listed. Holes cannot be punched there: what lives in a file of which less than half does is written to another one, so that the space of
the dead returns. That one is BEGUN, then WRITTEN tells of its objects once more, and the last word is where they lie: until then the old file has them, from
then on nobody wants it. Nobody waits until a file is removed: what fails is tried again, with pauses that double.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ._arena import crc32c
from .courier import STEP, Courier, CourierFailed, Missing
from .journal import Damaged, OutOfReach, Record, Source
from .ledger import Ledger

_log = logging.getLogger(__name__)

# A write or a read that fails is tried so often in all, with pauses that double, but not again after so long. Clients of file systems try again, too.
ATTEMPTS, PAUSE_S, TRY_S = 3, 0.3, 20.0
# Nothing is written there for so long after it failed.
SHUN_S = 5.0
# Limit: files removed by one question.
REMOVE_FILES = 200
REMOVE_PAUSE_S, REMOVE_MOST_PAUSE_S = 1.0, 60.0
# The journal has so much room from its beginning: it is written to also when this disk is full, which is when the other one is needed.
JOURNAL_BYTES = 1 << 18
# What is dead of a file is worth a rewriting from so many bytes on, and once nothing more of it has died for so long: then the rest may live on.
WASTE_BYTES, SETTLED_S = 4 << 20, 10.0
# Limit: bytes of objects moved at once, in memory; as many as are spilled into one file.
MOVE_BYTES = 100_000_000
T = TypeVar("T")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


def is_remote(place: object) -> bool:
    """Whether it is a URI.

    >>> is_remote("s3://bucket/spilled"), is_remote("/var/spilled")
    (True, False)
    """
    return _URI.fullmatch(str(place)) is not None


def shown(uri: str) -> str:
    """Without what is nobody's business: a URI may hold keys.

    >>> shown("s3://key:secret@bucket/spilled?endpoint_override=127.0.0.1:9000")
    's3://bucket/spilled'
    """
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


class Remote:
    def __init__(self, number: int, uri: str, name: str, node_dir: Path, courier: Courier | None = None) -> None:
        """`name`: of the node's folder below the one that the URI names. Raises OSError."""
        self.number = number
        self.shunned_until = 0.0
        self.failures = 0
        self.shown = f"{shown(uri)}/{name}"
        self._uri = uri
        self._name = name
        self._node_dir = node_dir
        self._courier = courier or Courier(uri)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._why = ""
        (node_dir / "spill").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger = Ledger(node_dir / "spill" / f"remote-{number}.journal", number, lambda record: record.stored, punched=False)
        self._ledger.ahead(JOURNAL_BYTES)
        self._unwanted: set[int] = set()  # files that may exist, and are to be removed
        self.moved_bytes = 0
        self._remove_failures = 0
        self._remove_at = 0.0
        self._noted = False

    # -- what is there ------------------------------------------------------------------------------------

    @property
    def file_bytes(self) -> int:
        return self._ledger.file_bytes

    @property
    def files(self) -> int:
        return self._ledger.files

    @property
    def unwanted(self) -> int:
        return len(self._unwanted)

    def file_path(self, file: int) -> str:
        return f"{self.shown}/{file:08d}.spill"

    def _path(self, file: int) -> str:
        return f"{self._name}/{file:08d}.spill"

    def recover(self) -> list[Record]:
        """What a predecessor wrote and did not drop. Asks nobody."""
        living = self._ledger.recover()
        self._ledger.ahead(JOURNAL_BYTES)
        self._unwanted = self._ledger.unwanted()
        return living

    # -- objects ------------------------------------------------------------------------------------------

    def write(self, objects: Sequence[Source]) -> list[Record]:
        """Into one new file. Raises OutOfReach, and OSError if the journal takes nothing."""
        now = time.monotonic()
        if self.shunned_until > now:
            raise OutOfReach(f"{self.shown}: {self._why} ({now - self.shunned_until + SHUN_S:.0f} s ago)")
        self._note()
        number = self._ledger.new_file(told=True)
        try:
            records = self._write(number, objects)
            self._ledger.written(records)
        except BaseException as error:
            self._forget([number])
            if not isinstance(error, CourierFailed):
                raise
            raise self._failed(error) from error
        return records

    def _write(self, number: int, objects: Sequence[Source]) -> list[Record]:
        """Raises CourierFailed."""
        stored = self._retry(lambda: self._courier.write(self._path(number), [o.view for o in objects]))
        return self._records(number, objects, stored)

    def _failed(self, error: CourierFailed) -> OutOfReach:
        """Nothing is written there for a while."""
        self.failures += 1
        self._why = str(error)
        self.shunned_until = time.monotonic() + SHUN_S
        return OutOfReach(f"{self.shown}: {error}")

    def _forget(self, files: Sequence[int]) -> None:
        with self._lock:
            self._unwanted.update(files)

    def _records(self, number: int, objects: Sequence[Source], stored: Sequence[int]) -> list[Record]:
        records, offset = [], 0
        for o, nbytes in zip(objects, stored, strict=True):
            records.append(Record(o.slot, o.generation, len(o.view), self.number, number, offset, _checksum(o.view), owner=o.owner, stored=nbytes))
            offset += nbytes
        return records

    def read(self, record: Record, into: memoryview, address: int) -> None:
        """Raises Damaged, OutOfReach."""
        try:
            self._retry(lambda: self._read(record, into))
        except Missing as error:
            raise Damaged(f"{self._what(record)} is lost: {error}") from error
        except CourierFailed as error:
            self.failures += 1
            raise OutOfReach(f"{self._what(record)} cannot be read now: {error}; it stays there, ask again") from error

    def _read(self, record: Record, into: memoryview) -> None:
        here = self._ledger.where(record)
        try:
            self._courier.read(self._path(here.file), here.offset, here.stored, into)
        except Missing:
            if self._ledger.where(record).file == here.file:
                raise
            self._read(record, into)  # moved meanwhile, and the old file is gone
            return
        if (checksum := _checksum(into)) != record.checksum:
            raise Damaged(f"{self._what(here)} is damaged: its CRC-32C is {checksum:08x}, {record.checksum:08x} was written")

    def _what(self, record: Record) -> str:
        return f"the object of {record.size:,} bytes at byte {record.offset:,} of {self.file_path(record.file)}"

    def _retry(self, do: Callable[[], T]) -> T:
        """Raises what the last attempt raised; what is missing or damaged may have been so on its way alone."""
        began = time.monotonic()
        for attempt in range(1, ATTEMPTS):
            try:
                return do()
            except (CourierFailed, Damaged) as error:
                _log.warning("%s: %s; attempt %d of %d", self.shown, error, attempt, ATTEMPTS)
                if time.monotonic() - began > TRY_S or self._closing.wait(PAUSE_S * 2 ** (attempt - 1)):
                    raise
        return do()

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        self._ledger.evicted(records)

    def drop(self, records: Sequence[Record]) -> None:
        """The journal says so; the files go when the file system answers (`remove_unwanted`)."""
        self._ledger.drop(records, self._release)

    def _release(self, record: Record, last: bool) -> int:
        if last:
            self._forget([record.file])
        return 0

    # -- files that nobody wants --------------------------------------------------------------------------

    def remove_unwanted(self) -> bool:
        """Removes files in which nothing lives. Whether there are more that may be tried at once."""
        now = time.monotonic()
        with self._lock:
            numbers = sorted(self._unwanted)[:REMOVE_FILES]
        if not numbers or now < self._remove_at:
            self._courier.end_idle()
            return False
        try:
            self._courier.remove([self._path(number) for number in numbers])
        except CourierFailed as error:
            self._remove_at = now + min(REMOVE_PAUSE_S * 2**self._remove_failures, REMOVE_MOST_PAUSE_S)
            self._remove_failures = min(self._remove_failures + 1, 16)
            if not self._closing.is_set():
                _log.warning("%s: %d files that nobody wants cannot be removed yet: %s", self.shown, len(numbers), error)
            return False
        self._remove_failures = 0
        with self._lock:
            self._unwanted.difference_update(numbers)
            more = bool(self._unwanted)
        self._ledger.removed(numbers)
        return more

    def move_living(self) -> bool:
        """Writes what lives in files that are mostly dead into another one. Whether it did; what fails leaves everything as it was."""
        before = [] if self.shunned_until > time.monotonic() else self._ledger.sparse(WASTE_BYTES, SETTLED_S, MOVE_BYTES)
        if not before:
            return False
        return self._move(before, memoryview(mmap.mmap(-1, max(1, sum(record.size for record in before)))))

    def _move(self, before: Sequence[Record], memory: memoryview) -> bool:
        sources, at = [], 0
        try:
            for record in before:
                part = memory[at : at + record.size]
                at += record.size
                self._retry(lambda record=record, part=part: self._read(record, part))  # type: ignore[misc]
                sources.append(Source(record.slot, record.generation, part, 0, record.owner))
            number = self._ledger.new_file(told=True)
            try:
                self._forget(self._ledger.moved(before, self._write(number, sources)))
            except BaseException:
                self._forget([number])
                raise
        except (Damaged, Missing) as error:
            _log.error("%s: %s; what else lives in that file stays there", self.shown, error)
            self._ledger.leave_alone(record.file)
            return False
        except CourierFailed as error:
            if not self._closing.is_set():
                _log.warning("%s", self._failed(error))
            return False
        except OSError as error:
            _log.warning("%s: the journal takes no more: %s", self.shown, error)
            self.shunned_until = time.monotonic() + SHUN_S
            return False
        self.moved_bytes += at
        return True

    # -- the end ------------------------------------------------------------------------------------------

    def _note(self) -> None:
        """Before the first file: whoever removes the node's directory removes this folder, too."""
        with self._lock:
            if self._noted:
                return
            line = f"{self._uri}\t{self._name}\n"
            path = self._node_dir / "elsewhere"
            known = path.read_text() if path.exists() else ""
            if line not in known:
                path.write_text(known + line)
                path.chmod(0o600)
            self._noted = True

    def hurry(self) -> None:
        """Whoever waits for the file system gets an error, now and later."""
        self._closing.set()
        self._courier.close()

    def close(self) -> None:
        self.hurry()
        self._ledger.close()


def _checksum(view: memoryview) -> int:
    checksum = 0
    for at in range(0, len(view), STEP):
        checksum = crc32c(view[at : at + STEP], checksum)
    return checksum


def remove_folders(folders: Sequence[tuple[str, str]], wait_s: float) -> None:
    """What nodes that are no more left in remote file systems: (URI, name) as the file `elsewhere` tells it. By processes, for which this one waits so long
    altogether; then they go on, for REMOVE_S at most."""
    command, quiet = [sys.executable, "-P", "-m", "shoal_objectstore.courier_process", "remove"], subprocess.DEVNULL
    removing = [
        (uri, subprocess.Popen([*command, name], stdin=quiet, stdout=quiet, stderr=quiet, env=os.environ | {"SHOAL_COURIER_URI": uri})) for uri, name in folders
    ]
    deadline = time.monotonic() + wait_s
    for uri, process in removing:
        try:
            if process.wait(max(0.0, deadline - time.monotonic())):
                _log.warning("files of a node that has ended are left in %s: removing them failed", shown(uri))
        except subprocess.TimeoutExpired:
            _log.warning("files of a node that has ended are still being removed from %s", shown(uri))
