"""The store without a cluster: one process that owns an arena and the names of what lies in it, for the programs of one user on one machine.

    python -m shoal_objectstore serve --dir DIR --memory 2G

Its clients (`client.Client`) put and get as those of a cluster do; a name costs one message. The names are the objects' owners: what is named stays until it is
deleted or replaced, what a process put and did not name goes with the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from shoal_base.connection import listen_unix
from shoal_base.frames import Type
from shoal_base.sockets import close_fds
from shoal_base.wire import Call, Result

from ._arena import create_arena
from .clients import Client
from .config import Config
from .remote import remove_folders
from .server import ObjectStore

# gRPC's status codes, as RESULT carries them.
OK, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED = 0, 3, 5, 6, 8
NAME = struct.Struct("<IIQ")
NUMBER = struct.Struct("<I")
# Limit: what one name may take.
MAX_NAME_BYTES = 4096
# How long the end waits for a remote file system to forget what was spilled there.
REMOVE_WAIT_S = 20.0
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Bytes, with an optional unit.

    >>> size("2G"), size("500M"), size("4096")
    (2147483648, 524288000, 4096)
    """
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    if unit not in _UNITS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: bytes are wanted, as in 500M or 2G")
    return int(number) * _UNITS[unit]


class NamedClient(Client):
    """A connection that may also speak of names."""

    def _on_frame(self, conn: object, type_: int, payload: bytes, fds: list[int]) -> None:
        if type_ != Type.CALL or self._hello is None:
            super()._on_frame(self.conn, type_, payload, fds)
            return
        close_fds(fds)
        call = Call.unpack(payload)
        assert isinstance(self._requests, AloneStore)
        code, answer, sent = self._requests.call(self, call.method, call.payload)
        self.conn.send(Type.RESULT, Result(call.id, code, answer).pack(), sent)

    def take(self, number: int) -> None:
        self._number = number

    def taken(self, identity: tuple[int, int]) -> None:
        self.identity = identity

    def leave(self) -> None:
        """Its process lives on, and uses this place no more."""
        self._number = None


class AloneStore(ObjectStore):
    def __init__(self, config: Config, memory_bytes: int) -> None:
        super().__init__(config)
        self._memory_bytes = memory_bytes
        self._names: dict[str, tuple[int, int, int]] = {}
        self._numbers: set[int] = set()
        self._lock_fd = -1

    async def start(self) -> None:
        """Raises OSError, ArenaError."""
        self._loop = asyncio.get_running_loop()
        place = self.config.node_dir
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise OSError(f"another store serves {place}") from error
        self._lock_fd = lock
        self._forget_predecessor()
        self._arena_fd = create_arena(self._memory_bytes)
        self._open()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place / "store.sock")
        self._listener = await listen_unix(place / "store.sock", self._connected)
        self._spawn(self.keeper.warming())
        self._begin_rounds()

    def _forget_predecessor(self) -> None:
        """What one that was killed had on disk: its memory, and so its names, are gone."""
        place = self.config.node_dir
        far: list[tuple[str, str]] = []
        with contextlib.suppress(OSError):
            for line in (place / "elsewhere").read_text().splitlines():
                uri, tab, name = line.partition("\t")
                if tab:
                    far.append((uri, name))
                else:
                    shutil.rmtree(line, ignore_errors=True)
        remove_folders(far, REMOVE_WAIT_S)
        shutil.rmtree(place / "spill", ignore_errors=True)
        (place / "elsewhere").unlink(missing_ok=True)

    async def close(self) -> None:
        await super().close()
        if self._lock_fd >= 0:
            self._forget_predecessor()
            for name in ("store.sock", "lock"):
                with contextlib.suppress(OSError):
                    os.unlink(self.config.node_dir / name)
            os.close(self._lock_fd)

    def _connected(self, sock: socket.socket) -> None:
        self._clients.add(NamedClient(sock, self.node_id, self, self._clients.discard))

    # -- what clients ask -------------------------------------------------------------------------------

    def call(self, client: NamedClient, method: str, payload: bytes) -> tuple[int, bytes, list[int]]:
        """(status code, answer, descriptors)."""
        if method == "attach":
            return self._attach(client)
        if method == "attached":
            assert client.number is not None
            client.taken(self.keeper.store.identity(client.number))
            return OK, b"", []
        if method == "leave":
            return self._leave(client)
        if method == "stats":
            return OK, json.dumps(self.figures() | {"names": len(self._names)}).encode(), []
        if method == "names":
            prefix = payload.decode("utf-8", "replace")
            return OK, json.dumps(sorted(name for name in self._names if name.startswith(prefix))).encode(), []
        if method in ("put", "replace"):
            slot, generation, nbytes = NAME.unpack_from(payload)
            return self._name(payload[NAME.size :], (slot, generation, nbytes), method == "replace")
        if method in ("get", "delete"):
            return self._get(payload, method == "delete")
        return INVALID_ARGUMENT, f"no method {method!r}".encode(), []

    def _attach(self, client: NamedClient) -> tuple[int, bytes, list[int]]:
        free = next((n for n in range(1, self.keeper.store.max_clients) if n not in self._numbers), 0)
        if not free:
            return RESOURCE_EXHAUSTED, f"{self.keeper.store.max_clients - 1} processes use this store already".encode(), []
        self._numbers.add(free)
        client.take(free)
        return OK, NUMBER.pack(free), [self._arena_fd]

    def _leave(self, client: NamedClient) -> tuple[int, bytes, list[int]]:
        number, identity = client.number, client.identity
        if number is not None:
            client.leave()
            self._spawn(self._take_back(number, identity))
        return OK, b"", []

    def _name(self, raw: bytes, place: tuple[int, int, int], replace: bool) -> tuple[int, bytes, list[int]]:
        name = raw.decode("utf-8", "replace")
        if not raw or len(raw) > MAX_NAME_BYTES:
            return INVALID_ARGUMENT, f"a name takes 1 to {MAX_NAME_BYTES} bytes, this one has {len(raw)}".encode(), []
        before = self._names.get(name)
        if before is not None and not replace:
            return ALREADY_EXISTS, f"{name!r} is taken, by {before[2]:,} bytes: delete it first, or put(…, replace=True)".encode(), []
        self._names[name] = place
        if before is not None:
            self.frees.here((before[:2],))
        return OK, b"", []

    def _get(self, raw: bytes, delete: bool) -> tuple[int, bytes, list[int]]:
        name = raw.decode("utf-8", "replace")
        place = self._names.pop(name, None) if delete else self._names.get(name)
        if place is None:
            return NOT_FOUND, f"nothing is named {name!r}".encode(), []
        if delete:
            self.frees.here((place[:2],))
        return OK, NAME.pack(*place), []

    # -- processes that end -----------------------------------------------------------------------------

    def process_died(self, client: Client) -> None:
        if client.number is not None:
            self._spawn(self._take_back(client.number, client.identity))

    async def _take_back(self, number: int, identity: tuple[int, int]) -> None:
        """Its extents and pins, and what it put and never named."""
        named = {place[:2] for place in self._names.values()}
        objects, _ = await asyncio.to_thread(self.keeper.store.objects, 1 << 24)
        self.frees.here(tuple(o[:2] for o in objects if o[4] == number and o[3] == "sealed" and o[:2] not in named))
        await self.keeper.reclaim(number, *identity)
        self._numbers.discard(number)


def parse_serve(argv: Sequence[str]) -> tuple[Config, int]:
    parser = argparse.ArgumentParser(prog="python -m shoal_objectstore serve", description="A shared-memory store with named objects, for one machine.")
    parser.add_argument("--dir", type=Path, required=True, help="its folder: the socket that clients connect to, and what is spilled")
    parser.add_argument("--memory", type=size, required=True, metavar="BYTES", help="how much shared memory it may use: 500M, 2G")
    parser.add_argument("--no-spill", dest="spill", action="store_false", help="nothing goes to disk: what lacks room waits, and is refused")
    parser.add_argument(
        "--spill-dir", dest="spill_dirs", action="append", default=[], metavar="DIR|URI",
        help="for cold objects; may be given several times; a URI (s3://bucket/folder) gets what no directory takes; default: in --dir",
    )  # fmt: skip
    parser.add_argument("--full-wait-s", type=float, default=30.0, help="how long a put waits for space before it is refused")
    parser.add_argument("--ready-fd", type=int, default=-1, help="one JSON line is written here when the store serves")
    parser.add_argument("--log-level", default="INFO")
    given = parser.parse_args(argv)
    place = given.dir.absolute()
    config = Config(
        place, secrets.token_bytes(16), place, ready_fd=given.ready_fd, full_wait_s=given.full_wait_s, spill=given.spill, spill_dirs=given.spill_dirs,
        log_level=given.log_level,
    )  # fmt: skip
    return config, given.memory
