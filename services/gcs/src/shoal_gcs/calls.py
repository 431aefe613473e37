"""The server's side of the stream Calls: one client's requests, begun in their order, answered when they are ready, several in a message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import grpc
import grpc.aio

from .v1 import gcs_pb2 as pb

MAX_UNDER_WAY = 50_000  # Limit: of one stream; beyond, no further request is read until some are answered

# (method, request) -> the reply's bytes, or something to wait for.
Handler = Callable[[str, bytes], bytes | Awaitable[bytes]]


class Kept:
    """A reply that may leave once what was decided before it is stored. A stream answers together those that wait for one write, without a task for each."""

    __slots__ = ("durable", "reply")

    def __init__(self, durable: asyncio.Future[None], reply: bytes) -> None:
        self.durable = durable
        self.reply = reply

    def __await__(self) -> Generator[Any, None, bytes]:
        """Raises StorageError."""
        yield from asyncio.shield(self.durable).__await__()  # others wait for the same write
        return self.reply


class CallRefused(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def not_recorded(error: BaseException) -> CallRefused:
    return CallRefused(grpc.StatusCode.UNAVAILABLE, f"not recorded: {error}")


class CallStream:
    def __init__(self, handler: Handler, context: Any) -> None:
        self._handler = handler
        self._context = context
        self._results: list[pb.Result] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: dict[asyncio.Future[None], list[tuple[int, bytes]]] = {}
        self._under_way = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ending = False

    async def serve(self) -> None:
        # An empty message tells the client that its signature was accepted.
        await self._context.write(pb.ResultBatch())
        writing = asyncio.get_running_loop().create_task(self._write())
        try:
            while (batch := await self._context.read()) is not grpc.aio.EOF:
                for call in batch.calls:
                    self._begin(call)
                await self._room.wait()
            while self._tasks or self._kept:
                await asyncio.wait([*self._tasks, *self._kept])
            self._ending = True
            self._news.set()
            await writing
        finally:
            writing.cancel()
            for task in self._tasks:
                task.cancel()
            for durable in self._kept:
                durable.remove_done_callback(self._stored)
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.InternalError):
                await writing

    def _begin(self, call: pb.Call) -> None:
        number = call.id
        try:
            reply = self._handler(call.method, call.payload)
        except CallRefused as refused:
            self._refuse(number, refused)
            return
        if isinstance(reply, bytes):
            self._answer(pb.Result(id=number, payload=reply))
            return
        self._under_way += 1
        if self._under_way >= MAX_UNDER_WAY:
            self._room.clear()
        if isinstance(reply, Kept):
            self._keep(number, reply)
            return
        task = asyncio.get_running_loop().create_task(self._later(number, reply))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._done(1)

    def _done(self, calls: int) -> None:
        self._under_way -= calls
        self._room.set()

    def _keep(self, number: int, kept: Kept) -> None:
        waiting = self._kept.get(kept.durable)
        if waiting is None:
            waiting = self._kept[kept.durable] = []
            kept.durable.add_done_callback(self._stored)
        waiting.append((number, kept.reply))

    def _stored(self, durable: asyncio.Future[None]) -> None:
        error = durable.exception()
        waiting = self._kept.pop(durable)
        for number, reply in waiting:
            if error is None:
                self._answer(pb.Result(id=number, payload=reply))
            else:
                self._refuse(number, not_recorded(error))
        self._done(len(waiting))

    async def _later(self, number: int, reply: Awaitable[bytes]) -> None:
        try:
            self._answer(pb.Result(id=number, payload=await reply))
        except CallRefused as refused:
            self._refuse(number, refused)

    def _refuse(self, number: int, refused: CallRefused) -> None:
        self._answer(pb.Result(id=number, code=refused.code.value[0], error=str(refused)))

    def _answer(self, result: pb.Result) -> None:
        self._results.append(result)
        self._news.set()

    async def _write(self) -> None:
        while not self._ending or self._results:
            await self._news.wait()
            self._news.clear()
            results, self._results = self._results, []
            if results:
                await self._context.write(pb.ResultBatch(results=results))
