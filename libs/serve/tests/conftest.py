"""One private cluster for each test file, in a folder of its own; after the last test nothing is left of them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import httpx
import pytest
import shoal
from shoal import serve, testing

# Nothing may be left so long after the last test.
GONE_S = 10.0


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return testing.wait_until


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    with testing.no_leaks(GONE_S):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A private cluster with Serve on it."""
    shoal.init("local", num_cpus=16, log_to_driver=False, include_dashboard=False)
    try:
        serve.start(http_options={"port": 0})
        yield
        serve.shutdown()
    finally:
        shoal.shutdown()


@pytest.fixture
def address(cluster: None) -> str:
    return serve.http_address()


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as made:
        yield made


class Load:
    """Keeps `connections` busy with GET requests, from a thread of its own, until the block ends; then it has all their answers."""

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


@pytest.fixture
def under_load(address: str) -> Callable[..., Load]:
    """`with under_load(connections=8) as load:`"""
    return functools.partial(Load, address)


@pytest.fixture
def applications(cluster: None) -> Iterator[None]:
    """Whatever a test deploys is gone after it."""
    yield
    for name in {name.partition("@")[0] for name in serve.status().applications}:
        serve.delete(name)

