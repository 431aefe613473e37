"""Runs calls in this process: tasks and plain actors in the caller's thread, async actors on a loop of their own."""

from __future__ import annotations

import asyncio
import bdb
import concurrent.futures
import contextlib
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .. import _functions
from .._arguments import unpack
from .._core.engine import KIND_ERROR, TASK_RETRY_EXCEPTIONS, Payload
from .._serialization import load_error, serialize, serialize_error
from .._worker import errors
from .._worker.executor import Executor, LeaveActor, _drain_async, _terminate
from .._worker.lease import Lease
from ..exceptions import ActorDiedError, WorkerCrashedError
from .calls import Call, entered

# What is meant for the person at the keyboard, and goes through tasks as if they were plain functions.
_FOR_THE_DRIVER = (KeyboardInterrupt, bdb.BdbQuit, GeneratorExit)
_STOP_S = 5.0


class LocalExecutor(Executor):
    """Of all tasks, or of one actor."""

    def __init__(self, engine: Any) -> None:  # not the base's: that one is its process's only one
        self.engine = engine
        self.lease = Lease()
        self.actor: Any = None
        self.actor_id = b""
        self.actor_name = self.actor_class_name = self.exiting = ""
        self.extra: Any = None
        self._retry_lists: dict[bytes, tuple[type[BaseException], ...]] = {}

    # -- running
    def run_call(self, call: Call) -> Sequence[Payload]:
        """The call's results, or its error in the place of each."""
        attempt = 0
        while True:
            try:
                with entered(self, call):
                    return self.results(call, self.invoke(call))  # type: ignore[arg-type]
            except _FOR_THE_DRIVER:
                raise
            except BaseException as error:
                if self.again(call, error, attempt):
                    attempt += 1
                    continue
                return [self.failed(call, error)] * max(1, call.num_returns)

    def invoke(self, call: Call) -> Any:
        args, kwargs, failed = unpack(call)
        if failed is not None:
            raise _FailedArgument(Payload(KIND_ERROR, bytes(failed.inband), failed.buffers))
        function = self.method(call.method) if call.method else _functions.load(self.engine, call.job_id, call.function_id)
        return function(*args, **kwargs)

    def again(self, call: Call, error: BaseException, attempt: int) -> bool:
        wanted = call.flags & TASK_RETRY_EXCEPTIONS and (call.max_retries < 0 or attempt < call.max_retries)
        return bool(wanted and self._worth_a_retry(call, error))  # type: ignore[arg-type]

    def failed(self, call: Call, error: BaseException) -> Payload:
        if isinstance(error, _FailedArgument):
            return error.payload
        if isinstance(error, asyncio.CancelledError):
            return errors.cancelled_payload(call.task_id, call.name)
        if isinstance(error, LeaveActor | SystemExit):
            why = "exit_actor() was called." if isinstance(error, LeaveActor) else f"sys.exit({error.code!r}) was called in {call.name}."
            if not self.actor_id:
                return serialize_error(WorkerCrashedError(f"The worker exited: {why}"))
            self.end(why)
            return errors.left_payload(self.actor_id, why)
        return errors.payload_of(error, call.name, self.actor, self.actor_id)

    def method(self, name: str) -> Callable[..., Any]:
        if name in ("__ray_call__", "__shoal_call__"):
            return lambda function, *args, **kwargs: function(self.actor, *args, **kwargs)
        if name in ("__ray_terminate__", "__shoal_terminate__"):
            return _terminate
        if name in ("__ray_ready__", "__shoal_ready__"):
            return lambda: True
        method: Callable[..., Any] = getattr(self.actor, name)
        return method

    def end(self, why: str) -> None:
        """Of an actor."""
        self.exiting = self.exiting or why

    # -- streams
    def items(self, call: Call) -> Any:
        """A generator of payloads; runs between two items only. An error is the last item."""
        try:
            with entered(self, call):
                made = self.invoke(call)
                source = _drain_async(made) if inspect.isasyncgen(made) else iter(made)
            index = 0
            while True:
                index += 1
                with entered(self, call):
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                    payload = serialize(item, f"item {index}")
                yield payload
        except _FOR_THE_DRIVER:
            raise
        except BaseException as error:
            yield self.failed(call, error)


class _FailedArgument(Exception):
    def __init__(self, payload: Payload) -> None:
        super().__init__("an argument's task failed")
        self.payload = payload


class LocalActor(LocalExecutor):
    """A plain actor. Its calls run one inside the other where they are nested."""

    def __init__(self, engine: Any, record: Any, creation: Call, extra: Any) -> None:
        super().__init__(engine)
        self.record = record
        self.creation = creation
        self.extra = extra
        self.actor_id = bytes(record.actor_id)
        self.actor_name, self.actor_class_name = record.name, record.class_name
        self.lease.resources = dict(record.resources)
        self.failure: Payload | None = None  # what every call gets

    def create(self) -> None:
        try:
            with entered(self, self.creation):
                self.actor = self.make()
        except _FOR_THE_DRIVER:
            raise
        except BaseException as error:
            self._creation_failed(error)

    def make(self) -> Any:
        args, kwargs, failed = unpack(self.creation)
        if failed is not None:
            raise load_error(failed)
        return _functions.load(self.engine, self.creation.job_id, self.creation.function_id)(*args, **kwargs)

    def _creation_failed(self, error: BaseException) -> None:
        if isinstance(error, LeaveActor | SystemExit):
            error = RuntimeError(f"{self.actor_class_name}.__init__ ended the process: {type(error).__name__}")
        self.exiting = f"its __init__ raised {type(error).__name__}"
        self.failure = errors.init_failed_payload(error, self.actor_class_name, self.actor_id)

    def end(self, why: str) -> None:
        super().end(why)
        if self.failure is None:
            shown = self.actor_id.hex()
            self.failure = serialize_error(ActorDiedError(f"The actor {shown} died: {self.exiting}", shown))
        self.actor = None

    def restart(self, why: str) -> None:
        self.record.restarts += 1
        self.actor = None
        self.create()


class LocalAsyncActor(LocalActor):
    """An event loop on a thread."""

    def __init__(self, engine: Any, record: Any, creation: Call, extra: Any) -> None:
        super().__init__(engine, record, creation, extra)
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._lock = threading.Lock()
        self._ended = False  # the loop takes nothing any more
        self._asked: set[concurrent.futures.Future[Any]] = set()  # of the loop, by other threads
        self._thread = threading.Thread(target=self._run, name=f"shoal-local-{record.class_name}", daemon=True)
        self._thread.start()
        limits = {"": max(1, extra.max_concurrency), **extra.concurrency_groups}
        self._slots = {group: asyncio.Semaphore(limit) for group, limit in limits.items()}
        self._running: dict[Call, asyncio.Task[Any]] = {}
        self._open: dict[Call, Callable[[Sequence[Payload]], None]] = {}  # calls that have no result yet

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._live())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _live(self) -> None:
        """Until the actor ends; then cancels what runs, and leaves behind what does not let itself be cancelled."""
        await self._ending.wait()
        with self._lock:
            self._ended = True
        await asyncio.sleep(0)  # what was asked before that is a task after this
        deadline = self._loop.time() + _STOP_S / 2
        told: set[asyncio.Task[Any] | None] = {asyncio.current_task()}
        while (rest := asyncio.all_tasks() - {asyncio.current_task()}) and self._loop.time() < deadline:
            for task in rest - told:
                task.cancel()  # once: it may have to clean up
            told |= rest
            await asyncio.sleep(0.001)
        for call in list(self._open):
            self._settle(call, self._given_up(call))
        for future in list(self._asked):
            future.cancel()

    def _ask(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Runs it on the loop, and always ends: with the actor, it is cancelled."""
        with self._lock:
            if self._ended:
                coroutine.close()
                future: concurrent.futures.Future[Any] = concurrent.futures.Future()
                future.cancel()
                return future
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def make(self) -> Any:
        make = super().make
        if threading.current_thread() is self._thread:  # it restarts itself
            return make()

        async def on_loop() -> Any:
            with entered(self, self.creation):
                return make()

        return self._ask(on_loop()).result()

    def start(self, call: Call, settle: Callable[[Sequence[Payload]], None]) -> None:
        self._open[call] = settle
        if self._ask(self._serve(call)).cancelled():
            self._settle(call, self._given_up(call))

    async def _serve(self, call: Call) -> None:
        if call.cancelled():  # before it began
            self._settle(call, self._given_up(call))
            return
        task = self._running[call] = asyncio.ensure_future(self._run_call(call))
        try:
            self._settle(call, await task)
        except asyncio.CancelledError:
            self._settle(call, self._given_up(call))
        finally:
            self._running.pop(call, None)

    def _given_up(self, call: Call) -> Sequence[Payload]:
        return [self.failure or errors.cancelled_payload(call.task_id, call.name)] * max(1, call.num_returns)

    def _settle(self, call: Call, results: Sequence[Payload]) -> None:
        settle = self._open.pop(call, None)
        if settle is not None:
            settle(results)

    async def _run_call(self, call: Call) -> Sequence[Payload]:
        attempt = 0
        async with self._slots[call.group]:
            if call.waits:
                found = await asyncio.to_thread(call.deps)
                call.deps = lambda: found  # type: ignore[method-assign]
            while True:
                if self.failure is not None:
                    return [self.failure] * max(1, call.num_returns)
                try:
                    with entered(self, call):
                        result = self.invoke(call)
                        if inspect.isawaitable(result):
                            result = await result
                        return self.results(call, result)  # type: ignore[arg-type]
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    if self.again(call, error, attempt):
                        attempt += 1
                        continue
                    return [self.failed(call, error)] * max(1, call.num_returns)

    def cancel(self, task_id: bytes) -> bool:
        for call in list(self._open):
            if call.task_id == task_id:
                call.cancel()
                self._loop.call_soon_threadsafe(self._cancel, call)
                return True
        return False

    def _cancel(self, call: Call) -> None:
        if call in self._running:
            self._running[call].cancel()

    def items(self, call: Call) -> Any:
        """As the base's; an async generator is stepped on the loop."""

        async def begin() -> Any:
            with entered(self, call):
                return self.invoke(call)

        async def step(source: Any) -> Any:
            with entered(self, call):
                return await anext(source, _END)

        try:
            made = self._ask(begin()).result()
            index = 0
            while True:
                index += 1
                if inspect.isasyncgen(made):
                    item = self._ask(step(made)).result()
                else:
                    item = next(made, _END)
                if item is _END:
                    return
                yield serialize(item, f"item {index}")
        except _FOR_THE_DRIVER:
            raise
        except concurrent.futures.CancelledError:  # with the actor
            yield self._given_up(call)[0]
        except BaseException as error:
            yield self.failed(call, error)

    def end(self, why: str) -> None:
        super().end(why)
        with contextlib.suppress(RuntimeError):  # the loop is closed: it ended before
            self._loop.call_soon_threadsafe(self._ending.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)

    def restart(self, why: str) -> None:
        for task in list(self._running.values()):
            self._loop.call_soon_threadsafe(task.cancel)
        super().restart(why)


_END = object()
