"""Runs what is sent to this worker: tasks and plain actors on the main thread, one at a time. Other kinds of actors are in `actor_modes`."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import _functions, _runtime
from .._arguments import unpack
from .._core.engine import (
    KIND_ERROR,
    REPLY_CANCELLED,
    REPLY_LEAVING,
    REPLY_OK,
    REPLY_RAISED,
    REPLY_RAISED_RETRY,
    TASK_RETRY_EXCEPTIONS,
    TASK_STREAMING,
    TASK_TIMED,
    Payload,
    Task,
    TaskCancelled,
)
from .._serialization import serialize
from . import errors
from .environment import Environment
from .kept_arguments import keep_arguments
from .lease import Lease, parse
from .threads import Threads

if TYPE_CHECKING:
    from .time_limit import Stopper, TimeLimit

TASK, CREATION, CALL = 0, 1, 2
_NO_LEASE = Lease()
_now = time.perf_counter_ns
_KILL_TIMEOUT_S = 10.0
_LINGER_LOOK_S = 0.5
# A cancel that strikes an import looks again so soon.
_AFTER_IMPORT_S = 0.01
# How long the answer of a task that could not be interrupted has to reach its caller before this process ends.
_ANSWER_S = 0.3


class LeaveActor(BaseException):
    """Raised by exit_actor(): not an Exception, so that a user's `except Exception` does not hold it."""


class _StopLoop(BaseException):
    """The raylet asked this worker to end while nothing ran."""


def leave_actor() -> None:
    executor = Executor.current
    if executor is None or not executor.actor_id:
        raise TypeError("exit_actor API is called outside of an actor: it ends the actor whose method calls it")
    raise LeaveActor


class Executor:
    """One for each worker. The main thread is in `run` for life."""

    current: Executor | None = None

    def __init__(self, engine: Any, has_gpus: bool) -> None:
        Executor.current = self
        self.engine = engine
        self.environment = Environment(engine, has_gpus)
        self.threads = Threads()
        self.lease = _NO_LEASE
        self.actor: Any = None
        self.actor_id = b""
        self.actor_name = ""
        self.actor_class_name = ""
        self.extra: Any = None  # of the actor's creation
        self.exiting = ""
        self.serve: Callable[[], None] | None = None  # how an actor that is not plain goes on after its creation
        self._running_id: bytes | None = None
        self._cancel_ids: set[bytes] = set()
        self._idle = False
        self._main = threading.main_thread().ident
        self._calls: dict[bytes, int] = {}
        self._retry_lists: dict[bytes, tuple[type[BaseException], ...]] = {}
        self._time_limit: TimeLimit | None = None
        self.answer = engine.reply  # checkpoints come between
        self._making = threading.Lock()  # of _time_limit: the first calls of a threaded actor may begin at once
        self.stopper: Stopper = _MainThread(self)

    # -- the main loop
    def run(self) -> None:
        """Until the engine is closed or the worker is asked to end."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        engine = self.engine
        while True:
            nudges = engine.nudges  # before the look at `exiting`: an exit that comes right after it ends next_task()
            if self.exiting:
                break
            try:
                self._idle = True
                task = engine.next_task("", -1.0, nudges)
                self._idle = False
            except (_StopLoop, KeyboardInterrupt):
                continue
            if task is None:
                if engine.closed:
                    return
                continue
            self.execute(task)
            del task  # it holds its arguments, and the next one may be long in coming
            if self.serve is not None:
                self.serve()
                return
        self.linger()

    def linger(self) -> None:
        """Objects of this worker that others hold would be lost with it: it stays for them, and runs nothing more."""
        if not self.engine.lent():
            return
        self.engine.leave()
        while self.engine.lent() and not self.engine.closed:
            task = self.engine.next_task("", _LINGER_LOOK_S)
            if task is not None and self.engine.begin(task):
                self.engine.reply(task, REPLY_LEAVING, ())

    def execute(self, task: Task) -> None:
        kind = task.kind
        if kind == CREATION:
            self.create_actor(task)
        else:
            self._execute(task, kind == CALL)

    def _execute(self, task: Task, is_call: bool) -> None:
        engine = self.engine
        task_id = task.task_id
        flags = task.flags
        start = 0
        try:
            # Set before begin(): a cancel that arrives from then on finds it.
            self._running_id = task_id
            if not engine.begin(task):
                self._running_id = None
                return
            start = _now()
            lease = self.lease
            if not is_call and lease.lease_id != task.lease_id:
                lease = self.enter(task)
            job_id = lease.job_id
            _runtime.state.process_running = _runtime.Running(lease.scope(task.depth, job_id), task, task_id, task.name, job_id)
            function = self.method(task.method) if is_call else self.function(task.function_id, job_id)
            args, kwargs, failed = unpack(task)
            if failed is not None:
                self._running_id = None
                self.answer(task, REPLY_RAISED, (Payload(KIND_ERROR, bytes(failed.inband), failed.buffers),), 0)
                return
            if flags & TASK_TIMED:
                self.limit_begins(task)
            result = function(*args, **kwargs) if kwargs else function(*args)
            if flags & TASK_STREAMING:
                self.stream(task, result, start)
                self._running_id = None
                return
            results = self.results(task, result)
            self._running_id = None
        except BaseException as error:
            self._running_id = None
            self._failed(task, error, start)
        else:
            try:
                self.answer(task, REPLY_OK, results, (_now() - start) // 1000)
            except Exception as error:  # no room for the result, say
                self.reply_error(task, error, start)
        finally:
            _runtime.state.process_running = None
            if flags & TASK_TIMED:
                self.limit_ends(task)
        if self.lease.max_calls and not is_call:
            self._count_call(task.function_id)

    def function(self, function_id: bytes, job_id: bytes) -> Callable[..., Any]:
        loaded: Callable[..., Any] = _functions._loaded.get(function_id) or _functions.load(self.engine, job_id, function_id)
        return loaded

    def _failed(self, task: Task, error: BaseException, start: int) -> None:
        """The end of a task on the main thread that did not return."""
        self._cancel_ids.discard(task.task_id)
        if isinstance(error, KeyboardInterrupt | TaskCancelled):
            self.interrupted(task, start)
        elif isinstance(error, LeaveActor):
            self.leave(task, "exit_actor() was called.", start)
        elif isinstance(error, SystemExit):
            self._system_exit(task, error, start)
        else:
            self.reply_error(task, error, start)

    def _system_exit(self, task: Task, error: SystemExit, start: int) -> None:
        from .._serialization import serialize_error
        from ..exceptions import WorkerCrashedError

        why = f"sys.exit({error.code!r}) was called in {task.name}"
        if self.actor_id:
            self.leave(task, f"{why}.", start)
            return
        self.engine.reply(task, REPLY_RAISED, (serialize_error(WorkerCrashedError(f"The worker exited: {why}.")),), (_now() - start) // 1000)
        self.stop(why)

    def _count_call(self, function_id: bytes) -> None:
        calls = self._calls[function_id] = self._calls.get(function_id, 0) + 1
        if calls >= self.lease.max_calls:
            self.stop(f"it has run a function max_calls={calls} times")

    # -- leases
    def enter(self, task: Task) -> Lease:
        """Takes on the lease that the task came under. Raises RuntimeEnvSetupError, TimeoutError."""
        lease = parse(task.lease_id, self.engine.lease_context(task.lease_id))
        if not lease.job_id:
            lease.job_id = task.job_id
        self.environment.apply(lease.job_id, lease.runtime_env, lease.accelerators.get("GPU", []))
        self.threads.apply(lease.resources.get("CPU", 0))
        self.lease = lease
        return lease

    # -- results
    def results(self, task: Task, result: Any) -> Sequence[Payload]:
        count = task.num_returns
        if inspect.isgenerator(result):
            result = self._collected(result, count)
        if count == 1:
            return (serialize(result, "return value"),)
        if count == 0:
            return ()
        hint = f"return a list or tuple of {count}, or change num_returns"
        try:
            items = list(result)
        except TypeError:
            what = f"one value of type {type(result).__name__} that cannot be iterated"
            raise ValueError(f"{task.name} has num_returns={count}, but returned {what}: {hint}") from None
        if len(items) != count:
            raise ValueError(f"{task.name} has num_returns={count}, but returned {len(items)} values: {hint}")
        return [serialize(item, f"return value[{i}]") for i, item in enumerate(items)]

    def _collected(self, generator: Any, count: int) -> Any:
        """num_returns="dynamic" puts each item; a fixed number takes the items as the returns."""
        if count != 1:
            return generator
        from ..object_ref_generator import DynamicObjectRefGenerator

        return DynamicObjectRefGenerator([self.engine.put(serialize(item, f"item {i}")) for i, item in enumerate(generator)])

    def stream(self, task: Task, items: Any, start: int) -> None:
        """Sends what a generator yields, item by item. Raises what the generator raises, after telling how many were sent."""
        if inspect.isasyncgen(items):
            items = _drain_async(items)
        engine = self.engine
        index = 0
        try:
            for item in items:
                index += 1
                engine.item(task, index, serialize(item, f"item {index}"))
        except BaseException as error:
            self._running_id = None
            self._stream_failed(task, error, start, index)
            return
        self.answer(task, REPLY_OK, (), (_now() - start) // 1000, index)

    def _stream_failed(self, task: Task, error: BaseException, start: int, index: int) -> None:
        if isinstance(error, LeaveActor | SystemExit):
            raise error
        if isinstance(error, KeyboardInterrupt | TaskCancelled):
            self.interrupted(task, start, index)
        else:
            self.reply_error(task, error, start, index)

    def interrupted(self, task: Task, start: int, items: int = 0) -> None:
        """Answers for what was cancelled, or ran too long."""
        late = self._time_limit.exceeded(task) if self._time_limit is not None else None
        if late is None:
            self.reply_cancelled(task, start, items)
        else:
            self.reply_error(task, errors.timed_out(task.task_id, task.name, *late), start, items)

    def reply_cancelled(self, task: Task, start: int, items: int = 0) -> None:
        self.answer(task, REPLY_CANCELLED, (errors.cancelled_payload(task.task_id, task.name),), (_now() - start) // 1000 if start else 0, items)

    def reply_error(self, task: Task, error: BaseException, start: int, items: int = 0) -> None:
        status = REPLY_RAISED_RETRY if task.flags & TASK_RETRY_EXCEPTIONS and self._worth_a_retry(task, error) else REPLY_RAISED
        payload = errors.payload_of(error, task.name, self.actor, self.actor_id)
        self.answer(task, status, (payload,), (_now() - start) // 1000 if start else 0, items)

    def _worth_a_retry(self, task: Task, error: BaseException) -> bool:
        wanted = self._retry_list(task.extra) if task.extra else None
        if wanted is None and task.kind == CALL:
            listed = getattr(getattr(type(self.actor), task.method, None), "__shoal_method_options__", {}).get("retry_exceptions")
            wanted = tuple(listed) if isinstance(listed, list | tuple) else None
        return isinstance(error, Exception) and (not wanted or isinstance(error, wanted))

    # -- time limits
    def limit_begins(self, task: Task) -> None:
        with self._making:
            if self._time_limit is None:
                from .time_limit import TimeLimit

                self._time_limit = TimeLimit(lambda: self.stopper, self.engine.set_last_words)
        self._time_limit.begin(task, parse_extra(task.extra).timeout_s)

    def limit_ends(self, task: Task) -> None:
        if self._time_limit is not None:
            self._time_limit.done(task)

    def end_late(self, task: Task) -> None:
        """What runs too long did not hear the interrupt, so this process ends. On the thread that watches the time."""
        late = self._time_limit.exceeded(task) if self._time_limit is not None else None
        if late is None:
            return
        # Not by `answer`, which may wait for a checkpoint: what this call has changed goes with the process.
        self.answer = self.engine.reply
        self.reply_error(task, errors.timed_out(task.task_id, task.name, *late), 0)
        time.sleep(_ANSWER_S)
        _flush_and_end(1)

    def _retry_list(self, extra: bytes) -> tuple[type[BaseException], ...] | None:
        if extra not in self._retry_lists:
            from shoal_raylet.v1 import raylet_pb2

            pickled = raylet_pb2.TaskExtra.FromString(extra).retry_exceptions
            if len(self._retry_lists) > _functions.CACHE_FUNCTIONS:
                self._retry_lists.clear()
            self._retry_lists[extra] = pickle.loads(pickled) if pickled else ()
        return self._retry_lists[extra] or None

    # -- actors
    def create_actor(self, task: Task) -> None:
        """Makes the instance. A plain actor stays on the main loop; `serve` is set for the other kinds."""
        if not self.engine.begin(task):
            return
        from .actor_modes import prepare

        start = _now()
        self.actor_id = task.actor_id
        self.actor_class_name = task.name
        try:
            lease = self.enter(task)
            cls = _functions.load(self.engine, lease.job_id, task.function_id)
            self.extra = parse_extra(task.extra)
            self.actor_name = self.extra.actor_name
            if self.extra.unrecorded:
                self.engine.keep_no_history()
            prepare(self, task, cls, start)
        except BaseException as error:
            self.creation_failed(task, error)

    def instantiate(self, task: Task, cls: type, start: int, restore: Callable[[], None] | None = None) -> None:
        """Runs `__init__` and answers. Raises what it raises. `restore`: what follows it in a life that is not the first."""
        lease = self.lease
        _runtime.state.process_running = _runtime.Running(lease.scope(task.depth, lease.job_id), task, task.task_id, f"{task.name}.__init__", lease.job_id)
        args, kwargs, failed = unpack(task)
        if failed is not None:
            from .._serialization import load_error

            raise load_error(failed)
        self.actor = cls(*args, **kwargs)
        if restore is not None:
            restore()
        if self.extra.keep_arguments:
            keep_arguments(self, task)
        self.engine.reply(task, REPLY_OK, (), (_now() - start) // 1000)

    def creation_failed(self, task: Task, error: BaseException) -> None:
        if isinstance(error, LeaveActor | SystemExit):
            error = RuntimeError(f"{task.name}.__init__ ended the process: {type(error).__name__}")
        self.engine.reply(task, REPLY_RAISED, (errors.init_failed_payload(error, task.name, task.actor_id),))

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the actor; the runtime's own ones are answered here."""
        own = _OWN_METHODS.get(name)
        if own is not None:
            return own
        method: Callable[..., Any] = getattr(self.actor, name)
        return method

    def leave(self, task: Task, why: str, start: int = 0) -> None:
        """The actor ends by its own will: answers the call, tells the control store that this is no crash, and stops."""
        from shoal_gcs.v1 import gcs_pb2

        self.engine.reply(task, REPLY_RAISED, (errors.left_payload(self.actor_id, why),), (_now() - start) // 1000 if start else 0)
        request = gcs_pb2.KillActorRequest(actor_id=self.actor_id, no_restart=True, force=False, reason=why)
        try:
            self.engine.call("gcs/KillActor", request.SerializeToString(), _KILL_TIMEOUT_S)
        except Exception as error:
            print(f"exit_actor(): the control store was not told: {error}", file=sys.stderr)
        self.stop(why)

    # -- ending and cancelling
    def stop(self, why: str) -> None:
        """This worker ends once what runs now has ended. From any thread."""
        self.exiting = why or "asked to"
        self.engine.set_last_words(self.exiting)
        self.engine.nudge()
        self.interrupt_main()

    def interrupt_main(self) -> None:
        if threading.get_ident() != self._main and self._main is not None:
            signal.pthread_kill(self._main, signal.SIGINT)

    def on_exit(self, force: bool, reason: str) -> None:
        """EXIT came. On the control thread."""
        if force:
            self.engine.set_last_words(reason)
            _flush_and_end(0)
        self.stop(reason)

    def on_cancel(self, task_id: bytes, force: bool) -> None:
        """CANCEL came for a started task. On the control thread."""
        if self.actor_id:
            return  # plain and threaded actors only see is_canceled()
        if force:
            self.engine.set_last_words("cancel(force=True)")
            _flush_and_end(1)
        self._cancel_ids.add(task_id)
        self.interrupt_main()

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        # Runs on the main thread, between two of its byte codes: what it reads cannot change meanwhile, so a cancel never hits the next task.
        running = self._running_id
        if running is not None and running in self._cancel_ids:
            if _is_importing(frame):
                # NumPy and other extensions that were imported half cannot be imported again in this process, by no later task either.
                again = threading.Timer(_AFTER_IMPORT_S, self.interrupt_main)
                again.daemon = True
                again.start()
                return
            self._cancel_ids.discard(running)
            raise KeyboardInterrupt
        if self._idle and self.exiting:
            raise _StopLoop


class _MainThread:
    """Stops what runs on the main thread for too long: a task, or a plain actor's call."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def where(self, task: Task) -> str:
        from .time_limit import stack_of

        return stack_of(self._executor._main)

    def interrupt(self, task: Task) -> None:
        self._executor.engine.cancel_children(task.task_id)
        self._executor._cancel_ids.add(task.task_id)
        self._executor.interrupt_main()

    def end(self, task: Task) -> None:
        running = _runtime.state.process_running
        if running is not None and running.task_id == task.task_id:
            self._executor.end_late(task)


def _is_importing(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _flush_and_end(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)


def parse_extra(raw: bytes) -> Any:
    from shoal_raylet.v1 import raylet_pb2

    return raylet_pb2.TaskExtra.FromString(raw)


def _drain_async(generator: Any) -> Any:
    """A task's async generator, as a plain one: tasks have no loop of their own."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(generator))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(generator.aclose())
        loop.close()


def _terminate(*_: Any) -> None:
    raise LeaveActor


def _ready(*_: Any) -> bool:
    return True


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs any function on the actor's instance."""
    executor = Executor.current
    assert executor is not None
    return function(executor.actor, *args, **kwargs)


_OWN_METHODS: dict[str, Callable[..., Any]] = {
    "__ray_terminate__": _terminate,
    "__shoal_terminate__": _terminate,
    "__ray_ready__": _ready,
    "__shoal_ready__": _ready,
    "__ray_call__": _call,
    "__shoal_call__": _call,
}
