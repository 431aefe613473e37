"""The cluster as the HTTP server sees it: calls to the GCS and to every node's raylet and store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from shoal_base.auth import Secrets, aio_client_interceptors
from shoal_base.grpc_options import QUIET
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_gcs.v1.calls import leader_of
from shoal_objectstore.v1 import objectstore_pb2 as store
from shoal_raylet.v1 import raylet_pb2 as raylet

GCS, RAYLET, STORE = "/shoal.gcs.v1.Gcs/", "/shoal.raylet.v1.Raylet/", "/shoal.objectstore.v1.ObjectStore/"
CALL_TIMEOUT_S = 10.0
# Limit: nodes asked at a time when a question goes to all.
MAX_ASKED = 64
# Limit: addresses of control stores.
MAX_HEADS = 16
# Limit: channels to nodes kept open.
MAX_CHANNELS = 512
_OPTIONS = [("grpc.max_receive_message_length", 256 << 20), ("grpc.max_send_message_length", 256 << 20), ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 1000), *QUIET]  # fmt: skip
Reply = TypeVar("Reply", bound=Message)


class Unreachable(Exception):
    """A part of the cluster that did not answer: who, and why. `leader`: the control store to ask instead, if it said."""

    def __init__(self, text: str, leader: str = "") -> None:
        super().__init__(text)
        self.leader = leader


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClusterClient:
    """One for the process. The GCS's addresses are tried in turn; one that stands by says who leads."""

    def __init__(self, gcs_addresses: list[str], secrets_dir: Path) -> None:
        secrets = Secrets.read(secrets_dir)
        self.user_token = secrets.user or b""
        if secrets.node is None:
            raise FileNotFoundError(f"{secrets_dir / 'node.secret'} does not exist")
        self._secret: bytes = secrets.node
        self._addresses = list(gcs_addresses)
        self._at = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if len(self._channels) >= MAX_CHANNELS:
                closing = asyncio.ensure_future(self._channels.pop(next(iter(self._channels))).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=aio_client_interceptors("node", self._secret))
            self._channels[address] = channel
        return channel

    async def call(self, address: str, method: str, request: Message, reply: type[Reply], timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Raises Unreachable, Refused."""
        unary: Any = self._channel(address).unary_unary(method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString)
        try:
            answer: Reply = await unary(request, timeout=timeout_s)
            return answer
        except grpc.aio.AioRpcError as error:
            text = f"{method.rpartition('/')[2]} at {address}: {error.details()}"
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unreachable(text, leader_of(error)) from error
            raise Refused(error.code(), text) from error

    async def ask_gcs(self, method: str, request: Message, reply: type[Reply], timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Raises Unreachable when no head answers, Refused."""
        failure = Unreachable("no address of a control store is known")
        for _ in range(len(self._addresses) + 1):
            try:
                return await self.call(self._addresses[self._at], GCS + method, request, reply, timeout_s)
            except Unreachable as error:
                failure = error
                self._go_on(error.leader)
        raise failure

    def _go_on(self, leader: str) -> None:
        if leader and leader not in self._addresses:
            self._addresses = [*self._addresses[:MAX_HEADS], leader]
        self._at = self._addresses.index(leader) if leader else (self._at + 1) % len(self._addresses)

    async def nodes(self) -> list[gcs.Node]:
        return list((await self.ask_gcs("ListNodes", gcs.Empty(), gcs.NodeList)).nodes)

    async def ask_all(
        self, method: str, request: Message, reply: type[Reply], nodes: list[gcs.Node] | None = None
    ) -> tuple[list[tuple[gcs.Node, Reply]], list[str]]:
        """Every living node's answer, and a warning for each that gave none."""
        living = [node for node in (nodes if nodes is not None else await self.nodes()) if node.alive]
        slots = asyncio.Semaphore(MAX_ASKED)

        async def one(node: gcs.Node) -> tuple[gcs.Node, Reply] | str:
            async with slots:
                try:
                    return node, await self.call(node.address, method, request, reply)
                except (Unreachable, Refused) as error:
                    return f"node {node.node_id.hex()[:12]} did not answer: {error}"

        answers = await asyncio.gather(*(one(node) for node in living))
        return [a for a in answers if not isinstance(a, str)], [a for a in answers if isinstance(a, str)]

    async def read_log(self, address: str, name: str, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """Raises Unreachable, Refused."""
        stream: Any = self._channel(address).unary_stream(
            RAYLET + "ReadLog", request_serializer=raylet.ReadLogRequest.SerializeToString, response_deserializer=raylet.LogChunk.FromString
        )
        call = stream(raylet.ReadLogRequest(name=name, tail=tail, follow=follow))
        try:
            async for chunk in call:
                yield chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise Unreachable(f"{address}: {error.details()}") from error
            raise Refused(error.code(), str(error.details())) from error
        finally:
            call.cancel()

    async def store_stats(self, nodes: list[gcs.Node]) -> tuple[list[tuple[gcs.Node, store.StatsReply]], list[str]]:
        return await self.ask_all(STORE + "Stats", store.Empty(), store.StatsReply, nodes)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
