"""A load of HTTP requests from a thread of its own, with all its answers at the end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from types import TracebackType
from typing import Any

import httpx


class Load:
    """Keeps `connections` busy with GET requests until the block ends."""

    def __init__(self, address: str, path: str = "/", connections: int = 8) -> None:
        self.url, self.connections = address + path, connections
        self.answers: Counter[tuple[int, str]] = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            await asyncio.gather(*(self._ask(client) for _ in range(self.connections)))

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while not self._end.is_set():
            answer = await client.get(self.url)
            self.answers[answer.status_code, answer.text] += 1

    @property
    def failed(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status != 200)

    def seen(self, text: str) -> int:
        return self.answers[200, text]

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the load did not end"
