"""The consumer's end of a streaming task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from . import _runtime
from ._core.engine import ObjectRef

T = TypeVar("T")


class ObjectRefGenerator(Generic[T]):
    """References to the items that a generator task yields, each as soon as it is there.

    Iterates synchronously and asynchronously. An error in the task comes as the last reference: its `get` raises. Cannot be pickled: it
    counts what was consumed, and a copy would count apart.

    Example::

        for ref in numbers.remote(3):
            print(shoal.get(ref))
    """

    def __init__(self, generator_ref: ObjectRef[Any], worker: Any = None) -> None:
        self._generator_ref = generator_ref
        self._task_id = generator_ref.task_id()
        self._engine: Any = worker if worker is not None else _runtime.connected("a generator")
        self._next = 1
        self._peeked: ObjectRef[T] | None = None
        self._ended = False
        self._lock = threading.Lock()

    # -- synchronous
    def __iter__(self) -> ObjectRefGenerator[T]:
        return self

    def __next__(self) -> ObjectRef[T]:
        return self._take(-1.0)

    def send(self, value: Any) -> ObjectRef[T]:
        if value is not None:
            raise TypeError("values cannot be sent to a remote generator")
        return next(self)

    def throw(self, value: Any) -> Any:
        raise TypeError("exceptions cannot be thrown into a remote generator; cancel() ends it")

    def close(self) -> None:
        """Ends the stream: the task is cancelled, what was not taken is dropped."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._peeked = None
                self._engine.stream_done(self._task_id)

    def _take(self, timeout: float) -> ObjectRef[T]:
        with self._lock:
            ref = self._peeked or self._fetch(timeout)
            self._peeked = None
            if ref is None:
                raise StopIteration
            return ref

    def _fetch(self, timeout: float) -> ObjectRef[T] | None:
        """The next reference, None at the end. Raises TimeoutError."""
        if self._ended:
            return None
        ref: ObjectRef[T] | None = self._engine.next_item(self._task_id, self._next, timeout)
        if ref is None:
            self._ended = True
            self._engine.stream_done(self._task_id)
            return None
        self._next += 1
        return ref

    # -- asynchronous
    def __aiter__(self) -> ObjectRefGenerator[T]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while not self.at_hand():
            await self._moved()
        try:
            return self._take(-1.0)
        except StopIteration:
            raise StopAsyncIteration from None

    async def _moved(self) -> None:
        """Waits for the next item or the end. By a callback: ten thousand streams that wait hold no thread."""
        loop = asyncio.get_running_loop()
        moved = loop.create_future()

        def tell(_: None) -> None:
            if not moved.done():  # nobody waits any more
                moved.set_result(None)

        token = self._engine.watch_stream(self._task_id, self._next, loop, tell)
        try:
            await moved
        finally:
            self._engine.unwatch_stream(self._task_id, token)

    async def asend(self, value: Any) -> ObjectRef[T]:
        if value is not None:
            raise TypeError("values cannot be sent to a remote generator")
        return await anext(self)

    async def athrow(self, value: Any) -> Any:
        raise TypeError("exceptions cannot be thrown into a remote generator; cancel() ends it")

    async def aclose(self) -> None:
        self.close()

    # -- state
    def completed(self) -> ObjectRef[Any]:
        """A reference that becomes ready when the task has ended."""
        return self._generator_ref

    def is_finished(self) -> bool:
        """Whether the task has ended and every item was taken."""
        if self._ended:
            return True
        self.at_hand()
        return self._ended and self._peeked is None

    def next_ready(self) -> bool:
        """Whether `next()` would answer at once with a reference; not at the end, which `is_finished` tells."""
        return self.at_hand() and self._peeked is not None

    def at_hand(self) -> bool:
        """Whether `next()` would answer at once: with a reference or with the end."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._peeked is None and not self._ended:
                self._peeked = self._fetch(0.0)
            return True
        except TimeoutError:
            return False
        finally:
            self._lock.release()

    def wait_ready(self, timeout: float) -> bool:
        """Like `at_hand`, but waits up to `timeout` seconds."""
        with self._lock:
            if self._peeked is None and not self._ended:
                try:
                    self._peeked = self._fetch(timeout)
                except TimeoutError:
                    return False
            return True

    def task_id(self) -> bytes:
        return self._task_id

    def __reduce__(self) -> Any:
        raise TypeError("serialization of ObjectRefGenerator is not supported: pass the references that it yields, or iterate where it was made")

    def __del__(self) -> None:
        ended = getattr(self, "_ended", True)
        if not ended and _runtime.state.engine is self._engine:
            self._engine.stream_done(self._task_id)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._generator_ref.hex()})"


class DynamicObjectRefGenerator:
    """What `get` gives for a task with num_returns="dynamic": all its references, after the task has ended."""

    def __init__(self, refs: list[ObjectRef[Any]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        while self._refs:
            yield self._refs.pop(0)

    def __len__(self) -> int:
        return len(self._refs)
