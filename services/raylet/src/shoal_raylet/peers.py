"""Other raylets."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TypeVar

from google.protobuf.message import Message

from .rpc import RAYLET, RawChannel

# Limit: open channels to other nodes; the one used longest ago is closed.
MAX_CHANNELS = 512
Reply = TypeVar("Reply", bound=Message)


class Peers:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._channels: OrderedDict[str, RawChannel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def _channel(self, address: str) -> RawChannel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = RawChannel(address, self._secret)
            if len(self._channels) > MAX_CHANNELS:
                self._drop(self._channels.popitem(last=False)[1])
        self._channels.move_to_end(address)
        return channel

    async def call(self, address: str, method: str, request: Message, reply: type[Reply], timeout_s: float) -> Reply:
        """Raises RpcFailed."""
        answer: Reply = reply.FromString(await self._channel(address).call(RAYLET + method, request.SerializeToString(), timeout_s))
        return answer

    def forget(self, address: str) -> None:
        channel = self._channels.pop(address, None)
        if channel is not None:
            self._drop(channel)

    def _drop(self, channel: RawChannel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)
