"""One private cluster for each test file that asks for it, and nothing left behind after the last test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import shoal
from shoal import testing

# Nothing may be left so long after the last test.
GONE_S = 10.0


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment, testing.no_leaks(GONE_S):
        environment.delenv("SHOAL_STORAGE_PATH", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield shoal.init("local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    shoal.shutdown()
