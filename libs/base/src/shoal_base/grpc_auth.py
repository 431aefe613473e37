"""gRPC interceptors that sign calls and check signatures. See `signing` for what is signed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from .auth import Secrets
from .signing import SignatureRefused, Signer, Verifier

KEY = "shoal-auth"
TIME_KEY = "shoal-time"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _told_time(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == TIME_KEY:
            return str(value)
    return ""


class _Signing:
    """What the interceptors of one channel share."""

    def __init__(self, kind: str, secret: bytes, now_ms: Callable[[], int]) -> None:
        self._signer = Signer(kind, secret)
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self.confirmed = False  # a call went through: the clocks agree

    def sign(self, method: str | bytes) -> str:
        return self._signer.sign(method.decode() if isinstance(method, bytes) else method, self._now_ms())

    def adapt(self, signature: str, metadata: Any) -> bool:
        told = _told_time(metadata)
        with self._lock:
            return bool(told) and self._signer.adapt(signature, told, self._now_ms())


# -- asyncio client ---------------------------------------------------------------------------------------


def _aio_signed(details: Any, signature: str) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add(KEY, signature)
    return details._replace(metadata=metadata)


class _AioBase:
    def __init__(self, signing: _Signing) -> None:
        self._signing = signing


class _AioUnaryUnary(_AioBase, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        for last in (False, True):
            signature = self._signing.sign(client_call_details.method)
            call = await continuation(_aio_signed(client_call_details, signature), request)
            if last:
                return call
            try:
                code = await call.code()
            except asyncio.CancelledError:
                call.cancel()
                raise
            if code != grpc.StatusCode.UNAUTHENTICATED or not self._signing.adapt(signature, await call.trailing_metadata()):
                return call
        raise AssertionError("unreachable")


class _AioUnaryStream(_AioBase, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        signature = self._signing.sign(client_call_details.method)
        call = await continuation(_aio_signed(client_call_details, signature), request)
        if self._signing.confirmed:
            return call
        # Until a stream has begun once, wait for its first message here: only so can it be begun again with the right clock.
        messages = call.__aiter__()
        try:
            first = [await anext(messages)]
        except StopAsyncIteration:
            first = []
        except asyncio.CancelledError:
            call.cancel()
            raise
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED or not self._signing.adapt(signature, error.trailing_metadata()):
                raise
            return await continuation(_aio_signed(client_call_details, self._signing.sign(client_call_details.method)), request)
        self._signing.confirmed = True
        return _chain(first, messages)


async def _chain(first: list[Any], rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for message in first:
        yield message
    async for message in rest:
        yield message


class _AioStreamUnary(_AioBase, grpc.aio.StreamUnaryClientInterceptor):
    # A stream of requests cannot be sent twice: signed, and not tried again.
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(_aio_signed(client_call_details, self._signing.sign(client_call_details.method)), request_iterator)


class _AioStreamStream(_AioBase, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(_aio_signed(client_call_details, self._signing.sign(client_call_details.method)), request_iterator)


def aio_client_interceptors(kind: str, secret: bytes, *, now_ms: Callable[[], int] = _now_ms) -> list[grpc.aio.ClientInterceptor]:
    """For `grpc.aio.insecure_channel(..., interceptors=...)`: signs each call as "node" or "user", and takes over the server's clock when ours is off."""
    signing = _Signing(kind, secret, now_ms)
    return [_AioUnaryUnary(signing), _AioUnaryStream(signing), _AioStreamUnary(signing), _AioStreamStream(signing)]


# -- blocking client --------------------------------------------------------------------------------------


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


def _sync_signed(details: Any, signature: str) -> _Details:
    return _Details(
        details.method, details.timeout, (*(details.metadata or ()), (KEY, signature)), details.credentials,
        getattr(details, "wait_for_ready", None), getattr(details, "compression", None),
    )  # fmt: skip


class _Sync(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, signing: _Signing) -> None:
        self._signing = signing

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        signature = self._signing.sign(client_call_details.method)
        call = continuation(_sync_signed(client_call_details, signature), request)
        # code() waits for the end; a future() that already went through once is not waited for.
        if self._signing.confirmed and not call.done():
            return call
        if call.code() == grpc.StatusCode.UNAUTHENTICATED and self._signing.adapt(signature, call.trailing_metadata()):
            return continuation(_sync_signed(client_call_details, self._signing.sign(client_call_details.method)), request)
        self._signing.confirmed = True
        return call

    def _signed_only(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_sync_signed(client_call_details, self._signing.sign(client_call_details.method)), request)

    intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _signed_only


def sync_client_interceptors(kind: str, secret: bytes, *, now_ms: Callable[[], int] = _now_ms) -> list[Any]:
    """For `grpc.intercept_channel(channel, *...)`. A stream is signed with the clock that unary calls have found."""
    return [_Sync(_Signing(kind, secret, now_ms))]


# -- asyncio server ---------------------------------------------------------------------------------------


class AioServerInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a fresh signature by one of `secrets`. `user_methods`: what the user's token may call, by full name
    ("/package.Service/Method") or by the method's name alone; None: everything. The node secret may call everything."""

    def __init__(self, secrets: Secrets, user_methods: frozenset[str] | None = None, *, now_ms: Callable[[], int] = _now_ms) -> None:
        self._verifier = Verifier(secrets.by_name())
        self._user_methods = user_methods
        self._now_ms = now_ms

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        signature = next((value for key, value in handler_call_details.invocation_metadata or () if key == KEY), "")
        handler = await continuation(handler_call_details)
        try:
            kind = self._verifier.verify(str(signature), method, self._now_ms())
        except SignatureRefused as error:
            return _refusing(handler, grpc.StatusCode.UNAUTHENTICATED, str(error), error.server_time)
        if kind == "user" and not self._allowed(method):
            return _refusing(handler, grpc.StatusCode.PERMISSION_DENIED, f"{method} is not for the user's token", "")
        return handler

    def _allowed(self, method: str) -> bool:
        return self._user_methods is None or method in self._user_methods or method.rpartition("/")[2] in self._user_methods


def _refusing(handler: Any, code: grpc.StatusCode, why: str, server_time: str) -> Any:
    """A handler of the same shape that aborts; without deserializer, so that nothing of the caller's is parsed."""
    trailing = ((TIME_KEY, server_time),) if server_time else ()

    async def refuse(_request: Any, context: Any) -> Any:
        await context.abort(code, why, trailing_metadata=trailing)

    async def refuse_stream(_request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(code, why, trailing_metadata=trailing)
        yield

    if handler is None:
        return None
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream) if handler.response_streaming else grpc.stream_unary_rpc_method_handler(refuse)
    return grpc.unary_stream_rpc_method_handler(refuse_stream) if handler.response_streaming else grpc.unary_unary_rpc_method_handler(refuse)
