"""The back ends against one conformance suite, and what is particular to each."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
from pathlib import Path

import pytest
from shoal_gcs.storage import Backend, Batch, Fenced, Opened, StorageError, StorageUnavailable, Writer, open_backend
from shoal_gcs.storage.conformance import CLUSTER, BackendConformance
from shoal_gcs.storage.memory import Cells, MemoryBackend
from shoal_gcs.storage.sqlite import SqliteBackend

pytestmark = pytest.mark.timeout(60)


class TestMemory(BackendConformance):
    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        self.cells = Cells()

    def again(self) -> Backend:
        return MemoryBackend(self.cells)


class TestSqlite(BackendConformance):
    exclusive = True

    @pytest.fixture(autouse=True, params=["normal", "full"])
    def _empty(self, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shoal_gcs.storage.sqlite.LOCK_WAIT_S", 0.05)
        self.path, self.durability = tmp_path / "deep" / "gcs.db", request.param

    def again(self) -> Backend:
        return open_backend(f"sqlite:{self.path}", self.durability)


class TestRedis(BackendConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, redis_server: str, request: pytest.FixtureRequest) -> None:
        self.url = f"{redis_server}?name={request.node.name}"

    def again(self) -> Backend:
        return open_backend(self.url)

    def test_two_clusters_on_one_server_do_not_meet(self) -> None:
        self._write({("t", b"k"): b"v"})
        other = open_backend(self.url + "-other")
        assert other.open(CLUSTER).records == {}
        other.close()

    def test_a_schema_of_the_future_is_refused_and_kept(self, redis_server: str) -> None:
        import redis

        self._write({("t", b"k"): b"v"})
        client = redis.Redis.from_url(redis_server)
        (key,) = client.keys(f"*{self.url.rpartition('=')[2]}*schema")
        client.set(key, 99)
        with pytest.raises(StorageError, match=r"schema version 99.*knows up to 1"):
            self.again().open(CLUSTER)
        client.set(key, 1)
        client.close()
        assert self._read() == {"t": {b"k": b"v"}}

    def test_a_control_store_that_was_replaced_learns_it(self) -> None:
        first, second = self.again(), self.again()
        first.open(CLUSTER)
        second.open(CLUSTER)
        with pytest.raises(Fenced, match="replaced by 2: another control store has taken over"):
            first.apply({("t", b"k"): b"v"})
        first.close()
        second.close()


# -- what cannot be opened


def test_a_refused_redis_is_one_clear_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StorageError, match=rf"redis://127.0.0.1:{port}/0: .*is the server running"):
            open_backend(f"redis://:secret@127.0.0.1:{port}/0").open(CLUSTER)


@pytest.mark.parametrize("where", ["", "sqlite:", "postgres://x", "memory:1", "redis://h:1/0?nme=x"])
def test_an_unknown_storage_is_refused_by_name(where: str) -> None:
    with pytest.raises(StorageError, match=r"choose memory|only name is known"):
        open_backend(where)


def test_an_unknown_durability_is_refused() -> None:
    with pytest.raises(StorageError, match=r"'best'.*full"):
        open_backend("memory", "best")


def filled(path: Path) -> bytes:
    backend = SqliteBackend(str(path))
    backend.open(CLUSTER)
    backend.apply({("t", n.to_bytes(4, "big")): b"r" * 500 for n in range(200)})
    backend.close()
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["text", "header", "middle"])
def test_a_damaged_file_is_one_clear_error_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "gcs.db"
    content = bytearray(filled(path))
    if damage == "text":
        content = bytearray(b"this is not a database, but it is long enough to look at" * 100)
    elif damage == "header":
        content[:16] = b"x" * 16
    else:
        content[4096 * 2 : 4096 * 6] = b"\xff" * 4096 * 4
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"{path} is damaged .*nothing in it was changed.*restore a backup"):
        SqliteBackend(str(path)).open(CLUSTER)
    assert path.read_bytes() == bytes(content)


def test_a_schema_of_the_future_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StorageError, match=r"schema version 99.*knows up to 1.*newer release"):
        SqliteBackend(str(path)).open(CLUSTER)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM records").fetchone() == (200,)
    db.close()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (name)")
    db.commit()
    db.close()
    with pytest.raises(StorageError, match="another program's database"):
        SqliteBackend(str(path)).open(CLUSTER)


def test_a_file_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_gcs.storage.sqlite.LOCK_WAIT_S", 0.05)
    first, second = SqliteBackend(str(tmp_path / "gcs.db")), SqliteBackend(str(tmp_path / "gcs.db"))
    first.open(CLUSTER)
    with pytest.raises(StorageError, match="in use by another control store"):
        second.open(CLUSTER)
    first.close()


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give a path that this user can write"):
        SqliteBackend(str(tmp_path / "file" / "gcs.db")).open(CLUSTER)


def test_the_file_is_for_its_user_alone(tmp_path: Path) -> None:
    filled(tmp_path / "gcs.db")
    assert (tmp_path / "gcs.db").stat().st_mode & 0o777 == 0o600


def test_a_write_without_space_is_reported_as_passing_and_succeeds_later(tmp_path: Path) -> None:
    backend = SqliteBackend(str(tmp_path / "gcs.db"))
    backend.open(CLUSTER)
    assert backend._db is not None
    backend._db.execute("PRAGMA max_page_count=10")
    batch: Batch = {("t", b"k"): b"x" * 100_000, ("t", b"gone"): None}
    with pytest.raises(StorageUnavailable, match="disk is full"):
        backend.apply(batch)
    backend._db.execute("PRAGMA max_page_count=1000")
    backend.apply(batch)
    backend.close()


# -- the writer


class Gate(Backend):
    """Blocks each write until it is let through; fails as told."""

    name = "gate"

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.failures: list[StorageError] = []
        self.open_gate = threading.Event()
        self.open_gate.set()

    def open(self, fresh_cluster_id: bytes) -> Opened:
        return Opened(1, fresh_cluster_id)

    def apply(self, batch: Batch) -> None:
        assert self.open_gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(dict(batch))

    def close(self) -> None:
        pass


def test_what_one_turn_of_the_loop_writes_is_one_batch_and_what_comes_meanwhile_the_next() -> None:
    async def test() -> None:
        gate = Gate()
        writer = Writer(gate, lambda error: None)
        gate.open_gate.clear()
        for n in range(5):
            writer.put("t", bytes([n]), b"1")
        first = writer.durable()
        assert first is not None
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for n in range(100):
            writer.put("t", b"hot", str(n).encode())
            writer.delete("t", bytes([n]))
        second = writer.durable()
        assert second is not None
        assert not first.done()
        gate.open_gate.set()
        await asyncio.wait_for(asyncio.gather(first, second), 10)
        assert [len(batch) for batch in gate.batches] == [5, 101]
        assert gate.batches[1]["t", b"hot"] == b"99"
        assert writer.durable() is None
        await writer.close()

    asyncio.run(test())


def test_whoever_puts_nothing_waits_for_what_is_being_written() -> None:
    """A request repeated, or one that finds another's work done, must not be answered before that work is kept."""

    async def test() -> None:
        gate = Gate()
        writer = Writer(gate, lambda error: None)
        gate.open_gate.clear()
        writer.put("t", b"k", b"v")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        durable = writer.durable()  # the batch has gone to the thread, and nobody waited for it so far
        assert durable is not None
        assert writer.durable() is durable
        assert not durable.done()
        gate.open_gate.set()
        await asyncio.wait_for(durable, 10)
        assert len(gate.batches) == 1
        assert writer.durable() is None
        await writer.close()

    asyncio.run(test())


def test_a_passing_failure_is_tried_again_and_nobody_is_told_too_early() -> None:
    async def test() -> None:
        gate = Gate()
        gate.failures = [StorageUnavailable("the disk is full"), StorageUnavailable("still")]
        failed: list[StorageError] = []
        writer = Writer(gate, failed.append)
        writer.put("t", b"k", b"v")
        durable = writer.durable()
        assert durable is not None
        await asyncio.wait_for(durable, 10)
        assert len(gate.batches) == 1
        assert not failed
        await writer.close()

    asyncio.run(test())


def test_a_lasting_failure_reaches_whoever_waits_and_ends_the_store() -> None:
    async def test() -> None:
        gate = Gate()
        gate.failures = [Fenced("another has taken over")]
        failed: list[StorageError] = []
        writer = Writer(gate, failed.append)
        writer.put("t", b"k", b"v")
        durable = writer.durable()
        assert durable is not None
        with pytest.raises(Fenced):
            await asyncio.wait_for(durable, 10)
        assert [str(error) for error in failed] == ["another has taken over"]
        with pytest.raises(Fenced):
            writer.durable()
        await writer.close()

    asyncio.run(test())


def test_closing_writes_what_is_left() -> None:
    async def test() -> None:
        gate = Gate()
        writer = Writer(gate, lambda error: None)
        writer.put("t", b"k", b"v")
        await writer.close()
        assert gate.batches == [{("t", b"k"): b"v"}]

    asyncio.run(test())
