"""`@serve.batch`: calls that come close together are answered by one call with lists."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from .exceptions import ServeConfigError


def batch(
    _func: Callable[..., Any] | None = None, /, max_batch_size: int = 10, batch_wait_timeout_s: float = 0.01, max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
) -> Any:  # fmt: skip
    """Gathers single calls of an async function or method into batches.

    The function takes lists, one for each parameter, and returns a list of the same length. Callers pass and get single values.

    Args:
        max_batch_size: calls at most in one batch (10); in units of `batch_size_fn` if given.
        batch_wait_timeout_s: how long the first call of a batch waits for others, seconds (0.01).
        max_concurrent_batches: batches that run at a time (1).
        batch_size_fn: the size of a list of calls' first arguments.

    The method gets `set_max_batch_size(n)` and `set_batch_wait_timeout_s(s)`, for `reconfigure`.

    Raises:
        ServeConfigError: a bad option. TypeError: no async function. A batch that does not return one result for each call fails all its calls.

    Example::

        @serve.deployment
        class Model:
            @serve.batch(max_batch_size=8)
            async def __call__(self, numbers: list[int]) -> list[int]:
                return [n * 2 for n in numbers]
    """
    _check(max_batch_size, batch_wait_timeout_s, max_concurrent_batches)

    def decorate(function: Callable[..., Any]) -> Any:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"@serve.batch takes an async function, got {function!r}; make it `async def`")
        return _Batched(function, max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)

    return decorate(_func) if _func is not None else decorate


def _check(size: Any, wait_s: Any, concurrent: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ServeConfigError(f"max_batch_size must be a whole number of at least 1, got {size!r}")
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or wait_s < 0:
        raise ServeConfigError(f"batch_wait_timeout_s must be a number of at least 0, got {wait_s!r}")
    if isinstance(concurrent, bool) or not isinstance(concurrent, int) or concurrent < 1:
        raise ServeConfigError(f"max_concurrent_batches must be a whole number of at least 1, got {concurrent!r}")


class _Batched:
    """What the decorator leaves: a callable, and a descriptor that has a queue for each instance."""

    def __init__(self, function: Callable[..., Any], size: int, wait_s: float, concurrent: int, size_of: Callable[[list[Any]], int] | None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = (size, wait_s, concurrent, size_of)
        self._name = f"__shoal_serve_batch_{function.__name__}"
        self._alone: _Queue | None = None
        self.__signature__ = inspect.signature(function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        queue: _Queue | None = instance.__dict__.get(self._name)
        if queue is None:
            queue = instance.__dict__[self._name] = _Queue(functools.partial(self._function, instance), *self._options, self._function.__name__)
        return queue

    @property
    def _queue(self) -> _Queue:
        if self._alone is None:
            self._alone = _Queue(self._function, *self._options, self._function.__name__)
        return self._alone

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._queue(*args, **kwargs)

    def set_max_batch_size(self, size: int) -> None:
        self._queue.set_max_batch_size(size)

    def set_batch_wait_timeout_s(self, wait_s: float) -> None:
        self._queue.set_batch_wait_timeout_s(wait_s)

    def __reduce__(self) -> Any:
        return _Batched, (self._function, *self._options)


class _Queue:
    """Calls that wait for their batch. Belongs to one event loop."""

    def __init__(self, function: Callable[..., Any], size: int, wait_s: float, concurrent: int, size_of: Callable[[list[Any]], int] | None, name: str) -> None:
        self._function = function
        self.max_batch_size, self.batch_wait_timeout_s, self.max_concurrent_batches, self._size_of = size, wait_s, concurrent, size_of
        self._waiting: deque[tuple[tuple[Any, ...], dict[str, Any], asyncio.Future[Any]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self.__name__ = name

    def set_max_batch_size(self, size: int) -> None:
        """Applies to the batches that have not started."""
        _check(size, 0, 1)
        self.max_batch_size = size

    def set_batch_wait_timeout_s(self, wait_s: float) -> None:
        _check(1, wait_s, 1)
        self.batch_wait_timeout_s = wait_s

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((args, kwargs, future))
        self._start(loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting and len(self._running) < self.max_concurrent_batches:
            count = self._full()
            if count is None and not self._due:
                if self._timer is None:
                    self._timer = loop.call_later(self.batch_wait_timeout_s, self._on_time, loop)
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._due = None, False
            calls = [self._waiting.popleft() for _ in range(count or len(self._waiting))]
            calls = [call for call in calls if not call[2].done()]  # whose caller has gone
            if calls:
                task = loop.create_task(self._run(calls))
                self._running.add(task)
                task.add_done_callback(lambda done: self._ended(done, loop))

    def _full(self) -> int | None:
        """How many calls make a full batch; None: they do not yet."""
        if self._size_of is None:
            return self.max_batch_size if len(self._waiting) >= self.max_batch_size else None
        first = [call[0][0] if call[0] else next(iter(call[1].values()), None) for call in self._waiting]
        for count in range(1, len(first) + 1):
            size = self._size_of(first[:count])
            if size >= self.max_batch_size:
                return count if size == self.max_batch_size or count == 1 else count - 1
        return None

    def _on_time(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._due = None, True
        self._start(loop)

    def _ended(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        self._running.discard(task)
        self._start(loop)

    async def _run(self, calls: list[tuple[tuple[Any, ...], dict[str, Any], asyncio.Future[Any]]]) -> None:
        args = [list(column) for column in zip(*(call[0] for call in calls), strict=True)]
        kwargs = {name: [call[1][name] for call in calls] for name in calls[0][1]}
        try:
            results = await self._function(*args, **kwargs)
            if not isinstance(results, list | tuple) and not hasattr(results, "__len__"):
                raise TypeError(f"{self.__name__} was given a batch of {len(calls)}, and must return a list; it returned {type(results).__name__}")
            if len(results) != len(calls):
                raise ValueError(f"{self.__name__} was given a batch of {len(calls)}, and must return as many results; it returned {len(results)}")
        except BaseException as error:
            for _, _, future in calls:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else RuntimeError(f"the batch was ended by {type(error).__name__}"))
            if not isinstance(error, Exception):
                raise
            return
        for (_, _, future), result in zip(calls, results, strict=True):
            if not future.done():
                future.set_result(result)
