"""A checkpoint: a folder of files, wherever it lies."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import StorageError
from .storage import Folder, LocalFolder, RemoteFolder, open_folder

__all__ = ["Checkpoint"]

METADATA_FILE = ".metadata.json"


class Checkpoint:
    """A reference to a folder. Making one neither copies nor reads; it travels to other processes as path and filesystem.

    Args:
        path: a local path, or a URI of any filesystem that pyarrow or fsspec knows.
        filesystem: a `pyarrow.fs.FileSystem` or fsspec filesystem that `path` is a path of.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = pathlib.Path(folder, "step").write_text("7")
        >>> checkpoint = Checkpoint.from_directory(folder)
        >>> with checkpoint.as_directory() as where:
        ...     pathlib.Path(where, "step").read_text()
        '7'
    """

    def __init__(self, path: str | os.PathLike[str], filesystem: Any = None) -> None:
        self._folder = open_folder(path, filesystem)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Of a local folder."""
        return cls(path)

    @classmethod
    def from_folder(cls, folder: Folder) -> Checkpoint:
        """Of a folder that is open already."""
        made = cls.__new__(cls)
        made._folder = folder
        return made

    @property
    def path(self) -> str:
        """Of the folder, in its filesystem."""
        return self._folder.path

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that holds it."""
        return self._folder.filesystem

    @property
    def folder(self) -> Folder:
        return self._folder

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copies the files into a local folder (default: a new temporary one); its path.

        Raises:
            StorageError: the checkpoint does not exist.
        """
        if path is None:
            target = Path(tempfile.mkdtemp(prefix="checkpoint_"))
        else:
            target = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
            target.mkdir(parents=True, exist_ok=True)
        self._require()
        self._folder.download(target)
        return str(target)

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """A local folder with the files: a local checkpoint's own, which must not be changed; else a temporary copy.

        Processes of one machine that use the same checkpoint at the same time share the copy; the last one removes it.

        Raises:
            StorageError: the checkpoint does not exist.
        """
        self._require()
        if isinstance(self._folder, LocalFolder):
            yield self._folder.path
            return
        with _shared_copy(self._folder) as copy:
            yield copy

    def _require(self) -> None:
        if not self._folder.exists():
            raise StorageError(f"there is no checkpoint at {self.path}: it was deleted, or it lies on a disk that this machine does not see")

    def get_metadata(self) -> dict[str, Any]:
        """What `set_metadata` and `update_metadata` stored; empty at first."""
        data = self._folder.read(METADATA_FILE)
        return json.loads(data) if data is not None else {}

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Stores it beside the files, in place of what was there. It must be what JSON can say."""
        self._folder.write(METADATA_FILE, json.dumps(dict(metadata)).encode())

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Adds to the metadata, or replaces values in it."""
        self.set_metadata({**self.get_metadata(), **metadata})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        if self.path != other.path:
            return False
        ours, theirs = self._folder, other._folder
        if isinstance(ours, LocalFolder) or isinstance(theirs, LocalFolder):
            return type(ours) is type(theirs)
        return bool(ours.filesystem == theirs.filesystem)

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        where = "local" if isinstance(self._folder, LocalFolder) else self._folder.filesystem.type_name
        return f"Checkpoint(filesystem={where}, path={self.path})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.path, None if isinstance(self._folder, LocalFolder) else self._folder.filesystem)


def _rebuild(cls: type[Checkpoint], path: str, filesystem: Any) -> Checkpoint:
    return cls.from_folder(LocalFolder(path) if filesystem is None else RemoteFolder(filesystem, path))


@contextlib.contextmanager
def _shared_copy(folder: Folder) -> Iterator[str]:
    """Whoever comes first copies, while the others wait at the lock; the last one to go removes the copy."""
    key = hashlib.blake2b(f"{folder.filesystem.type_name}:{folder.path}".encode(), digest_size=12).hexdigest()
    home = Path(tempfile.gettempdir(), f"shoal-checkpoints-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise StorageError(f"{home} belongs to another user: set TMPDIR to a folder of your own")
    copy, done, lock = home / key, home / f"{key}.done", home / f"{key}.lock"
    with _locked(lock):
        users = os.open(home / f"{key}.users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not done.exists():
                shutil.rmtree(copy, ignore_errors=True)
                folder.download(copy)
                done.touch()
            fcntl.flock(users, fcntl.LOCK_SH)
        except BaseException:
            os.close(users)
            raise
    try:
        yield str(copy)
    finally:
        with _locked(lock):
            with contextlib.suppress(BlockingIOError):  # others still read it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                done.unlink(missing_ok=True)
                shutil.rmtree(copy, ignore_errors=True)
                (home / f"{key}.users").unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            os.close(users)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Whoever held it may have removed the file: a lock on a file without a name excludes nobody.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                break
        os.close(fd)
    try:
        yield
    finally:
        os.close(fd)
