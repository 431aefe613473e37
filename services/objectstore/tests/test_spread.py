"""Many readers of one object are a tree: first what is decided, then stores that do it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shoal_objectstore import spread
from shoal_objectstore.spread import FAN_OUT, IDLE_S, LARGE_BYTES, Elsewhere, Spread, Wait
from store_node import MIB, Client, nodes

pytestmark = pytest.mark.timeout(90)
SIZE = LARGE_BYTES


def reader(n: int) -> tuple[bytes, str]:
    return n.to_bytes(16, "big"), f"host:{n}"


def test_a_few_read_at_once_and_the_next_ones_where_the_first_have_it() -> None:
    state = Spread()
    for n in range(FAN_OUT):
        assert state.ask("object", SIZE, *reader(n), 0.0) is None
    assert state.ask("object", SIZE, *reader(9), 0.0) == Wait()
    assert state.ask("object", SIZE, *reader(0), 0.1) is None  # its next part
    for _ in range(2):
        state.brought("object", SIZE, reader(0)[0], SIZE // 2)
    assert state.ask("object", SIZE, *reader(9), 0.2) is None  # the place of the first one is free
    assert state.ask("object", SIZE, *reader(10), 0.2) == Elsewhere("host:0")


def test_those_who_have_it_are_named_in_turn_and_nobody_to_itself() -> None:
    state = Spread()
    for n in range(2):
        state.ask("object", SIZE, *reader(n), 0.0)
        state.brought("object", SIZE, reader(n)[0], SIZE)
    for n in range(10, 10 + FAN_OUT):
        assert state.ask("object", SIZE, *reader(n), 0.0) is None
    assert [state.ask("object", SIZE, *reader(20), 0.0) for _ in range(3)] == [Elsewhere("host:0"), Elsewhere("host:1"), Elsewhere("host:0")]
    assert [state.ask("object", SIZE, *reader(1), 0.0) for _ in range(2)] == [Elsewhere("host:0")] * 2


def test_a_reader_that_asks_no_more_makes_place() -> None:
    state = Spread()
    for n in range(FAN_OUT):
        state.ask("object", SIZE, *reader(n), 0.0)
    state.brought("object", SIZE, reader(1)[0], 1000)
    assert state.ask("object", SIZE, *reader(9), IDLE_S - 0.1) == Wait()
    for n in range(9, 9 + FAN_OUT):
        assert state.ask("object", SIZE, *reader(n), IDLE_S + 0.1) is None
    assert state.ask("object", SIZE, *reader(20), IDLE_S + 0.1) == Elsewhere("host:1")  # it had begun, so it may have the rest from elsewhere


def test_small_objects_and_readers_that_serve_nobody_are_served_at_once() -> None:
    state = Spread()
    assert all(state.ask("object", SIZE - 1, *reader(n), 0.0) is None for n in range(50))
    assert all(state.ask("object", SIZE, reader(n)[0], "", 0.0) is None for n in range(50))


def test_what_is_remembered_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "MAX_OBJECTS", 3)
    monkeypatch.setattr(spread, "MAX_HOLDERS", 2)
    state = Spread()
    for key in range(10):
        for n in range(5):
            state.ask(key, SIZE, *reader(n), 0.0)
            state.brought(key, SIZE, reader(n)[0], SIZE)
    assert len(state._objects) == 3
    assert all(len(known.holders) == 2 and not known.readers for known in state._objects.values())


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
