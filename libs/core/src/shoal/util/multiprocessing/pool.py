"""The pool: actors that run chunks of calls."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from multiprocessing import TimeoutError
from typing import Any, TypeVar

import shoal

from .dispatch import Dispatch

# Chunks for each worker that a map is cut into, as in the standard library: few messages, and no worker left alone at the end.
_CHUNKS_EACH = 4
# Limit: chunks of one imap() that are at work ahead of the one that the caller waits for, for each worker.
_IMAP_AHEAD = 4
_START_TIMEOUT_S = 120.0
_log = logging.getLogger("shoal")

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _PoolWorker:
    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def ready(self) -> None:
        pass

    def run(self, function: Callable[..., Any], calls: list[Call]) -> list[tuple[bool, Any]]:
        """(True, result) or (False, exception) of each."""
        done: list[tuple[bool, Any]] = []
        for args, kwargs in calls:
            try:
                done.append((True, function(*args, **kwargs)))
            except Exception as error:
                done.append((False, error))
        return done


class _Chunk:
    """Some calls of one function; `told` gets their outcomes, once."""

    __slots__ = ("calls", "function", "told")

    def __init__(self, function: Any, calls: list[Call], told: Callable[[list[tuple[bool, Any]]], None]) -> None:
        self.function = function
        self.calls = calls
        self.told = told


class AsyncResult:
    """What the `_async` methods return; as `multiprocessing.pool.AsyncResult`."""

    def __init__(self, chunks: int, single: bool, callback: Callable[[Any], Any] | None, error_callback: Callable[[BaseException], Any] | None) -> None:
        self._single = single
        self._parts: list[list[tuple[bool, Any]] | None] = [None] * chunks
        self._left = chunks
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._values: list[Any] = []
        self._error: BaseException | None = None
        if not chunks:
            self._finish()

    def _told(self, index: int, outcomes: list[tuple[bool, Any]]) -> None:
        with self._lock:
            self._parts[index] = outcomes
            self._left -= 1
            last = self._left == 0
        if last:
            self._finish()

    def _finish(self) -> None:
        outcomes = [outcome for part in self._parts for outcome in part or ()]
        self._error = next((value for ok, value in outcomes if not ok), None)
        self._values = [value for _, value in outcomes]
        self._parts = []
        try:
            if self._error is None and self._callback is not None:
                self._callback(self._values[0] if self._single else self._values)
            elif self._error is not None and self._error_callback is not None:
                self._error_callback(self._error)
        except Exception:
            # On a thread of the runtime's: nobody there could catch it, and the result is there all the same.
            _log.exception("a callback of a pool's call raised")
        finally:
            self._ready.set()

    def get(self, timeout: float | None = None) -> Any:
        """The result; raises what the first failing call raised, or multiprocessing.TimeoutError."""
        if not self._ready.wait(timeout):
            raise TimeoutError(f"no result after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._values[0] if self._single else self._values

    def wait(self, timeout: float | None = None) -> None:
        self._ready.wait(timeout)

    def ready(self) -> bool:
        return self._ready.is_set()

    def successful(self) -> bool:
        """Raises ValueError while it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None


class IMapIterator:
    """Results in the order of the arguments, each as soon as it and those before it are there."""

    def __init__(self, pool: Pool, function: Any, iterable: Iterable[Any], chunksize: int) -> None:
        self._pool = pool
        self._function = function
        self._chunks = _chunks(((item,) for item in iterable), chunksize)
        self._arrived: queue.SimpleQueue[tuple[int, list[tuple[bool, Any]]]] = queue.SimpleQueue()
        self._early: dict[int, list[tuple[bool, Any]]] = {}
        self._now: Iterator[tuple[bool, Any]] = iter(())
        self._sent = self._taken = 0
        self._exhausted = False
        self._feeding = threading.Lock()  # join() feeds, too
        self.feed(_IMAP_AHEAD * pool.size)

    def feed(self, ahead: float = math.inf) -> None:
        """Submits chunks until so many are ahead of what was taken, or the source is at its end."""
        with self._feeding:
            while not self._exhausted and self._sent - self._taken < ahead:
                try:
                    calls = next(self._chunks, None)
                except Exception as error:  # of the source: raised where its next result would be
                    self._exhausted = True
                    self._arrive(self._sent, [(False, error)])
                    self._sent += 1
                    return
                if calls is None:
                    self._exhausted = True
                    return
                self._pool.submit(_Chunk(self._function, calls, partial(self._arrive, self._sent)))
                self._sent += 1

    def _arrive(self, index: int, outcomes: list[tuple[bool, Any]]) -> None:
        self._arrived.put((index, outcomes))

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; raises what its call raised, multiprocessing.TimeoutError, or StopIteration at the end."""
        outcome = next(self._now, None)
        while outcome is None:
            if self._exhausted and self._taken == self._sent:
                raise StopIteration
            self._now = iter(self._next_chunk(timeout))
            self._taken += 1
            self.feed(_IMAP_AHEAD * self._pool.size)
            outcome = next(self._now, None)
        ok, value = outcome
        if not ok:
            raise value
        return value

    def _next_chunk(self, timeout: float | None) -> list[tuple[bool, Any]]:
        end = None if timeout is None else time.monotonic() + timeout
        while self._taken not in self._early:
            index, outcomes = self._receive(end, timeout)
            self._early[index] = outcomes
        return self._early.pop(self._taken)

    def _receive(self, end: float | None, timeout: float | None) -> tuple[int, list[tuple[bool, Any]]]:
        try:
            return self._arrived.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"no result after {timeout:g} s") from None


class IMapUnorderedIterator(IMapIterator):
    """Results as they come."""

    def _next_chunk(self, timeout: float | None) -> list[tuple[bool, Any]]:
        return self._receive(None if timeout is None else time.monotonic() + timeout, timeout)[1]


Stream = TypeVar("Stream", bound=IMapIterator)


class Pool:
    """`multiprocessing.Pool` whose workers are actors, anywhere in the cluster.

    Args:
        processes: how many workers; as many as the cluster has CPUs if not given.
        initializer, initargs: called in each worker when it starts.
        maxtasksperchild: chunks (of an apply: calls) after which a worker is replaced by a new one.
        context: accepted and not used: workers are the cluster's.
        ray_address: of the cluster, as `init(address=…)`, where this process has not connected; where none runs, one with `processes` CPUs is started.
        ray_remote_args: options of the workers, as `.options(…)`: num_cpus (1), resources, runtime_env, …

    Raises:
        ValueError: processes or maxtasksperchild below 1; more processes than the cluster has CPUs for.
    """

    def __init__(
        self, processes: int | None = None, initializer: Callable[..., Any] | None = None, initargs: Iterable[Any] = (), maxtasksperchild: int | None = None,
        context: Any = None, ray_address: str | None = None, ray_remote_args: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if processes is not None and processes < 1:
            raise ValueError("Processes in the pool must be >0.")
        if maxtasksperchild is not None and maxtasksperchild < 1:
            raise ValueError(f"maxtasksperchild must be at least 1, got {maxtasksperchild}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if not shoal.is_initialized():
            _connect(ray_address, processes)
        cpus = int(shoal.cluster_resources().get("CPU", 1))
        options = {"num_cpus": 1, **(ray_remote_args or {})}
        self.size = processes or max(1, cpus)
        if self.size * options["num_cpus"] > cpus:
            raise ValueError(
                f"Tried to start a pool with {self.size} processes on an existing cluster with {cpus} CPUs: "
                "give fewer, or ray_remote_args={'num_cpus': …} below 1"
            )
        self._initializer = (initializer, tuple(initargs))
        self._worker_class: Any = shoal.remote(_PoolWorker).options(**options)
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._dispatch = Dispatch(maxtasksperchild or 0)
        self._actors: dict[Hashable, Any] = {}
        self._numbers = itertools.count()
        self._open = 0
        self._closed = self._terminated = False
        self._streams: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        with self._lock:
            first = [self._start_worker() for _ in range(self.size)]
        try:
            shoal.get([self._actors[number].ready.remote() for number in first], timeout=_START_TIMEOUT_S)
        except BaseException:
            self.terminate()
            raise

    # -- submitting -------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None, error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:  # fmt: skip
        return self._gather(func, [[(tuple(args or ()), dict(kwargs or {}))]], True, callback, error_callback)

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None, error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:  # fmt: skip
        return self._map(func, [(item,) for item in iterable], chunksize, callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None) -> list[Any]:
        return list(self.starmap_async(func, iterable, chunksize).get())

    def starmap_async(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | Callable[[Any], Any] | None = None,
        callback: Callable[[Any], Any] | None = None, error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:  # fmt: skip
        """The third argument may be the callback, as in Ray, whose `starmap_async` has no chunksize (the standard library's has)."""
        if callable(chunksize):
            chunksize, callback, error_callback = None, chunksize, callback or error_callback
        return self._map(func, [tuple(items) for items in iterable], chunksize, callback, error_callback)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """Lazy: at most a few chunks for each worker are taken from `iterable` ahead of what was consumed."""
        return self._stream(IMapIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapUnorderedIterator:
        return self._stream(IMapUnorderedIterator, func, iterable, chunksize)

    def _stream(self, kind: type[Stream], func: Any, iterable: Iterable[Any], chunksize: int | None) -> Stream:
        _check_chunksize(chunksize)
        made = kind(self, self._export(func), iterable, chunksize or 1)
        self._streams.add(made)
        return made

    def _map(self, func: Any, items: list[tuple[Any, ...]], chunksize: int | None, callback: Any, error_callback: Any) -> AsyncResult:
        _check_chunksize(chunksize)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (self.size * _CHUNKS_EACH)))
        return self._gather(func, list(_chunks(iter(items), chunksize)), False, callback, error_callback)

    def _gather(self, func: Any, chunks: list[list[Call]], single: bool, callback: Any, error_callback: Any) -> AsyncResult:
        function = self._export(func)
        result = AsyncResult(len(chunks), single, callback, error_callback)
        for i, calls in enumerate(chunks):
            self.submit(_Chunk(function, calls, partial(result._told, i)))
        return result

    def _export(self, func: Any) -> Any:
        """Pickled once, however many chunks there are."""
        if not callable(func):
            raise TypeError(f"a function is wanted, got {type(func).__name__}")
        with self._lock:
            self._check_open()
        return shoal.put(func)

    def submit(self, chunk: _Chunk) -> None:
        """For the iterators of imap()."""
        with self._lock:
            if self._terminated:
                raise ValueError("Pool not running: it was terminated before its source was read to the end")
            self._open += 1
            if not self._actors:  # the last one was worn or died when nothing waited
                self._start_worker()
            self._dispatch.submitted(chunk)
            begun = self._hand_out()
        self._follow(begun)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    # -- workers ----------------------------------------------------------------------------------

    def _start_worker(self) -> Hashable:
        number = next(self._numbers)
        self._actors[number] = self._worker_class.remote(*self._initializer)
        self._dispatch.added(number)
        return number

    def _hand_out(self) -> list[tuple[Hashable, _Chunk, Any]]:
        return [(number, chunk, self._actors[number].run.remote(chunk.function, chunk.calls)) for number, chunk in self._dispatch.assignments()]

    def _follow(self, begun: list[tuple[Hashable, _Chunk, Any]]) -> None:
        """Without the lock: a future that is done already calls back at once, on this thread."""
        for number, chunk, ref in begun:
            ref.future().add_done_callback(partial(self._done, number, chunk))

    def _done(self, number: Hashable, chunk: _Chunk, future: Any) -> None:
        error = future.exception()
        # What the calls raise comes as a value; an error of the call itself is the worker's death, or arguments that cannot travel.
        outcomes = [(False, error)] * len(chunk.calls) if error is not None else future.result()
        with self._lock:
            worn = self._dispatch.finished(number)
            died = isinstance(error, shoal.exceptions.RayActorError)
            if (worn or died) and number in self._actors:
                self._dispatch.removed(number)
                del self._actors[number]
                if self._actors or not self._closed or self._dispatch.waiting:
                    self._start_worker()
            begun = self._hand_out()
        self._follow(begun)
        chunk.told(outcomes)
        with self._lock:
            self._open -= 1
            if not self._open:
                self._drained.notify_all()

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """No more work is taken; what was given is finished."""
        with self._lock:
            self._closed = True

    def terminate(self) -> None:
        """The workers are killed; what they had is given up: `get()` of it raises ActorDiedError."""
        with self._lock:
            self._closed = self._terminated = True
            waiting = list(self._dispatch.waiting)
            self._dispatch.waiting.clear()
            actors, self._actors = self._actors, {}
            for number in actors:
                self._dispatch.removed(number)
        for actor in actors.values():
            shoal.kill(actor)
        given_up = RuntimeError("the pool was terminated before this call had started")
        for chunk in waiting:
            chunk.told([(False, given_up)] * len(chunk.calls))
        with self._lock:
            self._open -= len(waiting)
            if not self._open:
                self._drained.notify_all()

    def join(self) -> None:
        """Waits until all work is done (sources of imap() are read to their end), then lets the workers go. After close() or terminate()."""
        with self._lock:
            if not self._closed:
                raise ValueError("Pool is still running")
        for stream in () if self._terminated else list(self._streams):
            stream.feed()
        with self._lock:
            while self._open:
                self._drained.wait()
            self._actors.clear()

    def __enter__(self) -> Pool:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()


def _connect(address: str | None, processes: int | None) -> None:
    if processes is not None and address in (None, "local"):
        try:
            shoal.init(address=address, num_cpus=processes)
        except ValueError:
            if address is not None:
                raise
        else:
            return
    shoal.init(address=address)  # to one that runs, which has the CPUs that it has


def _check_chunksize(chunksize: int | None) -> None:
    if chunksize is not None and chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[Call]]:
    while True:
        calls: list[Call] = [(args, {}) for args in itertools.islice(items, size)]
        if not calls:
            return
        yield calls
