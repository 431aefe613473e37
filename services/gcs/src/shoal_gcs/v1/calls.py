"""The client's side of the stream Calls: many requests under way on one stream, those of one turn of the event loop in one message.

    calls = Calls(channel, secret)
    reply = pb.KvGetReply.FromString(await calls.call("KvGet", pb.KvGetRequest(...).SerializeToString(), timeout_s=5.0))
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import grpc.aio
from shoal_base.grpc_auth import KEY, TIME_KEY
from shoal_base.signing import Signer

from . import gcs_pb2 as pb

METHOD = "/shoal.gcs.v1.Gcs/Calls"
_OK = 0
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]
_DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
LEADER_KEY = "shoal-leader"  # in the trailing metadata of a refusal by a control store that stands by: who leads, HOST:PORT
EPOCH_KEY = "shoal-gcs-epoch"  # in the metadata of the control store's calls
MAX_BATCH_BYTES = 1 << 20  # a message is closed when it is larger, so that one large value does not hold up many small ones


class CallFailed(Exception):
    """`code` is the gRPC status. UNAVAILABLE: the stream broke, and whether the call was done is unknown. `leader`: whom to ask instead, if it said."""

    def __init__(self, code: int, text: str, leader: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.leader = leader


def leader_of(error: grpc.aio.AioRpcError) -> str:
    """Whom a control store that stands by names; empty: nobody."""
    return next((str(value) for key, value in error.trailing_metadata() or () if key == LEADER_KEY), "")


class Signature:
    """Signs the calls of one channel without interceptors, which cost as much again as the call; takes over the server's clock when told."""

    def __init__(self, secret: bytes | None) -> None:
        self._signer = None if secret is None else Signer("node", secret)
        self._last = ""

    def metadata(self, method: str) -> tuple[tuple[str, str], ...]:
        if self._signer is None:
            return ()
        self._last = self._signer.sign(method, _now_ms())
        return ((KEY, self._last),)

    def adapt(self, signed: tuple[tuple[str, str], ...], error: grpc.aio.AioRpcError) -> bool:
        """Whether the call was refused for its time alone, and may be made again now."""
        if self._signer is None or error.code() != grpc.StatusCode.UNAUTHENTICATED:
            return False
        told = next((str(value) for key, value in error.trailing_metadata() or () if key == TIME_KEY), "")
        return bool(told) and self._signer.adapt(signed[0][1], told, _now_ms())


class Calls:
    """For one event loop and one channel without interceptors. The stream is opened by the first call, and again after it broke."""

    def __init__(self, channel: grpc.aio.Channel, secret: bytes | None) -> None:
        self._open = channel.stream_stream(METHOD, pb.CallBatch.SerializeToString, pb.ResultBatch.FromString)
        self._signature = Signature(secret)
        self._waiting: dict[int, tuple[asyncio.Future[bytes], asyncio.TimerHandle]] = {}
        self._next = 0
        self._out: list[pb.Call] = []
        self._news = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def call(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Raises CallFailed."""
        return await self.begin(method, payload, timeout_s)

    def begin(self, method: str, payload: bytes, timeout_s: float) -> asyncio.Future[bytes]:
        """The reply, or CallFailed; for whoever has many under way, and no task for each."""
        loop = asyncio.get_running_loop()
        self._next += 1
        number = self._next
        future: asyncio.Future[bytes] = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, number, _DEADLINE_EXCEEDED, f"no answer in {timeout_s:g} s")
        self._waiting[number] = future, timer
        self._out.append(pb.Call(id=number, method=method, payload=payload))
        self._news.set()
        if self._serving is None or self._serving.done() or self._serving.cancelling():
            self._serving = loop.create_task(self._serve())
        return future

    def abandon(self) -> None:
        """What waits fails as when the stream breaks: its control store does not lead any more."""
        if self._serving is not None:
            self._serving.cancel()
        # Here, and not where the stream ends: one that has not begun yet never comes to its end.
        self._fail_all(_UNAVAILABLE, "its control store does not lead any more")

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    def _fail(self, number: int, code: int, text: str, leader: str = "") -> None:
        future = self._ended(number)
        if future is not None:
            future.set_exception(CallFailed(code, text, leader))

    def _fail_all(self, code: int, text: str, leader: str = "") -> None:
        self._out.clear()
        for number in list(self._waiting):
            self._fail(number, code, text, leader)

    def _ended(self, number: int) -> asyncio.Future[bytes] | None:
        """None: nobody waits for it any more."""
        future, timer = self._waiting.pop(number, (None, None))
        if future is None or timer is None:
            return None
        timer.cancel()
        return None if future.done() else future

    async def _serve(self) -> None:
        """One stream's life. Whatever ends it fails the calls that were sent on it."""
        code, text, leader = _UNAVAILABLE, "the connection was closed", ""
        try:
            for last in (False, True):
                signed = self._signature.metadata(METHOD)
                stream = self._open(metadata=signed)
                try:
                    await self._exchange(stream)
                except grpc.aio.AioRpcError as error:
                    if not last and self._signature.adapt(signed, error):
                        continue
                    code, text, leader = error.code().value[0], error.details() or error.code().name, leader_of(error)
                    if code == _INTERNAL:  # what gRPC says of a write to a connection that breaks just then
                        code = _UNAVAILABLE
                finally:
                    stream.cancel()
                return
        finally:
            self._fail_all(code, text, leader)

    async def _exchange(self, stream: Any) -> None:
        # Nothing is written before the server has taken the stream, so that a refused signature costs no call.
        await stream.wait_for_connection()
        if (await stream.read()) is grpc.aio.EOF:
            raise await _reason(stream)
        writing = asyncio.get_running_loop().create_task(self._write(stream))
        try:
            while (batch := await stream.read()) is not grpc.aio.EOF:
                for result in batch.results:
                    self._answer(result)
            raise await _reason(stream)
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writing

    async def _write(self, stream: Any) -> None:
        while True:
            self._news.clear()
            while self._out:
                await stream.write(self._batch())
            await self._news.wait()

    def _batch(self) -> pb.CallBatch:
        size = count = 0
        while count < len(self._out) and size < MAX_BATCH_BYTES:
            size += len(self._out[count].payload)
            count += 1
        batch = pb.CallBatch(calls=self._out[:count])
        del self._out[:count]
        return batch

    def _answer(self, result: pb.Result) -> None:
        if result.code != _OK:
            self._fail(result.id, result.code, result.error)
            return
        future = self._ended(result.id)
        if future is not None:
            future.set_result(result.payload)


async def _reason(stream: Any) -> grpc.aio.AioRpcError:
    code, details = await stream.code(), await stream.details()
    if code == grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the control store ended the stream"
    return grpc.aio.AioRpcError(code, await stream.initial_metadata(), await stream.trailing_metadata(), details)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
