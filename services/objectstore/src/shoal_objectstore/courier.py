"""Bytes to files of a remote file system and back, by processes of their own: the store's side. Blocking and thread-safe.

Clients of file systems are other people's libraries: they hold the interpreter's lock, start threads, keep memory, and may hang where nothing can stop them.
A process that does one thing at a time has none of that in common with the store, and can be killed. The bytes come and go through a socket, so that it has no
part of the arena either, and may die at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

# How long a file system may be silent in the middle of a file, or at its end.
STALL_S = 30.0
# A process that has had nothing to do for so long ends.
IDLE_S = 30.0
STEP = 4 << 20
LENGTH = struct.Struct("<I")
# What the other side sends: so many bytes follow; 0: it is done; below: so many bytes that say why it failed.
COUNT = struct.Struct("<q")
STORED = struct.Struct("<Q")


class CourierFailed(Exception):
    """It was not done, and may be tried again."""


class Missing(CourierFailed):
    """There is no such file, or it ends too early."""


class _Lane:
    """One process, and the socket to it."""

    def __init__(self, uri: str) -> None:
        ours, theirs = socket.socketpair()
        try:
            # By the environment: a command line can be read by everybody, and a URI may hold a key.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "shoal_objectstore.courier_process"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                env=os.environ | {"SHOAL_COURIER_URI": uri, "SHOAL_COURIER_PARENT": str(os.getpid())},
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.sock = ours
        self.idle_since = 0.0

    def send(self, view: memoryview | bytes) -> None:
        for at in range(0, len(view), STEP):
            self.sock.sendall(view[at : at + STEP])

    def receive(self, into: memoryview) -> None:
        while into:
            n = self.sock.recv_into(into[:STEP])
            if not n:
                raise EOFError("its process has ended")
            into = into[n:]

    def count(self) -> int:
        head = bytearray(COUNT.size)
        self.receive(memoryview(head))
        count: int = COUNT.unpack(head)[0]
        return count

    def answer(self, into: memoryview) -> dict[str, Any]:
        """Fills `into`; {} or what went wrong."""
        while (count := self.count()) > 0:
            if count > len(into):
                raise EOFError("more bytes came than were asked for")
            self.receive(into[:count])
            into = into[count:]
        if not count:
            return {"missing": True, "text": f"the file ends {len(into):,} bytes too early"} if into else {}
        told = bytearray(-count)
        self.receive(memoryview(told))
        failed: dict[str, Any] = json.loads(told)
        return failed

    def end(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait()


class Courier:
    def __init__(self, uri: str, stall_s: float = STALL_S) -> None:
        self._uri = uri
        self._stall_s = stall_s
        self._idle: list[_Lane] = []
        self._busy: set[_Lane] = set()
        self._lock = threading.Lock()
        self._closed = False

    def write(self, path: str, parts: Sequence[memoryview]) -> list[int]:
        """A new file of these parts, or over the one that is there; how many bytes each takes there. Raises CourierFailed."""
        stored = bytearray(STORED.size * len(parts))
        self._do({"do": "write", "path": path, "sizes": [len(p) for p in parts]}, parts, memoryview(stored))
        return [size for (size,) in STORED.iter_unpack(stored)]

    def read(self, path: str, offset: int, stored: int, into: memoryview) -> None:
        """A part that takes so many bytes there. Raises CourierFailed, Missing."""
        self._do({"do": "read", "path": path, "offset": offset, "stored": stored, "bytes": len(into)}, into=into)

    def remove(self, paths: Sequence[str]) -> None:
        """What is not there is removed already. Raises CourierFailed."""
        self._do({"do": "remove", "paths": list(paths)})

    def _do(self, ask: dict[str, Any], parts: Sequence[memoryview] = (), into: memoryview | None = None) -> None:
        with self._lane() as lane:
            message = json.dumps(ask).encode()
            lane.send(LENGTH.pack(len(message)) + message)
            for part in parts:
                lane.send(part)
            failed = lane.answer(memoryview(b"") if into is None else into)
        if failed:
            raise (Missing if failed.get("missing") else CourierFailed)(failed["text"])

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._take()
        lane.sock.settimeout(self._stall_s)
        try:
            yield lane
        except (OSError, EOFError, ValueError) as error:
            self._end(lane)
            why = f"it was silent for {self._stall_s:g} s" if isinstance(error, TimeoutError) else f"its process has ended: {error}"
            raise CourierFailed(why) from error
        except BaseException:
            self._end(lane)
            raise
        with self._lock:
            self._busy.discard(lane)
            lane.idle_since = time.monotonic()
            if not self._closed:
                self._idle.append(lane)
                return
        lane.end()

    def _take(self) -> _Lane:
        with self._lock:
            if self._closed:
                raise CourierFailed("the object store ends")
            lane = self._idle.pop() if self._idle else None
            if lane is not None:
                self._busy.add(lane)
                return lane
        try:
            lane = _Lane(self._uri)
        except OSError as error:
            raise CourierFailed(f"its process cannot be started: {error}") from error
        with self._lock:
            self._busy.add(lane)
        return lane

    def _end(self, lane: _Lane) -> None:
        with self._lock:
            self._busy.discard(lane)
        lane.end()

    def end_idle(self, after_s: float = IDLE_S) -> None:
        old_since = time.monotonic() - after_s
        with self._lock:
            old = [lane for lane in self._idle if lane.idle_since <= old_since]
            self._idle = [lane for lane in self._idle if lane.idle_since > old_since]
        for lane in old:
            lane.end()

    def close(self) -> None:
        """Whoever waits for something gets CourierFailed."""
        with self._lock:
            self._closed = True
            busy = list(self._busy)
        for lane in busy:
            lane.process.kill()  # its thread sees the end of the socket, and does the rest
        self.end_idle(0.0)
