"""A connection that speaks frames, on an asyncio loop. Sequence numbers, acknowledgements, credit and PING are answered inside.

SCM_RIGHTS needs recvmsg and sendmsg, which no asyncio transport has; so this reads and writes the raw socket from the loop's readiness callbacks, gathers
what is queued into one sendmsg, and parses many frames from one read without moving them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence

from . import WIRE_OLDEST, WIRE_VERSION
from .blocking import BlockingFrames
from .errors import Code
from .frames import ACK_EVERY_BYTES, HEADER_SIZE, WINDOW_KIB, BadFrame, Type, pack_header, unpack_header
from .sockets import ANCILLARY_SPACE, Server, ancillary, close_fds, connect_unix, listen_unix, peer_credentials, received_fds
from .wire import Bye, Hello

__all__ = ["BlockingFrames", "FrameConnection", "Server", "check_hello", "connect_unix", "listen_unix", "pack_hello", "unpack_hello"]

_log = logging.getLogger(__name__)

_READ_BYTES = 64 << 10
# A frame above this is received into a buffer of its own size; below, frames are cut from the shared read buffer.
_OWN_BUFFER_BYTES = 16 << 10
# Reads before other connections get their turn.
_READS_A_TURN = 8
# One sendmsg: the kernel takes 1,024 pieces; more bytes than this do not make it faster.
_GATHER_PIECES = 512
_GATHER_BYTES = 1 << 20
# Small payloads are joined with their header: copying them costs less than one more piece.
_JOIN_BYTES = 4 << 10
# Limit: what may wait here for a peer that does not read; beyond it the connection ends, with that reason.
MAX_QUEUED_BYTES = 1 << 30
# Limit: how long a closing connection tries to get its queue out.
_LINGER_S = 1.0

OnFrame = Callable[["FrameConnection", int, bytes, list[int]], None]
OnClosed = Callable[["FrameConnection", str], None]


def pack_hello(worker_id: bytes, node_id: bytes, job_id: bytes = bytes(4), kind: int = 0, pid: int | None = None) -> bytes:
    """HELLO of this process."""
    pid = os.getpid() if pid is None else pid
    return Hello(worker_id, node_id, job_id, pid, WIRE_OLDEST, WIRE_VERSION, sys.version_info.major, sys.version_info.minor, kind).pack()


unpack_hello = Hello.unpack


def check_hello(hello: Hello, *, python: bool = True) -> tuple[Code, str] | None:
    """Why this peer cannot be spoken with, or None. `python`: pickles travel, so the minor versions must be equal."""
    if hello.wire_max < WIRE_OLDEST or hello.wire_min > WIRE_VERSION:
        theirs, ours = f"{hello.wire_min}..{hello.wire_max}", f"{WIRE_OLDEST}..{WIRE_VERSION}"
        return Code.WIRE_MISMATCH, f"the peer (pid {hello.pid}) speaks wire versions {theirs}, this side {ours}: use the same version of Shoal on both"
    mine = sys.version_info[:2]
    if python and (hello.py_major, hello.py_minor) != mine:
        return (
            Code.PYTHON_MISMATCH,
            f"the peer (pid {hello.pid}) runs Python {hello.py_major}.{hello.py_minor}, this side {mine[0]}.{mine[1]}: use the same minor version on both",
        )
    return None


class _Queued:
    __slots__ = ("fds", "payload", "type")

    def __init__(self, type_: int, payload: bytes, fds: list[int]) -> None:
        self.type = type_
        self.payload = payload
        self.fds = fds


class FrameConnection:
    """Frames over a connected Unix or TCP stream socket, which it owns from here on.

    `on_frame(conn, type, payload, fds)` gets every frame but ACK, PING, PONG and BYE, in order; the descriptors are the callee's to close. If it raises, the
    connection ends with that reason: a lost frame would be a hang elsewhere. `on_closed(conn, reason)` comes exactly once, whoever closed, never from inside
    `send()` or `close()`. Not thread-safe: use it on its loop's thread.
    """

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_closed: OnClosed, *, epoch: int = 1) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer_pid, self.peer_uid = peer_credentials(sock)
        self.epoch = epoch
        self.peer_epoch = 0
        self.bye: Bye | None = None
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_closed = on_closed
        # reading
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._own: bytearray | None = None  # a large payload on its way
        self._own_filled = 0
        self._own_header: tuple[int, int] = (0, 0)
        self._received = 0  # highest sequence
        self._unacked_in = 0  # bytes received since we last told the peer
        self._fds: list[int] = []  # for a frame that is not whole yet
        self._fds_next = False  # they came in an earlier read: the next frame to be whole is theirs
        # writing
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._batch: list[bytes | memoryview] = []
        self._batch_fds: list[int] = []
        self._sequence = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # (sequence, bytes) the peer has not acknowledged
        self._in_flight_bytes = 0
        self._credit = WINDOW_KIB << 10
        self._flush_scheduled = False
        self._waiting_writable = False
        # ending
        self._closing: str | None = None
        self._closed = False
        self._linger: asyncio.TimerHandle | None = None
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._ping_token = 0
        self._loop.add_reader(self._fd, self._readable)

    @property
    def closed(self) -> bool:
        return self._closed or self._closing is not None

    @property
    def queued_bytes(self) -> int:
        """What still waits here, because the peer's credit or its socket buffer is used up."""
        return self._queued_bytes

    # -- sending --------------------------------------------------------------------------------

    def send(self, type_: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Queues a frame; never blocks. Descriptors are duplicated, the caller keeps its own. On a closed connection it does nothing: `on_closed` tells."""
        if self.closed:
            return
        self._enqueue(type_, payload, fds)

    def _enqueue(self, type_: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        self._queue.append(_Queued(type_, payload, [os.dup(fd) for fd in fds]))
        self._queued_bytes += HEADER_SIZE + len(payload)
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self.abort(f"the peer (pid {self.peer_pid}) does not read: {self._queued_bytes} bytes wait for it, the limit is {MAX_QUEUED_BYTES}")
            return
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and not self._waiting_writable:
            self._flush_scheduled = True
            # At the end of this turn of the loop, so that everything sent in it leaves in one sendmsg.
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        while not self._closed:
            if not self._batch:
                self._gather()
            if not self._batch:
                self._written_out()
                return
            try:
                sent = self._sock.sendmsg(self._batch, ancillary(self._batch_fds))
            except (BlockingIOError, InterruptedError):
                self._wait_writable()
                return
            except OSError as error:
                self._readable()  # the peer's BYE may lie there and says why
                self._lost(error)
                return
            close_fds(self._batch_fds)
            self._batch_fds = []
            self._drop_sent(sent)

    def _gather(self) -> None:
        """The next batch: frames without descriptors together; one with descriptors alone, since a read that gets them ends with its bytes."""
        size = 0
        while self._queue and len(self._batch) < _GATHER_PIECES and size < _GATHER_BYTES:
            head = self._queue[0]
            nbytes = HEADER_SIZE + len(head.payload)
            # A frame above the whole window goes when nothing else is in flight, or it never would.
            if self._in_flight_bytes and self._in_flight_bytes + nbytes > self._credit:
                break
            if head.fds and self._batch:
                break
            self._queue.popleft()
            self._sequence += 1
            self._in_flight.append((self._sequence, nbytes))
            self._in_flight_bytes += nbytes
            self._append(head.type, head.payload, self._sequence)
            size += nbytes
            if head.fds:
                self._batch_fds = head.fds
                break
        if not self._batch and self._unacked_in >= ACK_EVERY_BYTES:
            self._append(Type.ACK, b"", 0)
            self._queued_bytes += HEADER_SIZE

    def _append(self, type_: int, payload: bytes, sequence: int) -> None:
        header = pack_header(len(payload), type_, epoch=self.epoch, sequence=sequence, acknowledgement=self._received)
        self._unacked_in = 0
        if len(payload) <= _JOIN_BYTES:
            self._batch.append(header + payload)
        else:
            self._batch += (header, payload)

    def _drop_sent(self, sent: int) -> None:
        self._queued_bytes -= sent
        done = 0
        for piece in self._batch:
            if sent < len(piece):
                break
            sent -= len(piece)
            done += 1
        del self._batch[:done]
        if sent:
            self._batch[0] = memoryview(self._batch[0])[sent:]

    def _wait_writable(self) -> None:
        if not self._waiting_writable:
            self._waiting_writable = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._waiting_writable = False
        self._flush()

    def _written_out(self) -> None:
        if self._closing is not None and not self._queue:
            self._finish(self._closing)

    # -- receiving ------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_READS_A_TURN):
            if self._closed or self._closing is not None:
                return
            into = memoryview(self._own)[self._own_filled :] if self._own is not None else self._view[self._end :]
            try:
                n, messages, _flags, _address = self._sock.recvmsg_into([into], ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
            if messages:
                self._take_fds(received_fds(messages))
            if n == 0:
                self._finish("the peer closed the connection")
                return
            self._unacked_in += n
            try:
                self._got(n)
            except BadFrame as error:
                self._fail(Code.BAD_FRAME, str(error))
            except Exception as error:
                _log.exception("a frame's handler raised")
                self._fail(Code.BAD_FRAME, f"{type(error).__name__}: {error}")
            self._fds_next = bool(self._fds)
            if n < len(into) and not messages:  # the socket was emptied
                break
        if self._unacked_in >= ACK_EVERY_BYTES and not self.closed:
            self._schedule_flush()

    def _take_fds(self, fds: list[int]) -> None:
        close_fds(self._fds)
        self._fds = fds
        self._fds_next = False

    def _got(self, n: int) -> None:
        if self._own is not None:
            self._own_filled += n
            if self._own_filled < len(self._own):
                return
            payload, self._own = bytes(self._own), None
            self._frame(*self._own_header, payload, last=False)
            return
        self._end += n
        self._parse()

    def _parse(self) -> None:
        start, end, view = self._start, self._end, self._view
        while end - start >= HEADER_SIZE and not self.closed:
            header = unpack_header(view[start : start + HEADER_SIZE])
            self._peer_header(header.acknowledgement, header.credit, header.epoch)
            body = start + HEADER_SIZE
            here = end - body
            if here < header.length:
                if header.length > _OWN_BUFFER_BYTES:
                    self._own = bytearray(header.length)
                    self._own[:here] = view[body:end]
                    self._own_filled = here
                    self._own_header = (header.type, header.sequence)
                    start = end
                break
            start = body + header.length
            self._start = start  # what detach() in the handler gives back begins here
            self._frame(header.type, header.sequence, view[body:start].tobytes(), last=start == end)
        if self._closed:
            return
        self._start = start
        if start == end:
            self._start = self._end = 0
        elif start and _READ_BYTES - end < _OWN_BUFFER_BYTES + HEADER_SIZE:
            # The rest is less than a frame of the shared buffer, so moving it costs at most a quarter of what was read.
            rest = bytes(view[start:end])
            view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)

    def _peer_header(self, acknowledgement: int, credit: int, epoch: int) -> None:
        if acknowledgement > self._sequence:
            raise BadFrame(f"the peer acknowledges frame {acknowledgement}; {self._sequence} were sent")
        self.peer_epoch = epoch
        flight = self._in_flight
        while flight and flight[0][0] <= acknowledgement:
            self._in_flight_bytes -= flight.popleft()[1]
        self._credit = credit << 10
        if self._queue:
            self._schedule_flush()

    def _frame(self, type_: int, sequence: int, payload: bytes, *, last: bool) -> None:
        if type_ == Type.ACK:
            return
        if sequence <= self._received:
            return  # sent again after a reconnect, seen before it
        if sequence != self._received + 1:
            raise BadFrame(f"frame {sequence} came after frame {self._received}")
        self._received = sequence
        if type_ == Type.PING:
            self._enqueue(Type.PONG, payload)
        elif type_ == Type.PONG:
            self._pong(payload)
        elif type_ == Type.BYE:
            self.bye = Bye.unpack(payload)
            self._finish(self.bye.text or "the peer said goodbye")
        else:
            fds: list[int] = []
            # Safety: the kernel ends a read with the bytes that descriptors came with, and their frame is sent alone; so they belong to the last frame that
            # begins in that read, whether the read has all of it or not.
            if self._fds and (last or self._fds_next):
                fds, self._fds = self._fds, []
            self._on_frame(self, type_, payload, fds)

    def _pong(self, payload: bytes) -> None:
        future = self._pings.pop(int.from_bytes(payload[:8], "little"), None)
        if future is not None and not future.done():
            future.set_result(None)

    async def ping(self, timeout: float = 5.0) -> None:
        """Returns when the peer has answered. Raises TimeoutError, or ConnectionError when the connection ends first."""
        if self.closed:
            raise ConnectionError("the connection is closed")
        self._ping_token += 1
        token, future = self._ping_token, self._loop.create_future()
        self._pings[token] = future
        self.send(Type.PING, token.to_bytes(8, "little"))
        try:
            await asyncio.wait_for(future, timeout)
        finally:
            self._pings.pop(token, None)

    # -- ending ---------------------------------------------------------------------------------

    def close(self, code: int = Code.OK, text: str = "") -> None:
        """Sends what is queued and a BYE, then closes; gives up after a second. No frame is delivered from now on."""
        if self.closed:
            return
        self._loop.remove_reader(self._fd)
        self._closing = text or "closed on this side"
        self._linger = self._loop.call_later(_LINGER_S, self._finish, self._closing)
        self._enqueue(Type.BYE, Bye(code, text).pack())

    def abort(self, reason: str) -> None:
        """Closes now."""
        self._release()
        self._loop.call_soon(self._tell_closed, reason)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Gives the socket back with the bytes that were read beyond the frames delivered so far: for raw bytes that follow a frame. `on_closed` is not called.

        May be called from `on_frame` for the frame that the raw bytes follow. Raises RuntimeError while frames of this side still wait to be written."""
        if self._queue or self._batch:
            raise RuntimeError("frames still wait to be written")
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._waiting_writable:
            self._loop.remove_writer(self._fd)
        return self._sock, self._view[self._start : self._end].tobytes()

    def _fail(self, code: Code, text: str) -> None:
        if not self.closed:
            self.close(code, text)

    def _lost(self, error: OSError) -> None:
        self._finish(f"the connection broke: {error.strerror or error}")

    def _finish(self, reason: str) -> None:
        if not self._closed:
            self._release()
            self._loop.call_soon(self._tell_closed, reason)

    def _tell_closed(self, reason: str) -> None:
        on_closed, self._on_closed = self._on_closed, _told
        on_closed(self, reason)
        self._on_frame = _dropped

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._waiting_writable:
            self._loop.remove_writer(self._fd)
        if self._linger is not None:
            self._linger.cancel()
        for queued in self._queue:
            close_fds(queued.fds)
        close_fds(self._batch_fds)
        close_fds(self._fds)
        self._queue.clear()
        self._batch, self._batch_fds, self._fds = [], [], []
        self._queued_bytes = 0
        for future in self._pings.values():
            if not future.done():
                future.set_exception(ConnectionError("the connection was closed"))
        self._pings.clear()
        with contextlib.suppress(OSError):
            self._sock.close()


def _told(conn: FrameConnection, reason: str) -> None:
    """After on_closed: nothing more to tell."""


def _dropped(conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
    close_fds(fds)
