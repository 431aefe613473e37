"""Actors that serve many calls at once: a pool of threads for each concurrency group, or one event loop."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .. import _runtime
from .._arguments import unpack
from .._core.engine import KIND_ERROR, REPLY_OK, REPLY_RAISED, TASK_STREAMING, TASK_TIMED, Payload, Task, TaskCancelled
from .._serialization import serialize
from .executor import Executor, LeaveActor, _now


def prepare(executor: Executor, task: Task, cls: type, start: int) -> None:
    """Makes the instance, and sets how the worker goes on."""
    extra = executor.extra
    if extra.asynchronous:
        executor.engine.set_ordered(False)
        executor.serve = AsyncActor(executor, task, cls, start).run
        return
    threaded = extra.max_concurrency > 1 or extra.concurrency_groups
    if threaded or extra.out_of_order:
        executor.engine.set_ordered(False)
    if threaded:
        executor.instantiate(task, cls, start)
        executor.serve = ThreadedActor(executor).run
        return
    if not extra.checkpoint_every and not extra.checkpoint_every_s:
        executor.instantiate(task, cls, start)
        return
    from .checkpoints import checkpoints_of

    checkpoints = checkpoints_of(executor)
    executor.instantiate(task, cls, start, checkpoints.restore)
    executor.answer = checkpoints.answer
    executor.serve = checkpoints.run


class ThreadedActor:
    """Threads that each run one call at a time. The main thread only waits for the end."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._engine = executor.engine
        self._ended = threading.Event()
        self._stopper = executor.stopper = _AnyThread(executor)
        executor.interrupt_main = self._ended.set  # type: ignore[method-assign]

    def run(self) -> None:
        extra = self._executor.extra
        groups = {"": max(1, extra.max_concurrency), **extra.concurrency_groups}
        for group, count in groups.items():
            for i in range(count):
                threading.Thread(target=self._serve, args=(group,), name=f"{group or 'call'}-{i}", daemon=True).start()
        self._ended.wait()

    def _serve(self, group: str) -> None:
        engine = self._engine
        while not self._executor.exiting:
            task = engine.next_task(group, -1.0)
            if task is None:
                if engine.closed:
                    return
                continue
            self._execute(task)

    def _execute(self, task: Task) -> None:
        executor, engine = self._executor, self._engine
        if not engine.begin(task):
            return
        start = _now()
        lease = executor.lease
        _runtime.running.set(_runtime.Running(lease.scope(task.depth, lease.job_id), task, task.task_id, task.name, lease.job_id))
        try:
            if task.flags & TASK_TIMED:
                self._limited(task, start)
            else:
                self._call(task, start)
        except (LeaveActor, SystemExit) as error:
            executor.leave(task, "exit_actor() was called." if isinstance(error, LeaveActor) else f"sys.exit({error.code!r}) was called in {task.name}.", start)
        except TaskCancelled:
            executor.reply_cancelled(task, start)
        except BaseException as error:
            executor.reply_error(task, error, start)
        finally:
            _runtime.running.set(None)

    def _call(self, task: Task, start: int) -> None:
        executor, engine = self._executor, self._engine
        args, kwargs, failed = unpack(task)
        if failed is not None:
            engine.reply(task, REPLY_RAISED, (Payload(KIND_ERROR, bytes(failed.inband), failed.buffers),))
            return
        result = executor.method(task.method)(*args, **kwargs)
        if task.flags & TASK_STREAMING:
            executor.stream(task, result, start)
        else:
            engine.reply(task, REPLY_OK, executor.results(task, result), (_now() - start) // 1000)

    def _limited(self, task: Task, start: int) -> None:
        """A call that is interrupted when it runs too long. What has been answered is not answered again, whenever the interrupt strikes."""
        executor = self._executor
        try:
            try:
                self._stopper.enter(task)
                executor.limit_begins(task)
                self._call(task, start)
            except KeyboardInterrupt:
                executor.interrupted(task, start)
            finally:
                self._stopper.leave(task)
        except KeyboardInterrupt:  # it struck on the way out
            self._stopper.leave(task)
            executor.interrupted(task, start)
        finally:
            executor.limit_ends(task)


class _AnyThread:
    """Stops the calls of a threaded actor that run for too long, each in its own thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._threads: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def enter(self, task: Task) -> None:
        self._threads[task.task_id] = threading.get_ident()

    def leave(self, task: Task) -> None:
        """From here on no interrupt strikes this thread; one that is on its way is taken back."""
        with self._lock:
            if (thread := self._threads.pop(task.task_id, None)) is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)

    def where(self, task: Task) -> str:
        from .time_limit import stack_of

        return stack_of(self._threads.get(task.task_id))

    def interrupt(self, task: Task) -> None:
        self._executor.engine.cancel_children(task.task_id)
        with self._lock:
            if (thread := self._threads.get(task.task_id)) is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))

    def end(self, task: Task) -> None:
        if task.task_id in self._threads:
            self._executor.end_late(task)


class _Group:
    """One concurrency group on the loop: how many calls may still start, and those that wait."""

    __slots__ = ("free", "waiting")

    def __init__(self, limit: int) -> None:
        self.free = limit
        self.waiting: deque[Task] = deque()


class AsyncActor:
    """One event loop on the main thread, which also serves the engine's sockets."""

    def __init__(self, executor: Executor, creation: Task, cls: type, start: int) -> None:
        self._executor = executor
        self._engine = executor.engine
        self._creation = (creation, cls, start)
        extra = executor.extra
        self._groups = {"": _Group(max(1, extra.max_concurrency)), **{name: _Group(n) for name, n in extra.concurrency_groups.items()}}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._timed: dict[bytes, Coroutine[Any, Any, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        executor.on_cancel = self._on_cancel  # type: ignore[method-assign]
        executor.stopper = self

    def run(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        loop.set_task_factory(self._new_task)
        self._ended = asyncio.Event()
        self._executor.interrupt_main = self._wake_end  # type: ignore[method-assign]
        task, cls, start = self._creation
        try:
            self._executor.instantiate(task, cls, start)
        except BaseException as error:
            self._executor.creation_failed(task, error)
            await self._ended.wait()
            return
        fds = (self._engine.fileno(), self._engine.loop_fileno())
        for fd in fds:
            loop.add_reader(fd, self._readable)
        self._take()
        try:
            if not self._executor.exiting:
                await self._ended.wait()
        finally:
            for fd in fds:
                loop.remove_reader(fd)

    def _wake_end(self) -> None:
        assert self._loop is not None and self._ended is not None
        try:
            self._loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:
            return  # the loop has ended already

    def _readable(self) -> None:
        self._engine.poll()
        self._take()

    def _take(self) -> None:
        for name, group in self._groups.items():
            tasks = self._engine.take_tasks(name)
            if tasks:
                group.waiting.extend(tasks)
                self._start(group)

    def _start(self, group: _Group) -> None:
        waiting = group.waiting
        while waiting and group.free > 0 and not self._executor.exiting:
            task = waiting.popleft()
            if not self._engine.begin(task):
                continue
            group.free -= 1
            running = asyncio.ensure_future(self._execute(task, group))
            self._tasks[task.task_id] = running

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        # What a call starts with create_task() or gather() belongs to the call as well.
        now = _runtime.running.get()
        if now is not None:
            coroutine = _PartOfCall(self._engine, now.task, coroutine if inspect.iscoroutine(coroutine) else _as_coroutine(coroutine))
        return asyncio.Task(coroutine, loop=loop, **options)

    async def _execute(self, task: Task, group: _Group) -> None:
        executor = self._executor
        start = _now()
        try:
            call = self._call(task, start)
            if task.flags & TASK_TIMED:
                self._timed[task.task_id] = call
                executor.limit_begins(task)
            await _stepped(self._engine, task, call)
        except asyncio.CancelledError:
            executor.interrupted(task, start)
        except (LeaveActor, SystemExit) as error:
            why = "exit_actor() was called." if isinstance(error, LeaveActor) else f"sys.exit({error.code!r}) was called in {task.name}."
            await asyncio.get_running_loop().run_in_executor(None, executor.leave, task, why, start)
        except TaskCancelled:
            executor.reply_cancelled(task, start)
        except BaseException as error:
            executor.reply_error(task, error, start)
        finally:
            if self._timed.pop(task.task_id, None) is not None:
                executor.limit_ends(task)
            self._tasks.pop(task.task_id, None)
            group.free += 1
            if group.waiting:
                self._start(group)

    async def _call(self, task: Task, start: int) -> None:
        executor, engine = self._executor, self._engine
        lease = executor.lease
        # Each asyncio task has a context of its own, so this is seen by this call alone.
        _runtime.running.set(_runtime.Running(lease.scope(task.depth, lease.job_id), task, task.task_id, task.name, lease.job_id))
        args, kwargs, failed = unpack(task)
        if failed is not None:
            engine.reply(task, REPLY_RAISED, (Payload(KIND_ERROR, bytes(failed.inband), failed.buffers),))
            return
        result = executor.method(task.method)(*args, **kwargs)
        if task.flags & TASK_STREAMING:
            await self._stream(task, result, start)
            return
        if inspect.isawaitable(result):
            result = await result
        engine.reply(task, REPLY_OK, executor.results(task, result), (_now() - start) // 1000)

    async def _stream(self, task: Task, items: Any, start: int) -> None:
        executor, engine = self._executor, self._engine
        send: Callable[[Task, int, Payload], Any] = self._send_waiting if task.backpressure else self._send
        index = 0
        try:
            if inspect.isasyncgen(items):
                async for item in items:
                    index += 1
                    await send(task, index, serialize(item, f"item {index}"))
            else:
                for item in items:
                    index += 1
                    await send(task, index, serialize(item, f"item {index}"))
        except (LeaveActor, SystemExit):
            raise
        except (asyncio.CancelledError, TaskCancelled):
            executor.interrupted(task, start, index)
            return
        except BaseException as error:
            executor.reply_error(task, error, start, index)
            return
        engine.reply(task, REPLY_OK, (), (_now() - start) // 1000, index)

    async def _send(self, task: Task, index: int, payload: Payload) -> None:
        self._engine.item(task, index, payload)

    async def _send_waiting(self, task: Task, index: int, payload: Payload) -> None:
        # It waits for the consumer, so not on the loop.
        await asyncio.get_running_loop().run_in_executor(None, self._engine.item, task, index, payload)

    def _on_cancel(self, task_id: bytes, force: bool) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, task_id)

    def _cancel(self, task_id: bytes) -> None:
        running = self._tasks.get(task_id)
        if running is not None:
            running.cancel()

    # -- what runs for too long: a Stopper
    def where(self, task: Task) -> str:
        from .time_limit import stack_of, text_of

        waiting = text_of(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in _frames(self._timed.get(task.task_id))))
        return waiting or stack_of(threading.main_thread().ident)

    def interrupt(self, task: Task) -> None:
        self._engine.cancel_children(task.task_id)
        self._on_cancel(task.task_id, False)

    def end(self, task: Task) -> None:
        if task.task_id in self._tasks:
            self._executor.end_late(task)


def _frames(awaited: Any) -> Generator[types.FrameType, None, None]:
    """Of a suspended coroutine and what it waits for, the outermost first."""
    while awaited is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")), None)
        if kind is None:
            return
        if (frame := getattr(awaited, f"{kind}_frame")) is not None:
            yield frame
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


@types.coroutine
def _stepped(engine: Any, task: Task, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Runs a coroutine so that the engine knows at each of its steps which call it is: calls take turns on this one thread."""
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    set_current = engine.set_current
    while True:
        set_current(task)
        try:
            waited = step(value)
        except StopIteration as end:
            return end.value
        finally:
            set_current(None)
        try:
            value = yield waited
            step = coroutine.send
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            value, step = error, coroutine.throw


class _PartOfCall(Coroutine[Any, Any, Any]):
    """What a call has started, as `_stepped`; an object, since a generator that is cancelled before its first step would leave the coroutine in it unclosed."""

    __slots__ = ("_coroutine", "_set_current", "_task")

    def __init__(self, engine: Any, task: Task, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._set_current = engine.set_current
        self._task = task
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        self._set_current(self._task)
        try:
            return self._coroutine.send(value)
        finally:
            self._set_current(None)

    def throw(self, *error: Any) -> Any:
        self._set_current(self._task)
        try:
            return self._coroutine.throw(*error)
        finally:
            self._set_current(None)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.environ.get("SHOAL_UVLOOP") == "0":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
