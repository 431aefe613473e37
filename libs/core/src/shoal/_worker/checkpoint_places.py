"""Where checkpoints lie: at the control store, or as files in a directory."""

from __future__ import annotations

import os
import re
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Protocol

from .._calls import CallFailed, call
from ..exceptions import GetTimeoutError, RaySystemError

KEEP_TIMEOUT_S = 60.0  # how long a call waits for the control store: a head that starts again or a standby that takes over needs seconds
CALL_TIMEOUT_S = 15.0
TELL_AFTER_S = 5.0
FILES_KEPT = 2
_FENCED = 3  # gRPC's INVALID_ARGUMENT: this life is not the one on record
_NOT_FOUND = 5
_HEAD = struct.Struct("<8sIQ")  # magic, CRC-32, length
_MAGIC = b"SHOALCP1"
_NAME = re.compile(r"(\d+)-(\d+)\.checkpoint")


class Fenced(Exception):
    """The control store has given this life of the actor up."""


class Place(Protocol):
    def keep(self, number: int, state: bytes) -> None:
        """Returns once it outlives this process. Raises Fenced, or what hinders it."""

    def fetch(self) -> bytes | None:
        """The last one of any former life; None: there has been none. Raises when there was one and it is not there."""


class AtControlStore:
    def __init__(self, engine: Any, actor_id: bytes, incarnation: int) -> None:
        self._engine = engine
        self._actor_id = actor_id
        self.incarnation = incarnation

    def keep(self, number: int, state: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.ActorCheckpoint(actor_id=self._actor_id, incarnation=self.incarnation, number=number, state=state)
        try:
            ask_patiently(self._engine, "gcs/KeepCheckpoint", request, "this actor's checkpoint")
        except CallFailed as error:
            if error.code in (_FENCED, _NOT_FOUND):
                raise Fenced(str(error)) from error
            raise

    def fetch(self) -> bytes | None:
        record = self.last()
        return bytes(record.state) if record.number else None

    def last(self) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        query = gcs_pb2.ActorQuery(actor_id=self._actor_id)
        return gcs_pb2.ActorCheckpoint.FromString(ask_patiently(self._engine, "gcs/GetCheckpoint", query, "this actor's checkpoint"))


class AtPath:
    """A folder for each actor, named by its id. The control store knows that there is something in it, so that a folder that is gone is noticed."""

    def __init__(self, path: str, actor_id: bytes, noted: AtControlStore) -> None:
        self._folder = Path(path) / actor_id.hex()
        self._noted = noted
        self._told = False

    def keep(self, number: int, state: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._noted.incarnation:06d}-{number:012d}.checkpoint"
        draft = self._folder / f".{name}.{os.getpid()}"
        with draft.open("wb") as file:
            file.write(_HEAD.pack(_MAGIC, zlib.crc32(state), len(state)))
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._folder / name)
        _sync(self._folder)
        if not self._told:
            self._noted.keep(number, b"")
            self._told = True
        for _, old in self._files()[:-FILES_KEPT]:
            old.unlink(missing_ok=True)

    def fetch(self) -> bytes | None:
        record = self._noted.last()
        files = self._files()
        if not files and not record.number:
            return None
        if not files or files[-1][0] < (record.incarnation, record.number):
            raise FileNotFoundError(
                f"{self._folder} holds no checkpoint as new as number {record.number} of life {record.incarnation}: "
                "it was emptied, or this node sees another directory at that path; checkpoint_path must be on a file system that every node sees"
            )
        return _read(files[-1][1])

    def _files(self) -> list[tuple[tuple[int, int], Path]]:
        """In the order in which they were written. Invariant: a later life is newer, whatever a former one that was cut off may still write."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        found = [(match, self._folder / name) for name in names if (match := _NAME.fullmatch(name))]
        return sorted(((int(match[1]), int(match[2])), path) for match, path in found)


def ask_patiently(engine: Any, method: str, request: Any, what: str) -> bytes:
    """Tries again while no control store answers, and says so. The request must be one that may be made twice.

    Raises CallFailed, RaySystemError, GetTimeoutError.
    """
    began = time.monotonic()
    told = False
    while True:
        try:
            return call(engine, method, request, CALL_TIMEOUT_S)
        except (RaySystemError, GetTimeoutError):
            waited = time.monotonic() - began
            if waited >= KEEP_TIMEOUT_S:
                raise
            if waited >= TELL_AFTER_S and not told:
                told = True
                print(f"shoal: {what} waits for the control store, which has not answered for {waited:.0f} s", file=sys.stderr, flush=True)
        time.sleep(0.1)


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if len(raw) >= _HEAD.size:
        magic, crc, size = _HEAD.unpack_from(raw)
        state = raw[_HEAD.size :]
        if magic == _MAGIC and size == len(state) and crc == zlib.crc32(state):
            return state
    raise ValueError(f"checkpoint {path} is damaged ({len(raw)} bytes, or their checksum is wrong): move it away to go on from the one before")


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
