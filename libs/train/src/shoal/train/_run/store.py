"""The run's folder: checkpoints are staged, committed and deleted here, metrics are appended."""

from __future__ import annotations

import fcntl
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ..checkpoint import Checkpoint
from ..config import CheckpointConfig
from ..errors import StorageError
from ..reported import ReportedCheckpoint
from ..storage import Folder, LocalFolder
from .checkpoints import Entry, to_delete
from .manifest import FAILED, FINISHED, RUNNING, Manifest, dumps, plain, read_progress

STAGING = ".incoming"
LOCK_FILE = ".lock"
DEFAULT_NAME = "checkpoint_"


def default_name(number: int) -> str:
    return f"{DEFAULT_NAME}{number:06d}"


def staging_folder(folder: Folder, attempt: str, number: int, dir_name: str | None) -> Folder:
    """Where ranks put the files of a checkpoint that is not committed yet.

    On a disk it is moved into place as a whole. Other filesystems have no such move: there it lies in place at once, and counts when the manifest names it.
    """
    if isinstance(folder, LocalFolder):
        return folder.child(STAGING).child(f"{attempt}-{number}")
    return folder.child(dir_name or default_name(number))


class RunStore:
    """For the process that carries out the run; there is one at a time."""

    def __init__(self, folder: Folder, name: str, config: CheckpointConfig) -> None:
        self.folder = folder
        self._config = config
        self._lock: int | None = None
        self.staging = ""
        try:
            folder.make()
            self._take_lock(name)
            self.manifest = replace(Manifest.load(folder) or Manifest(name), state=RUNNING, error="")
            self.history = read_progress(folder, self.manifest.reports)
            self.roll_back()
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"the run's folder {folder.path} cannot be used: {error}") from error
        self.metrics: dict[str, Any] | None = self.history[-1] if self.history else None

    def _take_lock(self, name: str) -> None:
        """A folder has one run at a time. The lock ends with this process; processes that it forks do not have it."""
        if not isinstance(self.folder, LocalFolder):
            return
        self._lock = os.open(os.path.join(self.folder.path, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(self._lock, 64).decode(errors="replace").strip()
            self.close()
            raise StorageError(
                f"another process ({owner or 'unknown'}) carries out run {name!r} in {self.folder.path} now: wait for it, or choose another name"
            ) from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()}".encode())

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def latest(self) -> Checkpoint | None:
        entry = self.manifest.latest
        return self._checkpoint(entry) if entry is not None else None

    def kept(self) -> list[ReportedCheckpoint]:
        """The checkpoints that there are, oldest first."""
        return [ReportedCheckpoint(self._checkpoint(entry), dict(entry.metrics)) for entry in self.manifest.checkpoints]

    def _checkpoint(self, entry: Entry) -> Checkpoint:
        return Checkpoint.from_folder(self.folder.child(entry.name))

    # -- while it runs -------------------------------------------------------------------------------------------------

    def roll_back(self) -> None:
        """To the last committed checkpoint: what was reported or staged after it is forgotten, for it will be done again."""
        committed = self.manifest.latest
        reports = committed.reports if committed is not None else 0
        del self.history[reports:]
        self.metrics = self.history[-1] if self.history else None
        self.manifest = replace(self.manifest, reports=reports)
        self.staging = uuid.uuid4().hex[:8]
        self.folder.child(STAGING).delete()
        known = {entry.name for entry in self.manifest.checkpoints}
        for name in self.folder.names():
            if name.startswith(DEFAULT_NAME) and name not in known:
                self.folder.child(name).delete()
        self._write_progress()
        self.manifest.save(self.folder)

    def record(self, metrics: dict[str, Any], staged: bool, dir_name: str | None) -> tuple[ReportedCheckpoint | None, frozenset[str]]:
        """A report of all ranks. When it returns, the checkpoint, if there is one, outlives any crash. Also the paths of those that were deleted for it.

        Raises:
            ValueError: the name is that of another checkpoint.
            OSError: the storage refuses.
        """
        row = plain(metrics)
        if staged and dir_name is not None and any(entry.name == dir_name for entry in self.manifest.checkpoints):
            raise ValueError(f"checkpoint_dir_name={dir_name!r} is the name of an earlier checkpoint of this run: each needs a name of its own")
        self.history.append(row)
        self.metrics = metrics
        self._append_progress(row)
        if not staged:
            return None, frozenset()
        number = self.manifest.next_number
        entry = Entry(dir_name or default_name(number), number, row, len(self.history))
        self._move_into_place(number, entry.name)
        deleted = to_delete([*self.manifest.checkpoints, entry], self._config)
        committed = self.manifest.committed(entry, deleted)
        if not isinstance(self.folder, LocalFolder):
            self._write_progress()
        committed.save(self.folder)
        self.manifest = committed
        gone = [self.folder.child(old.name) for old in deleted]
        for folder in gone:
            folder.delete()
        return ReportedCheckpoint(self._checkpoint(entry), row), frozenset(folder.path for folder in gone)

    def _move_into_place(self, number: int, name: str) -> None:
        if not isinstance(self.folder, LocalFolder):
            return
        target = self.folder.child(name)
        target.delete()  # of an attempt that died between the move and the manifest
        Path(staging_folder(self.folder, self.staging, number, name).path).rename(target.path)

    # -- metrics -------------------------------------------------------------------------------------------------------

    def _append_progress(self, row: dict[str, Any]) -> None:
        # Other filesystems cannot append: there the file is written with each checkpoint and at the end.
        if isinstance(self.folder, LocalFolder):
            with self._open_progress() as file:
                file.write(dumps(row).encode() + b"\n")

    def _open_progress(self) -> IO[bytes]:
        return Path(self.folder.path, Manifest.PROGRESS).open("ab")

    def _write_progress(self) -> None:
        self.folder.write(Manifest.PROGRESS, b"".join(dumps(row).encode() + b"\n" for row in self.history))

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, error: Exception | None) -> None:
        self.manifest = replace(self.manifest, state=FINISHED if error is None else FAILED, error="" if error is None else str(error))
        self.folder.child(STAGING).delete()
        if not isinstance(self.folder, LocalFolder):
            self._write_progress()
        self.manifest.save(self.folder)
        self.close()
