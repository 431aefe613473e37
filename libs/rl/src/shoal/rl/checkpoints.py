"""Algorithms on disk: a folder with `rl_checkpoint.json`, which is written last and names the other files with their sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle

from .errors import CheckpointError

INDEX = "rl_checkpoint.json"
FORMAT = 1


def write(folder: Path, parts: dict[str, Any], facts: dict[str, Any]) -> None:
    """`parts`: what becomes a file each (`NAME.pkl`). Every file appears whole or not at all; an interrupted write leaves the earlier checkpoint's index."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, part in parts.items():
        content = cloudpickle.dumps(part, protocol=5)
        # The name tells the content, so that files of an earlier checkpoint in the same folder stay whole until its index is replaced.
        file = f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.pkl"
        _put(folder / file, content)
        files[name] = {"file": file, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    before = _files_of(folder)
    _put(folder / INDEX, json.dumps({"format": FORMAT, **facts, "files": files}, indent=2).encode())
    for file in before - {entry["file"] for entry in files.values()}:
        (folder / file).unlink(missing_ok=True)


def _files_of(folder: Path) -> set[str]:
    try:
        return {entry["file"] for entry in read_index(folder)["files"].values()}
    except CheckpointError:
        return set()


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_index(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError: there is no checkpoint, or one of another format."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        what = "is not there" if not folder.exists() else f"has no {INDEX}: it holds no checkpoint of an algorithm"
        raise CheckpointError(f"{folder} {what}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {index.get('format') if isinstance(index, dict) else None!r}; this version reads format {FORMAT}")
    return index


def read(folder: Path, name: str) -> Any:
    """One part. Unpickles: only for checkpoints that you trust.

    Raises:
        CheckpointError: it is missing or damaged; names the file.
    """
    entry = read_index(folder)["files"].get(name)
    if entry is None:
        raise CheckpointError(f"the checkpoint {folder} has no {name}")
    path = folder / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} of the checkpoint cannot be read: {error}") from error
    if len(content) != entry["size_bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: {len(content)} bytes that are not the {entry['size_bytes']} that were written")
    try:
        return pickle.loads(content)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be unpickled here: {type(error).__name__}: {error}") from error
