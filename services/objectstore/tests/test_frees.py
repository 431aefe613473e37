"""Ends of objects: dead owners, frees that a killed store did not do, copies that become primary ones. The whole service beside a fake raylet."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path

import pytest
from shoal_base.frames import Type
from shoal_base.wire import Free, Keep, NodeDied, Settled, WorkerDied
from shoal_objectstore import Arena, ObjectGone, Store, create_arena, frees
from shoal_objectstore.server import ObjectStore
from store_node import MIB, Client, Node, until
from store_node import nodes as any_nodes

pytestmark = pytest.mark.timeout(60)
WORKER, OTHER = b"w" * 16, b"o" * 16
FAR = b"f" * 16
SIZE = 300_000
nodes = partial(any_nodes, owner_grace_s=0.1)


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frees, "ROUND_S", 0.05)


def worker_died(node: Node, worker: bytes, of: bytes | None = None) -> None:
    node.raylet.conns[-1].send(Type.WORKER_DIED, WorkerDied(worker, of or node.node_id, bytes(16), 1, "killed").pack())


def node_died(node: Node, dead: bytes) -> None:
    node.raylet.conns[-1].send(Type.NODE_DIED, NodeDied(dead, "no heartbeat").pack())


def sealed(node: Node, *locations: tuple[int, int]) -> list[bool]:
    return node.store.keeper.store.sealed(locations)


def free_space(arena: Arena, store: Store) -> None:
    arena.add_extent(_lend(store))


def _lend(store: Store) -> int:
    extent = store.reserve(2 * MIB)
    store.lend_extent(extent, 1)
    return extent


# -- the arena's part ---------------------------------------------------------------------------------


def test_an_object_has_the_owner_that_was_said_before_it_was_sealed_and_its_slot_keeps_nothing_of_it() -> None:
    store = Store(create_arena(8 * MIB, 8, 4096))
    one = Arena(store.fd, 1)
    free_space(one, store)
    owned, unowned = one.put(b"x", WORKER + FAR), one.put(b"y")
    assert store.owner(*owned) == WORKER + FAR
    assert store.owner(*unowned) == bytes(32)
    one.free(*owned)
    with pytest.raises(ObjectGone):
        store.owner(owned[0], owned[1] + 1)
    slots = [one.put(b"z") for _ in range(4)]
    assert owned[0] in [slot for slot, _ in slots]
    assert all(store.owner(*at) == bytes(32) for at in slots)


def test_an_owner_takes_32_bytes_and_is_said_before_the_end_of_writing() -> None:
    store = Store(create_arena(8 * MIB, 8, 4096))
    one = Arena(store.fd, 1)
    free_space(one, store)
    writable = one.create(10)
    with pytest.raises(ValueError, match="32 bytes, got 3"):
        writable.own(b"abc")
    writable.seal()
    with pytest.raises(Exception, match="not in the state"):
        writable.own(WORKER + FAR)


def test_only_what_the_dead_owned_is_freed_and_only_when_nobody_pins_it() -> None:
    store = Store(create_arena(8 * MIB, 8, 4096))
    one = Arena(store.fd, 1)
    free_space(one, store)
    by_worker = [one.put(bytes([n]) * 2000, WORKER + OTHER) for n in range(3)]
    by_node = one.put(b"n" * 2000, OTHER + FAR)
    nobodys, others = one.put(b"a" * 2000), one.put(b"b" * 2000, OTHER + OTHER)
    being_written = one.create(2000)
    being_written.own(WORKER + OTHER)
    pin = one.get(*by_worker[0])
    assert store.free_owned([b"z" * 16, WORKER], [FAR, b"y" * 16]) == (3, 6000)
    assert store.sealed([*by_worker, by_node, nobodys, others]) == [True, False, False, False, True, True]
    assert bytes(memoryview(pin)[:1]) == b"\0"
    assert store.free_owned([WORKER], [FAR]) == (0, 0)
    del pin
    assert store.free_owned([WORKER], []) == (1, 2000)
    being_written.seal()
    assert store.free_owned([WORKER], []) == (1, 2000)
    store.sweep(0)
    assert store.check() == []


# -- the service ----------------------------------------------------------------------------------------


def test_what_a_dead_process_owned_goes_and_what_others_owned_or_hold_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            mine = node.node_id
            dead = [await asyncio.to_thread(one.put, b"d" * SIZE, WORKER + mine) for _ in range(3)]
            held = await asyncio.to_thread(one.put, b"h" * SIZE, WORKER + mine)
            elsewhere = await asyncio.to_thread(one.put, b"e" * SIZE, OTHER + FAR)
            kept = await asyncio.to_thread(one.put, b"k" * SIZE, OTHER + mine)
            view = memoryview(one.arena.get(*held))
            worker_died(node, WORKER)
            await until(lambda: not any(sealed(node, *dead)), "the dead one's objects are gone")
            assert sealed(node, held, elsewhere, kept) == [True, True, True]
            assert bytes(memoryview(one.arena.get(*held))[:1]) == b"h"
            node_died(node, FAR)
            await until(lambda: not any(sealed(node, elsewhere)), "its node died")
            view.release()
            del view
            gc.collect()
            await until(lambda: not any(sealed(node, held)), "nobody holds it any more")
            assert sealed(node, kept) == [True]
            await until(lambda: node.store.figures()["orphans"] == 5, "they are counted, a moment after they are gone")
            one.close()

    asyncio.run(main())


def test_what_a_dead_process_had_on_disk_goes_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            await asyncio.to_thread(lambda: [one.put(bytes([n]) * (3 * MIB), WORKER + node.node_id) for n in range(14)])
            others = await asyncio.to_thread(one.put, b"o" * MIB, OTHER + node.node_id)
            assert node.store.figures()["on_disk"] > 0
            worker_died(node, WORKER)
            spiller = node.store.spiller
            assert spiller is not None
            await until(lambda: node.store.figures()["on_disk_bytes"] + node.store.figures()["clean_bytes"] <= MIB, "files are gone", 20)
            await until(lambda: spiller.disk.disk_bytes <= MIB, "their space is free", 20)
            assert bytes(await asyncio.to_thread(one.read, node, others, MIB))[:1] == b"o"
            one.close()

    asyncio.run(main())


def test_a_copy_goes_with_the_owner_of_what_it_is_a_copy_of(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            one, far = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(far.put, b"c" * SIZE, WORKER + here.node_id)
            answer = await asyncio.to_thread(one.pull, there, location, SIZE, WORKER + here.node_id)
            copy = (answer.slot, answer.generation)
            assert here.store.keeper.store.owner(*copy) == WORKER + here.node_id
            here.store.pulling.grace.end(1e18)
            for node in (here, there):
                worker_died(node, WORKER, of=here.node_id)
            await until(lambda: not any(sealed(here, copy)) and not any(sealed(there, location)), "both are gone")
            one.close()
            far.close()

    asyncio.run(main())


def test_a_store_that_begins_anew_learns_of_the_dead_and_knows_the_owners_of_what_is_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put_there = await asyncio.to_thread(lambda: [one.put(bytes([n]) * (3 * MIB), WORKER + node.node_id) for n in range(14)])
            before = node.store.figures()["on_disk"]
            assert before
            one.frames.close()
            await node.store.close()
            node.store = ObjectStore(node.config)
            await node.store.start()
            assert node.store.figures()["on_disk"] >= before
            worker_died(node, WORKER)
            await until(lambda: not any(sealed(node, *put_there)) and not node.store.figures()["on_disk"], "all is gone", 20)

    asyncio.run(main())


def test_a_free_is_done_when_it_is_certain(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=32 * MIB) as [here, there]:
            one, far = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            places = await asyncio.to_thread(lambda: [far.put(bytes([n]) * (3 * MIB)) for n in range(14)])
            spiller = there.store.spiller
            assert spiller is not None
            on_disk = next(at for at in places if spiller.evicted(at))
            in_memory = next(at for at in places if sealed(there, at) == [True])

            def free_from_there(number: int, location: tuple[int, int]) -> None:
                one.frames.send(Type.FREE, Free(there.node_id, (location,), there.raylet.address, number).pack())
                assert Settled.unpack(one.frames.expect(Type.SETTLED)[0]).number == number

            await asyncio.to_thread(free_from_there, 7, in_memory)
            assert sealed(there, in_memory) == [False]
            await asyncio.to_thread(free_from_there, 8, on_disk)
            assert spiller.evicted(on_disk) is None
            assert all(r.location != on_disk for d in spiller.disk.directories for r in d.recover())
            await asyncio.to_thread(free_from_there, 9, on_disk)  # once more: no harm
            one.close()
            far.close()

    asyncio.run(main())


def test_frees_wait_for_a_node_that_does_not_answer_and_end_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            nobody = "127.0.0.1:1"
            one.frames.send(Type.FREE, Free(FAR, ((1, 1),), nobody, 5).pack())
            await until(lambda: node.store.figures()["told_elsewhere"] == 1, "it waits")
            node_died(node, FAR)
            done = await asyncio.to_thread(one.frames.expect, Type.SETTLED)
            assert Settled.unpack(done[0]).number == 5
            assert node.store.figures()["told_elsewhere"] == 0
            one.close()

    asyncio.run(main())


def test_what_is_meant_for_a_node_that_had_this_address_before_does_no_harm(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            one, far = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(far.put, b"x" * SIZE)
            one.frames.send(Type.FREE, Free(FAR, (location,), there.raylet.address, 5).pack())
            assert Settled.unpack((await asyncio.to_thread(one.frames.expect, Type.SETTLED))[0]).number == 5
            assert sealed(there, location) == [True]
            ghost = type("Ghost", (), {"node_id": FAR, "raylet": there.raylet})
            answer = await asyncio.to_thread(one.pull, ghost, location, SIZE)  # type: ignore[arg-type]
            assert answer.code == 43  # OBJECT_FREED, and not another object's bytes
            one.close()
            far.close()

    asyncio.run(main())


@pytest.mark.parametrize("by_another_node", [False, True])
def test_a_copy_that_became_the_primary_one_goes_to_disk_instead_of_being_dropped(tmp_path: Path, by_another_node: bool) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=32 * MIB) as [here, there]:
            one, far = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            size = 3 * MIB
            locations = [await asyncio.to_thread(far.put, bytes([n]) * size) for n in range(2)]
            copies = []
            for location in locations:
                answer = await asyncio.to_thread(one.pull, there, location, size)
                copies.append((answer.slot, answer.generation))
            here.store.pulling.grace.end(1e18)
            teller, address = (far, here.raylet.address) if by_another_node else (one, "")
            teller.frames.send(Type.KEEP, Keep(here.node_id, (copies[0],), address, 3).pack())
            assert Settled.unpack((await asyncio.to_thread(teller.frames.expect, Type.SETTLED))[0]).number == 3
            await asyncio.to_thread(lambda: [one.put(b"f" * size) for _ in range(12)])
            assert bytes(await asyncio.to_thread(one.read, here, copies[0], size))[:1] == b"\0"
            assert sealed(here, copies[1]) == [False]
            assert here.store.spiller is not None
            assert here.store.spiller.evicted(copies[1]) is None
            one.close()
            far.close()

    asyncio.run(main())
