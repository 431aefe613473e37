"""Paths a user gives become files: directories, patterns, URIs; what Hive-style directories say of their files."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class File:
    """`partition`: values of Hive-style directories (`.../year=2026/...`) as text."""

    path: str
    size_bytes: int
    partition: tuple[tuple[str, str], ...] = ()


def find_files(
    paths: Paths, filesystem: pafs.FileSystem | None, extensions: Sequence[str] | None, ignore_missing: bool, hive: bool
) -> tuple[pafs.FileSystem, list[File]]:
    """The files in a stable order. Directories are searched, hidden names (`.x`, `_x`) left out.

    Raises:
        FileNotFoundError: a path that is not there, unless `ignore_missing`; or no file at all.
    """
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if not given:
        raise ValueError("no paths were given")
    found: list[File] = []
    used = filesystem
    for path in given:
        used, local = _filesystem(path, filesystem)
        for one in _expand(used, local):
            found.extend(_below(used, one, extensions, ignore_missing, hive))
    assert used is not None
    if not found:
        wanted = f" with the extensions {list(extensions)}" if extensions else ""
        raise FileNotFoundError(f"there are no files{wanted} at {', '.join(given)}")
    return used, found


def _filesystem(path: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    if filesystem is not None:
        parsed = urlparse(path)
        return filesystem, path if not parsed.scheme or len(parsed.scheme) == 1 else f"{parsed.netloc}{parsed.path}"
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))


def _expand(filesystem: pafs.FileSystem, path: str) -> list[str]:
    if isinstance(filesystem, pafs.LocalFileSystem) and any(sign in path for sign in "*?[") and not os.path.exists(path):
        return sorted(glob.glob(path, recursive=True)) or [path]
    return [path]


def _below(filesystem: pafs.FileSystem, path: str, extensions: Sequence[str] | None, ignore_missing: bool, hive: bool) -> list[File]:
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        if ignore_missing:
            return []
        raise FileNotFoundError(f"{path} does not exist.{_near(filesystem, path)}")
    if info.type == pafs.FileType.File:
        return [File(path, info.size or 0)]
    found = []
    for one in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)):
        inside = one.path[len(path) :].strip("/").split("/")
        if one.type != pafs.FileType.File or any(part.startswith((".", "_")) for part in inside):
            continue
        if extensions and not any(one.path.lower().endswith("." + extension.lower().lstrip(".")) for extension in extensions):
            continue
        found.append(File(one.path, one.size or 0, _partition(inside[:-1]) if hive else ()))
    return sorted(found, key=lambda file: file.path)


def _partition(folders: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from urllib.parse import unquote

    return tuple((name, unquote(value)) for name, sign, value in (folder.partition("=") for folder in folders) if sign)


def _near(filesystem: pafs.FileSystem, path: str) -> str:
    folder, _, name = path.rpartition("/")
    try:
        names = [one.base_name for one in filesystem.get_file_info(pafs.FileSelector(folder or "/"))]
    except OSError:
        return f" Neither does {folder}." if folder else ""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(f'{folder}/{one}' for one in close)}?" if close else f" There are {len(names)} other files in {folder}."


NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def partition_fields(files: Sequence[File]) -> dict[str, pa.DataType]:
    """The columns that directories give: whole numbers where all values are, else text."""
    values: dict[str, set[str]] = {}
    for file in files:
        for name, value in file.partition:
            values.setdefault(name, set()).add(value)
    return {name: pa.int64() if all(_is_int(value) for value in seen if value != NULL_PARTITION) else pa.string() for name, seen in values.items()}


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def with_partition(table: pa.Table, file: File, fields: dict[str, pa.DataType], include_path: bool) -> pa.Table:
    """The table with the columns that its place gives."""
    values: dict[str, Any] = dict(file.partition)
    for name, kind in fields.items():
        if name not in table.column_names:
            value = values.get(name)
            scalar = pa.scalar(None if value in (None, NULL_PARTITION) else int(value) if pa.types.is_integer(kind) else value, type=kind)
            table = table.append_column(name, pa.repeat(scalar, table.num_rows))
    if include_path:
        table = table.append_column("path", pa.repeat(pa.scalar(file.path), table.num_rows))
    return table


def grouped(files: Sequence[Any], sizes: Sequence[int], groups: int) -> list[list[Any]]:
    """Runs of `files` with about the same bytes each; none is empty."""
    groups = max(1, min(groups, len(files)))
    total = sum(sizes) or 1
    found: list[list[Any]] = [[]]
    seen = 0.0
    for i, (file, size) in enumerate(zip(files, sizes, strict=True)):
        left = len(files) - i
        if found[-1] and len(found) < groups and (seen >= total * len(found) / groups or left <= groups - len(found)):
            found.append([])
        found[-1].append(file)
        seen += size
    return found
