"""One subscriber's stream: its wishes are read while its events are written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from .pubsub import Hub, Subscriber
from .v1 import gcs_pb2 as pb

Context = grpc.aio.ServicerContext


class _Reader:
    """Applies what the subscriber adds and removes, until it ends its side."""

    def __init__(self, hub: Hub, subscriber: Subscriber, all_stored: Callable[[], Awaitable[None]]) -> None:
        self._hub = hub
        self._all_stored = all_stored
        self._subscriber = subscriber
        self.node_id = b""
        self.ended = False

    async def run(self, context: Any) -> None:
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                assert isinstance(request, pb.SubscribeRequest)
                self.node_id = request.node_id or self.node_id
                self._subscriber.several |= request.several
                self._hub.remove(self._subscriber, request.remove)
                await self._all_stored()  # a snapshot tells nothing that a kill would undo
                self._hub.add(self._subscriber, request.add)
        finally:
            self.ended = True
            self._subscriber.wake()


async def serve_subscriber(hub: Hub, context: Any, all_stored: Callable[[], Awaitable[None]]) -> bytes:
    """Returns the id of the node that listened, if it was one; and never raises for a peer that is gone.

    A killed peer looks like one that ended its side, as often as not, until a moment later: whoever cares must see for itself.
    """
    news = asyncio.Event()
    subscriber = Subscriber(news.set)
    hub.join(subscriber)
    reader = _Reader(hub, subscriber, all_stored)
    reading = asyncio.get_running_loop().create_task(reader.run(context))
    try:
        while not reader.ended:
            await news.wait()
            news.clear()
            while (message := subscriber.pop()) is not None:
                await context.write(message)
            if subscriber.cut:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, subscriber.cut)
    except asyncio.CancelledError:
        if not reader.node_id:
            raise
    except (grpc.aio.UsageError, grpc.aio.InternalError):  # the stream is over
        pass
    finally:
        hub.leave(subscriber)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.InternalError):
            await reading
    return reader.node_id
