"""Frames over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from shoal_base import connection, frames
from shoal_base.connection import BlockingFrames, FrameConnection, check_hello, connect_unix, listen_unix, pack_hello, unpack_hello
from shoal_base.errors import Code
from shoal_base.frames import Type, pack_header
from shoal_base.wire import Bye

Received = tuple[int, bytes, list[int]]


class Peer:
    """A FrameConnection and what it delivered."""

    def __init__(self, sock: socket.socket, answer: Callable[[FrameConnection, int, bytes, list[int]], None] | None = None) -> None:
        self.frames: list[Received] = []
        self.closed: list[str] = []
        self._changed = asyncio.Event()
        self._answer = answer
        self.conn = FrameConnection(sock, self._on_frame, self._on_closed)

    def _on_frame(self, conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        self.frames.append((type_, payload, fds))
        self._changed.set()
        if self._answer is not None:
            self._answer(conn, type_, payload, fds)

    def _on_closed(self, conn: FrameConnection, reason: str) -> None:
        self.closed.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def run(main: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main

    asyncio.run(bounded())


def pair(family: str) -> tuple[socket.socket, socket.socket]:
    if family == "unix":
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
        return a, b


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_frames_of_every_size_arrive_in_order(family: str) -> None:
    sizes = [0, 1, 31, 32, 4096, 4097, 16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, 1 << 20, 5 << 20, 3, 0]

    async def main() -> None:
        left, right = (Peer(s) for s in pair(family))
        for n, size in enumerate(sizes * 3):
            left.conn.send(Type.EVENT, bytes([n % 251]) * size)
        await right.until(lambda: len(right.frames) == len(sizes) * 3)
        assert [p for _, p, _ in right.frames] == [bytes([n % 251]) * size for n, size in enumerate(sizes * 3)]
        left.conn.close()
        await right.until(lambda: bool(right.closed))
        await left.until(lambda: bool(left.closed))

    run(main())


@pytest.mark.parametrize("step", [1, 7, 33, 1000])
def test_a_stream_cut_anywhere_gives_the_same_frames(step: int) -> None:
    payloads = [b"", b"x" * 100, b"y" * 40_000, b"z"]
    stream = b"".join(pack_header(len(p), Type.EVENT, sequence=n) + p for n, p in enumerate(payloads, 1))

    async def main() -> None:
        a, b = pair("unix")
        peer = Peer(b)
        loop = asyncio.get_running_loop()
        a.setblocking(False)
        for at in range(0, len(stream), step):
            await loop.sock_sendall(a, stream[at : at + step])
            await asyncio.sleep(0)
        await peer.until(lambda: len(peer.frames) == len(payloads))
        assert [p for _, p, _ in peer.frames] == payloads
        a.close()
        await peer.until(lambda: peer.closed == ["the peer closed the connection"])

    run(main())


def test_many_small_frames_in_one_read_are_all_delivered() -> None:
    async def main() -> None:
        left, right = (Peer(s) for s in pair("unix"))
        for n in range(20_000):
            left.conn.send(Type.EVENT, n.to_bytes(4, "little"))
        await right.until(lambda: len(right.frames) == 20_000)
        assert [int.from_bytes(p, "little") for _, p, _ in right.frames] == list(range(20_000))
        right.conn.abort("done")
        await left.until(lambda: bool(left.closed))

    run(main())


def memfd(text: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, text)
    return fd


def contents(fd: int) -> bytes:
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_descriptors_come_with_their_frame_among_others(size: int) -> None:
    async def main() -> None:
        left, right = (Peer(s) for s in pair("unix"))
        one, two, three = (memfd(t) for t in (b"one", b"two", b"three"))
        for fds in ((), (one, two), (), (), (three,), ()):
            left.conn.send(Type.EVENT, b"p" * size, fds)
        for fd in (one, two, three):
            os.close(fd)  # the connection has its own
        await right.until(lambda: len(right.frames) == 6)
        got = [[contents(fd) for fd in fds] for _, _, fds in right.frames]
        assert got == [[], [b"one", b"two"], [], [], [b"three"], []]
        left.conn.close()
        await right.until(lambda: bool(right.closed))

    run(main())


def test_descriptors_never_read_are_closed_with_the_connection() -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        a, b = pair("unix")
        left = Peer(a)
        fd = memfd(b"x")
        left.conn.send(Type.EVENT, b"", (fd,))
        os.close(fd)
        left.conn.abort("enough")
        await left.until(lambda: left.closed == ["enough"])
        b.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())


def test_a_sender_holds_back_beyond_the_credit_and_goes_on_with_the_acknowledgement() -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        peer = BlockingFrames(b)
        b.sendall(pack_header(0, Type.EVENT, sequence=1, credit=100))  # 100 KiB
        await left.until(lambda: len(left.frames) == 1)
        for _ in range(10):
            left.conn.send(Type.EVENT, bytes(30 << 10))
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await loop.run_in_executor(None, peer.expect, Type.EVENT)
        with pytest.raises(TimeoutError):
            await loop.run_in_executor(None, lambda: peer.recv(timeout=0.2))
        assert left.conn.queued_bytes > 200 << 10
        for acknowledged in (3, 6, 9):
            b.sendall(pack_header(0, Type.ACK, acknowledgement=acknowledged, credit=100))
            for _ in range(min(3, 10 - acknowledged)):
                await loop.run_in_executor(None, peer.expect, Type.EVENT)
        assert left.conn.queued_bytes == 0
        peer.close()
        await left.until(lambda: bool(left.closed))

    run(main())


def test_a_frame_above_the_whole_credit_goes_when_nothing_else_is_in_flight() -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        peer = BlockingFrames(b)
        b.sendall(pack_header(0, Type.EVENT, sequence=1, credit=1))
        await left.until(lambda: len(left.frames) == 1)
        left.conn.send(Type.EVENT, bytes(500_000))
        payload, _ = await asyncio.get_running_loop().run_in_executor(None, peer.expect, Type.EVENT)
        assert len(payload) == 500_000
        peer.close()
        await left.until(lambda: bool(left.closed))

    run(main())


def test_what_was_received_is_acknowledged_without_an_own_frame() -> None:
    async def main() -> None:
        a, b = pair("unix")
        right = Peer(a)
        loop = asyncio.get_running_loop()
        peer = BlockingFrames(b)
        for _ in range(5):
            await loop.run_in_executor(None, peer.send, Type.EVENT, bytes(1 << 20))
        await right.until(lambda: len(right.frames) == 5)
        b.settimeout(5)
        raw = await loop.run_in_executor(None, b.recv, frames.HEADER_SIZE)
        header = frames.unpack_header(raw)
        assert (header.type, header.sequence, header.length) == (Type.ACK, 0, 0)
        assert header.acknowledgement >= 4
        peer.close()
        await right.until(lambda: bool(right.closed))

    run(main())


def test_ping_is_answered_inside() -> None:
    async def main() -> None:
        left, right = (Peer(s) for s in pair("unix"))
        await left.conn.ping(timeout=5)
        assert right.frames == []
        right.conn.abort("gone")
        with pytest.raises(ConnectionError):
            await left.conn.ping(timeout=5)
        await left.until(lambda: bool(left.closed))

    run(main())


def test_ping_of_a_silent_peer_times_out() -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        with pytest.raises(TimeoutError):
            await left.conn.ping(timeout=0.05)
        b.close()
        await left.until(lambda: bool(left.closed))

    run(main())


def test_bye_carries_the_reason_after_everything_queued() -> None:
    async def main() -> None:
        left, right = (Peer(s) for s in pair("unix"))
        left.conn.send(Type.EVENT, bytes(3 << 20))
        left.conn.close(Code.SHUTTING_DOWN, "the node shuts down")
        left.conn.send(Type.EVENT, b"too late")
        await right.until(lambda: bool(right.closed))
        assert len(right.frames) == 1
        assert right.closed == ["the node shuts down"]
        assert right.conn.bye == Bye(Code.SHUTTING_DOWN, "the node shuts down")
        await left.until(lambda: left.closed == ["the node shuts down"])

    run(main())


def test_the_reason_of_a_bye_is_told_even_when_a_write_fails_first() -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        peer = BlockingFrames(b)
        peer.send(Type.BYE, Bye(Code.FENCED, "fenced off").pack())
        peer.close()
        left.conn._flush_scheduled = False
        left.conn._enqueue(Type.EVENT, b"x")
        left.conn._flush()
        await left.until(lambda: left.closed == ["fenced off"])

    run(main())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frames.HEADER.pack(0, 1, 0, 9, 0, 0, 0, 1, 0), "wire version 9"),
        (frames.HEADER.pack(1 << 30, 1, 0, 1, 0, 0, 0, 1, 0), "the limit is"),
        (pack_header(0, Type.EVENT, sequence=5), "frame 5 came after frame 0"),
        (pack_header(0, Type.EVENT, sequence=1, acknowledgement=3), "acknowledges frame 3"),
    ],
)
def test_a_bad_frame_ends_the_connection_and_says_why(data: bytes, why: str) -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        b.sendall(data)
        await left.until(lambda: bool(left.closed))
        assert why in left.closed[0]
        peer = BlockingFrames(b)
        payload, _ = peer.expect(Type.BYE)
        assert Bye.unpack(payload).code == Code.BAD_FRAME
        peer.close()

    run(main())


def test_a_frame_seen_before_a_reconnect_is_dropped() -> None:
    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        b.sendall(pack_header(1, Type.EVENT, sequence=1) + b"1" + pack_header(1, Type.EVENT, sequence=1) + b"1" + pack_header(1, Type.EVENT, sequence=2) + b"2")
        await left.until(lambda: len(left.frames) == 2)
        assert [p for _, p, _ in left.frames] == [b"1", b"2"]
        b.close()
        await left.until(lambda: bool(left.closed))

    run(main())


def test_a_handler_that_raises_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def broken(conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        raise KeyError("no such lease")

    async def main() -> None:
        a, b = pair("unix")
        left, right = Peer(a), Peer(b, broken)
        left.conn.send(Type.EVENT, b"x")
        await left.until(lambda: bool(left.closed))
        assert "no such lease" in left.closed[0]
        await right.until(lambda: bool(right.closed))

    run(main())
    assert "a frame's handler raised" in caplog.text


def test_a_peer_that_never_reads_is_dropped_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_QUEUED_BYTES", 1 << 20)

    async def main() -> None:
        a, b = pair("unix")
        left = Peer(a)
        for _ in range(20):
            left.conn.send(Type.EVENT, bytes(100_000))
        await left.until(lambda: bool(left.closed))
        assert "does not read" in left.closed[0]
        b.close()

    run(main())


def test_detach_gives_back_the_raw_bytes_that_follow_a_frame() -> None:
    async def main() -> None:
        a, b = pair("unix")
        got: list[tuple[socket.socket, bytes]] = []
        left = Peer(a, lambda conn, *_: got.append(conn.detach()))
        b.sendall(pack_header(3, Type.FETCHED, sequence=1) + b"abc" + b"raw bytes")
        await left.until(lambda: bool(got))
        sock, rest = got[0]
        assert rest == b"raw bytes"
        assert left.closed == []
        sock.close()
        b.close()

    run(main())


def test_listen_accepts_this_user_and_leaves_no_path(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"

    async def main() -> None:
        peers: list[Peer] = []
        came = asyncio.Event()

        def accepted(sock: socket.socket) -> None:
            peers.append(Peer(sock))
            came.set()

        server = await listen_unix(path, accepted)
        assert path.stat().st_mode & 0o777 == 0o600
        client = Peer(await connect_unix(path))
        await asyncio.wait_for(came.wait(), 5)
        assert (peers[0].conn.peer_pid, peers[0].conn.peer_uid) == (os.getpid(), os.geteuid())
        client.conn.send(Type.HELLO, pack_hello(bytes(16), bytes(16)))
        await peers[0].until(lambda: bool(peers[0].frames))
        hello = unpack_hello(peers[0].frames[0][1])
        assert hello.pid == os.getpid()
        assert check_hello(hello) is None
        client.conn.close()
        await peers[0].until(lambda: bool(peers[0].closed))
        server.close()
        server.close()

    run(main())
    assert not path.exists()


def test_listen_replaces_a_dead_owners_socket_but_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def main() -> None:
        (await listen_unix(path, lambda sock: sock.close())).close()
        path.write_text("mine")
        with pytest.raises(FileExistsError):
            await listen_unix(path, lambda sock: sock.close())

    run(main())
    assert path.read_text() == "mine"


def test_connect_says_that_nobody_listens_and_that_a_path_is_too_long(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await connect_unix(tmp_path / "none")
        with pytest.raises(ValueError, match="SHOAL_TMPDIR"):
            await connect_unix("/tmp/" + "x" * 120)

    run(main())


def test_hello_of_another_wire_or_python_is_refused_by_name() -> None:
    hello = unpack_hello(pack_hello(bytes(16), bytes(16), kind=1))
    newer = type(hello)(hello.worker_id, hello.node_id, hello.job_id, hello.pid, 5, 6, hello.py_major, hello.py_minor, 1)
    refused = check_hello(newer)
    assert refused is not None
    assert refused[0] == Code.WIRE_MISMATCH
    other = type(hello)(hello.worker_id, hello.node_id, hello.job_id, hello.pid, 1, 1, 3, 99, 1)
    refused = check_hello(other)
    assert refused is not None
    assert refused[0] == Code.PYTHON_MISMATCH
    assert check_hello(other, python=False) is None


def test_blocking_frames_speak_with_a_connection() -> None:
    a, b = pair("unix")
    left, right = BlockingFrames(a), BlockingFrames(b)
    fd = memfd(b"arena")
    left.send(Type.REGISTERED, b"hi", (fd,))
    os.close(fd)
    payload, fds = right.expect(Type.REGISTERED)
    assert (payload, contents(fds[0])) == (b"hi", b"arena")
    left.send(Type.PING, bytes(8))
    left.send(Type.EVENT, b"after")
    assert right.expect(Type.EVENT)[0] == b"after"
    with pytest.raises(TimeoutError):
        right.recv(timeout=0.01)
    left.close()
    with pytest.raises(EOFError):
        right.recv()
    right.close()
