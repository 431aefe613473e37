"""Objects in parts between two stores: breaks, several sources, limits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from shoal_base.auth import KIND_NODE, STORE_TARGET, connect_authenticated
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.wire import NodeDied, Pull, Pulled
from shoal_objectstore import neighbours, transfer
from shoal_objectstore._arena import Writable
from shoal_objectstore.journal import Record
from shoal_objectstore.peer import MAX_MANY, PeerFailed, Peers, Wanted
from shoal_objectstore.pulls import Origin, Place
from shoal_objectstore.transfer import BUSY_S, MOST_BUSY_S, TRIES, Later, Part, Parts, shared, streams
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, nodes, until

pytestmark = pytest.mark.timeout(60)


class Cutter:
    """A relay to an address that cuts each of its first connections after so many bytes towards the client; `silent`: says nothing more on them instead."""

    def __init__(self, address: str, cuts: list[int], silent: bool = False) -> None:
        host, port = address.rsplit(":", 1)
        self._there = (host, int(port))
        self._cuts = cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self.passed = 0
        self._silent = silent
        self._ended = threading.Event()
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._there)
            self._socks += [client, server]
            limit = self._cuts.pop(0) if self._cuts else 1 << 60
            for thread in (
                threading.Thread(target=self._relay, args=(client, server, 1 << 60, False), daemon=True),
                threading.Thread(target=self._relay, args=(server, client, limit, True), daemon=True),
            ):
                thread.start()
                self._threads.append(thread)

    def _relay(self, source: socket.socket, target: socket.socket, limit: int, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while limit > 0 and (data := source.recv(min(limit, 1 << 20))):
                target.sendall(data)
                limit -= len(data)
                if counted:
                    self.passed += len(data)
            self.cut += limit == 0
        if self._silent and limit == 0:
            self._ended.wait()
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in self._socks:
            sock.close()


@contextlib.contextmanager
def cutter(address: str, cuts: list[int], silent: bool = False) -> Iterator[Cutter]:
    made = Cutter(address, cuts, silent)
    try:
        yield made
    finally:
        made.close()


def pull(client: Client, node: Node, location: tuple[int, int], size: int, address: str, others: tuple[tuple[Node, tuple[int, int]], ...] = ()) -> Pulled:
    client.id += 1
    places = tuple((n.node_id, *at, n.raylet.address) for n, at in others)
    client.frames.send(Type.PULL, Pull(client.id, bytes(20), size, node.node_id, *location, address, others=places).pack())
    return Pulled.unpack(client.frames.expect(Type.PULLED)[0])


def test_a_large_object_comes_in_parts_over_several_connections(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=256 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            value = random.Random(1).randbytes(70 * MIB + 12_345)
            location = await asyncio.to_thread(two.put, value)
            answer = await asyncio.to_thread(one.pull, there, location, len(value))
            assert answer.code == 0, answer.text
            assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            assert len(here.store._peers._idle[there.raylet.address]) == streams(len(value)) == 3
            assert there.store.neighbours.pushed == 1
            assert there.store.neighbours.pushed_bytes == len(value)
            one.close()
            two.close()

    asyncio.run(main())


def test_what_comes_from_a_node_that_died_fails_at_once_though_its_host_is_silent(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=64 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            first, second = [await asyncio.to_thread(two.put, random.Random(n).randbytes(12 * MIB)) for n in range(2)]
            with cutter(there.raylet.address, [1 * MIB] * 8, silent=True) as relay:
                # The second one waits for its turn: a quarter of the capacity may be on its way.
                for location in (first, second):
                    one.id += 1
                    one.frames.send(Type.PULL, Pull(one.id, bytes(20), 12 * MIB, there.node_id, *location, relay.address).pack())
                await until(lambda: relay.cut > 0 and here.store.pulling.pulls.queued == 1, "one to be under way and one to wait")
                began = time.monotonic()
                here.store._died(NodeDied(there.node_id, "its machine is gone"))
                answers = [Pulled.unpack((await asyncio.to_thread(one.frames.expect, Type.PULLED))[0]) for _ in range(2)]
                assert time.monotonic() - began < 5.0
            assert [answer.code for answer in answers] == [Code.UNREACHABLE] * 2
            assert any("died" in answer.text for answer in answers)
            await until(lambda: here.store.keeper.store.sweep()["created_bytes"] == 0, "what had come of it to be free")
            one.close()
            two.close()

    asyncio.run(main())


def test_who_died_is_served_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(two.put, b"x" * MIB)
            assert (await asyncio.to_thread(one.pull, there, location, MIB)).code == 0
            assert len(there.store.neighbours) == 1
            there.store._died(NodeDied(here.node_id, "gone"))
            await until(lambda: len(there.store.neighbours) == 0, "its connection to end")
            one.close()
            two.close()

    asyncio.run(main())


def test_of_more_connections_than_may_be_open_the_one_longest_idle_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_SERVING", 2)

    async def main() -> None:
        async with nodes(tmp_path, 5) as [source, *others]:
            owner = await asyncio.to_thread(Client, source, 1)
            clients = [await asyncio.to_thread(Client, node, 1) for node in others]
            for round_ in range(2):
                location = await asyncio.to_thread(owner.put, bytes([round_]) * MIB)
                for client in clients:
                    answer = await asyncio.to_thread(client.pull, source, location, MIB)
                    assert answer.code == 0, answer.text
                    assert memoryview(client.arena.get(answer.slot, answer.generation))[:1] == bytes([round_])
                    assert len(source.store.neighbours) <= 2
            for client in (owner, *clients):
                client.close()

    asyncio.run(main())


def test_after_a_break_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=256 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            value = random.Random(2).randbytes(60 * MIB)
            location = await asyncio.to_thread(two.put, value)
            # The second connection in its first part: the other one may bring the rest before it asks for another.
            with cutter(there.raylet.address, [20 * MIB, 3 * MIB]) as relay:
                answer = await asyncio.to_thread(pull, one, there, location, len(value), relay.address)
                assert answer.code == 0, answer.text
                assert relay.cut == 2
                assert relay.passed < len(value) + 2 * transfer.PART_BYTES + MIB
            assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            one.close()
            two.close()

    asyncio.run(main())


def test_a_further_copy_serves_when_the_first_place_is_silent_or_has_it_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 3) as [here, there, other]:
            one, two, three = [await asyncio.to_thread(Client, n, 1) for n in (here, there, other)]
            value = random.Random(3).randbytes(20 * MIB)
            location = await asyncio.to_thread(two.put, value)
            copy = await asyncio.to_thread(three.pull, there, location, len(value))
            others = ((other, (copy.slot, copy.generation)),)
            there.store.frees.here((location,))
            answer = await asyncio.to_thread(pull, one, there, location, len(value), there.raylet.address, others)
            assert answer.code == 0, answer.text
            assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            closed = socket.create_server(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
            closed.close()
            answer = await asyncio.to_thread(pull, one, there, (4000, 9), len(value), address, others)
            assert answer.code == 0, answer.text
            assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            for client in (one, two, three):
                client.close()

    asyncio.run(main())


def test_two_sources_share_the_work(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 3, capacity=256 * MIB) as [here, there, other]:
            one, two, three = [await asyncio.to_thread(Client, n, 1) for n in (here, there, other)]
            value = random.Random(3).randbytes(90 * MIB)
            location = await asyncio.to_thread(two.put, value)
            copy = await asyncio.to_thread(three.pull, there, location, len(value))
            before = there.store.neighbours.pushed_bytes
            answer = await asyncio.to_thread(pull, one, there, location, len(value), there.raylet.address, ((other, (copy.slot, copy.generation)),))
            assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            assert other.store.neighbours.pushed_bytes + there.store.neighbours.pushed_bytes - before == len(value)
            assert other.store.neighbours.pushed_bytes > 0
            assert there.store.neighbours.pushed_bytes > before
            for client in (one, two, three):
                client.close()

    asyncio.run(main())


def test_a_size_that_is_not_the_objects_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(two.put, bytes(MIB))
            for size in (MIB + 1, MIB - 1):
                answer = await asyncio.to_thread(one.pull, there, location, size)
                assert answer.code == Code.OBJECT_LOST, answer.text
            assert here.store.keeper.store.sweep()["created"] == 0
            one.close()
            two.close()

    asyncio.run(main())


# -- small objects, with one question


async def pull_all(client: Client, node: Node, locations: list[tuple[int, int]], sizes: list[int], address: str = "") -> list[Pulled]:
    """All are asked for before the store, which shares this loop, sees the first of them; in the order of the locations."""
    for location, size in zip(locations, sizes, strict=True):
        client.id += 1
        client.frames.send(Type.PULL, Pull(client.id, bytes(20), size, node.node_id, *location, address or node.raylet.address).pack())
    answers = await asyncio.to_thread(lambda: [Pulled.unpack(client.frames.expect(Type.PULLED)[0]) for _ in locations])
    return sorted(answers, key=lambda answer: answer.id)


def counted(monkeypatch: pytest.MonkeyPatch, node: Node) -> list[int]:
    """How many objects each question of this node has asked for."""
    asked: list[int] = []
    peers = node.store._peers
    assert peers is not None
    fetch_many = peers.fetch_many

    def count(wanted: Sequence[Wanted]) -> list[PeerFailed | None]:
        asked.append(len(wanted))
        return fetch_many(wanted)

    monkeypatch.setattr(peers, "fetch_many", count)
    return asked


def test_small_objects_come_together_and_one_that_is_gone_or_has_another_size_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=128 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            asked = counted(monkeypatch, here)
            values = [random.Random(n).randbytes(n * 17_000) for n in range(60)]
            locations = [await asyncio.to_thread(two.put, value) for value in values]
            sizes = [len(value) for value in values]
            sizes[11] += 1
            two.arena.free(*locations[25])
            answers = await pull_all(one, there, locations, sizes)
            for n, (answer, value) in enumerate(zip(answers, values, strict=True)):
                if n in (11, 25):
                    assert answer.code == (Code.OBJECT_LOST if n == 11 else Code.OBJECT_FREED), answer.text
                    continue
                assert answer.code == 0, answer.text
                assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            assert max(asked) > 1 and len(asked) < 50, asked
            assert max(asked) <= transfer.TOGETHER
            assert there.store.neighbours.pushed == 58
            assert there.store.neighbours.pushed_bytes == sum(sizes) - sizes[11] - sizes[25]
            for client in (one, two):
                client.close()
            await until(lambda: not any(pins for *_, pins in there.store.keeper.store.objects(100)[0]), "nothing to be pinned for a reader that has it")

    asyncio.run(main())


def test_after_a_break_small_objects_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=128 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            values = [random.Random(n).randbytes(900_000) for n in range(24)]
            locations = [await asyncio.to_thread(two.put, value) for value in values]
            with cutter(there.raylet.address, [3 * MIB, 100_000]) as relay:
                answers = await pull_all(one, there, locations, [900_000] * 24, relay.address)
                assert relay.cut == 2
            assert [answer.code for answer in answers] == [0] * 24, [answer.text for answer in answers]
            for answer, value in zip(answers, values, strict=True):
                assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            one.close()
            two.close()

    asyncio.run(main())


def test_of_small_objects_those_on_disk_are_read_while_the_first_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=64 * MIB) as [here, there]:
            one, two = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            values = [random.Random(n).randbytes(500_000) for n in range(16)]
            locations = [await asyncio.to_thread(two.put, value) for value in values]
            async with there.stub() as stub:
                await stub.Spill(pb.SpillRequest(bytes=8 * 500_000))
            assert there.store.spiller is not None
            assert sum(there.store.spiller.evicted(location) is not None for location in locations) >= 8
            # Whoever waited for one after the other would have read one at a time.
            restore, at_once = there.store.spiller.restore, [0, 0]

            async def slowly(record: Record, writable: Writable) -> None:
                at_once[0] += 1
                at_once[1] = max(at_once)
                await asyncio.sleep(0.1)
                await restore(record, writable)
                at_once[0] -= 1

            monkeypatch.setattr(there.store.spiller, "restore", slowly)
            answers = await pull_all(one, there, locations, [500_000] * 16)
            assert [answer.code for answer in answers] == [0] * 16, [answer.text for answer in answers]
            for answer, value in zip(answers, values, strict=True):
                assert memoryview(one.arena.get(answer.slot, answer.generation)) == value
            assert at_once[1] >= 4
            one.close()
            two.close()

    asyncio.run(main())


def test_a_question_for_too_many_objects_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [node]:
            origin = Place(Origin(node.node_id, 1, 1), node.raylet.address)
            peers = Peers(b"r" * 16, lambda address: connect_authenticated(address, KIND_NODE, node.secret, STORE_TARGET, 5.0))
            assert [f.code for f in await asyncio.to_thread(peers.fetch_many, [Wanted(origin, bytes(20), memoryview(b""))]) if f] == [Code.OBJECT_FREED]
            with pytest.raises(PeerFailed, match="closed the connection"):
                await asyncio.to_thread(peers.fetch_many, [Wanted(origin, bytes(20), memoryview(b""))] * (MAX_MANY + 1))
            peers.close()
            await until(lambda: len(node.store.neighbours) == 0, "both connections to end")

    asyncio.run(main())


def test_objects_of_one_node_share_questions_of_limited_size() -> None:
    small, large = memoryview(bytes(10)), memoryview(bytes(3 << 20))
    here, there = [Place(Origin(name * 16, 1, 1), f"{name.decode()}:1") for name in (b"h", b"t")]
    assert shared([]) == []
    mixed = [Wanted(here if n % 3 else there, bytes(20), small) for n in range(12)]
    assert shared(mixed) == [[0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]]
    assert [len(some) for some in shared([Wanted(here, bytes(20), small)] * 20)] == [8, 8, 4]
    assert [len(some) for some in shared([Wanted(here, bytes(20), large)] * 5)] == [2, 2, 1]


# -- who brings what, without a socket

ORIGIN = Origin(b"n" * 16, 1, 1)
HERE, THERE = Place(ORIGIN, "here:1"), Place(ORIGIN, "there:1")
CUT, GONE = PeerFailed(Code.UNREACHABLE, "cut"), PeerFailed(Code.OBJECT_FREED, "gone")


def busy(elsewhere: str = "") -> PeerFailed:
    return PeerFailed(Code.SOURCE_BUSY, "it serves others", elsewhere)


def part(taken: Part | Later | None) -> Part:
    assert isinstance(taken, Part)
    return taken


def test_each_part_is_given_once_and_again_after_a_failure() -> None:
    parts = Parts(25, [HERE], 10)
    taken = [part(parts.take(0.0)) for _ in range(3)]
    assert [(p.offset, p.length) for p in taken] == [(0, 10), (10, 10), (20, 5)]
    assert parts.take(0.0) is None
    parts.failed(taken[1], CUT, 0.0)
    parts.brought(taken[0])
    parts.brought(taken[2])
    assert not parts.complete
    again = part(parts.take(1.0))
    assert (again.offset, again.length) == (10, 10)
    parts.brought(again)
    assert parts.complete
    assert parts.error is None


def test_who_waits_for_a_part_has_it_when_all_of_it_is_here_and_not_when_nothing_comes_any_more() -> None:
    parts = Parts(25, [HERE], 10)
    first, second = part(parts.take(0.0)), part(parts.take(0.0))
    parts.brought(first)
    assert parts.wait_for(0, 10, 0.0)
    assert parts.wait_for(3, 7, 0.0)
    assert not parts.wait_for(3, 8, 0.0)
    assert not parts.wait_for(20, 5, 0.01)
    later = threading.Timer(0.05, parts.brought, [second])
    later.start()
    assert parts.wait_for(3, 17, 30.0)
    later = threading.Timer(0.05, parts.end)
    later.start()
    assert not parts.wait_for(20, 5, 30.0)
    assert parts.wait_for(0, 20, 0.0)


def test_an_empty_object_is_one_part() -> None:
    parts = Parts(0, [HERE])
    parts.brought(part(parts.take(0.0)))
    assert parts.complete


def test_sources_share_the_work_and_one_that_breaks_rests_for_longer_each_time_until_it_is_given_up() -> None:
    parts = Parts(100, [HERE, THERE], 10)
    first, second = part(parts.take(0.0)), part(parts.take(0.0))
    assert (parts.place(first), parts.place(second)) == (HERE, THERE)
    parts.failed(second, CUT, 0.0)
    now, rests = 0.0, []
    for _ in range(TRIES - 1):
        began = now
        while parts.place(taken := part(parts.take(now))) == HERE:
            parts.failed(taken, busy(), -100.0)  # it is put back, and may be asked again at once
            now += 0.01
        rests.append(now - began)
        parts.failed(taken, CUT, now)
    assert rests == sorted(rests)
    for at in (now, now + 99.0):
        taken = part(parts.take(at))
        assert parts.place(taken) == HERE
        parts.failed(taken, busy(), -100.0)


@pytest.mark.parametrize("first", [GONE, CUT])
def test_when_nobody_is_left_the_error_is_what_became_of_the_first_place(first: PeerFailed) -> None:
    """That a further place has dropped its copy does not make an object lost whose own node is silent."""
    parts, now = Parts(30, [HERE, THERE], 10), 0.0
    while (taken := parts.take(now)) is not None:
        assert parts.error is None
        now += 10.0
        if isinstance(taken, Part):
            parts.failed(taken, first if parts.place(taken) == HERE else {GONE: CUT, CUT: GONE}[first], now)
    assert parts.error is first


def test_a_busy_source_is_asked_later_and_later_and_never_given_up() -> None:
    parts = Parts(10, [HERE], 10)
    now, pauses = 0.0, []
    for _ in range(12):
        parts.failed(part(parts.take(now)), busy(), now)
        later = parts.take(now)
        assert isinstance(later, Later)
        pauses.append(later.pause_s)
        now += later.pause_s
    assert pauses[0] == pytest.approx(BUSY_S)
    assert pauses[-1] == pytest.approx(MOST_BUSY_S)
    parts.brought(part(parts.take(now)))
    assert parts.complete


def test_a_busy_source_that_names_another_one_is_left_for_it() -> None:
    parts = Parts(30, [HERE], 10)
    parts.failed(part(parts.take(0.0)), busy("there:1"), 0.0)
    for _ in range(3):
        taken = part(parts.take(0.0))
        assert parts.place(taken) == THERE
        parts.brought(taken)
    assert parts.complete
