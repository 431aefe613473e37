"""A fixed set of actors that share a queue of work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from .. import _api
from ..exceptions import ActorDiedError

V = TypeVar("V")


class ActorPool:
    """Sends work to whichever of its actors is free. One that has died gets no more; `push` puts another in its place.

    Example::

        pool = ActorPool([Worker.remote(), Worker.remote()])
        print(list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3])))
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: deque[Any] = deque(actors)
        self._running: dict[Any, tuple[int, Any]] = {}  # reference, or a tuple of those of one call -> (index, actor)
        self._by_index: dict[int, Any] = {}
        self._waiting: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()
        self._next_index = 0  # of the next submission
        self._next_return = 0  # of the next ordered result

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """fn(actor, value) for each value, which must return a reference (or a list of them); the results in order.

        Results of submissions before, which nobody took, are given up. When an actor dies, the iteration ends with its error.
        """
        return self._results(fn, values, self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Like `map`, but each result as soon as it is there."""
        return self._results(fn, values, self.get_next_unordered)

    def _results(self, fn: Callable[[Any, V], Any], values: Iterable[V], take: Callable[[], Any]) -> Iterator[Any]:
        self._drop_left_over()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield take()
            if self._waiting:
                raise RuntimeError(f"{self._without_actor()}, then get_next()")

        return results()

    def _drop_left_over(self) -> None:
        while self._running:
            key = next(iter(self._running))
            refs = _refs(key)
            ended = len(_api.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)
            with suppress(Exception):  # a call's own error is given up like a result
                self._take(key, ended)
        self._next_return = self._next_index

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Runs fn(actor, value) on a free actor, or once one is free."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.popleft()
        called = fn(actor, value)
        key = tuple(called) if isinstance(called, list) else called
        self._running[key] = (self._next_index, actor)
        self._by_index[self._next_index] = key
        self._next_index += 1

    def has_next(self) -> bool:
        """Whether results are still to come; not while what was submitted waits for an actor and none is left."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in order.

        Raises:
            StopIteration: no more. TimeoutError: not there in time; it stays the next one, unless `ignore_if_timedout`.
            ValueError: after `get_next_unordered`. ActorDiedError: the actor died; it gets no more.
        """
        self._check_next()
        key = self._by_index.get(self._next_return)
        if key is None:
            raise ValueError("It is not allowed to call get_next() after get_next_unordered().")
        if timeout is not None:
            refs = _refs(key)
            _, late = _api.wait(refs, num_returns=len(refs), timeout=timeout)
            if late:
                raise self._late(key, ignore_if_timedout)
        return self._take(key)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Whichever result comes first; for calls with one reference each. Raises like `get_next`."""
        self._check_next()
        ready, _ = _api.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready:
            raise self._late(next(iter(self._running)), ignore_if_timedout)
        return self._take(ready[0])

    def _check_next(self) -> None:
        if not self.has_next():
            raise StopIteration(self._without_actor() if self._waiting else "No more results to get")

    def _without_actor(self) -> str:
        return f"{len(self._waiting)} of the submitted values have not run: the pool has no actor left; push() one"

    def _late(self, key: Any, ignored: bool) -> TimeoutError:
        if not ignored:
            return TimeoutError("Timed out waiting for result")
        self._take(key, ended=False)
        return TimeoutError(f"Timed out waiting for result. The task {key} has been ignored.")

    def _take(self, key: Any, ended: bool = True) -> Any:
        """The result of a call that has ended, whose actor is free again if it lives; None of one that is given up."""
        index, actor = self._running.pop(key)
        self._by_index.pop(index, None)
        self._next_return = max(self._next_return, index + 1)
        lives = True
        try:
            if ended:
                return _api.get(list(key) if isinstance(key, tuple) else key)
        except ActorDiedError:
            lives = False
            raise
        finally:
            self._give_back(actor if lives else None)

    def _give_back(self, actor: Any) -> None:
        if actor is not None:
            self._idle.append(actor)
        if self._waiting and self._idle:
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


def _refs(key: Any) -> list[Any]:
    return list(key) if isinstance(key, tuple) else [key]
