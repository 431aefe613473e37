"""What the store is told: which client numbers in the arena are free again, and which owners of objects are dead.

A client number is a living process's alone, used again only when the store has taken the dead one's things back."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from shoal_base.connection import FrameConnection

from .memory import Numbers
from .rpc import STORE, RawChannel, RpcFailed

_log = logging.getLogger(__name__)
# Limit: as the arena's table; 0 is the store itself.
MAX_CLIENTS = 4096
# Limit: ends of owners that a new store is told of; as many as a store remembers.
MAX_DEAD_OWNERS = 10_000
_TIMEOUT_S = 5.0
_PAUSE_S = 0.2


def _client_gone_request(client: int) -> bytes:
    """ClientGoneRequest {uint32 client = 1}. By hand, since this service does not import the store."""
    out = bytearray(b"\x08")
    while client >= 0x80:
        out.append(client & 0x7F | 0x80)
        client >>= 7
    out.append(client)
    return bytes(out)


# StatsReply: sealed, being written, copies of what lies elsewhere too, on disk alone.
_SEALED, _CREATED, _COPIES, _ON_DISK = 3, 13, 15, 18
_VARINT, _FIXED64 = 0, 1


def primary_bytes(stats: bytes) -> int:
    """Of a StatsReply: what lies on this node and perhaps nowhere else. By hand, as above; raises ValueError for what is no StatsReply."""
    fields: dict[int, int] = {}
    at = 0
    while at < len(stats):
        tag, at = _varint(stats, at)
        if tag & 7 == _VARINT:
            fields[tag >> 3], at = _varint(stats, at)
        elif tag & 7 == _FIXED64:
            at += 8
        else:
            raise ValueError(f"field {tag >> 3} of a StatsReply has wire type {tag & 7}")
    return max(0, fields.get(_SEALED, 0) - fields.get(_COPIES, 0)) + fields.get(_CREATED, 0) + fields.get(_ON_DISK, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


class StoreClients:
    def __init__(self, store: RawChannel) -> None:
        self._store = store
        self._numbers = Numbers(1, MAX_CLIENTS - 1)
        self._gone: asyncio.Queue[int] = asyncio.Queue()
        self._teller: asyncio.Task[None] | None = None

    def take(self) -> int | None:
        return self._numbers.take()

    def gone(self, client: int) -> None:
        """Its process has ended."""
        self._gone.put_nowait(client)
        if self._teller is None:
            self._teller = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        while True:
            client = await self._gone.get()
            while not await self._told(client):
                await asyncio.sleep(_PAUSE_S)
            self._numbers.give_back(client)

    async def _told(self, client: int) -> bool:
        try:
            await self._store.call(STORE + "ClientGone", _client_gone_request(client), _TIMEOUT_S)
            return True
        except RpcFailed as error:
            _log.debug("the store was not told that client %d is gone: %s", client, error)
            return False

    async def close(self) -> None:
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)


class DeadOwners:
    """Ends of processes and nodes, for the store, which frees what they owned: told as they come, and all of them to a store that begins, since one that was
    killed may have died before it had done so."""

    def __init__(self) -> None:
        self._frames: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._store: FrameConnection | None = None

    def died(self, type_: int, frame: bytes) -> None:
        """WORKER_DIED or NODE_DIED: both begin with the id."""
        self._frames.setdefault(frame[:16], (type_, frame))
        while len(self._frames) > MAX_DEAD_OWNERS:
            self._frames.popitem(last=False)
        if self._store is not None:
            self._store.send(type_, frame)

    def store_began(self, conn: FrameConnection) -> None:
        self._store = conn
        for type_, frame in self._frames.values():
            conn.send(type_, frame)
