"""Copies whose owner never hears of them: the store dies between the copy's seal and its answer, or the asker dies before it has told. Bytes return to zero."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from shoal_base.frames import Type
from shoal_base.wire import Keep, Pull, Settled
from shoal_objectstore.pulling import IDLE_S
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, StoreProcess, nodes, started, until

SEALED = 19  # of shoal_arena.h: right after a seal
SIZE = 3 * MIB
# So that nothing but the round for what nobody may know of takes anything.
nodes = partial(nodes, spill=False)
pytestmark = pytest.mark.timeout(120)


def copies(node: Node) -> int:
    return node.store.pulling.copies.bytes


def grow_old(node: Node, by_s: int = IDLE_S) -> None:
    node.store.pulling.grace.end(1e18)
    for _ in range(by_s):
        node.store.keeper.store.tick()


async def goes(node: Node) -> None:
    """Once nobody has read it for long, and not before; then not a byte is left."""
    grow_old(node, IDLE_S // 2)
    node.store.pulling.look_round()
    assert copies(node) == SIZE, "not at once: somebody may read it"
    grow_old(node)
    await until(lambda: not node.store.keeper.store.copies() and not copies(node), "the copy is dropped")
    store = node.store.keeper.store
    await asyncio.to_thread(store.sweep)
    await asyncio.to_thread(store.sweep)
    assert await asyncio.to_thread(store.check) == []
    assert store.objects() == ([], 0)
    await until(lambda: store.resident_bytes == store.free_warm_bytes, "its pages are free")
    store.trim(0)
    assert store.file_resident_bytes == 0


async def killed_with_a_sealed_copy(here: Node, there: Node, location: tuple[int, int]) -> None:
    """The store of `here` is a process now that dies between the copy's seal and the answer; its successor is in this process."""
    process = StoreProcess(here, point=SEALED)
    await asyncio.to_thread(process.wait)
    asker = await asyncio.to_thread(Client, here, 5)
    with pytest.raises((EOFError, OSError)):
        await asyncio.to_thread(asker.pull, there, location, SIZE)
    asker.close()
    assert await asyncio.to_thread(process.process.wait, 20) == -9
    await started(here)


def test_a_copy_whose_store_died_before_it_answered_goes(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [there]:
            here = Node(2, tmp_path, 64 * MIB)
            await here.raylet.start()
            owner = await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(owner.put, bytes(SIZE))
            await killed_with_a_sealed_copy(here, there, location)
            assert copies(here) == SIZE, "its successor knows a copy when it sees one"
            await goes(here)
            owner.close()
            await here.close()

    asyncio.run(main())


def test_a_copy_from_disk_whose_store_died_before_it_answered_goes(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(1, tmp_path, 64 * MIB)
        await node.start()
        owner = await asyncio.to_thread(Client, node, 1)
        location = await asyncio.to_thread(owner.put, b"d" * SIZE)
        async with node.stub() as stub:
            await stub.Spill(pb.SpillRequest(bytes=SIZE))
        await node.store.close()
        owner.close()
        await killed_with_a_sealed_copy(node, node, location)
        await goes(node)
        reader = await asyncio.to_thread(Client, node, 2)
        assert bytes(await asyncio.to_thread(reader.read, node, location, SIZE)) == b"d" * SIZE, "the object is still on disk"
        reader.close()
        await node.close()

    asyncio.run(main())


def test_an_adopted_copy_makes_room_at_once_and_is_not_spilled(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [there]:
            here = Node(2, tmp_path, 8 * MIB, full_wait_s=5.0)
            await here.raylet.start()
            owner = await asyncio.to_thread(Client, there, 1)
            await killed_with_a_sealed_copy(here, there, await asyncio.to_thread(owner.put, bytes(SIZE)))
            here.store.pulling.grace.end(1e18)
            writer = await asyncio.to_thread(Client, here, 2)
            assert (await asyncio.to_thread(writer.extent, 6 * MIB)).code == 0
            assert copies(here) == here.store.figures()["spilled"] == 0
            writer.close()
            owner.close()
            await here.close()

    asyncio.run(main())


@pytest.mark.parametrize("when", ["while it comes", "before it tells"])
def test_a_copy_whose_asker_died_goes(tmp_path: Path, when: str) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner, asker = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, bytes(SIZE))
            if when == "before it tells":
                assert (await asyncio.to_thread(asker.pull, there, location, SIZE)).code == 0
            else:
                asker.frames.send(Type.PULL, Pull(1, bytes(20), SIZE, there.node_id, *location, there.raylet.address).pack())
            asker.close()
            await until(lambda: copies(here) == SIZE and here.store.pulling.copies.doubtful, "nobody may know of it")
            owner.free(there, location)
            await goes(here)
            assert here.store.figures()["copies_forgotten"] == 1
            owner.close()

    asyncio.run(main())


def test_a_copy_whose_asker_lives_stays_however_long_nobody_reads_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner, asker = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, bytes(SIZE))
            assert (await asyncio.to_thread(asker.pull, there, location, SIZE)).code == 0
            grow_old(here, 100 * IDLE_S)
            here.store.pulling.look_round()
            assert copies(here) == SIZE
            asker.close()
            owner.close()

    asyncio.run(main())


def test_what_somebody_reads_of_a_predecessors_copies_stays_until_it_is_read_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [there]:
            here = Node(2, tmp_path, 64 * MIB)
            await here.start()
            owner, reader = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            copy = await asyncio.to_thread(reader.pull, there, await asyncio.to_thread(owner.put, bytes(SIZE)), SIZE)
            view = reader.arena.get(copy.slot, copy.generation)
            await here.store.close()
            await started(here)
            grow_old(here)
            here.store.pulling.look_round()
            assert copies(here) == len(view) == SIZE
            del view
            await until(lambda: not copies(here), "it is dropped in the next round")
            reader.close()
            owner.close()
            await here.close()

    asyncio.run(main())


def test_a_copy_that_became_the_primary_one_stays_through_the_stores_death(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [there]:
            here = Node(2, tmp_path, 64 * MIB)
            await here.start()
            owner, keeper = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            copy = await asyncio.to_thread(keeper.pull, there, await asyncio.to_thread(owner.put, b"k" * SIZE), SIZE)
            keeper.frames.send(Type.KEEP, Keep(here.node_id, ((copy.slot, copy.generation),), number=4).pack())
            assert Settled.unpack((await asyncio.to_thread(keeper.frames.expect, Type.SETTLED))[0]).number == 4
            assert copies(here) == 0
            await here.store.close()
            keeper.close()
            await started(here)
            grow_old(here)
            here.store.pulling.look_round()
            assert copies(here) == here.store.pulling.drop_copies(1 << 40) == 0
            assert bytes(keeper.arena.get(copy.slot, copy.generation)) == b"k" * SIZE
            keeper.arena.free(copy.slot, copy.generation)
            owner.close()
            await here.close()

    asyncio.run(main())


def test_a_slots_next_object_does_not_inherit_that_it_is_primary(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 1) as [node]:
            store, own = node.store.keeper.store, node.store.keeper.own
            first = (await node.store.keeper.create(SIZE)).seal()
            store.make_primary(*first)
            assert store.copies() == {}
            own.free(*first)
            await asyncio.to_thread(store.sweep)
            second = (await node.store.keeper.create(SIZE)).seal()
            assert second[0] == first[0], "the slot is taken again"
            store.make_primary(*first)
            assert store.copies() == {second: SIZE}, "nor do late words about the first one count"
            own.free(*second)

    asyncio.run(main())
