"""Answers that come in parts: the replica keeps a few parts ready, and the caller pulls all that there are at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

# Limit: parts, and bytes of those that are bytes, that wait for the consumer; then the producer waits.
MAX_PARTS = 64
MAX_BYTES = 4 << 20
# A stream that nobody pulls for so long has lost its consumer.
ABANDONED_S = 600.0


class Stream:
    """One producer, one consumer, on one loop."""

    def __init__(self) -> None:
        self._parts: deque[Any] = deque()
        self._bytes = 0
        self._data = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()  # what the consumer sends: a WebSocket's messages
        self.producer: asyncio.Future[Any] | None = None
        self.pulled_at = asyncio.get_running_loop().time()

    async def put(self, part: Any) -> None:
        """Waits while too much is unread."""
        while len(self._parts) >= MAX_PARTS or self._bytes >= MAX_BYTES:
            self._room.clear()
            await self._room.wait()
        self._parts.append(part)
        self._bytes += len(part) if isinstance(part, bytes) else 0
        self._data.set()

    def end(self, error: BaseException | None = None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
        self._data.set()

    async def pull(self) -> tuple[list[Any], bool]:
        """All parts that there are, at least one unless it has ended; and whether that is all. Raises the producer's error after the last part."""
        self.pulled_at = asyncio.get_running_loop().time()
        while not self._parts and not self._ended:
            self._data.clear()
            await self._data.wait()
        self.pulled_at = asyncio.get_running_loop().time()
        parts = list(self._parts)
        self._parts.clear()
        self._bytes = 0
        self._room.set()
        if self._error is not None:
            if not parts:
                raise self._error
            return parts, False
        return parts, self._ended

    def close(self) -> None:
        """The consumer has gone."""
        self.end()
        if self.producer is not None:
            self.producer.cancel()
        self._parts.clear()
        self._room.set()
