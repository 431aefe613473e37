"""A first-in first-out queue that tasks and actors share."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any

from .. import _api


class Empty(queue.Empty):
    """Nothing is in the queue."""


class Full(queue.Full):
    """The queue holds as many items as it may."""


class Queue:
    """Lives in an actor; the handle can be passed on.

    Args:
        maxsize: 0: no limit.
        actor_options: of the actor that holds the items.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        # Neither gets nor puts that wait may use up the calls that would let them go on.
        options = {"max_concurrency": 10_000, "num_cpus": 0, **(actor_options or {})}
        self.actor: Any = _api.remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items it holds."""
        count: int = _api.get(self.actor.qsize.remote())
        return count

    qsize = size

    def empty(self) -> bool:
        return self.size() == 0

    def full(self) -> bool:
        return 0 < self.maxsize <= self.size()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item; waits while the queue is full.

        Raises:
            Full: not `block`, or no room in time. ValueError: a negative timeout, where it is waited at all.
        """
        _check(block, timeout)
        if not _api.get(self.actor.put.remote(item, timeout if block else 0)):
            raise Full

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put` for an event loop."""
        _check(block, timeout)
        if not await self.actor.put.remote(item, timeout if block else 0):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the first item; waits while there is none.

        Raises:
            Empty: not `block`, or nothing in time. ValueError: a negative timeout, where it is waited at all.
        """
        _check(block, timeout)
        found, item = _api.get(self.actor.get.remote(timeout if block else 0))
        if not found:
            raise Empty
        return item

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get` for an event loop."""
        _check(block, timeout)
        found, item = await self.actor.get.remote(timeout if block else 0)
        if not found:
            raise Empty
        return item

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all, or none and raises Full."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        batch = list(items)
        if not _api.get(self.actor.put_batch.remote(batch)):
            raise Full(f"Cannot add {len(batch)} items to queue of size {self.size()} and maxsize {self.maxsize}.")

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes that many, or none and raises Empty."""
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        items: list[Any] | None = _api.get(self.actor.get_batch.remote(num_items))
        if items is None:
            raise Empty(f"Cannot get {num_items} items from queue of size {self.size()}.")
        return items

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the queue's actor: after what was sent to it, or with `force` (or after the grace) at once."""
        if self.actor is None:
            return
        if not force:
            done = self.actor.__ray_terminate__.remote()
            _, late = _api.wait([done], num_returns=1, timeout=grace_period_s)
            force = bool(late)
        if force:
            _api.kill(self.actor, no_restart=True)
        self.actor = None


def _check(block: bool, timeout: float | None) -> None:
    if block and timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")


class _QueueActor:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self.queue.qsize()

    async def put(self, item: Any, timeout: float | None) -> bool:
        if timeout == 0:
            if self.queue.full():
                return False
            self.queue.put_nowait(item)
            return True
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except TimeoutError:
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[bool, Any]:
        if timeout == 0:
            return (False, None) if self.queue.empty() else (True, self.queue.get_nowait())
        try:
            return True, await asyncio.wait_for(self.queue.get(), timeout)
        except TimeoutError:
            return False, None

    async def put_batch(self, items: list[Any]) -> bool:
        if self.maxsize > 0 and self.queue.qsize() + len(items) > self.maxsize:
            return False
        for item in items:
            self.queue.put_nowait(item)
        return True

    async def get_batch(self, count: int) -> list[Any] | None:
        if count > self.queue.qsize():
            return None
        return [self.queue.get_nowait() for _ in range(count)]
