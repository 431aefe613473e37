"""`file_mounts`: files and folders of this machine that travel to others, as a tar."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

# Limit: of all that one machine is sent.
MAX_BYTES = 4 << 30
_BLOCK_BYTES = 1 << 20


class MountTooLarge(ValueError):
    """More than MAX_BYTES: a shared file system or object storage carries that better."""


def digest(mounts: Mapping[str, str]) -> str:
    """Of names, modes and contents; empty without mounts. Raises OSError, MountTooLarge."""
    if not mounts:
        return ""
    found, total = hashlib.blake2b(digest_size=8), 0
    for target, source in sorted(mounts.items()):
        found.update(f"{target}\0".encode())
        for path in _files(Path(source)):
            info = path.lstat()
            found.update(f"{path.relative_to(source)}\0{info.st_mode:o}\0{info.st_size}\0".encode("utf-8", "surrogateescape"))
            if path.is_symlink():
                found.update(os.fsencode(os.readlink(path)))
            elif path.is_file():
                total += info.st_size
                if total > MAX_BYTES:
                    raise MountTooLarge(f"file_mounts have more than {MAX_BYTES >> 30} GiB, by {path}; put large files where all machines can read them")
                _add(found, path)
    return found.hexdigest()


def pack(source: str, target: str, file: IO[bytes]) -> None:
    """A tar of `source` under the last part of `target`'s name."""
    name = target.rstrip("/").rpartition("/")[2]
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(source, arcname=name, filter=_anonymous)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Whoever unpacks it owns it. Sockets, pipes and devices stay here."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info if info.isreg() or info.isdir() or info.issym() or info.islnk() else None


def _files(top: Path) -> Iterator[Path]:
    yield top
    if top.is_dir() and not top.is_symlink():
        for entry in sorted(top.iterdir()):
            yield from _files(entry)


def _add(found: hashlib.blake2b, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
