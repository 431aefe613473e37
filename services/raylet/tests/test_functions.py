"""Functions on their way to a control store that does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet import functions
from shoal_raylet.functions import Functions
from shoal_raylet.rpc import RpcFailed
from shoal_raylet.v1 import raylet_pb2 as pb

JOB = b"\1\0\0\0"
RECORD = pb.FunctionRecord(job_id=JOB, function_id=b"f" * 16, pickled=b"code").SerializeToString()


class Store:
    """As much of a GcsClient as is asked here; fails so for as long as `code` is set."""

    def __init__(self, code: grpc.StatusCode | None) -> None:
        self.code = code
        self.tries = 0
        self.kept: dict[bytes, bytes] = {}

    async def call(self, method: str, request: gcs.KvPutRequest, reply: Any, timeout_s: float) -> gcs.KvPutReply:
        assert method == "KvPut"
        self.tries += 1
        if self.code is not None:
            raise RpcFailed(self.code.value[0], "no")
        self.kept[request.key] = request.value
        return gcs.KvPutReply(added=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "STORE_PAUSE_S", 0.001)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_one_that_the_control_store_did_not_take_is_stored_once_it_answers(code: grpc.StatusCode) -> None:
    async def test() -> None:
        store = Store(code)
        kept = Functions(store)  # type: ignore[arg-type]
        with pytest.raises(RpcFailed, match="it is tried on"):
            await kept.put(RECORD, 0.02)
        assert store.tries > 1, "whoever asked has gone, and it is tried on"
        store.code = None
        await until(lambda: store.kept == {JOB + b"f" * 16: RECORD})
        await kept.put(RECORD, 1.0)
        await kept.close()

    asyncio.run(test())


def test_of_a_job_that_is_over_nothing_is_stored_any_more() -> None:
    async def test() -> None:
        store = Store(grpc.StatusCode.UNAVAILABLE)
        kept = Functions(store)  # type: ignore[arg-type]
        waiting = asyncio.ensure_future(kept.put(RECORD, 10.0))
        await until(lambda: store.tries)
        kept.forget_job(JOB)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        tries = store.tries
        await asyncio.sleep(0.01)
        assert store.tries == tries
        await kept.close()

    asyncio.run(test())


def test_what_the_control_store_refuses_is_said_and_not_tried_again() -> None:
    async def test() -> None:
        store = Store(grpc.StatusCode.INVALID_ARGUMENT)
        kept = Functions(store)  # type: ignore[arg-type]
        with pytest.raises(RpcFailed):
            await kept.put(RECORD, 10.0)
        assert store.tries == 1
        await kept.close()

    asyncio.run(test())
