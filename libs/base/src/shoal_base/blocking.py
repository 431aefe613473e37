"""Frames on a blocking socket: for small tools and tests."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from .frames import ACK_EVERY_BYTES, HEADER_SIZE, Header, Type, pack_header, unpack_header
from .sockets import ANCILLARY_SPACE, ancillary, close_fds, received_fds


class BlockingFrames:
    """`send` and `recv` of one frame at a time. Answers PING and acknowledges inside `recv`; BYE is delivered like any frame. One thread at a time."""

    def __init__(self, sock: socket.socket, *, epoch: int = 1) -> None:
        self.sock = sock
        self.epoch = epoch
        self._sequence = 0
        self._received = 0
        self._unacked_in = 0
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self.last: Header | None = None  # the header of the latest frame, for tests

    def send(self, type_: int, payload: bytes = b"", fds: Sequence[int] = (), timeout: float = 30.0) -> None:
        self._sequence += 1
        self._write(pack_header(len(payload), type_, epoch=self.epoch, sequence=self._sequence, acknowledgement=self._received) + payload, fds, timeout)

    def _write(self, data: bytes, fds: Sequence[int], timeout: float) -> None:
        self._unacked_in = 0
        self.sock.settimeout(timeout)
        sent = self.sock.sendmsg([data], ancillary(list(fds)))
        if sent < len(data):
            self.sock.sendall(memoryview(data)[sent:])

    def recv(self, timeout: float = 30.0) -> tuple[int, bytes, list[int]]:
        """The next frame: (type, payload, descriptors). Raises EOFError when the peer has closed, TimeoutError when nothing whole came in time."""
        deadline = time.monotonic() + timeout
        while True:
            self._fill(HEADER_SIZE, deadline)
            header = unpack_header(self._buffer)
            self._fill(HEADER_SIZE + header.length, deadline)
            payload = bytes(self._buffer[HEADER_SIZE : HEADER_SIZE + header.length])
            del self._buffer[: HEADER_SIZE + header.length]
            self.last = header
            self._received = max(self._received, header.sequence)
            self._unacked_in += HEADER_SIZE + header.length
            if header.type == Type.PING:
                self.send(Type.PONG, payload)
            elif self._unacked_in >= ACK_EVERY_BYTES:
                self._write(pack_header(0, Type.ACK, epoch=self.epoch, acknowledgement=self._received), (), timeout)
            if header.type not in (Type.PING, Type.PONG, Type.ACK):
                fds = list(self._fds)
                self._fds.clear()
                return header.type, payload, fds

    def expect(self, type_: int, timeout: float = 30.0) -> tuple[bytes, list[int]]:
        """The next frame, which must be of this type."""
        got, payload, fds = self.recv(timeout)
        if got != type_:
            close_fds(fds)
            raise ValueError(f"frame {Type(type_).name} was expected, {got} came: {payload[:200]!r}")
        return payload, fds

    def _fill(self, wanted: int, deadline: float) -> None:
        # Not beyond this frame: then descriptors can only belong to it.
        while len(self._buffer) < wanted:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no frame came in time; {len(self._buffer)} of {wanted} bytes are here")
            self.sock.settimeout(left)
            try:
                data, messages, _flags, _address = self.sock.recvmsg(min(wanted - len(self._buffer), 1 << 20), ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError as error:
                raise EOFError("the peer closed the connection without reading all that was sent") from error
            if not data:
                raise EOFError("the peer closed the connection")
            self._fds.extend(received_fds(messages))
            self._buffer += data

    def close(self) -> None:
        close_fds(list(self._fds))
        self._fds.clear()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
