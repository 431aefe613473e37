"""The stream Calls: many requests on one stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from gcs_rig import client, raylets, serving, until, until_told
from gcs_states import group, group_id
from shoal_base.auth import make_secret_file, read_secret
from shoal_gcs.calls import CallStream, Kept
from shoal_gcs.storage import StorageError
from shoal_gcs.v1 import gcs_pb2 as pb
from shoal_gcs.v1.calls import CallFailed, Calls

pytestmark = pytest.mark.timeout(60)

UNAVAILABLE, DEADLINE, UNIMPLEMENTED, INVALID, NOT_FOUND, UNAUTHENTICATED = (
    code.value[0]
    for code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
    )
)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 50))


@contextlib.asynccontextmanager
async def calling(address: str, secret: bytes) -> AsyncIterator[Calls]:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=limits) as channel:
        calls = Calls(channel, secret)
        try:
            yield calls
        finally:
            await calls.close()


def secret_of(tmp_path: Path, name: str = "node.secret") -> bytes:
    return read_secret(tmp_path / "secrets" / name)


async def put(calls: Calls, key: bytes, value: bytes = b"v") -> pb.KvPutReply:
    return pb.KvPutReply.FromString(await calls.call("KvPut", pb.KvPutRequest(namespace="n", key=key, value=value, overwrite=True).SerializeToString(), 10))


async def get(calls: Calls, key: bytes, wait_ms: int = 0, timeout_s: float = 10) -> pb.KvGetReply:
    return pb.KvGetReply.FromString(await calls.call("KvGet", pb.KvGetRequest(namespace="n", key=key, wait_ms=wait_ms).SerializeToString(), timeout_s))


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
def test_a_thousand_calls_at_once_are_done_in_order_and_all_answered(tmp_path: Path, storage: str) -> None:
    async def test() -> None:
        where = storage if storage == "memory" else f"sqlite:{tmp_path}/gcs.db"
        async with serving(tmp_path, storage=where) as (server, _), calling(server.address, secret_of(tmp_path)) as calls:
            replies = await asyncio.gather(*(put(calls, b"same", str(n).encode()) for n in range(1000)))
            assert [reply.added for reply in replies] == [True] + [False] * 999
            assert (await get(calls, b"same")).value == b"999"

    run(test())


def test_a_call_that_waits_holds_up_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _), calling(server.address, secret_of(tmp_path)) as calls:
            waiting = asyncio.ensure_future(get(calls, b"late", wait_ms=20_000))
            assert not (await get(calls, b"other")).found
            assert not waiting.done()
            await put(calls, b"late")
            assert (await asyncio.wait_for(waiting, 10)).value == b"v"

    run(test())


def test_large_values_travel(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _), calling(server.address, secret_of(tmp_path)) as calls:
            value = b"x" * (8 << 20)
            await asyncio.gather(*(put(calls, bytes([n]), value) for n in range(8)))
            assert (await get(calls, b"\7")).value == value

    run(test())


@pytest.mark.parametrize(
    ("method", "payload", "code", "text"),
    [
        ("NoSuch", b"", UNIMPLEMENTED, "no method 'NoSuch'"),
        ("Subscribe", b"", UNIMPLEMENTED, "no method"),
        ("KvPut", b"\xff\xff\xff", INVALID, "not the request's message"),
        ("KvPut", b"", INVALID, "a key has"),
        ("GetJob", b"", NOT_FOUND, "no job"),
    ],
)
def test_a_refused_call_has_its_status_and_the_stream_goes_on(tmp_path: Path, method: str, payload: bytes, code: int, text: str) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _), calling(server.address, secret_of(tmp_path)) as calls:
            with pytest.raises(CallFailed, match=text) as failed:
                await calls.call(method, payload, 10)
            assert failed.value.code == code
            assert not (await get(calls, b"k")).found

    run(test())


def test_a_call_has_its_own_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _), calling(server.address, secret_of(tmp_path)) as calls:
            began = time.monotonic()
            with pytest.raises(CallFailed, match=r"no answer in 0.05 s") as failed:
                await get(calls, b"never", wait_ms=20_000, timeout_s=0.05)
            assert failed.value.code == DEADLINE
            assert time.monotonic() - began < 5

    run(test())


def test_a_strangers_secret_and_a_users_token_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _):
            for secret in (make_secret_file(tmp_path / "other"), secret_of(tmp_path, "user.token")):
                async with calling(server.address, secret) as calls:
                    with pytest.raises(CallFailed, match="secret is not this cluster's") as failed:
                        await get(calls, b"k")
                    assert failed.value.code == UNAUTHENTICATED

    run(test())


def test_a_client_whose_clock_is_off_takes_over_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_gcs.v1.calls._now_ms", lambda: time.time_ns() // 1_000_000 - 3_600_000)

    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), raylets(gcs, tmp_path / "secrets") as (node,):
            async with calling(server.address, secret_of(tmp_path)) as calls:
                assert not (await get(calls, b"k")).found
            # The control store's own calls are signed the same way.
            await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [1])))
            made = await gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(1), timeout_ms=5000))
            assert made.state == pb.PG_CREATED
            assert len(node.committed) == 1

    run(test())


def test_a_broken_stream_fails_what_was_under_way_and_the_next_call_opens_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (first, _):
            port = int(first.address.rpartition(":")[2])
            async with calling(first.address, secret_of(tmp_path)) as calls:
                waiting = asyncio.ensure_future(get(calls, b"never", wait_ms=30_000))
                await until(lambda: first.service._key_waiters, "the call to arrive")  # type: ignore[union-attr]
                await first.close()
                with pytest.raises(CallFailed) as failed:
                    await asyncio.wait_for(waiting, 10)
                assert failed.value.code == UNAVAILABLE
                async with serving(tmp_path, port=port):

                    async def code() -> int:
                        try:
                            return 0 if not (await get(calls, b"k")).found else -1
                        except CallFailed as error:
                            return error.code

                    seen: list[int] = []

                    async def ask() -> int:
                        seen.append(await code())
                        return seen[-1]

                    await until_told(ask, lambda status: status == 0, "a call on another stream")
                    assert set(seen) <= {UNAVAILABLE, 0}

    run(test())


def test_a_client_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _):
            async with calling(server.address, secret_of(tmp_path)) as calls:
                waiting = asyncio.ensure_future(get(calls, b"never", wait_ms=30_000))
                await until(lambda: server.service._key_waiters, "the call to arrive")  # type: ignore[union-attr]
            with pytest.raises(CallFailed):
                await waiting
            await until(lambda: not server.service._key_waiters, "the waiter's end")  # type: ignore[union-attr]

    run(test())


def test_a_client_that_ends_its_side_still_gets_its_answers(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_, gcs):
            batch = pb.CallBatch(calls=[pb.Call(id=n, method="Info") for n in range(1, 4)])
            stream = gcs.Calls(iter([batch]))
            assert [result.id async for message in stream for result in message.results] == [1, 2, 3]

    run(test())


def test_calls_and_unary_calls_see_the_same_store(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), calling(server.address, secret_of(tmp_path)) as calls:
            await put(calls, b"k", b"1")
            assert (await gcs.KvGet(pb.KvGetRequest(namespace="n", key=b"k"))).value == b"1"
            async with client(server.address, tmp_path / "secrets") as other:
                assert (await other.KvDelete(pb.KvDeleteRequest(namespace="n", key=b"k"))).deleted == 1
            assert not (await get(calls, b"k")).found

    run(test())


class Context:
    """A stream whose client sends these batches, and then ends its side."""

    def __init__(self, *batches: pb.CallBatch) -> None:
        self._batches = list(batches)
        self.written: list[pb.ResultBatch] = []

    async def read(self) -> object:
        return self._batches.pop(0) if self._batches else grpc.aio.EOF

    async def write(self, batch: pb.ResultBatch) -> None:
        self.written.append(batch)


def test_calls_that_wait_for_one_write_are_answered_together_once_it_is_done() -> None:
    async def test() -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        context = Context(pb.CallBatch(calls=[pb.Call(id=n, method="M") for n in range(3)]))
        serving = asyncio.ensure_future(CallStream(lambda method, payload: Kept(durable, b"kept"), context).serve())
        await until(lambda: not context._batches, "the calls to be read")
        assert not any(batch.results for batch in context.written)
        durable.set_result(None)
        await serving
        (answered,) = [batch for batch in context.written if batch.results]
        assert [(result.id, result.payload) for result in answered.results] == [(n, b"kept") for n in range(3)]

    run(test())


def test_calls_whose_write_failed_are_told_that_nothing_was_recorded() -> None:
    async def test() -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        context = Context(pb.CallBatch(calls=[pb.Call(id=7, method="M")]))
        serving = asyncio.ensure_future(CallStream(lambda method, payload: Kept(durable, b"kept"), context).serve())
        await until(lambda: not context._batches, "the call to be read")
        durable.set_exception(StorageError("the disk is full"))
        await serving
        (result,) = [result for batch in context.written for result in batch.results]
        assert (result.id, result.code, result.payload, result.error) == (7, UNAVAILABLE, b"", "not recorded: the disk is full")

    run(test())


def test_a_stream_that_breaks_while_its_calls_are_written_leaves_the_write_to_others() -> None:
    async def test() -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        context = Context(pb.CallBatch(calls=[pb.Call(id=7, method="M")]))
        serving = asyncio.ensure_future(CallStream(lambda method, payload: Kept(durable, b"kept"), context).serve())
        await until(lambda: not context._batches, "the call to be read")
        serving.cancel()
        await asyncio.wait([serving])
        durable.set_result(None)
        await asyncio.sleep(0)
        assert not any(batch.results for batch in context.written)

    run(test())
