"""gRPC channels as this service uses them: signed, without a limit of 4 MB, and methods called with bytes."""

from __future__ import annotations

import grpc
import grpc.aio
from shoal_base.auth import aio_client_interceptors
from shoal_base.grpc_options import QUIET

# Limit: as for a frame.
MAX_MESSAGE_BYTES = 256 << 20
OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to be made, in spite of its name: of a busy peer, or one far away, it takes more than a packet's way.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    *QUIET,
]
GCS = "/shoal.gcs.v1.Gcs/"
STORE = "/shoal.objectstore.v1.ObjectStore/"
RAYLET = "/shoal.raylet.v1.Raylet/"


class RpcFailed(Exception):
    """A call that came back without an answer: the gRPC status and what the peer said."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @property
    def unavailable(self) -> bool:
        return bool(self.code == grpc.StatusCode.UNAVAILABLE.value[0])

    @property
    def unheard(self) -> bool:
        """The peer may not have heard of it: nobody was there, or no answer came in time."""
        return self.unavailable or bool(self.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0])


class RawChannel:
    """Unary calls with bytes in and out."""

    def __init__(self, target: str, secret: bytes | None) -> None:
        interceptors = aio_client_interceptors("node", secret) if secret is not None else []
        self.target = target
        # A channel of its own: gRPC shares connections between equal channels, also their back-off.
        self.channel = grpc.aio.insecure_channel(target, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)], interceptors=interceptors)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable] = {}

    async def call(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Raises RpcFailed."""
        unary = self._methods.get(method)
        if unary is None:
            unary = self._methods[method] = self.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        try:
            return bytes(await unary(payload, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise RpcFailed(error.code().value[0], f"{method.rpartition('/')[2]} at {self.target}: {error.details()}") from error

    async def close(self) -> None:
        await self.channel.close()
