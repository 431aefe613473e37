"""Workers' output: files with a bound, read by anyone, and sent line by line to the driver that wants it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from shoal_base.output_marks import MARK, Unmarked, marked_name

_log = logging.getLogger(__name__)
_IN_MODIFY = 0x2
_IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
# Lines are gathered for so long before they are sent.
BATCH_S = 0.05
# A line without an end is sent as it is after this.
_PARTIAL_S = 1.0
# Limit: read of one file in one turn; the rest in the next.
MAX_READ_BYTES = 256 << 10
# Limit: a longer line is cut.
MAX_LINE_BYTES = 64 << 10
# Limit: files of dead workers that are kept, of each the live one and its rotated part; and for how long.
MAX_FINISHED_FILES = 1000
FINISHED_KEPT_S = 7 * 86_400.0
_FOLLOW_PAUSE_S = 0.2
_CHUNK_BYTES = 256 << 10


class _File(msgspec.Struct):
    path: Path
    worker_id: bytes
    is_err: bool
    offset: int = 0
    partial: bytes = b""
    partial_since: float = 0.0
    name: str = ""  # whose lines these are, as last marked


class LogTail:
    """Watches the workers' files. `deliver(worker_id, is_err, name, lines)` gets what is new; idle files cost nothing."""

    def __init__(
        self, directory: Path, deliver: Callable[[bytes, bool, str, list[str]], None], limit_bytes: int, kept: int = MAX_FINISHED_FILES,
        kept_s: float = FINISHED_KEPT_S,
    ) -> None:  # fmt: skip
        self.directory = directory
        self._deliver = deliver
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._kept_s = kept_s
        self._loop = asyncio.get_running_loop()
        self._files: dict[str, _File] = {}
        self._dirty: set[str] = set()
        self._finished: deque[tuple[Path, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = _watch(directory)
        self._loop.add_reader(self._fd, self._changed)

    def add(self, worker_id: bytes) -> None:
        for is_err in (False, True):
            name = f"worker-{worker_id.hex()}.{'err' if is_err else 'out'}"
            self._files[name] = _File(self.directory / name, worker_id, is_err)

    def finish(self, worker_id: bytes) -> None:
        """The worker is gone: its last lines, then nothing."""
        for kind in ("out", "err"):
            name = f"worker-{worker_id.hex()}.{kind}"
            file = self._files.pop(name, None)
            self._dirty.discard(name)
            if file is None:
                continue
            while self._read(file):
                pass
            if file.partial and marked_name(file.partial) is None:
                self._deliver(file.worker_id, file.is_err, file.name, [file.partial.decode("utf-8", "replace")])
            self._keep(file.path)

    def _keep(self, path: Path) -> None:
        """The file of a dead worker: an empty one goes at once."""
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()  # most workers never print to stderr
                return
            self._finished.append((path, self._loop.time()))
        self.forget()

    def forget(self) -> None:
        """Files of workers that are dead for too long, or too many."""
        before = self._loop.time() - self._kept_s
        while self._finished and (len(self._finished) > self._kept or self._finished[0][1] < before):
            oldest, _ = self._finished.popleft()
            for path in (oldest, oldest.with_name(oldest.name + ".1")):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _changed(self) -> None:
        try:
            data = os.read(self._fd, 64 << 10)
        except (BlockingIOError, InterruptedError):
            return
        at = 0
        while at < len(data):
            _wd, _mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].split(b"\0", 1)[0].decode("utf-8", "replace")
            at += length
            if name in self._files:
                self._dirty.add(name)
        if self._dirty and self._timer is None:
            self._timer = self._loop.call_later(BATCH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for name in dirty:
            file = self._files.get(name)
            if file is not None and (self._read(file) or file.partial):
                self._dirty.add(name)
        if self._dirty:
            self._timer = self._loop.call_later(BATCH_S, self._flush)

    def _read(self, file: _File) -> bool:
        """Whether there is more."""
        try:
            with open(file.path, "rb") as opened:
                opened.seek(file.offset)
                data = opened.read(MAX_READ_BYTES)
        except OSError:
            return False
        file.offset += len(data)
        self._deliver_lines(file, data)
        if file.offset > self._limit_bytes and len(data) < MAX_READ_BYTES:
            self._rotate(file)
        return len(data) == MAX_READ_BYTES

    def _deliver_lines(self, file: _File, data: bytes) -> None:
        now = self._loop.time()
        *whole, rest = (file.partial + data).split(b"\n")
        if rest and (len(rest) > MAX_LINE_BYTES or (rest == file.partial and now - file.partial_since > _PARTIAL_S)):
            whole.append(rest)
            rest = b""
        if rest != file.partial:
            file.partial_since = now
        file.partial = rest
        lines: list[str] = []
        for line in whole:
            name = marked_name(line)
            if name is None:
                lines.append(line[:MAX_LINE_BYTES].decode("utf-8", "replace"))
                continue
            if lines:
                self._deliver(file.worker_id, file.is_err, file.name, lines)
                lines = []
            file.name = name
        if lines:
            self._deliver(file.worker_id, file.is_err, file.name, lines)

    def _rotate(self, file: _File) -> None:
        """The worker appends to an open descriptor, so its file is copied and cut, not renamed."""
        try:
            shutil.copyfile(file.path, file.path.with_name(file.path.name + ".1"))
            os.truncate(file.path, 0)
        except OSError as error:
            _log.warning("%s could not be rotated: %s", file.path, error)
            return
        file.offset = 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _watch(directory: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(_IN_FLAGS)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(directory), _IN_MODIFY) < 0:
        error = ctypes.get_errno()
        if fd >= 0:
            os.close(fd)
        raise OSError(error, f"{directory} cannot be watched: {os.strerror(error)} (see fs.inotify.max_user_instances)")
    return int(fd)


# -- reading from outside ---------------------------------------------------------------------------


def list_logs(directory: Path) -> list[tuple[str, int]]:
    out = []
    for entry in sorted(directory.iterdir()):
        with contextlib.suppress(OSError):
            if entry.is_file():
                out.append((entry.name, entry.stat().st_size))
    return out


def log_path(directory: Path, name: str) -> Path:
    """Raises FileNotFoundError for whatever is no plain file of this directory."""
    path = directory / name
    if not name or name != os.path.basename(name) or name in (".", "..") or not path.is_file() or path.is_symlink():
        raise FileNotFoundError(f"no log {name!r} on this node; list them first")
    return path


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin, marks not counted; negative: all."""
    size = path.stat().st_size
    if lines < 0:
        return 0
    if lines == 0:
        return size
    found = 0
    at = size
    later = b""  # how the part behind begins
    with open(path, "rb") as file:
        while at > 0:
            step = min(at, _CHUNK_BYTES)
            at -= step
            file.seek(at)
            data = file.read(step) + later
            end = step - (1 if at + step == size and data.endswith(b"\n") else 0)
            while (newline := data.rfind(b"\n", 0, end)) >= 0:
                found += not data.startswith(MARK, newline + 1)
                if found == lines:
                    return at + newline + 1
                end = newline
            later = data[: len(MARK)]
    return 0


async def read_log(path: Path, tail: int, follow: bool) -> AsyncIterator[bytes]:
    unmarked = Unmarked()
    with open(path, "rb") as file:
        file.seek(tail_offset(path, tail))
        while True:
            data = file.read(_CHUNK_BYTES)
            if data:
                if shown := unmarked.feed(data):
                    yield shown
            elif not follow:
                if rest := unmarked.rest():
                    yield rest
                return
            else:
                if path.exists() and path.stat().st_size < file.tell():
                    file.seek(0)  # it was rotated
                await asyncio.sleep(_FOLLOW_PAUSE_S)
