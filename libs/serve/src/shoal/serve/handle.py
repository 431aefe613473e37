"""Calling deployments from Python: handles, responses, streams."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import shoal

from .context import current_request, new_request_id, process
from .exceptions import RayServeException, RequestCancelledError
from .loop_router import Answer, LoopRouter, loop_router
from .router import STREAM, Slot
from .thread_router import ThreadCall, ThreadRouter, thread_router
from .traffic import choose_version, choose_version_async

_UNSET: Any = object()
# Limit: how long a stream's end is waited for when its consumer closes it.
_CLOSE_TIMEOUT_S = 5.0


class DeploymentHandle:
    """Sends requests to a deployment, from a driver, a task or another deployment. Cheap, and can be pickled.

    `handle.remote(...)` calls `__call__`, `handle.method.remote(...)` another method. Both answer at once with a `DeploymentResponse`.

    Example::

        handle = serve.get_app_handle("default")
        assert handle.remote(2).result() == 4                       # in ordinary code
        # in async code: await handle.remote(2)
        # a generator:   for item in handle.options(stream=True).remote(2): ...
    """

    __slots__ = ("_methods", "_model_id", "_router", "_stream", "app_name", "deployment_name", "method_name")

    def __init__(self, deployment_name: str, app_name: str, method_name: str = "__call__", stream: bool = False, model_id: str = "") -> None:
        self.deployment_name = deployment_name
        self.app_name = app_name
        self.method_name = method_name
        self._stream = stream
        self._model_id = model_id
        self._methods: dict[str, DeploymentHandle] = {}
        self._router: LoopRouter | None = None

    def options(self, *, method_name: str = _UNSET, multiplexed_model_id: str = _UNSET, stream: bool = _UNSET) -> DeploymentHandle:
        """The same deployment with another method, model, or way of answering.

        Args:
            method_name: of the deployment's class.
            multiplexed_model_id: sent to a replica that has this model, if one has room; see `serve.multiplexed`.
            stream: the method is a generator; `remote` gives a `DeploymentResponseGenerator`.
        """
        for name, value, kind in (("method_name", method_name, str), ("multiplexed_model_id", multiplexed_model_id, str), ("stream", stream, bool)):
            if value is not _UNSET and not isinstance(value, kind):
                raise TypeError(f"options({name}=...) takes {kind.__name__}, got {value!r}")
        return DeploymentHandle(
            self.deployment_name, self.app_name, self.method_name if method_name is _UNSET else method_name, self._stream if stream is _UNSET else stream,
            self._model_id if multiplexed_model_id is _UNSET else multiplexed_model_id,
        )  # fmt: skip

    def __getattr__(self, name: str) -> DeploymentHandle:
        if name.startswith("_"):
            raise AttributeError(name)
        made = self._methods.get(name)
        if made is None:
            made = self._methods[name] = self.options(method_name=name)
        return made

    @property
    def is_initialized(self) -> bool:
        return True

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Sends a request. Responses among the arguments are waited for, and their values passed.

        Raises:
            BackPressureError: `max_queued_requests` wait already (in async code: when the response is awaited).
            DeploymentUnavailableError: the deployment does not exist.
        """
        before = current_request.get()
        request_id = before.request_id if before is not None else new_request_id()
        meta = (request_id, self.method_name, self._model_id, self._stream, before.route if before is not None else "")
        if process.loop is not None:
            source: _Source = _LoopSource(self, meta, args, kwargs)
        else:
            source = _ThreadSource(self, meta, args, kwargs)
        return (DeploymentResponseGenerator if self._stream else DeploymentResponse)(source, request_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return DeploymentHandle, (self.deployment_name, self.app_name, self.method_name, self._stream, self._model_id)

    def __repr__(self) -> str:
        method = "" if self.method_name == "__call__" else f", method_name={self.method_name!r}"
        return f"DeploymentHandle(deployment={self.deployment_name!r}, app={self.app_name!r}{method})"


# -- where answers come from ------------------------------------------------------------------------------------


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int | str, DeploymentResponse]]:
    """The responses among the arguments, by position or name."""
    found: list[tuple[int | str, DeploymentResponse]] = [(index, value) for index, value in enumerate(args) if type(value) is DeploymentResponse]
    found += [(name, value) for name, value in kwargs.items() if type(value) is DeploymentResponse]
    if any(isinstance(value, DeploymentResponseGenerator) for value in (*args, *kwargs.values())):
        raise TypeError("a DeploymentResponseGenerator cannot be an argument of another request: iterate over it, and pass the items")
    return found


class _Source:
    """Where a response's answer comes from; one kind for each kind of process."""

    def on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is process.loop
        except RuntimeError:
            return False


class _LoopSource(_Source):
    """In a replica or proxy: a task on the process's loop, however it was called."""

    def __init__(self, handle: DeploymentHandle, meta: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        loop = process.loop
        assert loop is not None
        coroutine = self._run(handle, meta, args, kwargs)
        self.slot: Slot | None = None
        self.ref: Any = None
        self._router: LoopRouter | None = None
        self.future: asyncio.Future[Any] | concurrent.futures.Future[Any]
        self.future = loop.create_task(coroutine) if self.on_loop() else asyncio.run_coroutine_threadsafe(coroutine, loop)

    async def _run(self, handle: DeploymentHandle, meta: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        responses = _split(args, kwargs)
        if responses:
            meta, args, kwargs = (*meta, tuple(place for place, _ in responses)), *_replaced(args, kwargs, {p: await r._source.final() for p, r in responses})
        router = handle._router
        if router is None and handle.deployment_name:
            router = handle._router = loop_router((handle.app_name, handle.deployment_name))
        elif router is None:
            router = loop_router(await choose_version_async(handle.app_name))
        self._router = router
        answer = await router.request(False, meta, args, kwargs, meta[2])
        self.slot, self.ref = answer.slot, answer.ref
        return answer

    async def answer(self) -> Any:
        if isinstance(self.future, asyncio.Future) and self.on_loop():
            return await self.future
        if isinstance(self.future, asyncio.Future):
            raise RuntimeError("a response that was made on the replica's own event loop must be awaited there")
        return await asyncio.wrap_future(self.future)

    async def final(self) -> Any:
        await self.answer()
        return self.ref

    def result(self, timeout_s: float | None) -> Any:
        if not isinstance(self.future, concurrent.futures.Future):
            raise RuntimeError("result() would block the event loop that this runs on: use `await response` in async code")
        try:
            return self.future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self.future.done():
                raise
            raise TimeoutError(f"the request was not answered within {timeout_s:g} s") from None

    def cancel(self) -> None:
        loop = process.loop
        assert loop is not None
        if isinstance(self.future, concurrent.futures.Future) or self.on_loop():
            self.future.cancel()
        else:
            loop.call_soon_threadsafe(self.future.cancel)

    def cancelled(self) -> bool:
        return self.future.cancelled()

    def abandon(self) -> None:
        """Nobody will iterate over this stream."""
        if self.future.done() and self.slot is not None and not self.future.cancelled():
            self.release(self.future.result().value[0], False)
        else:
            self.cancel()

    async def pull(self, stream_id: int) -> Any:
        assert self.slot is not None
        if self.on_loop():
            return await self.slot.handle.pull.remote(stream_id)
        return await asyncio.wrap_future(self._submit(self.slot, stream_id))

    def pull_now(self, stream_id: int) -> Any:
        assert self.slot is not None
        if self.on_loop():
            raise RuntimeError("iterating would block the event loop that this runs on: use `async for` in async code")
        return self._submit(self.slot, stream_id).result()

    @staticmethod
    def _submit(slot: Slot, stream_id: int) -> concurrent.futures.Future[Any]:
        async def one() -> Any:
            return await slot.handle.pull.remote(stream_id)

        assert process.loop is not None
        return asyncio.run_coroutine_threadsafe(one(), process.loop)

    def release(self, stream_id: int, ended: bool) -> None:
        slot, self.slot = self.slot, None
        loop, router = process.loop, self._router
        if slot is None or router is None or loop is None or loop.is_closed():
            return
        if not ended:
            slot.handle.close_stream.remote(stream_id)
        if self.on_loop():
            router.release(slot)
        else:
            loop.call_soon_threadsafe(router.release, slot)


class _ThreadSource(_Source):
    """In a driver or a task."""

    def __init__(self, handle: DeploymentHandle, meta: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        responses = _split(args, kwargs)
        router: ThreadRouter = thread_router((handle.app_name, handle.deployment_name) if handle.deployment_name else choose_version(handle.app_name))
        if responses:
            meta = (*meta, tuple(place for place, _ in responses))
        self.call = ThreadCall(router, meta, args, kwargs, meta[2])
        if responses:
            self._after(responses)
        else:
            router.submit(self.call)

    def _after(self, responses: list[tuple[int | str, DeploymentResponse]]) -> None:
        left = len(responses)
        lock = threading.Lock()

        def one_done() -> None:
            nonlocal left
            with lock:
                left -= 1
                if left:
                    return
            call, router = self.call, self.call.router
            error = next((r._source.call.error for _, r in responses if r._source.call.error is not None), None)
            if error is None:
                call.args, call.kwargs = _replaced(call.args, call.kwargs, {place: r._source.call.final_ref for place, r in responses})
                try:
                    router.submit(call)
                    return
                except RayServeException as refused:
                    error = refused
            with router.lock:
                callbacks = call.finish(error=error)
            for callback in callbacks:
                callback()

        for _, response in responses:
            response._source.call.when_done(one_done)

    async def answer(self) -> Any:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever awaited
                loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(None))

        self.call.when_done(tell)
        try:
            await ended
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.call.wait(0)

    def result(self, timeout_s: float | None) -> Any:
        return self.call.wait(timeout_s)

    def cancel(self) -> None:
        self.call.router.cancel(self.call)

    def cancelled(self) -> bool:
        return isinstance(self.call.error, RequestCancelledError)

    def abandon(self) -> None:
        """Nobody will iterate over this stream."""
        self.cancel()
        # The answer may be on its way, or there.
        self.call.when_done(lambda: self.release(self.call.value[1][0], False) if self.call.held is not None else None)

    async def pull(self, stream_id: int) -> Any:
        assert self.call.held is not None
        return await self.call.held.handle.pull.remote(stream_id)

    def pull_now(self, stream_id: int) -> Any:
        assert self.call.held is not None
        return shoal.get(self.call.held.handle.pull.remote(stream_id))

    def release(self, stream_id: int, ended: bool) -> None:
        slot, self.call.held = self.call.held, None
        if slot is None or not shoal.is_initialized():
            return
        if not ended:
            slot.handle.close_stream.remote(stream_id)
        self.call.router.release(slot)


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], refs: dict[int | str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(refs.get(index, value) for index, value in enumerate(args)), {name: refs.get(name, value) for name, value in kwargs.items()}


# -- responses ---------------------------------------------------------------------------------------------------


class DeploymentResponse:
    """A request's answer to come. Await it in async code, call `result()` elsewhere, or pass it to another handle's `remote`."""

    def __init__(self, source: Any, request_id: str) -> None:
        self._source = source
        self.request_id = request_id

    def result(self, *, timeout_s: float | None = None) -> Any:
        """The answer; waits for it.

        Raises:
            TimeoutError: not there within `timeout_s` seconds; the request goes on.
            RequestCancelledError: it was cancelled.
            RuntimeError: called on a replica's event loop.
            Also what the deployment raised, as an instance of its own class.
        """
        if timeout_s is not None and (isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s < 0):
            raise ValueError(f"timeout_s must be a number of seconds of at least 0 or None, got {timeout_s!r}")
        try:
            return _value(self._source.result(timeout_s))
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            raise RequestCancelledError(self.request_id) from None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._await().__await__()

    async def _await(self) -> Any:
        try:
            return _value(await self._source.answer())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._source.cancelled() and not (task is not None and task.cancelling()):
                raise RequestCancelledError(self.request_id) from None
            raise

    def cancel(self) -> None:
        """What waits is never sent; what runs in async code gets a CancelledError. Does nothing once there is an answer."""
        self._source.cancel()

    def cancelled(self) -> bool:
        """Whether it ended by `cancel()`."""
        return bool(self._source.cancelled())

    def __reduce__(self) -> Any:
        raise TypeError("a DeploymentResponse can be an argument of a handle's remote(), but not inside of another value: await it, or call result(), first")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(request_id={self.request_id!r})"


def _value(answer: Any) -> Any:
    return answer.value if isinstance(answer, Answer) else answer[1]


class DeploymentResponseGenerator:
    """The items of a generator, as they come: iterate with `for`, or with `async for` in async code."""

    def __init__(self, source: Any, request_id: str) -> None:
        self._source = source
        self.request_id = request_id
        self._items: list[Any] = []
        self._stream_id = -1  # not begun
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._items:
            if self._ended:
                raise StopIteration
            try:
                if self._stream_id < 0:
                    self._begun(self._source.result(None))
                else:
                    self._more(self._source.pull_now(self._stream_id))
            except BaseException as error:
                self._failed(error)
                raise
        return self._items.pop(0)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            try:
                if self._stream_id < 0:
                    self._begun(await self._source.answer())
                else:
                    self._more(await self._source.pull(self._stream_id))
            except BaseException as error:
                self._failed(error)
                raise
        return self._items.pop(0)

    def _begun(self, answer: Any) -> None:
        status, value = (answer.status, answer.value) if isinstance(answer, Answer) else answer
        assert status == STREAM
        self._stream_id, items, self._ended = value
        self._items = list(items)

    def _more(self, pulled: Any) -> None:
        items, self._ended = pulled
        self._items = list(items)
        if self._ended:
            self._source.release(self._stream_id, True)

    def _failed(self, error: BaseException) -> None:
        self._ended = True
        if self._stream_id >= 0:
            self._source.release(self._stream_id, isinstance(error, Exception))

    def cancel(self) -> None:
        """Ends the stream: the generator is closed, no more items come."""
        if self._stream_id >= 0 and not self._ended:
            self._source.release(self._stream_id, False)
        elif not self._ended:
            self._source.abandon()
        self._ended = True
        self._items = []

    def cancelled(self) -> bool:
        return bool(self._source.cancelled())

    def result(self, *, timeout_s: float | None = None) -> Any:
        raise TypeError("a DeploymentResponseGenerator has no single result: iterate over it, or leave out stream=True")

    def __await__(self) -> Any:
        raise TypeError("a DeploymentResponseGenerator cannot be awaited: use `async for`, or leave out stream=True")

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            with contextlib.suppress(Exception):  # the cluster has gone before
                self.cancel()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(request_id={self.request_id!r})"


def is_generator_result(value: Any) -> bool:
    return inspect.isgenerator(value) or inspect.isasyncgen(value)
