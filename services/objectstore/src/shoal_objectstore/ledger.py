"""What lives in the files of one place for spilled objects, and the journal that tells a successor of this process. Thread-safe.

The place itself writes, reads and removes files; this knows which there are, and what of them somebody still wants.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from .journal import BEGUN, DROPPED, EVICTED, REMOVED, WRITTEN, Journal, Location, Record, of_file

_log = logging.getLogger(__name__)


class _File(msgspec.Struct):
    size: int = 0  # bytes, of dead objects, too
    living: dict[Location, Record] = msgspec.field(default_factory=dict)
    living_bytes: int = 0
    changed_at: float = 0.0  # when an object died; 0: none has


class Ledger:
    def __init__(self, path: Path, place: int, size_of: Callable[[Record], int], punched: bool) -> None:
        """`size_of`: what an object takes in its file. `punched`: the dead take nothing there. Raises OSError."""
        self._journal = Journal(path, place)
        self._size_of = size_of
        self._punched = punched
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}  # that hold what somebody wants
        self._begun: set[int] = set()  # that may exist, where the journal has to tell
        self._next_file = 1
        self._objects = 0

    def close(self) -> None:
        self._journal.close()

    @property
    def file_bytes(self) -> int:
        return sum(f.size for f in self._files.values())

    @property
    def files(self) -> int:
        return len(self._files)

    def has(self, file: int) -> bool:
        return file in self._files

    def ahead(self, size: int) -> None:
        self._journal.ahead(size)

    def recover(self) -> list[Record]:
        """What a predecessor wrote and did not drop."""
        told = self._journal.recover()
        self._next_file, self._begun = told.next_file, told.begun
        for record in told.living:
            self._count(record)
        if not self._punched:
            # A file reaches at least to the end of its last living object; how much further, nobody knows any more.
            for file in self._files.values():
                file.size = max(record.offset + self._size_of(record) for record in file.living.values())
        return told.living

    def _count(self, record: Record) -> None:
        file = self._files.setdefault(record.file, _File())
        file.size += self._size_of(record)
        file.living_bytes += self._size_of(record)
        file.living[record.location] = record
        self._objects += 1

    def _uncount(self, record: Record) -> bool:
        """Whether its file holds nothing more."""
        file = self._files[record.file]
        del file.living[record.location]
        file.living_bytes -= self._size_of(record)
        file.changed_at = time.monotonic()
        self._objects -= 1
        if not file.living:
            del self._files[record.file]
        return not file.living

    # -- files --------------------------------------------------------------------------------------------

    def beyond(self, file: int) -> None:
        """No new file has this number or a lower one."""
        self._next_file = max(self._next_file, file + 1)

    def new_file(self, told: bool = False) -> int:
        """Its number. `told`: the journal says that it may exist; raises OSError."""
        with self._lock:
            number = self._next_file
            self._next_file += 1
            if told:
                self._journal.append(BEGUN, [of_file(number)])
                self._begun.add(number)
            return number

    def unwanted(self) -> set[int]:
        """Files that may exist and hold nothing, as a predecessor left them."""
        return self._begun - set(self._files)

    def removed(self, files: Sequence[int]) -> None:
        with self._lock:
            self._begun.difference_update(files)
            self._append(REMOVED, [of_file(number) for number in files])

    # -- objects ------------------------------------------------------------------------------------------

    def written(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        with self._lock:
            self._journal.append(WRITTEN, records)
            for record in records:
                self._count(record)

    def evicted(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        with self._lock:
            self._journal.append(EVICTED, records)

    def drop(self, records: Sequence[Record], release: Callable[[Record, bool], int]) -> None:
        """`release` gives a dead object's space back where it can, and says how many bytes of its file that were; it is told whether the file holds nothing
        more. Then the journal says so: on a full disk the first makes room for the second."""
        with self._lock:
            for record in records:
                file = self._files[record.file]
                file.size -= release(record, self._uncount(record))
            self._append(DROPPED, records)

    def _append(self, kind: int, records: Sequence[Record]) -> None:
        """What a successor can do without: it drops once more, removes once more."""
        try:
            self._journal.append(kind, records)
        except OSError as error:
            _log.warning("%s takes no more: %s", self._journal.path, error)
        if self._journal.is_long(self._objects):
            living = (entry for f in self._files.values() for r in f.living.values() for entry in ((WRITTEN, r), (EVICTED, r))[: 1 + r.evicted])
            self._journal.rewrite([*((BEGUN, of_file(number)) for number in sorted(self._begun)), *living])

    # -- moving -------------------------------------------------------------------------------------------

    def where(self, record: Record) -> Record:
        """As it is now: an object may be moved while somebody reads it."""
        with self._lock:
            return replace(record)

    def sparse(self, waste_bytes: int, settled_s: float, most_bytes: int) -> list[Record]:
        """What lives in files of which most is dead: at least `waste_bytes`, and for so long none has died. Objects of `most_bytes` together."""
        found: list[Record] = []
        total, since = 0, time.monotonic() - settled_s
        with self._lock:
            for file in self._files.values():
                if file.changed_at > since or 2 * file.living_bytes >= file.size or file.size - file.living_bytes < waste_bytes:
                    continue
                size = sum(record.size for record in file.living.values())
                if found and total + size > most_bytes:
                    break
                found += [replace(record) for record in file.living.values()]
                total += size
        return found

    def moved(self, before: Sequence[Record], after: Sequence[Record]) -> list[int]:
        """What was read as `before` lies as `after` now, but for what has died meanwhile. Returns the files in which nothing lives any more. Raises OSError,
        and then nothing has moved."""
        with self._lock:
            living = [(old, new) for old, new in zip(before, after, strict=True) if self._lives(old)]
            self._journal.append(WRITTEN, [new for _, new in living])
            emptied = []
            for old, new in living:
                # The record that others have, so that whoever reads it from now on reads it there.
                record = self._files[old.file].living[old.location]
                if self._uncount(record):
                    emptied.append(old.file)
                record.file, record.offset, record.stored = new.file, new.offset, new.stored
                self._count(record)
            for number in {new.file for new in after}:
                if number in self._files:
                    self._files[number].size = sum(new.stored for new in after if new.file == number)  # of those that have died meanwhile, too
                else:
                    emptied.append(number)
            return emptied

    def _lives(self, record: Record) -> bool:
        file = self._files.get(record.file)
        return file is not None and record.location in file.living

    def leave_alone(self, file: int) -> None:
        """It cannot be read: whoever wants its objects is told so."""
        with self._lock:
            if file in self._files:
                self._files[file].changed_at = float("inf")
