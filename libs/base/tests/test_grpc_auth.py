"""The interceptors on a real gRPC server with generic handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from shoal_base.auth import AioServerInterceptor, Secrets, aio_client_interceptors, sync_client_interceptors

NODE, USER = b"n" * 32, b"u" * 32
UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"
HOUR_MS = 3_600_000


class Echo(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        async def unary(request: bytes, context: Any) -> bytes:
            return request

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            for byte in request:
                yield bytes([byte])

        if details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.unary_stream_rpc_method_handler(stream) if details.method == STREAM else None


def off_by(ms: int) -> Callable[[], int]:
    return lambda: time.time_ns() // 1_000_000 + ms


def served(test: Callable[[str], Awaitable[None]], user_methods: frozenset[str] | None = None) -> None:
    async def main() -> None:
        server = grpc.aio.server(interceptors=[AioServerInterceptor(Secrets(NODE, USER), user_methods)])
        server.add_generic_rpc_handlers((Echo(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(30):
                await test(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    asyncio.run(main())


@pytest.mark.parametrize("skew_ms", [0, HOUR_MS, -HOUR_MS])
@pytest.mark.parametrize(("kind", "secret"), [("node", NODE), ("user", USER)])
def test_signed_calls_and_streams_go_through_whatever_the_clock(kind: str, secret: bytes, skew_ms: int) -> None:
    async def test(address: str) -> None:
        for stream_first in (False, True):
            async with grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors(kind, secret, now_ms=off_by(skew_ms))) as channel:
                for n in range(4):
                    if (n % 2 == 0) == stream_first:
                        assert [m async for m in channel.unary_stream(STREAM)(b"abc", timeout=10)] == [b"a", b"b", b"c"]
                        assert [m async for m in channel.unary_stream(STREAM)(b"", timeout=10)] == []
                    else:
                        assert await channel.unary_unary(UNARY)(b"x", timeout=10) == b"x"

    served(test)


@pytest.mark.parametrize("interceptors", [[], aio_client_interceptors("node", b"w" * 32), aio_client_interceptors("user", NODE)])
def test_unsigned_and_wrongly_signed_calls_are_refused(interceptors: list[Any]) -> None:
    async def test(address: str) -> None:
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as unary:
                await channel.unary_unary(UNARY)(b"x", timeout=10)
            assert unary.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as stream:
                [m async for m in channel.unary_stream(STREAM)(b"abc", timeout=10)]
            assert stream.value.code() == grpc.StatusCode.UNAUTHENTICATED

    served(test)


@pytest.mark.parametrize("allowed", ["Unary", UNARY])
def test_the_users_token_calls_only_what_it_may(allowed: str) -> None:
    async def test(address: str) -> None:
        async with grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors("user", USER)) as channel:
            assert await channel.unary_unary(UNARY)(b"x", timeout=10) == b"x"
            with pytest.raises(grpc.aio.AioRpcError, match="not for the user's token"):
                [m async for m in channel.unary_stream(STREAM)(b"abc", timeout=10)]
        async with grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors("node", NODE)) as channel:
            assert [m async for m in channel.unary_stream(STREAM)(b"ab", timeout=10)] == [b"a", b"b"]

    served(test, frozenset([allowed]))


@pytest.mark.parametrize("skew_ms", [0, HOUR_MS])
def test_blocking_clients_sign_too(skew_ms: int) -> None:
    def client(address: str) -> None:
        with grpc.insecure_channel(address) as plain:
            channel = grpc.intercept_channel(plain, *sync_client_interceptors("node", NODE, now_ms=off_by(skew_ms)))
            assert channel.unary_unary(UNARY)(b"x", timeout=10) == b"x"
            assert list(channel.unary_stream(STREAM)(b"abc", timeout=10)) == [b"a", b"b", b"c"]
            assert channel.unary_unary(UNARY).future(b"y", timeout=10).result() == b"y"

    async def test(address: str) -> None:
        await asyncio.get_running_loop().run_in_executor(None, client, address)

    served(test)


def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    async def test(address: str) -> None:
        async with grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors("node", NODE)) as channel:
            call = channel.unary_stream(STREAM)(b"a" * 1000, timeout=10)
            async for _ in call:
                break
            call.cancel()
            assert await channel.unary_unary(UNARY)(b"x", timeout=10) == b"x"

    served(test)
