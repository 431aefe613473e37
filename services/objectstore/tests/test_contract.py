"""Every verb of the contract, on the whole service: what it does, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from shoal_objectstore._arena import Arena, ObjectGone
from shoal_objectstore.events import MAX_SUBSCRIBERS, MAX_WAITING, Event, Kind, Subscriptions
from shoal_objectstore.rpc import _FIGURES, _STATS, render_metrics
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, nodes, until

pytestmark = pytest.mark.timeout(90)
README = Path(__file__).parents[1] / "README.md"


def at(node: Node, location: tuple[int, int]) -> Any:
    return pb.Location(object_id=bytes(20), node_id=node.node_id, slot=location[0], generation=location[1])


def place(location: Any) -> tuple[int, int]:
    return location.slot, location.generation


async def spilled(node: Node, client: Client, count: int = 6) -> list[tuple[int, int]]:
    put = [await asyncio.to_thread(client.put, bytes([n]) * (3 * MIB)) for n in range(count)]
    await asyncio.to_thread(node.store.keeper.store.sweep)
    assert node.store.spiller is not None
    assert await node.store.spiller.make_room(9 * MIB, 9 * MIB) == ""
    return [location for location in put if node.store.spiller.evicted(location)]


def test_every_verb_is_served_and_told_in_the_readme() -> None:
    verbs = [method.name for method in pb.DESCRIPTOR.services_by_name["ObjectStore"].methods]
    assert set(verbs) >= {"Stats", "List", "Pull", "Push", "Free", "Pin", "Spill", "Restore", "Subscribe"}
    text = README.read_text()
    assert [verb for verb in verbs if f"`{verb}`" not in text] == []


def test_push_has_another_store_fetch_a_copy(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner = await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, b"p" * MIB)
            async with here.stub() as stub:
                copy = await stub.Push(pb.PushRequest(object=at(here, location), to=there.raylet.address))
                assert bytes(memoryview(Arena(there.raylet.arena, 2).get(*place(copy)))) == b"p" * MIB
                again = await stub.Push(pb.PushRequest(object=at(here, location), to=there.raylet.address))
                assert place(again) == place(copy), "what is there is not sent again"
                assert (here.store.neighbours.pushed, there.store.pulling.pulled) == (1, 1)
                with pytest.raises(grpc.aio.AioRpcError, match="there is no object here in slot 7 generation 99"):
                    await stub.Push(pb.PushRequest(object=at(here, (7, 99)), to=there.raylet.address))
                with pytest.raises(grpc.aio.AioRpcError, match=r"the store at 127\.0\.0\.1:1"):
                    await stub.Push(pb.PushRequest(object=at(here, location), to="127.0.0.1:1"))
            owner.close()

    asyncio.run(main())


def test_push_sends_what_is_on_disk_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=64 * MIB) as [here, there]:
            owner = await asyncio.to_thread(Client, here, 1)
            gone = await spilled(here, owner)
            async with here.stub() as stub:
                copy = await stub.Push(pb.PushRequest(object=at(here, gone[0]), to=there.raylet.address))
                assert copy.size_bytes == len(memoryview(Arena(there.raylet.arena, 2).get(*place(copy)))) == 3 * MIB
            owner.close()

    asyncio.run(main())


def test_restore_reads_objects_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            gone = await spilled(node, one)
            assert len(gone) >= 2
            with pytest.raises(ObjectGone):
                one.arena.get(*gone[0])
            async with node.stub() as stub:
                reply = await stub.Restore(pb.RestoreRequest(objects=[at(node, g) for g in gone]))
                assert [len(memoryview(one.arena.get(*place(p)))) for p in reply.objects] == [3 * MIB] * len(gone)
                assert node.store.figures()["restored"] == len(gone)
                await asyncio.to_thread(one.free, node, gone[0])
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.Restore(pb.RestoreRequest(objects=[at(node, gone[0])]))
                assert raised.value.code() == grpc.StatusCode.NOT_FOUND
            one.close()

    asyncio.run(main())


def test_pin_keeps_objects_in_memory_while_the_call_lasts(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            gone = await spilled(node, one)
            here = await asyncio.to_thread(one.put, b"h" * MIB)
            async with node.stub() as stub:
                call = stub.Pin(pb.PinRequest(objects=[at(node, gone[0]), at(node, here)]))
                pinned = [place(p) for p in (await call.read()).objects]
                assert pinned[1] == here and pinned[0] != gone[0], "what was on disk lies in another slot"
                await asyncio.to_thread(one.free, node, here)
                node.store.pulling.grace.end(1e18)
                assert node.store.pulling.drop_copies(1 << 40) == 0, "nor is the copy dropped"
                stats = await asyncio.to_thread(node.store.keeper.store.sweep)
                assert (stats["doomed"], stats["doomed_bytes"]) == (1, MIB), "freed, and there until the call ends"
                call.cancel()
                sweep = node.store.keeper.store.sweep
                await until(lambda: sweep()["doomed"] == 0, "the pin goes with the call")
                assert node.store.pulling.drop_copies(1 << 40) == 1
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.Pin(pb.PinRequest(objects=[at(node, here)])).read()
                assert raised.value.code() == grpc.StatusCode.NOT_FOUND
            one.close()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def subscribed(stub: Any, *kinds: int, interval_ms: int = 50) -> AsyncIterator[Any]:
    call = stub.Subscribe(pb.SubscribeRequest(kinds=kinds, interval_ms=interval_ms))
    first = await call.read()
    assert (len(first.events), first.lost) == (0, 0)
    yield call
    call.cancel()


async def told(call: Any, count: int) -> list[tuple[int, tuple[int, int], int]]:
    events: list[Any] = []
    async with asyncio.timeout(30):
        while len(events) < count:
            events += (await call.read()).events
    assert len(events) == count
    return [(e.kind, (e.slot, e.generation), e.size_bytes) for e in events]


def test_subscribers_are_told_what_is_sealed_and_freed(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            before = await asyncio.to_thread(one.put, b"b" * 150_000)
            async with node.stub() as stub, subscribed(stub, pb.SEALED, pb.FREED) as call, subscribed(stub, pb.FREED) as frees:
                await until(lambda: node.store.subscriptions._seen is not None, "the first look")
                put = await asyncio.to_thread(one.put, b"n" * 200_000)
                assert await told(call, 1) == [(pb.SEALED, put, 200_000)]
                await asyncio.to_thread(one.free, node, put)
                assert await told(call, 1) == [(pb.FREED, put, 200_000)]
                await asyncio.to_thread(one.free, node, before)
                assert await told(call, 1) == [(pb.FREED, before, 150_000)]
                assert [e[1] for e in await told(frees, 2)] == [put, before]
            await until(lambda: len(node.store.subscriptions) == 0, "who leaves is forgotten")
            one.close()

    asyncio.run(main())


def test_subscribers_are_told_what_goes_to_disk_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=64 * MIB) as [node, other]:
            one, reader = await asyncio.to_thread(Client, node, 1), await asyncio.to_thread(Client, other, 1)
            async with node.stub() as stub, other.stub() as far, subscribed(stub) as call, subscribed(far, pb.PULLED) as pulls:
                await until(lambda: node.store.subscriptions._seen is not None, "the first look")
                put = [await asyncio.to_thread(one.put, bytes([n]) * (3 * MIB)) for n in range(6)]
                assert sorted(await told(call, 6)) == sorted((pb.SEALED, location, 3 * MIB) for location in put)
                spiller = node.store.spiller
                assert spiller is not None
                assert await spiller.make_room(9 * MIB, 9 * MIB) == ""
                gone = [location for location in put if spiller.evicted(location)]
                assert sorted(await told(call, len(gone))) == sorted((pb.SPILLED, location, 3 * MIB) for location in gone)
                await asyncio.to_thread(one.read, node, gone[0], 3 * MIB)
                [(kind, location, size), sealed] = sorted(await told(call, 2), reverse=True)
                assert (kind, location, size, sealed[0]) == (pb.RESTORED, gone[0], 3 * MIB, pb.SEALED)
                await asyncio.to_thread(one.free, node, gone[1])
                assert await told(call, 1) == [(pb.FREED, gone[1], 3 * MIB)]
                assert (await asyncio.to_thread(reader.pull, node, gone[0], 3 * MIB)).code == 0
                assert await told(pulls, 1) == [(pb.PULLED, gone[0], 3 * MIB)]
            one.close()
            reader.close()

    asyncio.run(main())


def test_a_kind_of_event_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node], node.stub() as stub:
            with pytest.raises(grpc.aio.AioRpcError, match=r"event kinds \[99\]: 1 SEALED, ") as raised:
                await stub.Subscribe(pb.SubscribeRequest(kinds=[pb.FREED, 99])).read()
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert len(node.store.subscriptions) == 0

    asyncio.run(main())


# -- the queues, without I/O --------------------------------------------------------------------------------


def drained(subscription: Any) -> list[Event]:
    events, lost = subscription.take(MAX_WAITING)
    assert lost == 0
    return events  # type: ignore[no-any-return]


def test_a_subscriber_that_takes_nothing_loses_events_and_is_told_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.events.MAX_WAITING", 3)
    woken = []
    all_ = Subscriptions()
    slow, quick = all_.add([], lambda: woken.append(1)), all_.add([], lambda: None)
    assert slow is not None and quick is not None
    for n in range(5):
        all_.publish(Kind.PULLED, (n, 1))
        assert [e.slot for e in drained(quick)] == [n]
    assert len(woken) == 5
    assert ([e.slot for e in slow.take(2)[0]], slow.waiting) == ([0, 1], True)
    all_.publish(Kind.PULLED, (9, 1))  # in the gap, though there is room: one gap, not many
    events, lost = slow.take(2)
    assert ([e.slot for e in events], lost, slow.waiting) == ([2], 3, False)
    all_.publish(Kind.PULLED, (10, 1))
    assert [e.slot for e in drained(slow)] == [10]


def test_two_looks_tell_what_was_sealed_and_freed_and_not_what_was_spilled() -> None:
    all_ = Subscriptions()
    one = all_.add([], lambda: None, 0.5)
    assert one is not None
    all_.begin_to_look()
    all_.look({(1, 1): 10, (2, 1): 20})
    assert drained(one) == [], "what was there before is no event"
    all_.publish(Kind.SPILLED, (2, 1), 20, "file")
    all_.begin_to_look()
    all_.publish(Kind.SPILLED, (3, 1), 30, "file")  # after its slot was looked at
    all_.look({(1, 2): 11, (3, 1): 30})
    assert [(e.kind, e.slot, e.generation) for e in drained(one)] == [
        (Kind.SPILLED, 2, 1), (Kind.SPILLED, 3, 1), (Kind.SEALED, 1, 2), (Kind.FREED, 1, 1),
    ]  # fmt: skip


def test_nobody_looks_when_nobody_wants_to_know_and_the_shortest_interval_holds() -> None:
    all_ = Subscriptions()
    assert all_.interval_s is None
    spills = all_.add([Kind.SPILLED], lambda: None, 0.1)
    assert all_.interval_s is None
    slow, quick = all_.add([Kind.FREED], lambda: None, 2.0), all_.add([], lambda: None, 0.5)
    assert all_.interval_s == 0.5
    for one in (quick, slow, spills):
        assert one is not None
        all_.remove(one)
    assert (all_.interval_s, len(all_)) == (None, 0)
    for _ in range(MAX_SUBSCRIBERS):
        assert all_.add([], lambda: None)
    assert all_.add([], lambda: None) is None


# -- figures ------------------------------------------------------------------------------------------------

# What is to be seen of a store: bytes by state, reads without copy and by transfer, spilled, restored, waiting puts, fragmentation, the warm reserve.
WANTED = {
    "sealed_bytes", "created_bytes", "doomed_bytes", "copies_bytes", "clean_bytes", "on_disk_bytes", "gets", "pulled", "pulled_bytes", "spilled_bytes",
    "restored_bytes", "waiting", "fragmentation", "free_warm_bytes", "remote_file_bytes",
}  # fmt: skip


def test_every_figure_is_in_the_metrics_with_its_meaning_and_in_the_readme(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            figures = node.store.figures()
            text = render_metrics(figures)
            for name, (kind, meaning) in _FIGURES.items():
                full = f"shoal_objectstore_{name}" + ("_total" if kind == "counter" else "")
                assert f"# HELP {full} {meaning}\n# TYPE {full} {kind}\n{full} {figures[name]}\n" in text
            assert {name for name in WANTED if f"\nshoal_objectstore_{name}" not in text} == set()
            readme = README.read_text()
            assert {name for name in WANTED if f"`{name}`" not in readme and f"`{name}_total`" not in readme} == set()
            assert set(_STATS) <= set(figures)

    asyncio.run(main())


def test_figures_say_what_happened(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=64 * MIB, warm_bytes=8 * MIB) as [node, other]:
            one, reader = await asyncio.to_thread(Client, node, 1), await asyncio.to_thread(Client, other, 1)
            gone = await spilled(node, one)
            await asyncio.to_thread(one.read, node, gone[0], 3 * MIB)
            assert (await asyncio.to_thread(reader.pull, node, gone[1], 3 * MIB)).code == 0
            one.arena.add_extent((await asyncio.to_thread(one.extent, 100_000)).extent)
            unsealed = one.arena.create(100_000)
            here = await asyncio.to_thread(one.put, b"h" * MIB)
            view = memoryview(one.arena.get(*here))
            one.arena.free(*here)
            node.store.keeper.stats = await asyncio.to_thread(node.store.keeper.store.sweep)
            f, g = node.store.figures(), other.store.figures()
            assert (f["created_bytes"], f["doomed_bytes"]) == (100_000, MIB)
            assert f["on_disk_bytes"] == 3 * MIB * len(gone)
            assert f["copies_bytes"] == f["restored_bytes"] == 6 * MIB
            assert f["gets"] >= 2 and f["get_bytes"] >= 4 * MIB
            assert (f["pushed_bytes"], g["pulled_bytes"]) == (3 * MIB, 3 * MIB)
            assert 0 < f["lent_free_bytes"] < f["lent_bytes"]
            await until(lambda: node.store.figures()["free_warm_bytes"] >= 6 * MIB, "the warm reserve fills")
            del view
            unsealed.abort()
            one.close()
            reader.close()

    asyncio.run(main())
