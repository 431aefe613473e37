"""One private cluster for each test file, in a folder of its own; after the last test nothing is left of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import shoal
from shoal import testing

# Nothing may be left so long after the last test.
GONE_S = 10.0


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shoal-data")]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    with testing.no_leaks(GONE_S):
        yield
        testing.wait_until(lambda: not prefetching(), GONE_S, "the end of the threads that fetch batches ahead")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A private cluster of two CPUs."""
    context = shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield context
    shoal.shutdown()
