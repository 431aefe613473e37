"""Between stores: FETCH, FETCH_MANY, FREE, KEEP and PULL over an authenticated TCP connection, an object's bytes from arena to arena.

Both sides here run in threads of their own pool, on blocking sockets: the copies happen inside recv and sendfile, without the GIL.

The sender's pages lie in its socket until they were sent, so it keeps its pin until the receiver has said that all is there; and a receiver does not believe
bytes whose sender may have died, and its arena been reused, before the last of them left: so after FETCHED and the bytes, the receiver acknowledges, and
so does the sender. A node that is still being brought an object sends what it has of it, without a pin, and does not acknowledge if it was given up meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple, Protocol, TypeVar

from shoal_base.connection import pack_hello
from shoal_base.errors import Code
from shoal_base.frames import HEADER_SIZE, BadFrame, Header, PeerKind, Type, pack_header, unpack_header
from shoal_base.wire import Bye, Fetch, Fetched, FetchMany, Free, Hello, Keep, Pull, Pulled

from .pulls import Origin, Place
from .spread import Elsewhere, Turn

_log = logging.getLogger(__name__)

# How long a peer may be silent inside a transfer.
STALL_S = 30.0
CONNECT_S = 10.0
# Limit: idle connections kept to one node, and how long.
MAX_IDLE = 4
IDLE_S = 60.0
# Limit: objects of one question.
MAX_MANY = 64
# One sendfile; between two the peer's progress is looked at.
_STEP_BYTES = 8 << 20

T = TypeVar("T")
Connect = Callable[[str], socket.socket]


class PeerFailed(Exception):
    """A transfer or a message that did not come to its end."""

    def __init__(self, code: Code, text: str, elsewhere: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.elsewhere = elsewhere  # of SOURCE_BUSY: a node that has it, too


class Frames:
    """Frames and raw bytes on one blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sequence = 0
        self.received = 0
        self.idle_since = 0.0
        self.node_id = b""  # at the other end, as it says
        self.cut = False
        # The kernel's time limits instead of Python's: those would mean a poll before each read, and no MSG_WAITALL.
        sock.settimeout(None)
        self._limit(socket.SO_SNDTIMEO, STALL_S)
        self._limit(socket.SO_RCVTIMEO, STALL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _limit(self, option: int, seconds: float) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))

    def send(self, type_: int, payload: bytes = b"") -> None:
        self._sequence += 1
        self.sock.sendall(pack_header(len(payload), type_, epoch=1, sequence=self._sequence, acknowledgement=self.received) + payload)

    def acknowledge(self) -> None:
        self.sock.sendall(pack_header(0, Type.ACK, epoch=1, acknowledgement=self.received))

    def recv(self, timeout: float | None = None) -> tuple[Header, bytes]:
        """Waits for STALL_S, unless a time is given. Raises EOFError, TimeoutError, BadFrame."""
        head = bytearray(HEADER_SIZE)
        if timeout is None:
            self.read_into(memoryview(head))
        else:
            self._limit(socket.SO_RCVTIMEO, timeout)
            self.read_into(memoryview(head))
            self._limit(socket.SO_RCVTIMEO, STALL_S)
        header = unpack_header(bytes(head))
        if header.length > 64 << 20:
            raise BadFrame(f"a frame of {header.length} bytes between stores")
        payload = bytearray(header.length)
        self.read_into(memoryview(payload))
        self.received = max(self.received, header.sequence)
        return header, bytes(payload)

    def expect(self, type_: int) -> bytes:
        header, payload = self.recv()
        if header.type == Type.BYE:
            raise EOFError(Bye.unpack(payload).text)
        if header.type != type_:
            raise BadFrame(f"frame {Type(type_).name} was expected, {header.type} came")
        return payload

    def read_into(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            # In one call, without the GIL; a limit for each, so that a silent peer is noticed.
            try:
                n = self.sock.recv_into(view[at : at + _STEP_BYTES], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TimeoutError(f"the peer sent nothing in time, after {at} of {len(view)} bytes") from None
            if not n:
                raise EOFError("the peer closed the connection" + (f" after {at} of {len(view)} bytes" if at else ""))
            at += n

    def send_file(self, fd: int, offset: int, size: int) -> None:
        end = offset + size
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        while offset < end:
            try:
                offset += os.sendfile(self.sock.fileno(), fd, offset, min(end - offset, _STEP_BYTES))
            except BlockingIOError:
                if not poll.poll(STALL_S * 1000):
                    raise TimeoutError(f"the peer took nothing for {STALL_S:g} s, {end - offset} bytes before the end") from None

    def cut_off(self) -> None:
        """From another thread: whoever reads or writes here fails now."""
        self.cut = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()


class Wanted(NamedTuple):
    """A whole object, and where it is to be written."""

    place: Place
    object_id: bytes
    into: memoryview


class Peers:
    """Connections to other stores. Thread-safe; every method blocks, for at most the limits above."""

    def __init__(self, node_id: bytes, connect: Connect, address: str = "") -> None:
        """`address`: where others reach this store; empty: it serves nobody."""
        self._node_id = node_id
        self._address = address
        self._connect = connect
        self._idle: defaultdict[str, list[Frames]] = defaultdict(list)
        self._in_use: dict[Frames, str] = {}
        self._lock = threading.Lock()
        self._closed = False

    def fetch(self, place: Place, object_id: bytes, into: memoryview, offset: int = 0, size: int = -1) -> None:
        """Fills `into` with the part of the object that begins at `offset`; `size` is the whole object's, if `into` is not all of it. Raises PeerFailed."""
        address, origin = place.address, place.origin
        whole = len(into) if size < 0 else size

        def exchange(frames: Frames) -> None:
            frames.send(Type.FETCH, Fetch(object_id, origin.slot, origin.generation, offset, len(into), origin.node_id, self._address).pack())
            self._answer(frames, place, object_id, into, whole)
            frames.acknowledge()
            if frames.recv()[0].type != Type.ACK:
                raise BadFrame("the end of an object was not acknowledged")

        self._with_connection(address, exchange)

    def fetch_many(self, wanted: Sequence[Wanted]) -> list[PeerFailed | None]:
        """Whole objects from one place, with one question: what went wrong with each. Raises PeerFailed for all of them."""
        address, node_id = wanted[0].place.address, wanted[0].place.origin.node_id
        objects = tuple((w.object_id, w.place.origin.slot, w.place.origin.generation) for w in wanted)

        def exchange(frames: Frames) -> list[PeerFailed | None]:
            frames.send(Type.FETCH_MANY, FetchMany(node_id, objects).pack())
            failures: list[PeerFailed | None] = []
            for n, (place, object_id, into) in enumerate(wanted):
                try:
                    self._answer(frames, place, object_id, into, len(into))
                    failures.append(None)
                except PeerFailed as error:
                    if frames.sock.fileno() < 0:  # nothing was acknowledged: the others are to be asked for again
                        others = PeerFailed(Code.UNREACHABLE, f"the store at {address}: the connection was given up for another object: {error}")
                        return [error if m == n else others for m in range(len(wanted))]
                    failures.append(error)
            if None in failures:
                frames.acknowledge()
                if frames.recv()[0].type != Type.ACK:
                    raise BadFrame("the end of objects was not acknowledged")
            return failures

        return self._with_connection(address, exchange)

    def _answer(self, frames: Frames, place: Place, object_id: bytes, into: memoryview, whole: int) -> None:
        """FETCHED and the bytes."""
        address, origin = place.address, place.origin
        answer = Fetched.unpack(frames.expect(Type.FETCHED))
        if answer.code == Code.OBJECT_FREED:
            raise PeerFailed(Code.OBJECT_FREED, f"{address} has object {object_id.hex()} no more (slot {origin.slot}, generation {origin.generation})")
        if answer.code == Code.SOURCE_BUSY:
            raise PeerFailed(Code.SOURCE_BUSY, f"{address} serves others", answer.text)
        if answer.code:
            raise PeerFailed(Code(answer.code), f"{address}: {answer.text}")
        if answer.size != whole:
            frames.close()
            raise PeerFailed(Code.OBJECT_LOST, f"object {object_id.hex()} has {answer.size} bytes at {address}, {whole} were expected")
        frames.read_into(into)

    def tell(self, address: str, message: Free) -> None:
        """FREE or KEEP, to the store there. Raises PeerFailed."""

        def exchange(frames: Frames) -> None:
            frames.send(message.TYPE, message.pack())
            if frames.recv()[0].type != Type.ACK:
                raise BadFrame(f"{Type(message.TYPE).name} was not acknowledged")

        self._with_connection(address, exchange)

    def push(self, address: str, pull: Pull, timeout_s: float) -> Pulled:
        """PULL, by the store there: it brings a copy of what is here. Raises PeerFailed."""

        def exchange(frames: Frames) -> Pulled:
            frames.send(Type.PULL, pull.pack())
            header, payload = frames.recv(timeout_s)
            if header.type != Type.PULLED:
                raise BadFrame(f"PULL was answered by frame {header.type}")
            return Pulled.unpack(payload)

        return self._with_connection(address, exchange)

    def cut(self, node_id: bytes, addresses: Set[str]) -> None:
        """What waits for that node, which is dead, fails now: a host that is gone says nothing. `addresses`: where it was said to be."""
        with self._lock:
            for frames, address in self._in_use.items():
                if frames.node_id == node_id or address in addresses:
                    frames.cut_off()

    def _with_connection(self, address: str, exchange: Callable[[Frames], T]) -> T:
        while True:
            frames = self._take(address)
            reused = frames is not None
            try:
                if frames is None:
                    frames = self._open(address)
                result = exchange(frames)
            except PeerFailed:
                if frames is not None:
                    self._give(address, frames)
                raise
            except (OSError, EOFError, BadFrame, ValueError) as error:  # the last: no address
                if frames is not None:
                    self._close(frames)
                if reused and not isinstance(error, TimeoutError) and not (frames and frames.cut):
                    continue  # it may have been closed while it lay idle; both messages may be said twice
                code = Code.FETCH_TIMED_OUT if isinstance(error, TimeoutError) else Code.UNREACHABLE
                raise PeerFailed(code, f"the store at {address}: {error}") from error
            except BaseException:
                if frames is not None:
                    self._close(frames)
                raise
            self._give(address, frames)
            return result

    def _open(self, address: str) -> Frames:
        frames = Frames(self._connect(address))
        with self._lock:
            self._in_use[frames] = address
        try:
            frames.send(Type.HELLO, pack_hello(bytes(16), self._node_id, kind=PeerKind.STORE))
            frames.node_id = Hello.unpack(frames.expect(Type.HELLO)).node_id
        except BaseException:
            self._close(frames)
            raise
        return frames

    def _take(self, address: str) -> Frames | None:
        self.drop_idle()
        with self._lock:
            idle = self._idle.get(address)
            if not idle:
                return None
            frames = idle.pop()
            self._in_use[frames] = address
            return frames

    def _give(self, address: str, frames: Frames) -> None:
        frames.idle_since = time.monotonic()
        with self._lock:
            self._in_use.pop(frames, None)
            if not self._closed and not frames.cut and frames.sock.fileno() >= 0 and len(self._idle[address]) < MAX_IDLE:
                self._idle[address].append(frames)
                return
        frames.close()

    def _close(self, frames: Frames) -> None:
        with self._lock:
            self._in_use.pop(frames, None)
        frames.close()

    def drop_idle(self, older_than_s: float = IDLE_S) -> None:
        now = time.monotonic()
        with self._lock:
            old = [f for idle in self._idle.values() for f in idle if now - f.idle_since > older_than_s]
            self._idle = defaultdict(list, {a: kept for a, idle in self._idle.items() if (kept := [f for f in idle if f not in old])})
        for frames in old:
            frames.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.drop_idle(-1.0)


class Bytes(NamedTuple):
    """Where an object lies."""

    fd: int
    offset: int
    size: int
    here: Callable[[int, int], bool] = lambda offset, length: True  # whether that part has come; may wait for it
    still: Callable[[], bool] = lambda: True  # whether what was sent was the object's all the time


class Objects(Protocol):
    """What a peer may ask for; thread-safe."""

    def for_peer(self, message: Free) -> None:
        """FREE or KEEP: returns when it is certain. Raises OSError."""
        ...

    def soon(self, objects: Sequence[tuple[bytes, Origin]]) -> None:
        """These will be asked for, one after the other: what has to be read from disk may begin."""
        ...

    def pinned(self, object_id: bytes, origin: Origin) -> contextlib.AbstractContextManager[Bytes | Fetched]:
        """Pinned meanwhile, if it is whole; or why not. The object lies here, or a copy of it, or what has come of one."""
        ...

    def bring(self, pull: Pull) -> Pulled:
        """A copy here of what the peer has."""
        ...

    def turn(self, origin: Origin, size_bytes: int, reader: bytes, address: str) -> Turn:
        """Whether this node may read a part now."""
        ...

    def sent(self, origin: Origin, size_bytes: int, reader: bytes, part_bytes: int, last: bool) -> None: ...


class Serving:
    """The other end: answers one peer's FETCH, FREE, KEEP and PULL until it leaves. `run` blocks; `stop` from another thread ends it."""

    def __init__(self, sock: socket.socket, node_id: bytes, objects: Objects) -> None:
        sock.setblocking(True)
        self._frames = Frames(sock)
        self._node_id = node_id
        self.reader = b""  # the node at the other end
        self.idle_since: float | None = None  # None: it is at work
        self._objects = objects

    def run(self) -> None:
        try:
            self._frames.send(Type.HELLO, pack_hello(bytes(16), self._node_id, kind=PeerKind.STORE))
            self.reader = Hello.unpack(self._frames.expect(Type.HELLO)).node_id
            # The peer keeps a connection for IDLE_S; a silence far longer means that its host has gone.
            while True:
                self.idle_since = time.monotonic()
                header, payload = self._frames.recv(timeout=10 * IDLE_S)
                self.idle_since = None
                if header.type == Type.FETCH:
                    self._fetch([Fetch.unpack(payload)])
                elif header.type == Type.FETCH_MANY:
                    self._fetch_many(FetchMany.unpack(payload))
                elif header.type in (Type.FREE, Type.KEEP):
                    message = (Free if header.type == Type.FREE else Keep).unpack(payload)
                    if message.node_id == self._node_id:  # else the node that had this address is no more
                        self._objects.for_peer(message)
                    self._frames.acknowledge()
                elif header.type == Type.PULL:
                    self._frames.send(Type.PULLED, self._objects.bring(Pull.unpack(payload)).pack())
                elif header.type == Type.BYE:
                    return
        except (OSError, EOFError, BadFrame) as error:
            _log.debug("a peer's connection ended: %s", error)
        finally:
            self._frames.close()

    def _fetch_many(self, many: FetchMany) -> None:
        if len(many.objects) > MAX_MANY:
            raise BadFrame(f"{len(many.objects)} objects in one question, at most {MAX_MANY} are answered")
        wanted = [Fetch(object_id, slot, generation, node_id=many.node_id) for object_id, slot, generation in many.objects]
        self._objects.soon([(fetch.object_id, self._origin(fetch)) for fetch in wanted])
        self._fetch(wanted)

    def _fetch(self, wanted: Sequence[Fetch]) -> None:
        """One after the other. All of it is acknowledged at once, and pinned until then."""
        with contextlib.ExitStack() as pins:
            sent = [(fetch, place) for fetch in wanted if (place := self._send(fetch, pins)) is not None]
            if not sent:
                return
            if self._frames.recv()[0].type != Type.ACK:
                raise BadFrame("the end of an object was not acknowledged")
            if not all(place.still() for _, place in sent):
                raise BadFrame("what was sent was given up meanwhile")
            for fetch, place in sent:
                length = fetch.length or place.size - fetch.offset
                self._objects.sent(self._origin(fetch), place.size, self.reader, length, fetch.offset + length == place.size)
            self._frames.acknowledge()

    def _send(self, fetch: Fetch, pins: contextlib.ExitStack) -> Bytes | None:
        """FETCHED, and the bytes if nothing is against it."""
        origin = self._origin(fetch)
        place = pins.enter_context(self._objects.pinned(fetch.object_id, origin))
        refusal = place if isinstance(place, Fetched) else self._refusal(fetch, origin, place)
        if refusal is not None:
            self._frames.send(Type.FETCHED, refusal.pack())
            return None
        assert isinstance(place, Bytes)
        self._frames.send(Type.FETCHED, Fetched(0, place.size).pack())
        self._frames.send_file(place.fd, place.offset + fetch.offset, fetch.length or place.size - fetch.offset)
        return place

    def _refusal(self, fetch: Fetch, origin: Origin, place: Bytes) -> Fetched | None:
        size = place.size
        length = fetch.length or size - fetch.offset
        if fetch.offset > size or fetch.offset + length > size:
            return Fetched(Code.OBJECT_LOST, size, f"bytes {fetch.offset} to {fetch.offset + length} of an object of {size} were asked for")
        turn = self._objects.turn(origin, size, self.reader, fetch.address)
        if turn is not None:
            return Fetched(Code.SOURCE_BUSY, size, turn.address if isinstance(turn, Elsewhere) else "")
        return None if place.here(fetch.offset, length) else Fetched(Code.SOURCE_BUSY, size)

    def _origin(self, fetch: Fetch) -> Origin:
        return Origin(fetch.node_id or self._node_id, fetch.slot, fetch.generation)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._frames.sock.shutdown(socket.SHUT_RDWR)
