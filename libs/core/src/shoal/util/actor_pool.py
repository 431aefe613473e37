"""A fixed set of actors that share a queue of work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .. import _api

V = TypeVar("V")


class ActorPool:
    """Sends work to whichever of its actors is free.

    Example::

        pool = ActorPool([Worker.remote(), Worker.remote()])
        print(list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3])))
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: deque[Any] = deque(actors)
        self._running: dict[Any, tuple[int, Any]] = {}  # reference -> (index, actor)
        self._by_index: dict[int, Any] = {}
        self._waiting: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()
        self._next_index = 0  # of the next submission
        self._next_return = 0  # of the next ordered result

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """fn(actor, value) for each value, which must return a reference; the results in order."""
        self._drop_left_over()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next()

        return results()

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Like `map`, but each result as soon as it is there."""
        self._drop_left_over()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next_unordered()

        return results()

    def _drop_left_over(self) -> None:
        while self.has_next():
            try:
                self.get_next(timeout=0, ignore_if_timedout=True)
            except TimeoutError:
                continue

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Runs fn(actor, value) on a free actor, or once one is free."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.popleft()
        ref = fn(actor, value)
        self._running[ref] = (self._next_index, actor)
        self._by_index[self._next_index] = ref
        self._next_index += 1

    def has_next(self) -> bool:
        """Whether results are still to come."""
        return bool(self._running) or bool(self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in order.

        Raises:
            StopIteration: no more. TimeoutError: not there in time; it stays the next one, unless `ignore_if_timedout`.
            ValueError: after `get_next_unordered`.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        if self._next_return >= self._next_index:
            raise ValueError("It is not allowed to call get_next() after get_next_unordered().")
        ref = self._by_index.get(self._next_return)
        if ref is None:
            raise ValueError("It is not allowed to call get_next() after get_next_unordered().")
        if timeout is not None:
            ready, _ = _api.wait([ref], timeout=timeout)
            if not ready:
                if not ignore_if_timedout:
                    raise TimeoutError("Timed out waiting for result")
                self._take(ref)
                self._next_return += 1
                raise TimeoutError("Timed out waiting for result; it is ignored")
        self._next_return += 1
        self._take(ref)
        return _api.get(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Whichever result comes first. Raises like `get_next`."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        ready, _ = _api.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                self._take(next(iter(self._running)))
            raise TimeoutError("Timed out waiting for result")
        index = self._take(ready[0])
        self._next_return = max(self._next_return, index + 1)
        return _api.get(ready[0])

    def _take(self, ref: Any) -> int:
        index, actor = self._running.pop(ref)
        self._by_index.pop(index, None)
        self._give_back(actor)
        return index

    def _give_back(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether an actor is free."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Takes a free actor out of the pool; None if none is free."""
        return self._idle.popleft() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Adds an actor.

        Raises:
            ValueError: it is in the pool.
        """
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._give_back(actor)
