"""Directories of a runtime environment: packed at the driver, kept in the control store under their hash, unpacked once on each node."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from . import _runtime

SCHEME = "gcs://"
# Limit: the control store keeps packages; data belongs into object or file storage.
MAX_BYTES = 100 << 20
_ALWAYS_LEFT_OUT = (".git", "__pycache__", ".venv", "node_modules")
_NAMESPACE = "packages"
_FETCH_TIMEOUT_S = 120.0
_uploaded: dict[tuple[int, str], str] = {}


def upload(env: dict[str, Any]) -> dict[str, Any]:
    """The environment with each local directory replaced by the URI of its package."""
    excludes = tuple(env.get("excludes") or ())
    ready = dict(env)
    if env.get("working_dir"):
        ready["working_dir"] = _upload_one(os.fspath(env["working_dir"]), "", excludes, "working_dir")
    if env.get("py_modules"):
        ready["py_modules"] = [_upload_module(module, excludes) for module in env["py_modules"]]
    ready.pop("excludes", None)
    return ready


def _upload_module(module: Any, excludes: tuple[str, ...]) -> str:
    path = getattr(module, "__path__", None)
    directory = str(next(iter(path))) if path else os.fspath(getattr(module, "__file__", None) or module)
    return _upload_one(directory, os.path.basename(directory.rstrip("/")), excludes, "py_modules")


def _upload_one(directory: str, prefix: str, excludes: tuple[str, ...], field: str) -> str:
    if directory.startswith(SCHEME):
        return directory
    if "://" in directory:
        raise ValueError(f"runtime_env[{field!r}]={directory!r}: only local directories are supported")
    root = Path(directory).expanduser().resolve()
    if not root.exists():
        raise ValueError(f"runtime_env[{field!r}]={directory!r}: there is no such directory")
    key = (_runtime.state.generation, f"{root}|{prefix}|{excludes}")
    if key in _uploaded:
        return _uploaded[key]
    data = _pack(root, prefix, excludes, field)
    name = f"shoal-{hashlib.blake2b(data, digest_size=16).hexdigest()}.zip"
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.KvPutRequest(namespace=_NAMESPACE, key=name.encode(), value=data, overwrite=False)
    _runtime.connected("runtime_env").call("gcs/KvPut", request.SerializeToString(), _FETCH_TIMEOUT_S)
    _uploaded[key] = SCHEME + name
    return _uploaded[key]


class _Entry(NamedTuple):
    """A file of a package."""

    inside: str
    mode: int
    size_bytes: int
    read: Callable[[], bytes]


def _entries(root: Path, prefix: str, excludes: tuple[str, ...], field: str) -> Iterator[_Entry]:
    if field == "working_dir" and root.is_file():
        yield from _zipped(root, excludes)
        return
    for path in _files(root, excludes):
        stat = path.stat()
        yield _Entry(path.name if root.is_file() else os.path.join(prefix, path.relative_to(root)), stat.st_mode & 0o777, stat.st_size, path.read_bytes)


def _zipped(root: Path, excludes: tuple[str, ...]) -> Iterator[_Entry]:
    if not zipfile.is_zipfile(root):
        raise ValueError(f"runtime_env['working_dir']={str(root)!r}: a directory or a zip file is wanted")
    with zipfile.ZipFile(root) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            if not entry.is_dir() and not _excluded(entry.filename, excludes):
                yield _Entry(entry.filename, entry.external_attr >> 16 & 0o777 or 0o644, entry.file_size, partial(archive.read, entry))


def _pack(root: Path, prefix: str, excludes: tuple[str, ...], field: str) -> bytes:
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _entries(root, prefix, excludes, field):
            total += file.size_bytes
            if total > MAX_BYTES:
                raise ValueError(
                    f"runtime_env[{field!r}]={str(root)!r} holds more than {MAX_BYTES >> 20} MiB. Name what is not needed in runtime_env['excludes']."
                )
            # A fixed date: equal files make an equal package.
            entry = zipfile.ZipInfo(file.inside, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = file.mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read())
    return buffer.getvalue()


def _files(root: Path, excludes: tuple[str, ...]) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for directory, names, files in os.walk(root):
        relative = os.path.relpath(directory, root)
        names[:] = sorted(n for n in names if n not in _ALWAYS_LEFT_OUT and not _excluded(os.path.join(relative, n), excludes))
        for name in sorted(files):
            if not _excluded(os.path.join(relative, name), excludes):
                path = Path(directory, name)
                if path.is_file():
                    yield path


def _excluded(path: str, excludes: tuple[str, ...]) -> bool:
    path = os.path.normpath(path)
    return any(fnmatch.fnmatch(path, pattern.strip("/")) or fnmatch.fnmatch(os.path.basename(path), pattern.strip("/")) for pattern in excludes)


def fetch(uri: str) -> str:
    """The directory on this node that holds the package; unpacked on first use, by one process for all of the node."""
    name = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or os.sep in name:
        raise ValueError(f"{uri!r} is no package of this cluster")
    base = Path(_runtime.state.node_dir) / "packages"
    base.mkdir(mode=0o700, exist_ok=True)
    target = base / name.removesuffix(".zip")
    if target.is_dir():
        return str(target)
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _unpack(_download(name, uri), target)
    return str(target)


def _download(name: str, uri: str) -> bytes:
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.KvGetRequest(namespace=_NAMESPACE, key=name.encode())
    reply = gcs_pb2.KvGetReply.FromString(_runtime.connected("runtime_env").call("gcs/KvGet", request.SerializeToString(), _FETCH_TIMEOUT_S))
    if not reply.found:
        raise FileNotFoundError(f"the cluster has no package {uri}")
    return bytes(reply.value)


def _unpack(data: bytes, target: Path) -> None:
    unfinished = target.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(unfinished)
        for entry in archive.infolist():
            mode = entry.external_attr >> 16
            if mode:
                os.chmod(unfinished / entry.filename, mode)
    unfinished.rename(target)
