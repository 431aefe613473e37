"""Spilling to file systems that are not this machine's: through processes of their own, with a journal here, and what happens when they fail."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from shoal_base.errors import Code
from shoal_objectstore import join
from shoal_objectstore._arena import Arena
from shoal_objectstore.config import Config, parse
from shoal_objectstore.courier import Courier, CourierFailed, Missing
from shoal_objectstore.disk import Disk
from shoal_objectstore.journal import Damaged, OutOfReach, Source, SpillFailed
from shoal_objectstore.remote import ATTEMPTS, Remote, remove_folders, shown
from store_node import MIB, Client, Node, StoreProcess, nodes, started, until

pytestmark = pytest.mark.timeout(180)
Location = tuple[int, int]
NODE_ID = b"n" * 16


def value(n: int, size: int) -> bytes:
    return random.Random(n).randbytes(size)


# -- an S3, a folder by pyarrow, a folder by fsspec ---------------------------------------------------------


class Far:
    """A file system, and what lies there."""

    def __init__(self, uri: str, names: Callable[[], list[str]]) -> None:
        self.uri = uri
        self.names = names


class Bucket:
    """On a server of moto, which has an environment of its own: `make s3` makes it."""

    PROGRAM = Path(sys.prefix) / "moto/bin/moto_server"

    def __init__(self) -> None:
        if not self.PROGRAM.exists():
            pytest.skip("no S3: `make s3` installs one for the tests")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([self.PROGRAM, "-H", "127.0.0.1", "-p", self.address.rpartition(":")[2]], stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "moto did not start"
            time.sleep(0.1)
        self._folders = itertools.count(1)

    def folder(self) -> Far:
        """Another one for each test."""
        name = f"some/folder-{next(self._folders)}"
        uri = f"s3://spilled/{name}?endpoint_override={self.address}&scheme=http&region=us-east-1"
        return Far(uri, lambda: [found for found in self._names() if found.startswith(name + "/")])

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(f"http://{self.address}/spilled", method="PUT")).close()
        except OSError:
            return False
        return True

    def _names(self) -> list[str]:
        with urllib.request.urlopen(f"http://{self.address}/spilled?list-type=2") as answer:
            found = re.findall("<Key>([^<]*)</Key>", answer.read().decode())
        # Names that end in a slash are folders' marks, of no bytes.
        return [name for name in found if not name.endswith("/")]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(20)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")):
            patch.setenv(name, text)
        made = Bucket()
        yield made
        made.stop()


def folder(uri: str, place: Path) -> Far:
    return Far(uri, lambda: [str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()])


@pytest.fixture(params=["pyarrow", "fsspec", "s3"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Far:
    place = tmp_path / "far"
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return bucket.folder()
    return folder(f"{'file' if request.param == 'pyarrow' else 'local'}://{place}", place)


@pytest.fixture
def near(tmp_path: Path) -> Far:
    return folder(f"file://{tmp_path}/far", tmp_path / "far")


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


# -- the steps, one by one ----------------------------------------------------------------------------------


@dataclass
class FakeCourier:
    """A file system in a dictionary; `fail` says for how many questions it is down."""

    files: dict[str, bytes] = field(default_factory=dict)
    fail: int = 0
    asked: int = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.fail:
            self.fail -= 1
            raise CourierFailed("it is down")

    def write(self, path: str, parts: Sequence[memoryview]) -> list[int]:
        self.files[path] = b""  # half of it
        self._ask()
        self.files[path] = b"".join(parts)
        return [len(part) for part in parts]

    def read(self, path: str, offset: int, stored: int, into: memoryview) -> None:
        self._ask()
        if path not in self.files:
            raise Missing("FileNotFoundError")
        into[:] = self.files[path][offset : offset + stored]

    def remove(self, paths: Sequence[str]) -> None:
        self._ask()
        for path in paths:
            self.files.pop(path, None)

    def end_idle(self, after_s: float = 0.0) -> None: ...
    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.remote.PAUSE_S", 0.01)


def remote(place: Path, courier: object) -> Remote:
    return Remote(0, "s3://bucket/folder", "shoal-spill-x", place, courier)  # type: ignore[arg-type]


def source(slot: int, data: bytes) -> Source:
    return Source(slot, 1, memoryview(data), 0)


def read(place: Remote, record: object) -> bytes:
    into = bytearray(record.size)  # type: ignore[attr-defined]
    place.read(record, memoryview(into), 0)  # type: ignore[arg-type]
    return bytes(into)


def test_several_objects_share_a_file_that_goes_with_the_last(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(1, b"one"), source(2, b""), source(3, b"three")])
    assert list(there.files.values()) == [b"onethree"]
    assert [read(place, r) for r in records] == [b"one", b"", b"three"]
    place.drop(records[:2])
    assert not place.remove_unwanted()
    assert (len(there.files), place.files, place.file_bytes) == (1, 1, 8)
    place.drop(records[2:])
    assert (place.files, place.unwanted) == (0, 1)
    assert not place.remove_unwanted()
    assert (there.files, place.unwanted) == ({}, 0)
    place.close()


def test_a_successor_finds_what_was_written_and_removes_what_was_begun(tmp_path: Path) -> None:
    there = FakeCourier()
    first = remote(tmp_path, there)
    kept, freed = first.write([source(1, b"kept")]), first.write([source(2, b"freed")])
    first.evicted(kept)
    first.drop(freed)
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach, match=r"s3://bucket/folder/shoal-spill-x: it is down"):
        first.write([source(3, b"half")])
    assert len(there.files) == 3
    first.close()
    for _ in range(2):
        second = remote(tmp_path, there)
        [record] = second.recover()
        assert (record.location, record.evicted, read(second, record)) == ((1, 1), True, b"kept")
        assert second.remove_unwanted() is False
        assert list(there.files.values()) == [b"kept"]
        second.close()
    third = remote(tmp_path, there)
    third.recover()
    [again] = third.write([source(4, b"new")])
    assert again.file not in {record.file, freed[0].file}, "a number is never given again"
    third.close()


def test_a_write_that_fails_is_tried_again_and_then_left_alone_for_a_while(tmp_path: Path) -> None:
    there = FakeCourier(fail=ATTEMPTS - 1)
    place = remote(tmp_path, there)
    [record] = place.write([source(1, b"one")])
    assert (there.asked, read(place, record)) == (ATTEMPTS, b"one")
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach):
        place.write([source(2, b"two")])
    asked = there.asked
    with pytest.raises(OutOfReach, match=r"it is down \(\d s ago\)"):
        place.write([source(2, b"two")])
    assert there.asked == asked, "nobody waits for what has just failed"
    place.shunned_until = 0.0
    assert read(place, place.write([source(2, b"two")])[0]) == b"two"
    place.close()


def test_a_read_that_fails_is_of_the_moment_and_one_that_is_wrong_is_damage(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    [record] = place.write([source(1, b"one")])
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach, match="cannot be read now: it is down; it stays there"):
        read(place, record)
    there.fail = ATTEMPTS - 1
    assert read(place, record) == b"one"
    [path] = there.files
    there.files[path] = b"eno"
    with pytest.raises(Damaged, match="CRC-32C"):
        read(place, record)
    del there.files[path]
    with pytest.raises(Damaged, match="is lost: FileNotFoundError"):
        read(place, record)
    place.close()


def test_removing_is_tried_again_with_pauses_and_holds_up_nobody(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = [r for n in range(3) for r in place.write([source(n, b"x")])]
    there.fail = 1
    place.drop(records)
    assert not place.remove_unwanted()
    assert len(there.files) == place.unwanted == 3
    asked = there.asked
    assert not place.remove_unwanted()
    assert there.asked == asked, "its pause is not over"
    place._remove_at = 0.0
    assert not place.remove_unwanted()
    assert (there.files, place.unwanted) == ({}, 0)
    place.close()


def test_a_long_journal_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.journal.COMPACT_ENTRIES", 40)
    there = FakeCourier()
    place = remote(tmp_path, there)
    [kept] = place.write([source(1000, b"kept")])
    kept.evicted = True
    place.evicted([kept])
    for n in range(40):
        place.drop(place.write([source(n, b"x")]))
        place.remove_unwanted()
    place.close()
    assert (tmp_path / "spill" / "remote-0.journal").stat().st_size < 80 * 60
    successor = remote(tmp_path, there)
    [record] = successor.recover()
    assert (record.evicted, read(successor, record), successor.unwanted, len(there.files)) == (True, b"kept", 0, 1)
    successor.close()


# -- moving what lives out of files that are mostly dead ----------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little it saves, and however lately an object died."""
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 1)
    monkeypatch.setattr("shoal_objectstore.remote.SETTLED_S", 0.0)


def settle(place: Remote) -> None:
    while place.remove_unwanted() or place.move_living():
        pass


@pytest.mark.usefixtures("at_once")
def test_what_lives_in_a_file_that_is_mostly_dead_moves_and_the_space_returns(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    first = place.write([source(n, bytes([n]) * 100) for n in range(10)])
    second = place.write([source(n, bytes([n]) * 100) for n in range(10, 20)])
    place.evicted([first[7]])
    first[7].evicted = True
    place.drop(first[:5])
    settle(place)
    assert place.moved_bytes == 0, "half of it lives"
    place.drop([first[5], *second[:8]])
    settle(place)
    assert [len(data) for data in there.files.values()] == [600], "both rests share a file"
    assert (place.files, place.file_bytes, place.unwanted, place.moved_bytes) == (1, 600, 0, 600)
    kept = [*first[6:], *second[8:]]
    assert [read(place, r) for r in kept] == [bytes([r.slot]) * 100 for r in kept]
    place.close()
    successor = remote(tmp_path, there)
    found = successor.recover()
    assert {r.location: (read(successor, r), r.evicted) for r in found} == {(r.slot, 1): (bytes([r.slot]) * 100, r.slot == 7) for r in kept}
    successor.drop(found)
    settle(successor)
    assert (there.files, successor.unwanted) == ({}, 0)
    successor.close()


def test_a_file_that_still_dies_or_wastes_little_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = remote(tmp_path, FakeCourier())
    place.drop(place.write([source(n, bytes(100)) for n in range(10)])[1:])
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 900)
    assert not place.move_living(), "it died a moment ago"
    monkeypatch.setattr("shoal_objectstore.remote.SETTLED_S", 0.0)
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 901)
    assert not place.move_living()
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 900)
    assert place.move_living()
    place.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("step", ["read", "write"])
def test_when_moving_fails_everything_stays_where_it_was_and_is_moved_later(tmp_path: Path, step: str) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    plain = there.read
    if step == "write":
        there.read = lambda path, offset, stored, into: into.__setitem__(slice(None), there.files[path][offset : offset + stored])  # type: ignore[method-assign]
    there.fail = ATTEMPTS
    assert not place.move_living()
    there.read = plain  # type: ignore[method-assign]
    assert (there.fail, place.moved_bytes, read(place, records[4])) == (0, 0, bytes([4]) * 100)
    place.close()
    successor = remote(tmp_path, there)
    [found] = successor.recover()
    assert read(successor, found) == bytes([4]) * 100
    settle(successor)
    assert list(there.files.values()) == [bytes([4]) * 100], "what was begun is removed"
    assert read(successor, found) == bytes([4]) * 100
    successor.close()


@pytest.mark.usefixtures("at_once")
def test_what_is_freed_while_it_moves_stays_freed(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(9)])
    place.drop(records[3:])
    write = there.write

    def and_meanwhile(path: str, parts: Sequence[memoryview]) -> list[int]:
        place.drop(records[:freed])
        return write(path, parts)

    freed = 2
    there.write = and_meanwhile  # type: ignore[method-assign]
    assert place.move_living()
    there.write = write  # type: ignore[method-assign]
    assert (read(place, records[2]), place.files, place.file_bytes) == (bytes([2]) * 100, 1, 300)
    place.close()
    place = remote(tmp_path, there)
    [last] = place.recover()
    assert last.location == (2, 1)
    settle(place)
    assert read(place, last) == bytes([2]) * 100
    # All of it.
    more = place.write([source(n, bytes(100)) for n in range(20, 29)])
    place.drop(more[2:])
    records, freed = more, 2
    there.write = and_meanwhile  # type: ignore[method-assign]
    assert place.move_living()
    there.write = write  # type: ignore[method-assign]
    settle(place)
    assert (place.files, len(there.files), place.unwanted) == (1, 1, 0)
    place.close()


@pytest.mark.usefixtures("at_once")
def test_a_reader_of_what_is_moved_meanwhile_reads_it_where_it_is_now(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    plain = there.read

    def late(path: str, offset: int, stored: int, into: memoryview) -> None:
        there.read = plain  # type: ignore[method-assign]
        settle(place)
        assert path not in there.files
        plain(path, offset, stored, into)

    there.read = late  # type: ignore[method-assign]
    assert read(place, records[4]) == bytes([4]) * 100
    place.close()


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    there.files.clear()
    assert not place.move_living()
    asked = there.asked
    assert not place.move_living()
    assert there.asked == asked, "nor asked for again and again"
    with pytest.raises(Damaged, match="is lost"):
        read(place, records[4])
    place.close()


@pytest.mark.usefixtures("at_once")
def test_a_store_gives_the_space_of_dead_objects_back_while_their_neighbours_live(tmp_path: Path, near: Far) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(near.uri,)) as [node]:
            one = await asyncio.to_thread(Client, node, 1)

            def fill() -> list[tuple[Location, int]]:
                return [(one.put(data := value(n, 100_000)), zlib.crc32(data)) for n in range(600)]

            put = await asyncio.to_thread(fill)
            kept = put[::10]

            def free() -> None:
                for location, _ in put:
                    if location not in dict(kept):
                        one.free(node, location)

            await asyncio.to_thread(free)
            await until(lambda: node.store.figures()["remote_moved_bytes"] > 0, "what lives is moved")
            await until(lambda: node.store.figures()["remote_file_bytes"] <= 2 * 60 * 100_000, "the space of the dead returns")

            def look() -> None:
                for location, checksum in kept:
                    assert zlib.crc32(one.read(node, location, 100_000)) == checksum
                    one.free(node, location)

            await asyncio.to_thread(look)
            await until(lambda: not near.names(), "nothing is left")
            await asyncio.to_thread(one.close)

    asyncio.run(main())


# -- the processes ------------------------------------------------------------------------------------------


def test_parts_are_written_read_and_removed_by_one_process_that_is_used_again(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}/far")
    parts = [os.urandom(5 * MIB + 7), b"", os.urandom(MIB)]
    stored = courier.write("a/one", [memoryview(part) for part in parts])
    assert sum(stored) == (tmp_path / "far/a/one").stat().st_size < sum(map(len, parts)) + 100, "what cannot be compressed is not"
    offset = 0
    for part, nbytes in zip(parts, stored, strict=True):
        into = bytearray(len(part))
        courier.read("a/one", offset, nbytes, memoryview(into))
        assert into == part
        offset += nbytes
    into = bytearray(MIB)
    with pytest.raises(Missing, match="bytes too early"):
        courier.read("a/one", offset - 10, 10, memoryview(into))
    with pytest.raises(Missing, match="FileNotFoundError"):
        courier.read("a/two", 0, 10, memoryview(into))
    courier.remove(["a/one", "a/never"])
    assert not (tmp_path / "far/a/one").exists()
    [lane] = courier._idle
    courier.end_idle(3600)
    assert courier._idle == [lane]
    courier.end_idle(0.0)
    assert lane.process.returncode == -signal.SIGKILL
    courier.close()
    with pytest.raises(CourierFailed, match="the object store ends"):
        courier.remove(["a"])


def test_what_can_be_compressed_is_block_by_block(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    block = 4 * MIB
    text, noise = b"the same again; " * (block // 16), os.urandom(block)
    late = noise[: 64 << 10] + text[64 << 10 :]  # the sample says no
    early = text[: 64 << 10] + noise[64 << 10 :]  # the sample says yes, and the block does not become small
    whole = text + noise + late + early + b"end"
    [stored] = courier.write("x", [memoryview(whole)])
    assert 3 * block < stored < 3 * block + block // 50
    into = bytearray(len(whole))
    courier.read("x", 0, stored, memoryview(into))
    assert into == whole
    courier.close()


def test_one_that_hangs_is_killed_and_the_next_one_works(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    [stored] = courier.write("well", [memoryview(b"well")])
    os.mkfifo(tmp_path / "hangs")  # whoever opens it waits for a writer
    courier._stall_s = 0.5
    with pytest.raises(CourierFailed, match=r"it was silent for 0\.5 s"):
        courier.read("hangs", 0, 13, memoryview(bytearray(4)))
    assert not courier._idle and not courier._busy
    courier._stall_s = 30.0
    into = bytearray(4)
    courier.read("well", 0, stored, memoryview(into))
    assert into == b"well"
    courier.close()


def test_one_that_is_killed_is_an_error_that_may_be_tried_again(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    courier.write("one", [memoryview(b"one")])
    courier._idle[0].process.kill()
    courier._idle[0].process.wait()
    with pytest.raises(CourierFailed, match="its process has ended"):
        courier.remove(["one"])
    courier.remove(["one"])
    courier.close()


def test_what_is_wrong_with_a_uri_is_told(tmp_path: Path) -> None:
    for uri, why in (("nosuchscheme://x", "nosuchscheme"), ("s3://bucket/x?colour=red", "colour")):
        courier = Courier(uri)
        with pytest.raises(CourierFailed, match=why):
            courier.write("x", [memoryview(b"x")])
        courier.close()


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
