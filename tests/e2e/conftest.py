"""One private cluster for each test file, and what every end-to-end test may rely on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal
from shoal import testing

BOUND_S = 30.0


def wait_until(condition: Callable[[], Any], bound_s: float = BOUND_S, what: str = "") -> Any:
    """Polls a condition until it is true; fails with what was waited for."""
    deadline = time.monotonic() + bound_s
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"within {bound_s:g} s it never came true: {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A folder for all clusters of these tests; after the last one there is no process, socket, file or shared memory."""
    with testing.no_leaks():
        yield


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A private cluster of four CPUs, two resources `thing`, and no GPU. A file's `SYSTEM_CONFIG` gives settings by service."""
    settings = getattr(request.module, "SYSTEM_CONFIG", {})
    context = shoal.init(
        "local", num_cpus=4, resources={"thing": 2}, labels={"zone": "a"}, log_to_driver=False, include_dashboard=False, _system_config=settings
    )
    yield context
    shoal.shutdown()


@pytest.fixture
def flag(tmp_path: Path) -> Callable[[str], Path]:
    """Files by which tasks and test tell each other how far they are."""
    return lambda name: tmp_path / name


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
