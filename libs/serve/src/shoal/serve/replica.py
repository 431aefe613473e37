"""A replica: one actor that holds one instance of a deployment and answers its requests.

Async code runs on the actor's event loop. Other code runs on one thread beside it, one call at a time, so that the replica goes on answering the controller.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import itertools
import logging
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

import shoal

from .asgi import HttpAnswer, HttpMeta, Receive, Send, plain_answer, scope_of
from .class_routes import asgi_app, is_asgi
from .config import DeploymentConfig
from .context import ReplicaContext, RequestContext, current_request, process
from .journal import Journal
from .router import BUSY, LEAVING, OK, STREAM
from .stream import ABANDONED_S, Stream

_log = logging.getLogger("shoal.serve")
# Between the last answer and the end, for the answers to leave this process.
LAST_WORDS_S = 0.05
# A draining replica looks at least this often whether it may end, however long the user's wait loop is.
LONGEST_LOOK_S = 0.1


class Replica:
    """The actor. Its methods are called by the controller, and by callers' routers: `call`, `http`, `pull`, `push`, `close_stream`."""

    def __init__(self, replica_id: str, app: str, deployment: str, code: bytes, config: DeploymentConfig, sys_path: tuple[str, ...]) -> None:
        self._id, self._app, self._deployment, self._code, self._config, self._sys_path = replica_id, app, deployment, code, config, sys_path
        self._max_ongoing = config.max_ongoing_requests
        self._ongoing = 0
        self._leaving = False
        self._target: Any = None
        self._asgi: Any = None
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="serve-user")
        self._methods: dict[str, tuple[Callable[..., Any], bool]] = {}
        self._streams: dict[int, Stream] = {}
        self._stream_ids = itertools.count(1)
        self._ready: asyncio.Task[None] | None = None
        self._journal = Journal()
        process.loop = asyncio.get_running_loop()
        process.replica = ReplicaContext(app, deployment, replica_id)

    # -- life, for the controller
    async def initialize(self) -> tuple[str, int, int]:
        """Constructs the user's object; the second call waits for the first. Answers with the place of its journal. Raises what its code raises."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._construct())
        await asyncio.shield(self._ready)
        return self._journal.place()

    async def _construct(self) -> None:
        for path in self._sys_path:
            if path not in sys.path:
                sys.path.append(path)
        target, args, kwargs = await self._in_thread(pickle.loads, self._code)
        self._code = b""
        if inspect.isclass(target):
            # Made and started apart, so that a handle is known to the context before the constructor runs.
            self._target = await self._in_thread(target, *args, **kwargs)
            if is_asgi(target):
                self._asgi = asgi_app(self._target)
        else:
            self._target = target
        process.replica = ReplicaContext(self._app, self._deployment, self._id, self._target)
        if self._config.user_config is not None:
            await self._reconfigure_user(self._config.user_config)

    async def reconfigure(self, config: DeploymentConfig, user_config_changed: bool) -> None:
        """Other limits, and other `user_config`, without a restart."""
        self._config = config
        self._max_ongoing = config.max_ongoing_requests
        if user_config_changed:
            await self._reconfigure_user(config.user_config)

    async def _reconfigure_user(self, user_config: Any) -> None:
        method = getattr(self._target, "reconfigure", None)
        if method is None:
            raise ValueError(f"deployment {self._deployment!r} has a user_config, and its class has no method reconfigure(user_config) to take it")
        await self._run(method, (user_config,), {})

    async def check_health(self) -> None:
        """Raises what the user's `check_health` raises."""
        self._close_abandoned()
        method = getattr(self._target, "check_health", None)
        if method is not None:
            await self._run(method, (), {})

    async def load(self) -> int:
        """How many requests it has."""
        return self._ongoing

    async def drain(self, look_s: float, timeout_s: float) -> bool:
        """Takes no new requests; returns when it has answered the others (True), or after the timeout."""
        self._leaving = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._ongoing and loop.time() < deadline:
            await asyncio.sleep(max(0.0, min(look_s, LONGEST_LOOK_S, deadline - loop.time())))
        answered = not self._ongoing
        self._asgi = None
        target, self._target = self._target, None
        end = getattr(type(target), "__del__", None)
        if end is not None and inspect.iscoroutinefunction(end):
            await end(target)
        del target
        await asyncio.sleep(LAST_WORDS_S)
        return answered

    # -- requests
    async def call(self, number: int, meta: tuple[Any, ...], /, *args: Any, **kwargs: Any) -> tuple[int, int, Any]:
        """A request by a handle: `meta` is (request id, method, model, whether a generator is wanted, route, places of responses).

        `number` goes into the journal when the user's code begins."""
        if self._ongoing >= self._max_ongoing or self._leaving:
            return (LEAVING if self._leaving else BUSY, self._ongoing, None)
        if len(meta) > 5:
            args, kwargs = _unwrapped(meta[5], args, kwargs)
        self._ongoing += 1
        held = False
        try:
            current_request.set(RequestContext(meta[0], meta[4], meta[2]))
            name = meta[1]
            method, is_async = self._methods.get(name) or self._method(name)
            if is_async or meta[3]:
                self._journal.started(number)
            if meta[3]:
                stream_id, parts, done = await self._open_stream(method, args, kwargs)
                held = not done
                return STREAM, self._ongoing, (stream_id, parts, done)
            value = await method(*args, **kwargs) if is_async else await self._run(method, args, kwargs, number)
            if inspect.isgenerator(value) or inspect.isasyncgen(value):
                raise TypeError(f"{self._deployment}.{name} is a generator: call it with handle.options(stream=True)")
            return OK, self._ongoing, value
        finally:
            if not held:
                self._ongoing -= 1

    async def http(self, number: int, meta: bytes, body: bytes) -> bytes:
        """A request by a proxy: `meta` is a pickled `HttpMeta`, the answer a pickled (status, requests here, `HttpAnswer` as a tuple)."""
        if self._ongoing >= self._max_ongoing or self._leaving:
            return pickle.dumps((LEAVING if self._leaving else BUSY, self._ongoing, None), 5)
        request = HttpMeta._make(pickle.loads(meta))
        self._ongoing += 1
        held = False
        try:
            current_request.set(RequestContext(request.request_id, request.route, request.model_id))
            if self._asgi is not None:
                self._journal.started(number)
                answer = await self._serve_asgi(self._asgi, request, body)
            else:
                answer = await self._serve_plain(request, body, number)
            held = not answer.done
            return pickle.dumps((STREAM if held else OK, self._ongoing, tuple(answer)), 5)
        except Exception:
            # The caller is told that there was an error; what it was is for this log.
            traceback.print_exc()
            raise
        finally:
            if not held:
                self._ongoing -= 1

    async def _serve_plain(self, request: HttpMeta, body: bytes, number: int) -> HttpAnswer:
        from starlette.requests import Request
        from starlette.responses import StreamingResponse

        method, is_async = self._methods.get("__call__") or self._method("__call__")
        scope = scope_of(request)
        argument = (Request(scope, Receive(body)),) if _takes_request(method) else ()
        if is_async:
            self._journal.started(number)
        result = await method(*argument) if is_async else await self._run(method, argument, {}, number)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            parts = self._async_items(result)
            result = StreamingResponse((part if isinstance(part, str | bytes) else str(part) async for part in parts), media_type="text/plain")
        answer = plain_answer(result)
        return answer if answer is not None else await self._serve_asgi(result, request, body)

    async def _serve_asgi(self, app: Any, request: HttpMeta, body: bytes) -> HttpAnswer:
        if request.kind == "websocket":
            return self._serve_websocket(app, request)
        send = Send()
        task = asyncio.ensure_future(app(scope_of(request), Receive(body), send))
        try:
            await asyncio.wait([task, send.first], return_when=asyncio.FIRST_COMPLETED)
            if send.stream is None and not task.done():
                await asyncio.wait([task])  # complete, but for background work and what middleware does at its end
        except asyncio.CancelledError:
            task.cancel()
            raise
        stream = send.stream
        if stream is None:
            if task.exception() is not None and not send.complete:
                await task
            if not send.complete:
                raise RuntimeError(f"the application of {self._deployment!r} ended without a complete answer")
            if (error := task.exception()) is not None:
                traceback.print_exception(error)
            return HttpAnswer(send.status, send.headers, send.body, 0, True)
        stream_id = self._keep(stream, task)
        task.add_done_callback(lambda done: stream.end(None if done.cancelled() or send.complete else done.exception()))
        return HttpAnswer(send.status, send.headers, b"", stream_id, False)

    def _serve_websocket(self, app: Any, request: HttpMeta) -> HttpAnswer:
        stream = Stream()

        async def send(message: dict[str, Any]) -> None:
            await stream.put(message)

        task = asyncio.ensure_future(app(scope_of(request), stream.incoming.get, send))
        task.add_done_callback(lambda done: stream.end(None if done.cancelled() else done.exception()))
        return HttpAnswer(101, [], b"", self._keep(stream, task), False)

    # -- streams
    async def _open_stream(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, list[Any], bool]:
        items = method(*args, **kwargs)
        if inspect.iscoroutine(items):
            items = await items
        if not (inspect.isgenerator(items) or inspect.isasyncgen(items)):
            raise TypeError(f"{self._deployment}.{getattr(method, '__name__', '__call__')} is no generator: call it without stream=True")
        stream = Stream()

        async def produce() -> None:
            async for item in self._async_items(items):
                await stream.put(item)

        task = asyncio.ensure_future(produce())
        task.add_done_callback(lambda done: stream.end(None if done.cancelled() else done.exception()))
        stream_id = self._keep(stream, task)
        try:
            parts, done = await stream.pull()
        except BaseException:
            del self._streams[stream_id]
            task.cancel()
            raise
        if done:
            del self._streams[stream_id]
        return stream_id, parts, done

    async def _async_items(self, items: Any) -> Any:
        if inspect.isasyncgen(items):
            async for item in items:
                yield item
            return
        end = object()
        try:
            while (item := await self._in_thread(next, items, end)) is not end:
                yield item
        finally:
            items.close()

    def _keep(self, stream: Stream, producer: asyncio.Future[Any]) -> int:
        stream_id = next(self._stream_ids)
        stream.producer = producer
        self._streams[stream_id] = stream
        return stream_id

    async def pull(self, stream_id: int) -> tuple[list[Any], bool]:
        """The next parts of an answer, and whether they are the last. Raises what the producer raised."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return [], True
        try:
            parts, done = await stream.pull()
        except BaseException as error:
            if isinstance(error, Exception):
                self._forget(stream_id)
            raise
        if done:
            self._forget(stream_id)
        return parts, done

    async def push(self, stream_id: int, message: Any) -> None:
        """A message of a WebSocket's client."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.incoming.put_nowait(message)

    async def close_stream(self, stream_id: int) -> None:
        """The consumer has gone."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.close()
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        if self._streams.pop(stream_id, None) is not None:
            self._ongoing -= 1

    def _close_abandoned(self) -> None:
        now = asyncio.get_running_loop().time()
        for stream_id, stream in list(self._streams.items()):
            if now - stream.pulled_at > ABANDONED_S:
                stream.close()
                self._forget(stream_id)

    # -- the user's code
    def _method(self, name: str) -> tuple[Callable[..., Any], bool]:
        target = self._target
        if inspect.isfunction(target):
            if name != "__call__":
                raise AttributeError(f"deployment {self._deployment!r} is a function and has no method {name!r}")
            method: Any = target
        else:
            method = getattr(target, name, None)
        if method is None or not callable(method):
            names = ", ".join(sorted(n for n in dir(target) if not n.startswith("_") and callable(getattr(target, n)))) or "none"
            raise AttributeError(f"deployment {self._deployment!r} has no method {name!r}; its public methods are: {names}")
        is_async = inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(type(method), "__call__", None))  # noqa: B004
        self._methods[name] = (method, is_async)
        return method, is_async

    async def _run(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], number: int = 0) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*args, **kwargs)
        if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
            return method(*args, **kwargs)
        value = await self._in_thread(self._begin, number, method, args, kwargs)
        return await value if inspect.isawaitable(value) else value

    def _begin(self, number: int, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On the thread: only what it has come to has begun."""
        if number:
            self._journal.started(number)
        return method(*args, **kwargs)

    def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(context.run, function, *args, **kwargs))


def _takes_request(method: Callable[..., Any]) -> bool:
    """A deployment whose `__call__` has no parameter is called without the request."""
    known = _wants.get(id(method))
    if known is None:
        try:
            known = bool(inspect.signature(method).parameters)
        except (TypeError, ValueError):
            known = True
        _wants[id(method)] = known
    return known


_wants: dict[int, bool] = {}


def _unwrapped(places: tuple[int | str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Answers of other deployments come as their replicas gave them: the value is the last element."""
    positions = {place for place in places if isinstance(place, int)}
    args = tuple(value[2] if index in positions else value for index, value in enumerate(args))
    return args, {name: value[2] if name in places else value for name, value in kwargs.items()}


def end_process() -> None:
    """For `__shoal_call__`: the actor leaves by its own will."""
    shoal.actor.exit_actor()
