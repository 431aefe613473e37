"""One private cluster for each test file, in a folder of its own; after the last test nothing is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import shoal
from shoal import serve

BOUND_S = 30.0
# Nothing may be left so long after the last test.
GONE_S = 10.0


def wait_until(condition: Callable[[], Any], bound_s: float = BOUND_S, what: str = "") -> Any:
    """Polls a condition until it is true; fails with what was waited for."""
    deadline = time.monotonic() + bound_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"within {bound_s:g} s it never came true: {what or condition}")
        time.sleep(0.01)
    return value


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


def processes(home: Path) -> dict[int, str]:
    marker = f"SHOAL_TMPDIR={home}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker in (entry / "environ").read_bytes().split(b"\0") and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    # Not tmp_path: its name is too long for Unix sockets below it.
    home = Path(tempfile.mkdtemp(prefix="serve-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in ("SHOAL_TMPDIR", "SHOAL_ADDRESS")}
    os.environ["SHOAL_TMPDIR"] = str(home)
    try:
        yield
        deadline = time.monotonic() + GONE_S
        while (found := {"processes": processes(home), "files": sorted(os.listdir(home))}) and any(found.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(found.values()), f"{GONE_S:g} s after the last test there still are: {found}"
    finally:
        for pid in processes(home):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.pop("SHOAL_TMPDIR")
        os.environ.update({name: value for name, value in before.items() if value is not None})


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
