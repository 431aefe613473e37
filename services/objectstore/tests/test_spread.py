"""Many readers of one object are a tree: first what is decided, then stores that do it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from shoal_base.errors import Code
from shoal_base.wire import Pulled
from shoal_objectstore import spread, transfer
from shoal_objectstore.journal import Location
from shoal_objectstore.peer import Frames
from shoal_objectstore.spread import FAN_OUT, IDLE_S, LARGE_BYTES, Elsewhere, Spread, Wait
from store_node import MIB, Client, Node, nodes, until

pytestmark = pytest.mark.timeout(90)
SIZE = LARGE_BYTES


def reader(n: int) -> tuple[bytes, str]:
    return n.to_bytes(16, "big"), f"host:{n}"


def test_a_few_read_at_once_and_the_next_ones_from_them() -> None:
    state = Spread()
    for n in range(FAN_OUT):
        assert state.ask("object", SIZE, *reader(n), 0.0) is None
    named = [state.ask("object", SIZE, *reader(20 + n), 0.0) for n in range(2 * FAN_OUT)]
    assert named == [Elsewhere(reader(n % FAN_OUT)[1]) for n in range(2 * FAN_OUT)]
    assert state.ask("object", SIZE, *reader(0), 0.1) is None  # its next part
    for _ in range(2):
        state.brought("object", SIZE, reader(0)[0], SIZE // 2)
    assert state.ask("object", SIZE, *reader(9), 0.2) is None  # the place of the first one is free
    assert state.ask("object", SIZE, *reader(10), 0.2) == Elsewhere("host:0")  # and it serves others on


def test_nobody_is_sent_to_itself() -> None:
    state = Spread()
    for n in range(FAN_OUT):
        state.ask("object", SIZE, reader(n)[0], "host:1", 0.0)
    assert state.ask("object", SIZE, *reader(1), 0.0) is None
    assert state.ask("object", SIZE, reader(9)[0], "host:1", 0.0) == Wait()


def test_a_reader_that_asks_no_more_makes_place() -> None:
    state = Spread()
    for n in range(FAN_OUT):
        state.ask("object", SIZE, *reader(n), 0.0)
    state.brought("object", SIZE, reader(1)[0], 1000)
    assert state.ask("object", SIZE, *reader(9), IDLE_S - 0.1) == Elsewhere("host:0")
    for n in range(9, 9 + FAN_OUT):
        assert state.ask("object", SIZE, *reader(n), IDLE_S + 0.1) is None
    named = {state.ask("object", SIZE, *reader(20), IDLE_S + 0.1) for _ in range(10)}
    # The first one had not begun; the other one had, so it may have the rest from elsewhere.
    assert named == {Elsewhere(reader(n)[1]) for n in (1, *range(9, 9 + FAN_OUT))}


def test_small_objects_and_readers_that_serve_nobody_are_served_at_once() -> None:
    state = Spread()
    assert all(state.ask("object", SIZE - 1, *reader(n), 0.0) is None for n in range(50))
    assert all(state.ask("object", SIZE, reader(n)[0], "", 0.0) is None for n in range(50))


def test_what_is_remembered_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "MAX_OBJECTS", 3)
    monkeypatch.setattr(spread, "MAX_BRANCHES", 2)
    state = Spread()
    for key in range(10):
        for n in range(5):
            state.ask(key, SIZE, *reader(n), 0.0)
            state.brought(key, SIZE, reader(n)[0], SIZE)
    assert len(state._objects) == 3
    assert all(len(known.branches) == 2 and not known.readers for known in state._objects.values())


def test_eight_nodes_get_an_object_and_its_own_node_sends_it_to_less_than_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "LARGE_BYTES", 8 * MIB)
    monkeypatch.setattr(spread, "FAN_OUT", 1)
    size, count = 16 * MIB, 8

    async def main() -> None:
        async with nodes(tmp_path, count + 1, capacity=64 * MIB) as [source, *others]:
            owner = await asyncio.to_thread(Client, source, 1)
            location = await asyncio.to_thread(owner.put, bytes(range(256)) * (size // 256))
            clients = [await asyncio.to_thread(Client, node, 1) for node in others]
            answers = await asyncio.gather(*(asyncio.to_thread(client.pull, source, location, size) for client in clients))
            for client, answer in zip(clients, answers, strict=True):
                assert answer.code == 0, answer.text
                view = memoryview(client.arena.get(answer.slot, answer.generation))
                assert bytes(view[:256]) == bytes(view[-256:]) == bytes(range(256))
            assert source.store.neighbours.pushed_bytes < count * size
            assert sum(node.store.neighbours.pushed_bytes for node in others) >= size
            for client in (owner, *clients):
                client.close()

    asyncio.run(main())


def test_a_node_that_was_named_and_has_dropped_its_copy_costs_a_question_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "LARGE_BYTES", 8 * MIB)
    monkeypatch.setattr(spread, "FAN_OUT", 1)
    monkeypatch.setattr(spread, "IDLE_S", 0.5)
    size = 16 * MIB

    async def main() -> None:
        async with nodes(tmp_path, 3, capacity=64 * MIB) as [source, first, second]:
            owner, one, two = [await asyncio.to_thread(Client, node, 1) for node in (source, first, second)]
            location = await asyncio.to_thread(owner.put, b"x" * size)
            answer = await asyncio.to_thread(one.pull, source, location, size)
            first.store.pulling.grace.end(1e18)
            one.arena.free(answer.slot, answer.generation)
            # Somebody else is being served, and asks for no more parts.
            origin = next(iter(source.store.neighbours._spread._objects))
            assert source.store.neighbours.turn(origin, size, b"z" * 16, "nobody:1") is None
            answer = await asyncio.to_thread(two.pull, source, location, size)
            assert answer.code == 0, answer.text
            assert len(two.arena.get(answer.slot, answer.generation)) == size
            for client in (owner, one, two):
                client.close()

    asyncio.run(main())


def paused(node: Node, monkeypatch: pytest.MonkeyPatch, after: int) -> tuple[threading.Event, threading.Event]:
    """(set once the node has brought so many parts, to be set so that it goes on)"""
    reached, go_on, count = threading.Event(), threading.Event(), itertools.count()
    assert node.store._peers is not None
    fetch = node.store._peers.fetch

    def slow(*args: Any) -> None:
        if next(count) >= after:
            reached.set()
            assert go_on.wait(30)
        fetch(*args)

    monkeypatch.setattr(node.store._peers, "fetch", slow)
    return reached, go_on


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "LARGE_BYTES", 8 * MIB)
    monkeypatch.setattr(spread, "FAN_OUT", 1)
    monkeypatch.setattr(spread, "IDLE_S", 60.0)
    monkeypatch.setattr(transfer, "PART_BYTES", MIB)


@contextlib.asynccontextmanager
async def half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes
) -> AsyncIterator[tuple[Node, Node, Client, Client, Location, asyncio.Task[Pulled], threading.Event]]:
    """One node has the value, another one half of it, a third nothing. Yields the first two, clients of the last two, where the value is, the pull of the
    second, and what lets that go on."""
    async with nodes(tmp_path, 3, capacity=64 * MIB) as [source, first, second]:
        owner, one, two = [await asyncio.to_thread(Client, node, 1) for node in (source, first, second)]
        location = await asyncio.to_thread(owner.put, value)
        half, go_on = paused(first, monkeypatch, after=8)
        bringing = asyncio.create_task(asyncio.to_thread(one.pull, source, location, len(value)))
        assert await asyncio.to_thread(half.wait, 30)
        yield source, first, one, two, location, bringing, go_on
        for client in (owner, one, two):
            client.close()


def test_a_node_serves_what_it_has_of_an_object_that_is_still_on_its_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    value = random.Random(1).randbytes(16 * MIB)

    async def main() -> None:
        async with half_way(tmp_path, monkeypatch, value) as (source, first, one, two, location, bringing, go_on):
            following = asyncio.create_task(asyncio.to_thread(two.pull, source, location, len(value)))
            await until(lambda: first.store.neighbours.pushed_bytes == 8 * MIB, "the second node to have what the first one has")
            assert not bringing.done()
            assert not following.done()
            go_on.set()
            for client, answer in ((one, await bringing), (two, await following)):
                assert answer.code == 0, answer.text
                assert memoryview(client.arena.get(answer.slot, answer.generation)) == value

    asyncio.run(main())


@pytest.mark.parametrize("sending", [False, True], ids=["while the next part is awaited", "in the middle of a part"])
def test_a_node_whose_own_transfer_fails_gives_nobody_wrong_bytes_and_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sending: bool) -> None:
    small_parts(monkeypatch)
    monkeypatch.setattr(spread, "IDLE_S", 0.5)
    value = random.Random(2).randbytes(16 * MIB)

    async def main() -> None:
        async with half_way(tmp_path, monkeypatch, value) as (source, first, _, two, location, bringing, go_on):
            [(room, parts)] = first.store.pulling._arriving.values()
            in_the_middle, failed = threading.Event(), threading.Event()
            send_file = Frames.send_file

            def over_what_was_given_up(frames: Frames, fd: int, offset: int, size: int) -> None:
                if sending and fd == first.store._arena_fd and not failed.is_set():
                    in_the_middle.set()
                    assert failed.wait(30)
                send_file(frames, fd, offset, size)

            monkeypatch.setattr(Frames, "send_file", over_what_was_given_up)
            following = asyncio.create_task(asyncio.to_thread(two.pull, source, location, len(value)))
            if sending:
                assert await asyncio.to_thread(in_the_middle.wait, 30)
            else:
                await until(lambda: first.store.neighbours.pushed_bytes == 8 * MIB, "the second node to have what the first one has")
            offset, size = first.store.keeper.store.location(*room)
            parts.give_up(source.node_id)
            go_on.set()
            assert (await bringing).code == Code.UNREACHABLE
            os.pwrite(first.store._arena_fd, bytes(size), offset)  # its room is for others now
            failed.set()
            answer = await asyncio.wait_for(following, 20)
            assert answer.code == 0, answer.text
            assert memoryview(two.arena.get(answer.slot, answer.generation)) == value

    asyncio.run(main())
