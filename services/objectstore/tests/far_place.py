"""File systems that are not this machine's, for tests: an S3, folders, and one in a dictionary that fails when it is told to."""

from __future__ import annotations

import itertools
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from shoal_objectstore.courier import CourierFailed, Missing
from shoal_objectstore.journal import Source
from shoal_objectstore.remote import Remote


def value(n: int, size: int) -> bytes:
    return random.Random(n).randbytes(size)


class Far:
    """A file system, and what lies there."""

    def __init__(self, uri: str, names: Callable[[], list[str]]) -> None:
        self.uri = uri
        self.names = names


class Bucket:
    """On a server of moto, which has an environment of its own: `make s3` makes it."""

    PROGRAM = Path(sys.prefix) / "moto/bin/moto_server"

    def __init__(self) -> None:
        if not self.PROGRAM.exists():
            pytest.skip("no S3: `make s3` installs one for the tests")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([self.PROGRAM, "-H", "127.0.0.1", "-p", self.address.rpartition(":")[2]], stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "moto did not start"
            time.sleep(0.1)
        self._folders = itertools.count(1)

    def folder(self) -> Far:
        """Another one for each test."""
        name = f"some/folder-{next(self._folders)}"
        uri = f"s3://spilled/{name}?endpoint_override={self.address}&scheme=http&region=us-east-1"
        return Far(uri, lambda: [found for found in self._names() if found.startswith(name + "/")])

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(f"http://{self.address}/spilled", method="PUT")).close()
        except OSError:
            return False
        return True

    def _names(self) -> list[str]:
        with urllib.request.urlopen(f"http://{self.address}/spilled?list-type=2") as answer:
            found = re.findall("<Key>([^<]*)</Key>", answer.read().decode())
        # Names that end in a slash are folders' marks, of no bytes.
        return [name for name in found if not name.endswith("/")]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(20)


def folder(uri: str, place: Path) -> Far:
    return Far(uri, lambda: [str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()])


@dataclass
class FakeCourier:
    """A file system in a dictionary; `fail` says for how many questions it is down."""

    files: dict[str, bytes] = field(default_factory=dict)
    fail: int = 0
    asked: int = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.fail:
            self.fail -= 1
            raise CourierFailed("it is down")

    def write(self, path: str, parts: Sequence[memoryview]) -> list[int]:
        self.files[path] = b""  # half of it
        self._ask()
        self.files[path] = b"".join(parts)
        return [len(part) for part in parts]

    def read(self, path: str, offset: int, stored: int, into: memoryview) -> None:
        self._ask()
        if path not in self.files:
            raise Missing("FileNotFoundError")
        into[:] = self.files[path][offset : offset + stored]

    def remove(self, paths: Sequence[str]) -> None:
        self._ask()
        for path in paths:
            self.files.pop(path, None)

    def end_idle(self, after_s: float = 0.0) -> None: ...
    def close(self) -> None: ...


def remote(place: Path, courier: object) -> Remote:
    return Remote(0, "s3://bucket/folder", "shoal-spill-x", place, courier)  # type: ignore[arg-type]


def source(slot: int, data: bytes) -> Source:
    return Source(slot, 1, memoryview(data), 0)


def read(place: Remote, record: object) -> bytes:
    into = bytearray(record.size)  # type: ignore[attr-defined]
    place.read(record, memoryview(into), 0)  # type: ignore[arg-type]
    return bytes(into)


def settle(place: Remote) -> None:
    while place.remove_unwanted() or place.move_living():
        pass
