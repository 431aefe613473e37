"""Several control stores on one storage: one leads, others stand by; killed, stopped, and told to end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gcs_process import Process
from gcs_rig import client, raylets, until, until_told
from gcs_states import actor_id, actor_request
from redis_process import RedisProcess
from shoal_gcs.v1 import gcs_pb2 as pb
from shoal_gcs.v1.calls import LEADER_KEY

pytestmark = pytest.mark.timeout(90)
TERM_S = 1.0  # where a head is to be replaced; elsewhere so long that no busy machine ends it


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 80))


class Heads:
    def __init__(self, folder: Path, redis: RedisProcess) -> None:
        self.folder, self._redis = folder, redis
        self.all: list[Process] = []

    def start(self, *arguments: str) -> Process:
        made = Process(self.folder, "--storage", self._redis.url, "--head-term-s", str(TERM_S), *arguments)
        self.all.append(made)
        return made

    @asynccontextmanager
    async def at(self, head: Process) -> AsyncIterator[Any]:
        async with client(head.address, self.folder / "secrets") as gcs:
            yield gcs


@pytest.fixture
def heads(tmp_path: Path, redis: RedisProcess) -> Iterator[Heads]:
    made = Heads(tmp_path, redis)
    yield made
    for head in made.all:
        head.end(signal.SIGKILL)


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


async def refusal(asking: Awaitable[Any]) -> str:
    """Why it was not available; empty: it was answered."""
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return error.details() or "unavailable"
    return ""


async def leads(gcs: Any) -> pb.InfoReply:
    """Waits until that head leads."""
    await until_told(lambda: refusal(gcs.Info(pb.Empty(), timeout=10)), lambda why: not why, "its lead", 30)
    found: pb.InfoReply = await gcs.Info(pb.Empty())
    return found


async def put(gcs: Any, value: bytes) -> None:
    await gcs.KvPut(pb.KvPutRequest(namespace="n", key=b"k", value=value, overwrite=True))


async def got(gcs: Any) -> bytes:
    value: bytes = (await gcs.KvGet(pb.KvGetRequest(namespace="n", key=b"k"))).value
    return value


def test_a_second_head_that_does_not_stand_by_is_told_who_leads_and_disturbs_nobody(heads: Heads) -> None:
    async def test() -> None:
        first = heads.start("--head-term-s", "3")
        second = heads.start("--head-term-s", "3")
        assert f"led by the head at {first.address}, epoch 1; start this one with --standby" in second.ready["error"]
        assert second.ended()[0] == 1
        async with heads.at(first) as gcs:
            await put(gcs, b"v")

    run(test())


def test_one_that_stands_by_says_who_leads_and_is_known_to_the_leader(heads: Heads) -> None:
    async def test() -> None:
        first = heads.start("--head-term-s", "10")
        second = heads.start("--standby", "--head-term-s", "10")
        assert second.ready["leader"] == first.address
        assert second.ready["cluster_id"] == first.ready["cluster_id"]
        async with heads.at(first) as leader, heads.at(second) as standby:
            await until_told(lambda: leader.Info(pb.Empty()), lambda info: list(info.standbys) == [second.address], "the standby at the leader")
            with pytest.raises(grpc.aio.AioRpcError, match=f"stands by; {first.address} leads") as refused:
                await got(standby)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert dict(refused.value.trailing_metadata() or ())[LEADER_KEY] == first.address
        assert second.end()[0] == 0

    run(test())


def test_after_a_kill_the_standby_leads_with_all_records_and_raylets_are_told(heads: Heads) -> None:
    async def test() -> None:
        first = heads.start()
        async with heads.at(first) as gcs, raylets(gcs, heads.folder / "secrets", 1) as (node,):
            await gcs.CreateActor(actor_request(1, name="kept", max_restarts=3))
            await until_told(lambda: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(1))), lambda a: a.state == pb.ACTOR_ALIVE, "life")
            await put(gcs, b"v")
            second = heads.start("--standby")
            began = time.monotonic()
            first.end(signal.SIGKILL)
            async with heads.at(second) as successor:
                info = await leads(successor)
                assert (info.gcs_epoch, info.cluster_id.hex()) == (2, first.ready["cluster_id"])
                assert await got(successor) == b"v"
                assert (await successor.GetActor(pb.ActorQuery(name="kept", namespace="ns"))).state == pb.ACTOR_ALIVE
                await until(lambda: node.heads, "the raylet's news")
                assert (node.heads[0].address, node.heads[0].epoch) == (second.address, 2)
                assert time.monotonic() - began < 30

    run(test())


def test_a_head_that_was_stopped_finds_out_that_it_was_replaced_writes_nothing_and_ends(heads: Heads) -> None:
    async def test() -> None:
        first = heads.start()
        async with heads.at(first) as gcs:
            await put(gcs, b"old")
            second = heads.start("--standby")
            with stopped(first):
                async with heads.at(second) as successor:
                    await leads(successor)
                    await put(successor, b"new")
                    late = asyncio.ensure_future(put(gcs, b"stale"))
                    await asyncio.sleep(0)
            status, said = await asyncio.to_thread(first.ended)
            assert status == 1
            assert "another control store has taken over" in said
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await late
            # Refused, or under way when that head ended.
            assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        async with heads.at(second) as successor:
            assert await got(successor) == b"new"

    run(test())


def test_of_two_that_stand_by_one_leads_and_the_other_stands_by_for_it(heads: Heads) -> None:
    async def test() -> None:
        first = heads.start()
        others = [heads.start("--standby"), heads.start("--standby")]
        first.end(signal.SIGKILL)
        async with heads.at(others[0]) as one, heads.at(others[1]) as two:
            asking = [asyncio.ensure_future(leads(gcs)) for gcs in (one, two)]
            done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            (leading,) = done
            assert leading.result().gcs_epoch == 2
            winner = asking.index(leading)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            gcs = (one, two)[winner]
            await until_told(lambda: gcs.Info(pb.Empty()), lambda info: list(info.standbys) == [others[1 - winner].address], "the other one")

    run(test())


def test_a_head_that_ends_in_good_order_is_followed_before_its_term_is_over(heads: Heads, redis: RedisProcess) -> None:
    async def test() -> None:
        first = heads.start("--head-term-s", "60")
        second = heads.start("--standby", "--head-term-s", "60")
        assert (await asyncio.to_thread(first.end))[0] == 0
        async with heads.at(second) as successor:
            assert (await leads(successor)).gcs_epoch == 2

    run(test())


def test_a_head_started_again_at_its_address_does_not_wait_for_its_own_term(heads: Heads) -> None:
    first = heads.start("--head-term-s", "60")
    first.end(signal.SIGKILL)
    again = heads.start("--head-term-s", "60", "--port", first.address.rpartition(":")[2])
    assert (again.ready["epoch"], again.address) == (2, first.address)


def test_while_the_storage_does_not_answer_nothing_is_decided_and_then_it_goes_on(heads: Heads, redis: RedisProcess) -> None:
    async def test() -> None:
        head = heads.start("--head-term-s", "3")
        async with heads.at(head) as gcs:
            await put(gcs, b"v")
            beat = pb.HeartbeatRequest(node_id=b"n" * 16)
            await gcs.RegisterNode(pb.RegisterNodeRequest(node=pb.Node(node_id=b"n" * 16, address="127.0.0.1:1")))
            assert not (await gcs.Heartbeat(beat)).term_over

            async def refused_between_beats() -> str:
                await gcs.Heartbeat(beat)  # a silent node would be knocked at, and nobody listens at its address
                return await refusal(got(gcs))

            redis.signal(signal.SIGSTOP)
            try:
                await until_told(refused_between_beats, lambda why: "the term of this head is over" in why, "its refusal", 30)
                late = await gcs.Heartbeat(beat)
                assert (late.known, late.gcs_epoch, late.term_over) == (True, 1, True)
            finally:
                redis.signal(signal.SIGCONT)
            await until_told(lambda: refusal(got(gcs)), lambda why: not why, "its answer", 30)
            await put(gcs, b"later")
            assert await got(gcs) == b"later"

    run(test())


def test_an_emptied_redis_ends_the_head_and_is_no_new_cluster_for_standby_or_restart(heads: Heads, redis: RedisProcess) -> None:
    first = heads.start("--head-term-s", "4")
    second = heads.start("--standby", "--head-term-s", "4")
    redis.ask("FLUSHALL")
    status, said = first.ended()
    assert status == 1
    assert "no longer holds this cluster: it was emptied" in said
    status, said = second.ended()
    assert status == 1
    assert f"held cluster {first.ready['cluster_id']} and now holds no cluster at all" in said
    again = heads.start("--cluster-id", first.ready["cluster_id"])
    assert "restore its data" in again.ready["error"]
    assert redis.ask("DBSIZE") == 0


def test_a_standby_needs_storage_that_can_be_shared(tmp_path: Path) -> None:
    process = Process(tmp_path, "--storage", f"sqlite:{tmp_path}/gcs.db", "--standby")
    assert "a standby needs storage that its head shares, redis://" in process.ready["error"]
    assert process.ended()[0] == 1
