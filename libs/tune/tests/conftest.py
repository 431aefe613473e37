"""One private cluster for each test file, in a folder of its own; after the last test nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import shoal
from shoal import testing

BOUND_S = 60.0
# Nothing may be left so long after the last test.
GONE_S = 10.0


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return partial(testing.wait_until, bound_s=BOUND_S)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment, testing.no_leaks(GONE_S):
        environment.delenv("SHOAL_STORAGE_PATH", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Four CPUs."""
    context = shoal.init("local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield context
    shoal.shutdown()
