"""The processes of this node that put and get: their hot connections, and taking back what they held once they are dead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Protocol

from shoal_base.connection import FrameConnection, check_hello, pack_hello, unpack_hello
from shoal_base.errors import Code
from shoal_base.frames import BadFrame, PeerKind, Type
from shoal_base.sockets import close_fds
from shoal_base.wire import ExtentGrant, ExtentRequest, Free, Hello, Keep, Pull, Pulled, Settled

_log = logging.getLogger(__name__)


class Requests(Protocol):
    """What a client may ask for; answered through the client's own methods, at once or later."""

    def client_number(self, pid: int) -> int | None: ...
    def identity(self, client: int) -> tuple[int, int]: ...
    def extent_wanted(self, client: Client, request: int, size_bytes: int) -> None: ...
    def pull_wanted(self, client: Client, pull: Pull) -> None: ...
    def free_or_keep(self, client: Client, message: Free) -> None: ...
    def client_left(self, client: Client) -> bool: ...
    def process_died(self, client: Client) -> None: ...


class Client:
    """One process's connection. It is dead when its pidfd says so: a closed socket alone proves nothing, its threads may still read."""

    def __init__(self, sock: socket.socket, node_id: bytes, requests: Requests, on_gone: Callable[[Client], None]) -> None:
        self._requests = requests
        self._on_gone = on_gone
        self._hello: Hello | None = None
        self._number: int | None = None
        self.identity = (0, 0)  # pid and start time under which it attached
        self._pidfd = -1
        self.conn = FrameConnection(sock, self._on_frame, self._on_closed)
        self.conn.send(Type.HELLO, pack_hello(bytes(16), node_id, kind=PeerKind.STORE))
        self._watch()

    def __repr__(self) -> str:
        return f"client {self._number} (pid {self.conn.peer_pid})"

    @property
    def number(self) -> int | None:
        """Its index in the arena; known once it has attached."""
        if self._number is None and self._hello is not None:
            self._number = self._requests.client_number(self._hello.pid)
            if self._number is not None:
                self.identity = self._requests.identity(self._number)
        return self._number

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.conn.peer_pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._died)
        except OSError as error:
            _log.warning("cannot watch pid %d: %s; the raylet will tell its death", self.conn.peer_pid, error)
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    def _died(self) -> None:
        # Its number now, before somebody else's pid is the same.
        _ = self.number
        self._unwatch()
        self._requests.process_died(self)
        self.conn.close()
        self._on_gone(self)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_closed(self, conn: FrameConnection, reason: str) -> None:
        number = self.number
        watched_already = self._requests.client_left(self)
        if self._pidfd >= 0 and number is not None and not watched_already:
            return  # its process lives on, and may read views of the arena
        self._unwatch()
        self._on_gone(self)

    def _on_frame(self, conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        close_fds(fds)
        if type_ == Type.HELLO:
            self._greeted(payload)
        elif self._hello is None:
            raise BadFrame("the first frame must be HELLO")
        elif type_ == Type.EXTENT_REQUEST:
            wanted = ExtentRequest.unpack(payload)
            self._requests.extent_wanted(self, wanted.id, wanted.size)
        elif type_ == Type.PULL:
            self._requests.pull_wanted(self, Pull.unpack(payload))
        elif type_ == Type.FREE:
            self._requests.free_or_keep(self, Free.unpack(payload))
        elif type_ == Type.KEEP:
            self._requests.free_or_keep(self, Keep.unpack(payload))
        else:
            raise BadFrame(f"frame {type_} is not for the object store")

    def _greeted(self, payload: bytes) -> None:
        self._hello = unpack_hello(payload)
        wrong = check_hello(self._hello, python=False)
        if wrong is not None:
            self.conn.close(*wrong)
        _ = self.number  # while its pid is surely its own

    def grant(self, request: int, extent: int) -> None:
        self.conn.send(Type.EXTENT_GRANT, ExtentGrant(request, Code.OK, extent).pack())

    def refuse(self, request: int, code: Code, text: str) -> None:
        self.conn.send(Type.EXTENT_GRANT, ExtentGrant(request, code, 0, text).pack())

    def pulled(self, request: int, code: int, slot: int, generation: int, text: str) -> None:
        self.conn.send(Type.PULLED, Pulled(request, code, slot, generation, text).pack())

    def settled(self, number: int) -> None:
        if number:
            self.conn.send(Type.SETTLED, Settled(number).pack())

    def close(self, text: str) -> None:
        self._unwatch()
        with contextlib.suppress(OSError):
            self.conn.close(Code.SHUTTING_DOWN, text)
