"""A client of a store that runs alone: named objects, shared by the processes of one machine.

>>> store = Client("/tmp/my-store")                                     # doctest: +SKIP
>>> store.put("weights", np.ones(10_000_000))                           # doctest: +SKIP
>>> store.get("weights").sum()             # no copy: a read-only view  # doctest: +SKIP
10000000.0
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello, unpack_hello
from shoal_base.errors import Code
from shoal_base.frames import PeerKind, Type
from shoal_base.sockets import close_fds
from shoal_base.wire import Call, ExtentGrant, ExtentRequest, Free, Pull, Pulled, Result

from ._arena import Arena, NeedExtent, ObjectGone, Writable
from .alone import ALREADY_EXISTS, NAME, NOT_FOUND, NUMBER
from .values import Packed, unpack

# How long the store may take for an answer that needs no room; one that needs room has the store's own limit.
ANSWER_S = 30.0
ROOM_S = 600.0


class StoreError(Exception):
    """Base of this client's errors: StoreError -> NameTaken, NoSuchName, StoreFull, StoreGone, ObjectDamaged."""


class NameTaken(StoreError):
    """put() of a name that exists."""


class NoSuchName(StoreError, KeyError):
    """Nothing has this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class StoreFull(StoreError):
    """No room, in memory or on disk."""


class StoreGone(StoreError):
    """The store's process does not answer, or has ended; with it its objects."""


class ObjectDamaged(StoreError):
    """A spilled object's file is damaged; the text names it."""


class Client:
    """Named objects of the store that serves `directory`. Thread-safe; not for use across a fork.

    Raises:
        StoreGone: nobody serves there, within `timeout` seconds.
    """

    def __init__(self, directory: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._path = Path(directory) / "store.sock"
        self._frames = BlockingFrames(_connect(self._path, timeout))
        try:
            self._frames.send(Type.HELLO, pack_hello(bytes(16), bytes(16), kind=PeerKind.DRIVER))
            self._node_id = unpack_hello(self._frames.expect(Type.HELLO)[0]).node_id
            answer, fds = self._exchange("attach", b"")
            try:
                self._arena: Arena | None = Arena(fds[0], NUMBER.unpack(answer)[0])
            finally:
                close_fds(fds)
            self._exchange("attached", b"")
        except BaseException:
            self._frames.sock.close()
            raise
        # Views may outlive close(); the place in the arena is given up with the last of them.
        self._finalizer = weakref.finalize(self._arena, _leave, self._frames, os.getpid())

    def put(self, name: str, value: Any, *, replace: bool = False) -> int:
        """Stores a value under a name; returns its size in bytes. bytes, bytearray and memoryview come back as a memoryview, anything else by pickle, with
        large buffers (NumPy, Arrow, pandas) copied once and read without a copy.

        Raises:
            NameTaken: the name exists, and `replace` is false.
            StoreFull: no room came within the store's time.
        """
        packed = Packed(value)
        writable = self._create(packed.nbytes)
        try:
            with memoryview(writable) as to:
                packed.write(to)
        except BaseException:
            writable.abort()
            raise
        location = writable.seal()
        try:
            self._call("replace" if replace else "put", NAME.pack(*location, packed.nbytes) + name.encode())
        except StoreError:
            self._free(location)
            raise
        return packed.nbytes

    def get(self, name: str, timeout: float = 0.0) -> Any:
        """The value; waits up to `timeout` seconds for the name to exist. Views of it are read-only, and keep it while they live, whatever becomes of the name.

        Raises:
            NoSuchName: nothing has this name.
            StoreFull: it is on disk, and no room came for it.
            ObjectDamaged: it was on disk, and is not what was written.
        """
        deadline = time.monotonic() + timeout
        pause = 0.001
        while True:
            try:
                return self._get(name)
            except NoSuchName:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.05)

    def delete(self, name: str) -> bool:
        """Whether there was such a name. Its space returns with the last view."""
        try:
            self._call("delete", name.encode())
        except NoSuchName:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """All names that begin so, sorted."""
        found: list[str] = json.loads(self._call("names", prefix.encode()))
        return found

    def stats(self) -> dict[str, int]:
        """The store's figures: bytes by state, reads, what is on disk."""
        figures: dict[str, int] = json.loads(self._call("stats", b""))
        return figures

    def __contains__(self, name: str) -> bool:
        try:
            self._call("get", name.encode())
        except NoSuchName:
            return False
        return True

    def close(self) -> None:
        """Views that were got stay valid. Idempotent."""
        with self._lock:
            self._arena = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------------

    def _living(self) -> Arena:
        if self._arena is None:
            raise StoreGone("this client was closed")
        return self._arena

    def _get(self, name: str) -> Any:
        while True:
            slot, generation, nbytes = NAME.unpack(self._call("get", name.encode()))
            place = slot, generation
            while True:
                try:
                    return unpack(memoryview(self._living().get(*place)))
                except ObjectGone:
                    pass
                brought = self._bring((slot, generation), nbytes)
                if brought is None:
                    break  # deleted or replaced meanwhile
                place = brought

    def _bring(self, location: tuple[int, int], nbytes: int) -> tuple[int, int] | None:
        """Back from disk."""
        with self._lock:
            number = next(self._ids)
            self._send(Type.PULL, Pull(number, bytes(20), nbytes, self._node_id, *location, "").pack())
            answer = Pulled.unpack(self._receive(Type.PULLED, ROOM_S)[0])
        if answer.code == Code.OBJECT_FREED:
            return None
        if answer.code == Code.OBJECT_LOST:
            raise ObjectDamaged(answer.text)
        if answer.code:
            raise StoreFull(answer.text)
        return answer.slot, answer.generation

    def _create(self, nbytes: int) -> Writable:
        while True:
            try:
                return self._living().create(nbytes)
            except NeedExtent:
                pass
            with self._lock:
                self._send(Type.EXTENT_REQUEST, ExtentRequest(next(self._ids), nbytes).pack())
                grant = ExtentGrant.unpack(self._receive(Type.EXTENT_GRANT, ROOM_S)[0])
            if grant.code:
                raise StoreFull(grant.text)
            self._living().add_extent(grant.extent)

    def _free(self, location: tuple[int, int]) -> None:
        try:
            self._living().free(*location)
        except ObjectGone:
            with self._lock:
                self._send(Type.FREE, Free(self._node_id, (location,)).pack())

    def _call(self, method: str, payload: bytes) -> bytes:
        with self._lock:
            self._living()
            return self._exchange(method, payload)[0]

    def _exchange(self, method: str, payload: bytes) -> tuple[bytes, list[int]]:
        self._send(Type.CALL, Call(next(self._ids), int(ANSWER_S * 1000), method, payload).pack())
        answer, fds = self._receive(Type.RESULT, ANSWER_S)
        result = Result.unpack(answer)
        if result.code:
            close_fds(fds)
            raise {NOT_FOUND: NoSuchName, ALREADY_EXISTS: NameTaken}.get(result.code, StoreError)(result.text)
        return result.payload, fds

    def _send(self, type_: int, payload: bytes) -> None:
        try:
            self._frames.send(type_, payload)
        except OSError as error:
            raise StoreGone(f"the store at {self._path} has ended: {error}") from error

    def _receive(self, type_: int, timeout: float) -> tuple[bytes, list[int]]:
        try:
            return self._frames.expect(type_, timeout)
        except (EOFError, OSError, ValueError) as error:
            # What comes later would be taken for the answer to another question.
            self._frames.sock.close()
            raise StoreGone(f"the store at {self._path} has ended or does not answer: {error}") from error


def _connect(path: Path, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise StoreGone(
                    f"no store serves at {path}: {error.strerror or error}; start one with `python -m shoal_objectstore serve --dir {path.parent} --memory 1G`"
                ) from error
            time.sleep(0.02)
        else:
            return sock


def _leave(frames: BlockingFrames, pid: int) -> None:
    if os.getpid() == pid and frames.sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            frames.send(Type.CALL, Call(0, 0, "leave").pack(), timeout=1.0)
        frames.sock.close()
