"""What is particular to storage in Redis: shards, terms, and servers that will not serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_process import RedisProcess, redis_process
from shoal_gcs.storage import Backend, Batch, Claim, Fenced, Led, StorageError, StorageUnavailable, open_backend
from shoal_gcs.storage.conformance import CLUSTER, BackendConformance
from shoal_gcs.storage.redis import RedisBackend

pytestmark = pytest.mark.timeout(60)
HERE, THERE = Claim("10.0.0.1:6380", 30.0), Claim("10.0.0.2:6380", 30.0)


def filled(url: str, count: int = 100) -> Batch:
    batch: Batch = {("t", n.to_bytes(4, "big")): b"r" * n for n in range(count)}
    backend = open_backend(url)
    backend.open(CLUSTER)
    backend.apply(batch)
    backend.close()
    return batch


def read(url: str) -> dict[bytes, bytes]:
    backend = open_backend(url)
    opened = backend.open(CLUSTER)
    backend.close()
    return dict(opened.records.get("t", ()))


# -- shards


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisProcess, RedisProcess]]:
    folder = tmp_path_factory.mktemp("shards")
    with redis_process(folder / "one") as one, redis_process(folder / "two") as two:
        yield one, two


def url_of(servers: tuple[RedisProcess, RedisProcess], name: str) -> str:
    return f"redis://127.0.0.1:{servers[0].port},127.0.0.1:{servers[1].port}/0?name={name}"


class TestTwoShards(BackendConformance):
    @pytest.fixture(autouse=True)
    def _empty(self, servers: tuple[RedisProcess, RedisProcess], request: pytest.FixtureRequest) -> None:
        self.url = url_of(servers, request.node.name)

    def again(self) -> Backend:
        return open_backend(self.url)


@pytest.fixture
def sharded(servers: tuple[RedisProcess, RedisProcess], request: pytest.FixtureRequest) -> str:
    return url_of(servers, request.node.name)


def test_both_shards_hold_a_part(servers: tuple[RedisProcess, RedisProcess], sharded: str) -> None:
    filled(sharded)
    name = sharded.rpartition("=")[2]
    here, there = servers[0].ask("HLEN", f"{{{name}}}:t:t"), servers[1].ask("HLEN", f"{{{name}:1}}:t:t")
    assert isinstance(here, int)
    assert isinstance(there, int)
    assert here + there == 100
    assert here > 20 < there


def test_a_batch_whose_writer_died_between_two_shards_is_finished_by_whoever_opens_next(sharded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = filled(sharded)
    backend = open_backend(sharded)
    backend.open(CLUSTER)
    changed: Batch = {place: None if place[1][3] % 2 else b"new" for place in before}

    def die(index: int, batch: Batch) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "_apply_to", die)
    with pytest.raises(KeyboardInterrupt):
        backend.apply(changed)
    monkeypatch.undo()
    backend.close()
    assert read(sharded) == {key: record for (_, key), record in changed.items() if record is not None}


def test_a_shard_that_was_away_gets_the_batch_when_it_is_back(tmp_path: Path) -> None:
    with redis_process(tmp_path / "one") as one, redis_process(tmp_path / "two", "--appendonly", "yes") as two:
        url = url_of((one, two), "away")
        backend = open_backend(url)
        backend.open(CLUSTER)
        first: Batch = {("t", bytes([n])): b"first" for n in range(20)}
        two.close()
        with pytest.raises(StorageUnavailable, match=f":{two.port}/0"):
            backend.apply(first)
        two.start()
        backend.apply({("t", b"later"): b"second"})
        backend.close()
        assert read(url) == {b"later": b"second", **{bytes([n]): b"first" for n in range(20)}}


@pytest.mark.parametrize("wrong", ["fewer", "swapped", "emptied"])
def test_other_servers_than_those_that_hold_the_cluster_are_refused(tmp_path: Path, wrong: str) -> None:
    with redis_process(tmp_path / "one") as one, redis_process(tmp_path / "two") as two:
        url = url_of((one, two), "c")
        held = filled(url)
        if wrong == "fewer":
            with pytest.raises(StorageError, match="is kept on 2 servers, and 1 are named"):
                open_backend(f"redis://127.0.0.1:{one.port}/0?name=c").open(CLUSTER)
        elif wrong == "swapped":
            for wrong_order in (url_of((two, one), "c"), f"redis://127.0.0.1:{two.port}/0?name=c", url_of((one, one), "c")):
                with pytest.raises(StorageError, match="holds another part of it; name the same servers in the same order"):
                    open_backend(wrong_order).open(CLUSTER)
        else:
            two.ask("FLUSHALL")
            with pytest.raises(StorageError, match=rf"shard 1\) held cluster {CLUSTER.hex()} and now holds no cluster"):
                open_backend(url).open(CLUSTER)
            return
        assert read(url) == {key: record for (_, key), record in held.items()}


# -- terms


def test_one_leads_and_the_other_is_told_who(redis: RedisProcess) -> None:
    first, second = RedisBackend(redis.url), RedisBackend(redis.url)
    assert first.open(CLUSTER, claim=HERE).epoch == 1
    with pytest.raises(Led, match=r"led by the head at 10\.0\.0\.1:6380, epoch 1") as led:
        second.open(CLUSTER, claim=THERE)
    assert (led.value.address, led.value.epoch, led.value.cluster_id) == (HERE.address, 1, CLUSTER)
    assert first.renew() == [THERE.address]
    first.apply({("t", b"k"): b"v"})
    first.close()
    second.close()


def test_a_term_that_was_not_renewed_is_taken_and_the_first_learns_it_at_its_next_write_and_renewal(redis: RedisProcess) -> None:
    first, second = RedisBackend(redis.url), RedisBackend(redis.url)
    first.open(CLUSTER, claim=Claim(HERE.address, 0.2))
    first.apply({("t", b"k"): b"v"})
    deadline = time.monotonic() + 20
    while True:
        try:
            opened = second.open(CLUSTER, claim=THERE)
            break
        except Led:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert (opened.epoch, opened.records) == (2, {"t": [(b"k", b"v")]})
    with pytest.raises(Fenced, match="another control store has taken over"):
        first.apply({("t", b"k"): b"stale"})
    with pytest.raises(Fenced):
        first.renew()
    first.resign()  # does not touch the second's term
    assert redis.ask("GET", "{shoal}:leader") == b"2 10.0.0.2:6380"
    first.close()
    second.close()


def test_who_resigns_is_followed_at_once_and_a_restart_at_the_same_address_need_not_wait(redis: RedisProcess) -> None:
    first, second = RedisBackend(redis.url), RedisBackend(redis.url)
    first.open(CLUSTER, claim=HERE)
    again = RedisBackend(redis.url)
    assert again.open(CLUSTER, claim=HERE).epoch == 2
    again.resign()
    assert second.open(CLUSTER, claim=THERE).epoch == 3
    for backend in (first, second, again):
        backend.close()


def test_a_term_that_ran_out_and_nobody_took_is_begun_anew_by_its_holder(redis: RedisProcess) -> None:
    first = RedisBackend(redis.url)
    first.open(CLUSTER, claim=HERE)
    redis.ask("DEL", "{shoal}:leader")
    assert first.renew() == []
    assert redis.ask("GET", "{shoal}:leader") == b"1 10.0.0.1:6380"
    first.close()


def test_a_large_state_is_read_under_a_term_shorter_than_the_reading(redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    held = filled(redis.url, 3000)
    monkeypatch.setattr("shoal_gcs.storage.redis._RENEW_SHARE", 0.0)
    backend = RedisBackend(redis.url)
    renewals = []
    renew = backend.renew
    monkeypatch.setattr(backend, "renew", lambda: renewals.append(renew()))
    opened = backend.open(CLUSTER, claim=HERE)
    assert dict(opened.records["t"]) == {key: record for (_, key), record in held.items()}
    assert len(renewals) > 100
    backend.close()


# -- servers that will not serve


def test_a_full_server_takes_nothing_says_so_and_the_term_goes_on(redis: RedisProcess) -> None:
    backend = RedisBackend(redis.url)
    backend.open(CLUSTER, claim=HERE)
    redis.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(StorageUnavailable, match=r"it is full \(maxmemory\): free memory there"):
        backend.apply({("t", b"k"): b"v" * 1000})
    backend.renew()
    with pytest.raises(StorageUnavailable, match="it is full"):
        open_backend(redis.url + "?name=other").open(CLUSTER)
    redis.ask("CONFIG", "SET", "maxmemory", 0)
    backend.apply({("t", b"k"): b"v"})
    backend.close()
    assert read(redis.url) == {b"k": b"v"}


def test_a_read_only_replica_is_refused_by_name(redis: RedisProcess, tmp_path: Path) -> None:
    with redis_process(tmp_path / "replica") as replica:
        replica.ask("REPLICAOF", "127.0.0.1", redis.port)
        with pytest.raises(StorageError, match="it is a read-only replica: give the address of the primary"):
            open_backend(replica.url).open(CLUSTER)


def test_a_server_that_wants_another_password_is_told_without_showing_ours(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", "--requirepass", "right") as server:
        for login in ("", ":wrong@"):
            with pytest.raises(StorageError, match=r"redis://:PASSWORD@HOST") as refused:
                open_backend(f"redis://{login}127.0.0.1:{server.port}/0").open(CLUSTER)
            assert "wrong@" not in str(refused.value)
        assert filled(f"redis://:right@127.0.0.1:{server.port}/0")


def test_another_programs_keys_are_not_touched(redis: RedisProcess) -> None:
    redis.ask("LPUSH", "{shoal}:epoch", "a list")
    with pytest.raises(StorageError, match="used by another program: give another"):
        open_backend(redis.url).open(CLUSTER)
    assert redis.ask("LLEN", "{shoal}:epoch") == 1


def test_an_emptied_server_is_no_new_cluster_for_who_knew_the_old_one(redis: RedisProcess) -> None:
    filled(redis.url)
    backend = open_backend(redis.url)
    backend.open(CLUSTER)
    redis.ask("FLUSHALL")
    with pytest.raises(StorageError, match="no longer holds this cluster: it was emptied"):
        backend.apply({("t", b"k"): b"v"})
    backend.close()
    with pytest.raises(StorageError, match=rf"held cluster {CLUSTER.hex()} and now holds no cluster.*restore its data"):
        open_backend(redis.url).open(b"f" * 16, expected=CLUSTER)
    assert redis.ask("DBSIZE") == 0
