"""Cold objects go to disk and come back: the whole service beside a fake raylet."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
import zlib
from pathlib import Path

import pytest
from shoal_base.errors import Code
from shoal_objectstore import join
from shoal_objectstore._arena import Arena, Store, create_arena, words
from shoal_objectstore.config import Config, parse
from shoal_objectstore.disk import Disk
from shoal_objectstore.journal import OutOfReach, Source
from shoal_objectstore.spiller import packs, recover
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, StoreProcess, freed_everything, nodes, spill_files, started, until, value

pytestmark = pytest.mark.timeout(120)
Location = tuple[int, int]
# `make kills` does 200.
STORE_KILLS = int(os.environ.get("SHOAL_STORE_KILLS", "12"))
BOUND_S = float(os.environ.get("SHOAL_CHAOS_S", "inf"))


def test_a_working_set_of_four_arenas_comes_back_in_another_order_and_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=150 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            rng = random.Random(1)
            sizes = [rng.choice([150_000, 700_001, 3 * MIB, 9 * MIB + 5]) for _ in range(200)]
            total = sum(sizes)
            assert total > 580 * MIB

            def work() -> None:
                put = [(one.put(data := value(n, size)), zlib.crc32(data), size) for n, size in enumerate(sizes)]
                rng.shuffle(put)
                for location, checksum, size in put:
                    assert zlib.crc32(one.read(node, location, size)) == checksum
                for location, checksum, size in put[::-7]:
                    assert zlib.crc32(one.read(node, location, size)) == checksum
                for location, _, _ in put:
                    one.free(node, location)

            await asyncio.to_thread(work)
            f = node.store.figures()
            assert f["spilled_bytes"] > total - 150 * MIB
            assert f["restored_bytes"] > total - 150 * MIB
            await freed_everything(node)
            one.close()

    asyncio.run(main())


def test_small_objects_share_files_and_the_space_of_a_dead_one_returns_before_its_file_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 200_000)) for n in range(600)]
            spiller = node.store.spiller
            assert spiller is not None
            await until(lambda: not spiller._tasks, "nothing is being written")
            files = spill_files(node)
            assert 1 < len(files) < 60
            on_disk = sum(f.stat().st_blocks * 512 for f in files)
            evicted = [at for at in put if spiller.evicted(at)]
            for at in evicted[::2]:
                await asyncio.to_thread(one.free, node, at)
            await until(lambda: sum(f.stat().st_blocks * 512 for f in spill_files(node)) < on_disk - len(evicted) * 70_000, "holes are punched")
            for at in evicted[1::2]:
                n = put.index(at)
                assert bytes(await asyncio.to_thread(one.read, node, at, 200_000)) == value(n, 200_000)
            for at in put:
                await asyncio.to_thread(one.free, node, at)
            await freed_everything(node)
            one.close()

    asyncio.run(main())


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB, spill_threshold=1.0) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 5 * MIB)) for n in range(10)]
            node.store.keeper.store.tick()
            hot = put[:3]
            for at in hot:
                assert len(one.arena.get(*at)) == 5 * MIB
            more = [await asyncio.to_thread(one.put, value(n, 5 * MIB)) for n in range(5)]
            assert all(node.store.keeper.store.sealed([*hot, *more]))
            one.close()

    asyncio.run(main())


def test_a_pinned_object_stays_and_an_arena_of_pinned_ones_is_full(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, full_wait_s=0.3) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, bytes([n]) * (9 * MIB)) for n in range(3)]
            views = [memoryview(one.arena.get(*at)) for at in put]
            refused = await asyncio.to_thread(one.extent, 9 * MIB)
            assert refused.code == Code.ARENA_FULL
            assert [v[-1] for v in views] == [0, 1, 2]
            del views[0]
            assert (await asyncio.to_thread(one.extent, 9 * MIB)).code == 0
            assert (await asyncio.to_thread(one.read, node, put[0], 9 * MIB))[-1] == 0
            one.close()

    asyncio.run(main())


def test_a_full_disk_is_told_at_once_and_loses_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(9)]
            spiller = node.store.spiller
            assert spiller is not None
            await until(lambda: not spiller._tasks, "nothing is being written")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 * MIB, hard))
            try:
                for _ in range(10):
                    started = asyncio.get_running_loop().time()
                    refused = await asyncio.to_thread(one.extent, 3 * MIB)
                    if refused.code:
                        break
                    one.arena.add_extent(refused.extent)
                    put.append(one.arena.put(value(len(put), 3 * MIB)))
                assert refused.code == Code.OUT_OF_DISK
                assert asyncio.get_running_loop().time() - started < 5
                assert "File too large" in refused.text
                assert str(node.dir / "spill") in refused.text
                assert not [f for f in spill_files(node) if f.stat().st_size > MIB and not spiller.disk.files], "what failed leaves nothing"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            for n, at in enumerate(put):
                assert bytes(await asyncio.to_thread(one.read, node, at, 3 * MIB)) == value(n, 3 * MIB)
            for at in put:
                await asyncio.to_thread(one.free, node, at)
            await freed_everything(node)
            one.close()

    asyncio.run(main())


def test_when_one_directory_fails_the_next_takes_it(tmp_path: Path) -> None:
    full = tmp_path / "full"
    good = tmp_path / "good"

    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(str(full), str(good))) as [node]:
            name = f"shoal-spill-{node.node_id.hex()}"
            (full / name).rename(full / "elsewhere")
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(20)]
            assert list((good / name).glob("*.spill"))
            for n, at in enumerate(put):
                assert bytes(await asyncio.to_thread(one.read, node, at, 3 * MIB)) == value(n, 3 * MIB)
            one.close()

    asyncio.run(main())
    # Directories that outlive the node's own are cleaned by the next node that uses them.
    left = good / f"shoal-spill-{bytes([1]).hex() * 16}"
    assert left.exists()
    (tmp_path / "n1").rename(tmp_path / "gone")
    Disk([good], tmp_path, bytes(16)).close()
    assert not left.exists()


def test_the_only_directory_vanishes_puts_and_reads_say_so_and_what_is_in_memory_is_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_threshold=1.0) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(14)]
            spiller = node.store.spiller
            assert spiller is not None
            await until(lambda: not spiller._tasks, "nothing is being written")
            on_disk = [n for n, at in enumerate(put) if spiller.evicted(at)]
            in_memory = [n for n in range(len(put)) if n not in on_disk]
            assert on_disk
            assert in_memory
            (node.dir / "spill").rename(tmp_path / "taken away")
            for n in in_memory:
                assert bytes(await asyncio.to_thread(one.read, node, put[n], 3 * MIB)) == value(n, 3 * MIB)
            with pytest.raises(LookupError) as lost:
                await asyncio.to_thread(one.read, node, put[on_disk[0]], 3 * MIB)
            # An error of the moment, since there is no room for it here either: the object is not lost yet.
            assert lost.value.args[0] == Code.OUT_OF_DISK
            assert str(node.dir / "spill") in lost.value.args[1]
            assert "No such file or directory" in lost.value.args[1]
            refused = await asyncio.to_thread(one.extent, 20 * MIB)
            assert refused.code == Code.OUT_OF_DISK
            assert str(node.dir / "spill") in refused.text
            assert "No such file or directory" in refused.text
            (tmp_path / "taken away").rename(node.dir / "spill")  # a mount that comes back
            for n, at in enumerate(put):
                assert bytes(await asyncio.to_thread(one.read, node, at, 3 * MIB)) == value(n, 3 * MIB)
            one.close()

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_harm_to_a_file_is_found_and_named_and_others_are_well(tmp_path: Path, harm: str) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_threshold=1.0) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 5 * MIB)) for n in range(12)]
            spiller = node.store.spiller
            assert spiller is not None
            hurt, *well = [at for at in put if spiller.evicted(at)]
            record = spiller.evicted(hurt)
            assert record is not None
            path = spiller.disk.directories[0].file_path(record.file)
            others = [at for at in well if (r := spiller.evicted(at)) and r.file != record.file]
            if harm == "flip":
                with open(path, "r+b") as f:
                    f.seek(record.offset + record.size // 2)
                    byte = f.read(1)[0] ^ 1
                    f.seek(record.offset + record.size // 2)
                    f.write(bytes([byte]))
            elif harm == "truncate":
                os.truncate(path, record.offset + 4096)
            else:
                path.unlink()
            with pytest.raises(LookupError) as raised:
                await asyncio.to_thread(one.read, node, hurt, 5 * MIB)
            assert raised.value.args[0] == Code.OBJECT_LOST
            assert str(path) in raised.value.args[1]
            assert {"flip": "CRC-32", "truncate": "the file ends before it", "remove": "No such file"}[harm] in raised.value.args[1]
            for at in others:
                assert bytes(await asyncio.to_thread(one.read, node, at, 5 * MIB)) == value(put.index(at), 5 * MIB)
            assert node.store.keeper.store.check() == []
            one.close()

    asyncio.run(main())


def test_another_node_gets_what_is_on_disk_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=32 * MIB) as [here, there]:
            one, reader = await asyncio.to_thread(Client, here, 1), await asyncio.to_thread(Client, there, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(20)]
            assert here.store.figures()["on_disk"] > 5
            for n, at in enumerate(put):
                answer = await asyncio.to_thread(reader.pull, here, at, 3 * MIB)
                assert answer.code == 0, answer.text
                assert bytes(reader.arena.get(answer.slot, answer.generation)) == value(n, 3 * MIB)
            assert there.store.figures()["spilled"] == 0, "copies of what lies elsewhere are dropped, not written"
            one.close()
            reader.close()

    asyncio.run(main())


def test_an_object_freed_while_it_is_written_or_read_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            rng = random.Random(5)

            def work() -> None:
                live: dict[Location, tuple[int, int]] = {}
                for n in range(400):
                    size = rng.choice([4096, 150_000, MIB, 3 * MIB + 1])
                    live[one.put(value(n, size))] = (n, size)
                    if len(live) > 40 or rng.random() < 0.3:
                        at = rng.choice(list(live))
                        n, size = live.pop(at)
                        if rng.random() < 0.5:
                            assert bytes(one.read(node, at, size)) == value(n, size)
                        one.free(node, at)
                for at in live:
                    one.free(node, at)

            await asyncio.to_thread(work)
            await freed_everything(node)
            one.close()

    asyncio.run(main())


@pytest.mark.timeout(120 + min(3 * STORE_KILLS, 2 * BOUND_S))
def test_a_store_killed_while_it_spills_and_restores_loses_nothing(tmp_path: Path) -> None:
    """At random moments under load; its successor serves every object, and in the end nothing is left."""

    async def main() -> None:
        node = Node(1, tmp_path, 48 * MIB)
        await node.raylet.start()
        rng = random.Random(int(os.environ.get("SHOAL_SEED", "11")))
        live: dict[Location, tuple[int, int]] = {}
        join.lay_out(node.raylet.arena, 48 * MIB)
        arena = Arena(node.raylet.arena, 1)
        n = 0

        def load(client: Client, count: int) -> None:
            nonlocal n
            for _ in range(count):
                size = rng.choice([150_000, MIB, 5 * MIB])
                n += 1
                live[client.put(value(n, size))] = (n, size)
                at = rng.choice(list(live))
                m, size = live[at]
                if rng.random() < 0.5:
                    assert bytes(client.read(node, at, size)) == value(m, size)
                if len(live) > 60:
                    at = rng.choice(list(live))
                    client.free(node, at)
                    del live[at]

        began = time.monotonic()
        for _ in range(STORE_KILLS):
            if time.monotonic() - began > BOUND_S:
                break
            process = StoreProcess(node)
            await asyncio.to_thread(process.wait)
            client = await asyncio.to_thread(Client, node, 1, arena)
            loading = asyncio.create_task(asyncio.to_thread(load, client, 10_000))
            await asyncio.sleep(rng.random() * 0.8)
            await asyncio.to_thread(process.kill)
            with pytest.raises((EOFError, OSError)):
                await loading
            client.close()
        await started(node)
        client = await asyncio.to_thread(Client, node, 1, arena)
        for at, (m, size) in live.items():
            assert bytes(await asyncio.to_thread(client.read, node, at, size)) == value(m, size)
        for at in live:
            await asyncio.to_thread(client.free, node, at)
        # What was put or freed in the moment of a kill is not told to `live`.
        store = node.store.keeper.store
        for slot, generation, _size, state, _creator, _pins in store.objects(10_000)[0]:
            if state == "sealed":
                await asyncio.to_thread(client.free, node, (slot, generation))
        assert node.store.spiller is not None
        for at in list(node.store.spiller._evicted):
            await asyncio.to_thread(client.free, node, at)
        await freed_everything(node)
        client.close()
        await node.close()

    asyncio.run(main())


def test_what_was_evicted_and_not_journalled_when_the_store_was_killed_survives_the_next_kill_too(tmp_path: Path) -> None:
    fd = create_arena(8 * MIB, 8, 4096)
    store = Store(fd)
    own = store.arena()
    extent = store.reserve(2 * MIB)
    store.lend_extent(extent, 0)
    own.add_extent(extent)
    location = own.put(value(1, 5000))
    pin = own.get(*location)
    Disk([], tmp_path, b"n" * 16).write([Source(*location, memoryview(pin), pin.address)])
    assert store.evict(pin)  # and there it dies: its pin is left, and with it the word
    for _ in range(3):
        disk = Disk([], tmp_path, b"n" * 16)
        [record] = recover(disk, fd)
        assert record.evicted
        into = memoryview(bytearray(5000))
        disk.read(record, into, 1)
        assert bytes(into) == value(1, 5000)
        successor = Store(fd)  # takes the pin back, and so ends the word
        assert words(fd, [location[0]])[0][2] is False
        disk.close()
        del successor
    os.close(fd)


def test_the_contract_spills_and_tells_what_is_where(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(6)]
            await asyncio.to_thread(node.store.keeper.store.sweep)
            async with node.stub() as stub:
                assert (await stub.Spill(pb.SpillRequest(bytes=8 * MIB))).bytes >= 8 * MIB
                listed = {(o.slot, o.generation): o for o in (await stub.List(pb.ListRequest())).objects}
                assert set(listed) >= set(put)
                gone = [o for o in listed.values() if o.state == "on disk"]
                assert len(gone) >= 3
                assert all(Path(o.path).is_file() for o in gone)
                await asyncio.to_thread(one.read, node, (gone[0].slot, gone[0].generation), 3 * MIB)
                stats = await stub.Stats(pb.Empty())
                assert stats.on_disk_bytes == len(gone) * 3 * MIB
                assert (stats.restored, stats.restored_bytes, stats.copies_bytes) == (1, 3 * MIB, 3 * MIB)
                assert stats.spilled_bytes >= stats.on_disk_bytes
                assert stats.disk_file_bytes >= stats.on_disk_bytes
                assert 0.0 <= stats.fragmentation <= 1.0
                text = (await stub.Metrics(pb.Empty())).text
                assert "shoal_objectstore_restored_bytes_total 3145728" in text
                assert "shoal_objectstore_fragmentation" in text
            one.close()

    asyncio.run(main())


def test_objects_are_packed_in_their_order() -> None:
    assert list(packs([], 10)) == []
    assert [len(p) for p in packs([(n, 1, 4) for n in range(5)], 10)] == [2, 2, 1]
    assert [len(p) for p in packs([(n, 1, 4) for n in range(5)], 10**9, 3)] == [3, 2]
    assert list(packs([(1, 1, 50), (2, 1, 1)], 10)) == [[(1, 1, 50)], [(2, 1, 1)]]


def test_the_command_line_names_directories(tmp_path: Path) -> None:
    basis = ["--node-dir", str(tmp_path), "--node-id", "00" * 16, "--secrets-dir", str(tmp_path)]
    config = parse([*basis, "--spill-dir", "/a", "--spill-dir", "/b", "--spill-threshold", "0.5"])
    assert config.spill_dirs == ["/a", "/b"]
    assert (config.spill, config.spill_threshold) == (True, 0.5)
    assert parse([*basis, "--no-spill"]).spill is False
    with pytest.raises(ValueError, match=r"spill_threshold=2\.0"):
        Config(tmp_path, bytes(16), tmp_path, spill_threshold=2.0)


def test_a_file_that_went_before_the_journal_said_so_gives_its_number_to_no_other(tmp_path: Path) -> None:
    bytes_a, bytes_b = bytearray(value(1, 5000)), bytearray(value(2, 9000))
    disk = Disk([], tmp_path, b"n" * 16)
    [first] = disk.write([Source(1, 1, memoryview(bytes_a), 1)])
    disk.evicted([first])
    disk.directories[0].file_path(first.file).unlink()  # here the store is killed, in the middle of drop()
    disk.close()
    successor = Disk([], tmp_path, b"n" * 16)
    [stale] = successor.recover()
    [second] = successor.write([Source(2, 1, memoryview(bytes_b), 1)])
    assert second.file != stale.file
    successor.drop([stale])  # its owner says so once more
    back = bytearray(len(bytes_b))
    successor.read(second, memoryview(back), 1)
    assert back == bytes_b and successor.files == 1
    successor.close()


def test_a_store_that_can_open_no_more_files_takes_no_object_for_lost(tmp_path: Path) -> None:
    there, back = bytearray(value(1, 5000)), bytearray(5000)
    disk = Disk([], tmp_path, b"n" * 16)
    [record] = disk.write([Source(1, 1, memoryview(there), 1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # those that are open stay so
    try:
        with pytest.raises(OutOfReach, match="cannot be read now: Too many open files; it stays there"):
            disk.read(record, memoryview(back), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    disk.read(record, memoryview(back), 1)
    assert back == there
    disk.close()
