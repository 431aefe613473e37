"""One private cluster for each test file, in a folder of its own; after the last test nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture
def applications(cluster: None) -> Iterator[None]:
    """Whatever a test deploys is gone after it."""
    yield
    for name in {name.partition("@")[0] for name in serve.status().applications}:
        serve.delete(name)

