"""Folders that checkpoints and results lie in: on a disk, or in any filesystem that pyarrow or fsspec knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from .errors import StorageError

__all__ = ["Folder", "LocalFolder", "RemoteFolder", "open_folder"]


class Folder(ABC):
    """A folder and what can be done with it. Names are relative, with '/'.

    Writing a file replaces it whole: a reader sees the old bytes or the new ones.
    """

    path: str

    @property
    @abstractmethod
    def filesystem(self) -> Any:
        """As a `pyarrow.fs.FileSystem`."""

    @abstractmethod
    def child(self, name: str) -> Folder:
        """A folder in it, which need not exist."""

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder in it; without a name: whether it is there itself."""

    @abstractmethod
    def names(self) -> list[str]:
        """What lies directly in it, sorted; nothing if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """None if there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Makes the folder if it does not exist."""

    @abstractmethod
    def make(self) -> None:
        """Makes the folder and those above it."""

    @abstractmethod
    def delete(self) -> None:
        """With all that is in it; nothing if it does not exist."""

    @abstractmethod
    def upload(self, source: Path) -> None:
        """Copies what is in a local folder into this one."""

    @abstractmethod
    def download(self, target: Path) -> None:
        """Copies what is in this folder into a local one."""


class LocalFolder(Folder):
    """On a disk of this machine, or one that is mounted on it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.path.expanduser(os.fspath(path)))

    @property
    def filesystem(self) -> Any:
        from pyarrow import fs

        return fs.LocalFileSystem()

    def child(self, name: str) -> LocalFolder:
        return LocalFolder(os.path.join(self.path, name))

    def exists(self, name: str = "") -> bool:
        return os.path.exists(os.path.join(self.path, name))

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        try:
            return Path(self.path, name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        target = Path(self.path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with written.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, target)
        except BaseException:
            written.unlink(missing_ok=True)
            raise

    def make(self) -> None:
        os.makedirs(self.path, exist_ok=True)

    def delete(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def upload(self, source: Path) -> None:
        shutil.copytree(source, self.path, dirs_exist_ok=True)

    def download(self, target: Path) -> None:
        shutil.copytree(self.path, target, dirs_exist_ok=True)

    def __repr__(self) -> str:
        return f"LocalFolder({self.path!r})"


class RemoteFolder(Folder):
    """In a `pyarrow.fs.FileSystem`."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self.path = path.rstrip("/")

    @property
    def filesystem(self) -> Any:
        return self._filesystem

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def child(self, name: str) -> RemoteFolder:
        return RemoteFolder(self._filesystem, self._at(name))

    def exists(self, name: str = "") -> bool:
        from pyarrow import fs

        [info] = self._filesystem.get_file_info([self._at(name)])
        return bool(info.type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        from pyarrow import fs

        found = self._filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self, name: str) -> bytes | None:
        if not self.exists(name):
            return None
        with self._filesystem.open_input_stream(self._at(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        # Object stores put whole objects, and have no rename that is better than that.
        self.make()
        with self._filesystem.open_output_stream(self._at(name)) as stream:
            stream.write(data)

    def make(self) -> None:
        self._filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        if self.exists():
            self._filesystem.delete_dir(self.path)

    def upload(self, source: Path) -> None:
        from pyarrow import fs

        self.make()
        fs.copy_files(str(source), self.path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._filesystem)

    def download(self, target: Path) -> None:
        from pyarrow import fs

        target.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self.path, str(target), source_filesystem=self._filesystem, destination_filesystem=fs.LocalFileSystem())

    def __repr__(self) -> str:
        return f"RemoteFolder({self._filesystem.type_name}, {self.path!r})"


def open_folder(path: str | os.PathLike[str], filesystem: Any = None) -> Folder:
    """The folder at a path or URI.

    Args:
        path: of `filesystem` if that is given; else a local path, or a URI that pyarrow or fsspec knows.
        filesystem: a `pyarrow.fs.FileSystem` or an fsspec filesystem.

    Raises:
        StorageError: the URI's scheme is unknown, or its filesystem refuses it.
    """
    text = os.fspath(path)
    if filesystem is not None:
        arrow = _as_arrow(filesystem)
        return LocalFolder(text) if arrow.type_name == "local" else RemoteFolder(arrow, text)
    if "://" not in text:
        return LocalFolder(text)
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return LocalFolder(unquote(urlsplit(text).path))
    return RemoteFolder(*_from_uri(text))


def _as_arrow(filesystem: Any) -> Any:
    from pyarrow import fs

    if isinstance(filesystem, fs.FileSystem):
        return filesystem
    if hasattr(filesystem, "protocol") and hasattr(filesystem, "ls"):
        if "file" in _protocols(filesystem):
            return fs.LocalFileSystem()
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    raise StorageError(f"{filesystem!r} is no filesystem of pyarrow or fsspec")


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _from_uri(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    except (ValueError, OSError, NotImplementedError) as refused:
        try:
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError, OSError) as error:
            raise StorageError(f"no filesystem for {uri!r}: pyarrow says: {refused}; fsspec says: {error}") from error
        return _as_arrow(filesystem), str(path)
