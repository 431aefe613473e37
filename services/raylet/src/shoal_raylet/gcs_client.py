"""The way to the control store: calls, one subscription, reconnects over the heads that are known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from shoal_base.addresses import parse_address
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_gcs.v1.calls import CallFailed, Calls, Signature, leader_of

from .heads import Heads
from .rpc import GCS, RawChannel, RpcFailed

_log = logging.getLogger(__name__)
_CONNECT_S, _CONNECT_PAUSE_S = 2.0, 0.01
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 1.0
# How long a call may go on trying a GCS that does not answer at all.
RETRY_UNAVAILABLE_S = 10.0
_UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
# No request is answered so: a GCS that ends cancels the streams that it still has.
_BROKEN = frozenset([grpc.StatusCode.CANCELLED.value[0]])
_SUBSCRIBE = GCS + "Subscribe"
Reply = TypeVar("Reply", bound=Message)


def may_be_repeated(error: CallFailed) -> bool:
    """It is not known whether it was done; each request can be made twice."""
    return error.code == _UNAVAILABLE or error.code in _BROKEN


class _Way:
    """To one address."""

    def __init__(self, address: str, secret: bytes) -> None:
        # Without interceptors, which cost as much again as a call or an event; the streams sign themselves.
        self._plain = RawChannel(address, None)
        self.calls = Calls(self._plain.channel, secret)
        self.signature = Signature(secret)
        self.subscribe: Any = self._plain.channel.stream_stream(
            _SUBSCRIBE, request_serializer=gcs.SubscribeRequest.SerializeToString, response_deserializer=gcs.Event.FromString
        )

    async def close(self) -> None:
        await self.calls.close()
        await self._plain.close()


class GcsClient:
    """One for each raylet. Calls go to the head that is believed to lead; when it is unreachable, to the next."""

    def __init__(self, heads: Heads, secret: bytes, node_id: bytes, on_event: Callable[[str, bytes], None]) -> None:
        self._heads = heads
        self._secret = secret
        self._ways: dict[str, _Way] = {}
        self._node_id = node_id
        self._on_event = on_event
        self._wanted: set[str] = set()
        self._changes: asyncio.Queue[gcs.SubscribeRequest | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None
        self._listening_at = ""
        self.subscribed = asyncio.Event()

    @property
    def address(self) -> str:
        return self._heads.current

    def _way(self, address: str) -> _Way:
        way = self._ways.get(address)
        if way is None:
            way = self._ways[address] = _Way(address, self._secret)
        return way

    def begin(self, method: str, payload: bytes, timeout_s: float) -> asyncio.Future[bytes]:
        """Once, at the head that is believed to lead: the reply, or shoal_gcs's CallFailed. What `may_be_repeated` is for `raw` to ask again."""
        return self._way(self._heads.current).calls.begin(method, payload, timeout_s)

    async def raw(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Raises RpcFailed. While no GCS answers, tries on for a while: it may be restarting."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        give_up = loop.time() + min(timeout_s, RETRY_UNAVAILABLE_S)
        pause = _FIRST_PAUSE_S
        while True:
            turn, address = self._heads.turn, self._heads.current
            try:
                return await self._way(address).calls.call(method, payload, max(0.001, end - loop.time()))
            except CallFailed as error:
                failed = RpcFailed(_UNAVAILABLE if may_be_repeated(error) else error.code, f"{method} at {address}: {error.text}")
                if not failed.unavailable or loop.time() + pause > give_up:
                    raise failed from error
                self._heads.failed(address, turn, error.leader)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_S)

    async def reachable(self, timeout_s: float) -> None:
        """Returns once some GCS takes connections, or at the timeout. A channel that failed first would back off while the GCS comes up."""
        end = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < end:
            for address in dict.fromkeys((self._heads.current, *self._heads.known)):
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(_CONNECT_S):
                        _reader, writer = await asyncio.open_connection(*parse_address(address))
                    writer.close()
                    self._heads.lead(address)
                    return
            await asyncio.sleep(_CONNECT_PAUSE_S)

    async def call(self, method: str, request: Message, reply: type[Reply], timeout_s: float = 30.0) -> Reply:
        answer: Reply = reply.FromString(await self.raw(method, request.SerializeToString(), timeout_s))
        return answer

    def follow(self, address: str) -> None:
        """That head leads now. What waits for another one is asked again here: it may be stopped, and would never answer."""
        self._heads.lead(address)
        for other, way in self._ways.items():
            if other != address:
                way.calls.abandon()
        if self._reader is not None and self._listening_at != address:
            self._reader.cancel()
            self.start()

    # -- the subscription -----------------------------------------------------------------------------

    def subscribe(self, channels: list[str]) -> None:
        new = [channel for channel in channels if channel not in self._wanted]
        if new:
            self._wanted.update(new)
            self._changes.put_nowait(gcs.SubscribeRequest(add=new))

    def unsubscribe(self, channels: list[str]) -> None:
        gone = [channel for channel in channels if channel in self._wanted]
        if gone:
            self._wanted.difference_update(gone)
            self._changes.put_nowait(gcs.SubscribeRequest(remove=gone))

    def snapshot_again(self, channel: str) -> None:
        """A late subscriber here wants what the GCS would tell a new one; everybody else sees it twice, which states allow."""
        self._changes.put_nowait(gcs.SubscribeRequest(remove=[channel]))
        self._changes.put_nowait(gcs.SubscribeRequest(add=[channel]))

    def start(self) -> None:
        self._reader = asyncio.create_task(self._listen(), name="gcs subscription")

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            turn, address = self._heads.turn, self._heads.current
            self._listening_at = address
            leader = ""
            try:
                if await self._listen_once(address):
                    pause = _FIRST_PAUSE_S
            except grpc.aio.AioRpcError as error:
                leader = leader_of(error)
                _log.warning("the subscription at the GCS %s ended: %s %s", address, error.code().name, error.details())
            self.subscribed.clear()
            self._heads.failed(address, turn, leader)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_S)

    async def _listen_once(self, address: str) -> bool:
        """One life of the stream; whether anything came."""
        way = self._way(address)
        # A queue of its own: gRPC goes on asking the requests of a broken stream, which would take what is meant for this one. What was queued is in _wanted.
        changes = self._changes = asyncio.Queue()
        got = adapted = False
        signed = way.signature.metadata(_SUBSCRIBE)
        call = way.subscribe(self._requests(changes), metadata=signed)
        try:
            while (event := await call.read()) is not grpc.aio.EOF:
                got = True
                self.subscribed.set()
                self._on_event(event.channel, event.payload)
                for other in event.more:
                    self._on_event(other.channel, other.payload)
        except grpc.aio.AioRpcError as error:
            adapted = way.signature.adapt(signed, error)
            if not adapted:
                raise
        finally:
            changes.put_nowait(None)
            call.cancel()
        return await self._listen_once(address) if adapted else got

    async def _requests(self, changes: asyncio.Queue[gcs.SubscribeRequest | None]) -> Any:
        yield gcs.SubscribeRequest(node_id=self._node_id, add=sorted(self._wanted), several=True)
        later: gcs.SubscribeRequest | None = None
        while True:
            request, later = later or await changes.get(), None
            if request is None:
                return
            while not request.remove and later is None and not changes.empty():
                following = changes.get_nowait()
                if following is None:
                    return
                if following.remove:
                    later = following
                else:
                    request.add.extend(following.add)
            yield request

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        for way in self._ways.values():
            await way.close()
