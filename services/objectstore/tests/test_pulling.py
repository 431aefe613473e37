"""What a puller is told when the moment is a bad one: an object that lives is never said to be gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from shoal_base.errors import Code
from shoal_objectstore._arena import NoSlot
from shoal_objectstore.pulls import MAX_RUNNING, Origin
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, nodes

pytestmark = pytest.mark.timeout(60)
SIZE = MIB


async def on_disk(node: Node, client: Client, count: int = 1) -> list[tuple[int, int]]:
    put = [await asyncio.to_thread(client.put, bytes([n]) * SIZE) for n in range(count)]
    async with node.stub() as stub:
        await stub.Spill(pb.SpillRequest(bytes=count * SIZE))
    assert node.store.spiller is not None
    assert all(node.store.spiller.evicted(location) for location in put)
    return put


def test_another_store_that_asks_while_an_object_goes_to_disk_is_not_told_that_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slot is taken by then, and the books say where it is a moment later; they are the loop's, and another store's questions are answered by threads."""

    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner, asker = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            [location] = await on_disk(there, owner)
            spiller, loop = there.store.spiller, threading.current_thread()
            assert spiller is not None
            known = spiller.evicted
            monkeypatch.setattr(spiller, "evicted", lambda at: known(at) if threading.current_thread() is loop else None)
            answer = await asyncio.to_thread(asker.pull, there, location, SIZE)
            assert answer.code == 0, answer.text
            owner.close()
            asker.close()

    asyncio.run(main())


def test_what_was_read_from_disk_for_another_store_and_dropped_again_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner, asker = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            [location] = await on_disk(there, owner)
            neighbours, pin, dropped = there.store.neighbours, there.store.neighbours._pin, []

            def late(slot: int, generation: int) -> Any:
                if (slot, generation) != location and not dropped:
                    dropped.append((slot, generation))
                    there.store.keeper.own.free(slot, generation)
                    return None
                return pin(slot, generation)

            monkeypatch.setattr(neighbours, "_pin", late)
            answer = await asyncio.to_thread(asker.pull, there, location, SIZE)
            assert answer.code == 0, answer.text
            assert dropped
            assert there.store.figures()["restored"] == 2
            owner.close()
            asker.close()

    asyncio.run(main())


def test_a_table_without_a_free_slot_is_an_error_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("shoal_objectstore.join.DEFAULT_MAX_SLOTS", 4096)
        async with nodes(tmp_path, 2, spill=False) as [here, there]:
            owner, asker = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, bytes(SIZE))

            def fill() -> None:
                while True:
                    asker.put(b"")

            with pytest.raises(NoSlot):
                await asyncio.to_thread(fill)
            answer = await asyncio.to_thread(asker.pull, there, location, SIZE)
            assert answer.code == Code.ARENA_FULL, answer.text
            assert "all slots of the arena are taken" in answer.text
            owner.close()
            asker.close()

    asyncio.run(main())


def test_a_store_that_ends_answers_who_waits_and_breaks_over_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Objects come from disk, more wait for their turn, and for each of them others have to go to disk."""

    async def main() -> None:
        node = await Node(1, tmp_path, 16 * MIB).start()
        client = await asyncio.to_thread(Client, node, 1)
        put = [await asyncio.to_thread(client.put, bytes([n]) * SIZE) for n in range(3 * MAX_RUNNING)]
        spiller = node.store.spiller
        assert spiller is not None
        asked = [asyncio.create_task(node.store.pulling.pull(Origin(node.node_id, *at), bytes(20), SIZE, "")) for at in put if spiller.evicted(at)]
        assert len(asked) > MAX_RUNNING
        await asyncio.sleep(0)
        assert node.store.pulling.pulls.queued
        await node.store.close()
        answers = await asyncio.wait_for(asyncio.gather(*asked), 20)
        assert {answer.code for answer in answers} <= {Code.OK, Code.SHUTTING_DOWN}
        assert Code.SHUTTING_DOWN in {answer.code for answer in answers}
        client.close()
        await node.raylet.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == []
