"""The HTTP proxy of a node: uvicorn (httptools, uvloop) on an actor's event loop, one actor call for each request.

uvicorn was measured against Granian embedded in the same process: 14,000 to 17,000 requests/s against 6,000 to 7,000 over one connection, 25,000 to 30,000
against 20,000 to 32,000 over 32; and it runs on the loop that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import json
import logging
import pickle
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

from shoal.exceptions import RayTaskError, TaskCancelledError

from .asgi import HttpAnswer
from .config import HTTPOptions
from .context import new_request_id, process
from .exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from .loop_router import LoopRouter, listen, loop_router
from .router import is_death
from .state import Route
from .traffic import pick

_log = logging.getLogger("shoal.serve")

BACKLOG = 2048
# How long a request may run before the proxy begins to look whether its client is still there.
LOOK_FOR_CLIENT_S = 0.1
# Limit: how long a WebSocket's client is given to be told of the end.
SERVER_ERROR_CODE = 1011
ROUTES_TIMEOUT_S = 10.0

Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]


class _Refused(Exception):
    """A request that the proxy itself answers."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Proxy:
    """The actor."""

    def __init__(self, options: HTTPOptions) -> None:
        self._options = options
        self._routes: tuple[Route, ...] = ()
        self._routers: dict[tuple[str, str], LoopRouter] = {}
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._starting: asyncio.Future[tuple[str, int]] | None = None
        process.loop = asyncio.get_running_loop()
        self._version = ""
        self._known = asyncio.Event()
        self._listener = asyncio.ensure_future(listen(None, self._on_routes))

    def _on_routes(self, payload: tuple[str, tuple[Route, ...]]) -> None:
        version, routes = payload
        self._routes = tuple(route for route in routes if route.prefix)
        for route in routes:  # so that the first request finds its replicas known
            for _, app, ingress, _ in route.versions:
                self._router((app, ingress))
        self._version = version
        self._known.set()
        self._known = asyncio.Event()

    def _router(self, key: tuple[str, str]) -> LoopRouter:
        router = self._routers.get(key)
        if router is None:
            router = self._routers[key] = loop_router(key)
        return router

    async def start(self) -> tuple[str, int]:
        """Listens; answers with the host and the port. The second call answers the same. Raises RayServeException when the address is taken."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> tuple[str, int]:
        import uvicorn

        options = self._options
        listener = _bind(options.host, options.port)
        config = uvicorn.Config(
            self._app, http="httptools", ws="websockets-sansio", loop="none", lifespan="off", interface="asgi3", proxy_headers=False, log_config=None,
            access_log=False, server_header=False,
            timeout_keep_alive=int(options.keep_alive_timeout_s), backlog=BACKLOG, ssl_keyfile=options.ssl_keyfile, ssl_certfile=options.ssl_certfile,
            ssl_keyfile_password=options.ssl_keyfile_password, ssl_ca_certs=options.ssl_ca_certs,
        )  # fmt: skip
        server = self._server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore  # the actor's process has its own ideas of signals
        # In a context of its own: what serves requests is no part of this call, and the runtime would follow each of its steps.
        self._serving = contextvars.Context().run(asyncio.ensure_future, server.serve(sockets=[listener]))
        while not server.started:
            if self._serving.done():
                await self._serving
                raise RayServeException("the HTTP server ended while it started")
            await asyncio.sleep(0.002)
        return options.host, listener.getsockname()[1]

    async def ready(self, version: str, app: str) -> bool:
        """Whether these routes are known, and for an application that is named also replicas: what `serve.run` and others wait for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROUTES_TIMEOUT_S
        while self._version != version and loop.time() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), deadline - loop.time())
        while loop.time() < deadline:
            versions = [one for route in self._routes for one in route.versions if one[1] == app]
            if all(self._router((one[1], one[2])).table.slots for one in versions):
                return True
            await asyncio.sleep(0.005)
        return False

    async def check_health(self) -> bool:
        return self._serving is not None and not self._serving.done()

    async def stop(self) -> None:
        """Takes no new connections, and ends the open ones."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await asyncio.wait([self._serving], timeout=5)

    # -- requests
    async def _app(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            try:
                await self._http(scope, receive, send)
            except _Refused as refused:
                await _text(send, refused.status, str(refused))
        elif kind == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/-/"):
            await self._own(path, send)
            return
        router, meta, _ = self._route(scope, path)
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            body = await self._whole_body(body, receive)
        elif len(body) > self._options.max_body_bytes:
            raise _Refused(413, f"the request body is larger than {self._options.max_body_bytes} bytes")
        request_id = meta[12]
        exchange = _Exchange(receive, self._options.request_timeout_s)
        try:
            answer, slot = await exchange.answer(router, meta, body)
        except _Gone:
            return  # nobody is there to be answered
        except Exception as error:
            status, text = _explain(error, request_id)
            await _text(send, status, text, request_id)
            return
        finally:
            exchange.end()
        headers = answer.headers
        headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.done:
            await send({"type": "http.response.body", "body": answer.body})
        else:
            await self._stream(router, slot, answer, receive, send)

    def _route(self, scope: dict[str, Any], path: str) -> tuple[LoopRouter, tuple[Any, ...], bool]:
        for route in self._routes:
            prefix = route.prefix
            if prefix == "/" or path == prefix or (path.startswith(prefix) and path[len(prefix)] == "/"):
                break
        else:
            raise _Refused(404, f"Path '{path}' not found. Ping http://.../-/routes for available routes.")
        version = route.versions[0] if len(route.versions) == 1 else pick(route.versions, random.random())
        request_id = model_id = ""
        headers = scope["headers"]
        for name, value in headers:
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
            elif name == b"serve_multiplexed_model_id" or name == b"serve-multiplexed-model-id":
                model_id = value.decode("latin-1")
        root_path = self._options.root_path
        if prefix != "/":
            root_path += prefix
        meta = (
            scope["type"], scope.get("method", ""), scope["scheme"], scope["http_version"], self._options.root_path + path, scope["raw_path"],
            scope["query_string"], root_path, headers, scope["client"], scope["server"], scope.get("subprotocols", ()), request_id or new_request_id(), prefix,
            model_id,
        )  # fmt: skip
        return self._router((version[1], version[2])), meta, version[3]

    async def _whole_body(self, first: bytes, receive: Receive) -> bytes:
        parts, size, limit = [first], len(first), self._options.max_body_bytes
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the client went away before its request was complete")
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _Refused(413, f"the request body is larger than {limit} bytes")
            if not message.get("more_body"):
                return b"".join(parts)

    async def _stream(self, router: LoopRouter, slot: Any, answer: HttpAnswer, receive: Receive, send: Send) -> None:
        """Passes the parts on as they come; a client that goes away closes the stream."""
        pump = asyncio.current_task()
        assert pump is not None
        watch = asyncio.ensure_future(_until_gone(receive, pump.cancel))
        ended = False
        try:
            while not ended:
                parts, ended = await slot.handle.pull.remote(answer.stream_id)
                if parts or ended:
                    await send({"type": "http.response.body", "body": b"".join(parts), "more_body": not ended})
        except asyncio.CancelledError:
            pass  # the client has gone
        except Exception as error:
            ended = True
            # The status is on its way already: a connection that breaks is the only sign left.
            raise RayServeException(f"the answer broke off: {error}") from error
        finally:
            watch.cancel()
            if not ended:
                slot.handle.close_stream.remote(answer.stream_id)
            router.release(slot)

    # -- websockets
    async def _websocket(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            router, meta, asgi = self._route(scope, scope["path"])
            if not asgi:
                raise _Refused(404, "this application takes no WebSockets: it is no ASGI application (see serve.ingress)")
            answer = await router.request(True, pickle.dumps(meta, 5), (b"",), {}, meta[14])
        except Exception as error:
            _log.debug("a WebSocket to %s was refused: %s", scope["path"], error)
            await send({"type": "websocket.close", "code": SERVER_ERROR_CODE})  # before it was accepted: HTTP 403
            return
        slot, stream_id = answer.slot, answer.value[3]
        assert slot is not None
        await slot.handle.push.remote(stream_id, {"type": "websocket.connect"})
        incoming = asyncio.ensure_future(_pass_on(receive, slot.handle.push, stream_id))
        try:
            await _pass_back(slot.handle.pull, stream_id, send)
        finally:
            incoming.cancel()
            slot.handle.close_stream.remote(stream_id)
            router.release(slot)

    async def _own(self, path: str, send: Send) -> None:
        if path == "/-/healthz":
            await _text(send, 200, "success")
        elif path == "/-/routes":
            body = json.dumps({route.prefix: route.app for route in self._routes}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": body})
        else:
            await _text(send, 404, f"Path '{path}' not found; there are /-/healthz and /-/routes.")


class _Gone(Exception):
    """The client went away."""


class _Exchange:
    """One request: ends it when its time is over or its client has gone. The short ones need nothing but a timer that is cancelled."""

    __slots__ = ("_deadline", "_gone", "_late", "_receive", "_task", "_timer", "_watch")

    def __init__(self, receive: Receive, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Future[Any] | None = None
        self._gone = self._late = False
        self._timer = loop.call_later(LOOK_FOR_CLIENT_S, self._look)
        self._deadline = loop.call_later(timeout_s, self._too_late) if timeout_s is not None else None

    async def answer(self, router: LoopRouter, meta: tuple[Any, ...], body: bytes) -> tuple[HttpAnswer, Any]:
        self._task = asyncio.current_task()
        try:
            answer = await router.request(True, pickle.dumps(meta, 5), (body,), {}, meta[14])
        except asyncio.CancelledError:
            if self._late or self._gone:
                assert self._task is not None
                self._task.uncancel()
                raise (_Refused(408, "the request was not answered in time") if self._late else _Gone()) from None
            raise
        return HttpAnswer(*answer.value), answer.slot

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(_until_gone(self._receive, self._client_gone))

    def _client_gone(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def _too_late(self) -> None:
        self._late = True
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        self._timer.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._watch is not None:
            self._watch.cancel()


async def _until_gone(receive: Receive, then: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


async def _pass_on(receive: Receive, push: Any, stream_id: int) -> None:
    while True:
        message = await receive()
        await push.remote(stream_id, message)
        if message["type"] == "websocket.disconnect":
            return


async def _pass_back(pull: Any, stream_id: int, send: Send) -> None:
    ended = closed = False
    while not ended:
        try:
            messages, ended = await pull.remote(stream_id)
        except Exception as error:
            _log.warning("a WebSocket's application failed: %s", error)
            messages, ended = [{"type": "websocket.close", "code": SERVER_ERROR_CODE}], True
        for message in messages:
            closed = closed or message["type"] == "websocket.close"
            with contextlib.suppress(Exception):  # the client has gone
                await send(message)
    if not closed:
        with contextlib.suppress(Exception):
            await send({"type": "websocket.close", "code": 1000})


def _explain(error: Exception, request_id: str) -> tuple[int, str]:
    """Status and text for an error: what the deployment's code raised stays in its log."""
    if isinstance(error, _Refused):
        return error.status, str(error)
    if isinstance(error, BackPressureError | DeploymentUnavailableError):
        return 503, str(error)
    if is_death(error):
        return 503, f"the replica died while it had this request (id {request_id}); it may or may not have been carried out"
    if isinstance(error, TaskCancelledError):
        return 499, "the request was cancelled"
    if not isinstance(error, RayTaskError):  # that one is in the replica's log already
        _log.error("request %s failed in the proxy", request_id, exc_info=error)
    return 500, "Internal Server Error"


async def _text(send: Send, status: int, text: str, request_id: str = "") -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if request_id:
        headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
        raise RayServeException(f"the HTTP proxy cannot listen on {host}:{port}: {why}. Give another one: serve.start(http_options={{'port': ...}})") from None
    listener.setblocking(False)
    return listener


def addresses(host: str, port: int) -> Iterator[str]:
    """Where a proxy can be reached from its own node."""
    yield f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}"
