"""The record of an experiment: a file that only grows, one entry a line, from which everything can be restored.

A line is `CRC TEXT`: eight hexadecimal digits of the CRC-32 of the text, and the entry as JSON. What JSON cannot say exactly (tuples, objects, keys that are no
text) is pickled inside of it, at key `__pickle__`. Read only journals that you trust.

A line that is cut off or damaged at the end is what a crash leaves, and is cut away; one in the middle is an error.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .error import JournalError

__all__ = ["Journal", "read_journal"]

FILE = "experiment.journal"
FORMAT = 1
PICKLE = "__pickle__"
# Limit: what can be lost when the machine (not the process) dies.
_SYNC_EVERY_S = 0.5


def exact(value: Any) -> bool:
    """Whether JSON gives back the same."""
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return True
    if kind is list:
        return all(exact(inner) for inner in value)
    return kind is dict and PICKLE not in value and all(type(key) is str and exact(inner) for key, inner in value.items())


def encode(value: Any) -> Any:
    """As JSON can say it."""
    if exact(value):
        return value
    if type(value) is dict and PICKLE not in value and all(type(key) is str for key in value):
        return {key: encode(inner) for key, inner in value.items()}
    try:
        pickled = pickle.dumps(value)
    except Exception:
        import cloudpickle

        try:
            pickled = cloudpickle.dumps(value)
        except Exception as error:
            raise JournalError(f"{type(value).__name__} {str(value)[:80]!r} can neither be written as JSON nor pickled: {error}") from error
    return {PICKLE: base64.b64encode(pickled).decode()}


def decode(value: Any) -> Any:
    if isinstance(value, dict):
        if PICKLE in value:
            try:
                return pickle.loads(base64.b64decode(value[PICKLE]))
            except Exception as error:
                raise JournalError(f"a value of the journal cannot be unpickled here: {type(error).__name__}: {error}") from error
        return {key: decode(inner) for key, inner in value.items()}
    return [decode(inner) for inner in value] if isinstance(value, list) else value


def line_of(entry: dict[str, Any]) -> bytes:
    text = json.dumps(encode(entry), separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """None: it is damaged."""
    if len(line) < 10 or line[8:9] != b" " or not line.endswith(b"\n"):
        return None
    text = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All entries, and how many bytes of the file hold them; what comes after those was cut off.

    Raises:
        JournalError: no such file, or damage before the end.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise JournalError(f"there is no experiment in {path.parent}: it has no {FILE}") from None
    entries: list[dict[str, Any]] = []
    good = 0
    for number, (line, end) in enumerate(_lines(data), start=1):
        entry = parse_line(line)
        if entry is None:
            if any(parse_line(later) is not None for later, _ in _lines(data[end:])):
                raise JournalError(f"{path}:{number}: this line is damaged, and others follow it; the disk or an editor did that, not a crash")
            break
        entries.append(entry)
        good = end
    if entries and entries[0].get("format") != FORMAT:
        raise JournalError(f"{path} has format {entries[0].get('format')!r}; this version reads format {FORMAT}")
    return entries, good


def _lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end + 1
        yield data[start:end], end
        start = end


class Journal:
    """Appends. Entries reach the system with `flush` and the disk at most half a second later, with `sync` at once.

    Args:
        path: of the file.
        length: of what is good in it; the rest is cut away. None: it must not exist yet.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, length: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.entries = 0
        self._clock = clock
        self._buffer: list[bytes] = []
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT | (os.O_EXCL if length is None else 0)
        try:
            self._fd = os.open(path, flags, 0o644)
        except FileExistsError:
            raise JournalError(f"there already is an experiment in {path.parent}: give RunConfig another name, or use Tuner.restore") from None
        if length is not None:
            os.ftruncate(self._fd, length)
        self._synced_at = clock()
        self._dirty = False

    def append(self, entry: dict[str, Any]) -> None:
        self._buffer.append(line_of(entry))
        self.entries += 1

    def flush(self) -> None:
        """To the system: what is written now survives this process."""
        if self._buffer:
            data = b"".join(self._buffer)
            self._buffer.clear()
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as error:
                raise JournalError(f"{self.path} cannot be written: {error}") from error
            self._dirty = True
        if self._dirty and self._clock() - self._synced_at >= _SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """To the disk: what is written now survives this machine."""
        if self._buffer:
            data = b"".join(self._buffer)
            self._buffer.clear()
            os.write(self._fd, data)
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise JournalError(f"{self.path} cannot be written to disk: {error}") from error
        self._dirty = False
        self._synced_at = self._clock()

    def close(self) -> None:
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1
