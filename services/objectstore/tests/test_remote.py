"""Spilling to file systems that are not this machine's: through processes of their own, with a journal here, and what happens when they fail."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from far_place import Bucket, Far, folder, source, value
from shoal_base.errors import Code
from shoal_objectstore import join
from shoal_objectstore._arena import Arena
from shoal_objectstore.config import Config, parse
from shoal_objectstore.disk import Disk
from shoal_objectstore.journal import SpillFailed
from shoal_objectstore.remote import remove_folders, shown
from store_node import MIB, Client, Node, StoreProcess, nodes, started, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("no_pauses")]
Location = tuple[int, int]
NODE_ID = b"n" * 16


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")):
            patch.setenv(name, text)
        made = Bucket()
        yield made
        made.stop()


@pytest.fixture(params=["pyarrow", "fsspec", "s3"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Far:
    place = tmp_path / "far"
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return bucket.folder()
    return folder(f"{'file' if request.param == 'pyarrow' else 'local'}://{place}", place)


# -- the whole service --------------------------------------------------------------------------------------


def test_what_exceeds_the_memory_goes_there_and_comes_back_and_leaves_nothing(tmp_path: Path, far: Far) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(far.uri,)) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            sizes = [random.Random(n).choice([150_000, 700_001, 3 * MIB, 7 * MIB + 5]) for n in range(32)]

            def work() -> None:
                put = [(one.put(data := value(n, size)), zlib.crc32(data), size) for n, size in enumerate(sizes)]
                assert far.names()
                random.Random(1).shuffle(put)
                for location, checksum, size in put:
                    assert zlib.crc32(one.read(node, location, size)) == checksum
                for location, _, _ in put:
                    one.free(node, location)

            await asyncio.to_thread(work)
            f = node.store.figures()
            assert min(f["spilled_bytes"], f["restored_bytes"]) > sum(sizes) - 40 * MIB > 10 * MIB
            assert (f["disk_files"], f["remote_failures"], f["spill_failures"]) == (0, 0, 0)
            node.store.pulling.grace.end(1e18)
            await until(lambda: not far.names(), "files go with their objects", 60)
            f = node.store.figures()
            await until(lambda: node.store.figures()["remote_unwanted"] == 0, "and are forgotten")
            assert (f["remote_files"], f["remote_file_bytes"], f["on_disk_bytes"], f["clean_bytes"]) == (0, 0, 0, 0)
            assert node.store.keeper.store.check() == []
            one.close()

    asyncio.run(main())


def test_local_disks_come_first_and_the_rest_goes_far_away(tmp_path: Path, near: Far) -> None:
    async def main() -> None:
        local = tmp_path / "local"
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(str(local), near.uri), spill_local_bytes=24 * MIB) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(6)]
            assert not near.names(), "the disk has room"
            put += [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(6, 24)]
            f = node.store.figures()
            assert 18 * MIB <= f["disk_file_bytes"] <= 24 * MIB
            assert f["remote_file_bytes"] >= 9 * MIB
            assert f["spill_failures"] == 0
            for n, at in enumerate(put):
                assert bytes(await asyncio.to_thread(one.read, node, at, 3 * MIB)) == value(n, 3 * MIB)
            async with node.stub() as stub:
                from shoal_objectstore.v1 import objectstore_pb2 as pb

                paths = [o.path for o in (await stub.List(pb.ListRequest())).objects if o.state == "on disk"]
                assert {path.partition("/shoal-spill-")[0] for path in paths} == {str(local), near.uri}
                text = (await stub.Metrics(pb.Empty())).text
                assert re.search(r"^shoal_objectstore_remote_file_bytes [1-9]\d+$", text, re.MULTILINE)
            one.close()

    asyncio.run(main())


def block(place: Path) -> None:
    """Nothing can be made or found there any more."""
    place.rename(place.with_name("away")) if place.exists() else None
    place.write_text("no folder")


def unblock(place: Path) -> None:
    place.unlink()
    place.with_name("away").rename(place)


def test_when_it_is_down_whoever_needs_room_is_told_and_nothing_is_lost(tmp_path: Path, near: Far) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(near.uri,)) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            spiller = node.store.spiller
            assert spiller is not None
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(16)]
            await until(lambda: not spiller._tasks, "nothing is being written")
            gone = [at for at in put if spiller.evicted(at)]
            block(tmp_path / "far")
            for _ in range(20):
                began = time.monotonic()
                refused = await asyncio.to_thread(one.extent, 3 * MIB)
                if refused.code:
                    break
                one.arena.add_extent(refused.extent)
                put.append(one.arena.put(value(len(put), 3 * MIB)))
            assert refused.code == Code.OUT_OF_DISK
            assert time.monotonic() - began < 60
            assert f"could not be spilled to disk: {near.uri}/shoal-spill-{node.node_id.hex()}: " in refused.text
            lost = await asyncio.to_thread(one.pull, node, gone[0], 3 * MIB)
            assert lost.code in (Code.FETCH_TIMED_OUT, Code.OBJECT_LOST, Code.ARENA_FULL, Code.OUT_OF_DISK)
            unblock(tmp_path / "far")
            await until(lambda: spiller.disk.remotes[0].shunned_until < time.monotonic(), "it is tried again")
            for n, at in enumerate(put):
                assert bytes(await asyncio.to_thread(one.read, node, at, 3 * MIB)) == value(n, 3 * MIB)
            for at in put:
                await asyncio.to_thread(one.free, node, at)
            await until(lambda: not near.names(), "files go with their objects", 60)
            one.close()

    asyncio.run(main())


def test_an_s3_that_is_silent_is_an_error_of_the_moment_for_readers(tmp_path: Path, bucket: Bucket) -> None:
    async def main() -> None:
        far = bucket.folder()
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(far.uri,)) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            spiller = node.store.spiller
            assert spiller is not None
            put = [await asyncio.to_thread(one.put, value(n, 3 * MIB)) for n in range(14)]
            await until(lambda: not spiller._tasks, "nothing is being written", 30)
            gone = next(at for at in put if spiller.evicted(at))
            for at in put[-3:]:
                await asyncio.to_thread(one.free, node, at)
            courier = spiller.disk.remotes[0]._courier
            courier._stall_s = 2.0
            bucket.process.send_signal(signal.SIGSTOP)
            try:
                answer = await asyncio.to_thread(one.pull, node, gone, 3 * MIB)
            finally:
                bucket.process.send_signal(signal.SIGCONT)
                courier._stall_s = 30.0
            assert answer.code == Code.FETCH_TIMED_OUT, answer.text
            assert "cannot be read now" in answer.text and "s3://spilled/some/folder-" in answer.text
            assert bytes(await asyncio.to_thread(one.read, node, gone, 3 * MIB)) == value(put.index(gone), 3 * MIB)
            for at in put:
                await asyncio.to_thread(one.free, node, at)
            await until(lambda: not far.names(), "files go with their objects", 60)
            one.close()

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_harm_to_a_file_is_found_and_named(tmp_path: Path, near: Far, harm: str) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(near.uri,), spill_threshold=1.0) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            put = [await asyncio.to_thread(one.put, value(n, 5 * MIB)) for n in range(12)]
            spiller = node.store.spiller
            assert spiller is not None
            hurt, *well = [at for at in put if spiller.evicted(at)]
            record = spiller.evicted(hurt)
            assert record is not None
            path = Path(spiller.disk.file_path(record).removeprefix("file://"))
            if harm == "flip":
                with open(path, "r+b") as f:
                    f.seek(record.offset + record.size // 2)
                    f.write(b"\xff\x00")
            elif harm == "truncate":
                os.truncate(path, record.offset + 4096)
            else:
                path.unlink()
            answer = await asyncio.to_thread(one.pull, node, hurt, 5 * MIB)
            assert answer.code == Code.OBJECT_LOST
            assert str(path) in answer.text
            assert {"flip": "CRC-32", "truncate": "bytes too early", "remove": "FileNotFoundError"}[harm] in answer.text
            for at in (at for at in well if (r := spiller.evicted(at)) and r.file != record.file):
                assert bytes(await asyncio.to_thread(one.read, node, at, 5 * MIB)) == value(put.index(at), 5 * MIB)
            one.close()

    asyncio.run(main())


KILLS = 3


def test_a_store_killed_while_it_spills_and_restores_loses_nothing_and_leaves_nothing(tmp_path: Path, near: Far) -> None:
    async def main() -> None:
        node = Node(1, tmp_path, 48 * MIB, spill_dirs=(near.uri,))
        await node.raylet.start()
        rng = random.Random(3)
        live: dict[Location, tuple[int, int]] = {}
        join.lay_out(node.raylet.arena, 48 * MIB)
        arena = Arena(node.raylet.arena, 1)
        n = 0

        def load(client: Client) -> None:
            nonlocal n
            while True:
                n += 1
                size = rng.choice([150_000, MIB, 5 * MIB])
                live[client.put(value(n, size))] = (n, size)
                at = rng.choice(list(live))
                m, size = live[at]
                if rng.random() < 0.5:
                    assert bytes(client.read(node, at, size)) == value(m, size)
                if len(live) > 40:
                    at = rng.choice(list(live))
                    client.free(node, at)
                    del live[at]

        for _ in range(KILLS):
            process = StoreProcess(node)
            await asyncio.to_thread(process.wait)
            client = await asyncio.to_thread(Client, node, 1, arena)
            loading = asyncio.create_task(asyncio.to_thread(load, client))
            before = near.names()
            await until(lambda before=before: near.names() != before, "something is written", 60)  # type: ignore[misc]
            await asyncio.sleep(rng.random() / 2)
            await asyncio.to_thread(process.kill)
            with pytest.raises((EOFError, OSError)):
                await loading
            client.close()
        assert near.names()
        await started(node)
        client = await asyncio.to_thread(Client, node, 1, arena)
        for at, (m, size) in live.items():
            assert bytes(await asyncio.to_thread(client.read, node, at, size)) == value(m, size)
        for at in live:
            await asyncio.to_thread(client.free, node, at)
        # What was put or freed in the moment of a kill is not told to `live`.
        for slot, generation, _size, state, _creator, _pins in node.store.keeper.store.objects(10_000)[0]:
            if state == "sealed":
                await asyncio.to_thread(client.free, node, (slot, generation))
        spiller = node.store.spiller
        assert spiller is not None
        for at in list(spiller._evicted):
            await asyncio.to_thread(client.free, node, at)
        node.store.pulling.grace.end(1e18)
        await until(lambda: not near.names(), "files that were half written, and those of dead objects, are removed", 60)
        assert node.store.figures()["on_disk_bytes"] == node.store.figures()["clean_bytes"] == 0
        client.close()
        await node.close()

    asyncio.run(main())


# -- places and settings ------------------------------------------------------------------------------------


def test_a_node_that_has_ended_leaves_nothing(tmp_path: Path, far: Far) -> None:
    disk = Disk([far.uri], tmp_path, NODE_ID)
    disk.send([source(1, b"x" * 1000)])
    assert len(far.names()) == 1
    disk.close()
    uri, name = (tmp_path / "elsewhere").read_text().strip().split("\t")
    assert (uri, name) == (far.uri, f"shoal-spill-{NODE_ID.hex()}")
    assert (tmp_path / "elsewhere").stat().st_mode & 0o077 == 0, "a URI may hold keys"
    remove_folders([(uri, name)], 30)
    assert far.names() == []
    remove_folders([(uri, name)], 30)  # once more is nothing


def test_nothing_is_asked_of_a_file_system_that_was_never_needed(tmp_path: Path) -> None:
    disk = Disk(["s3://nobody/there"], tmp_path, NODE_ID)
    assert disk.recover() == []
    assert not disk.remotes[0].remove_unwanted()
    assert not (tmp_path / "elsewhere").exists()
    disk.close()


def test_without_room_anywhere_every_place_says_why(tmp_path: Path) -> None:
    local = tmp_path / "local"
    disk = Disk([local, "nosuchscheme://x"], tmp_path, NODE_ID, local_bytes=10)
    with pytest.raises(SpillFailed) as locally:
        disk.write([source(1, b"x" * 100)])
    with pytest.raises(SpillFailed, match=r"100 bytes .* to disk: .*/local/.*: 0 of 10 bytes are used; nosuchscheme://x/shoal-spill-.*: .*nosuchscheme"):
        disk.send([source(1, b"x" * 100)], locally.value.why)
    disk.close()
    shutil.rmtree(local)


def test_keys_are_not_shown() -> None:
    assert shown("s3://key:secret@bucket/a?endpoint_override=x") == "s3://bucket/a"
    assert shown("s3://bucket") == "s3://bucket"


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    basis = ["--node-dir", str(tmp_path), "--node-id", "00" * 16, "--secrets-dir", str(tmp_path)]
    config = parse([*basis, "--spill-dir", "/a", "--spill-dir", "s3://b/c", "--spill-local-bytes", "7"])
    assert (config.spill_dirs, config.spill_local_bytes) == (["/a", "s3://b/c"], 7)
    with pytest.raises(ValueError, match="no URI"):
        Config(tmp_path, bytes(16), tmp_path, spill_dirs=["s3://b/with space"])
    with pytest.raises(ValueError, match="spill_local_bytes=7"):
        Config(tmp_path, bytes(16), tmp_path, spill_dirs=["/a"], spill_local_bytes=7)
