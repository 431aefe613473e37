"""One private cluster for each test file."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal

BOUND_S = 30.0
# Nothing may be left so long after the last test.
GONE_S = 10.0


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Polls a condition until it is true; fails with what was waited for."""

    def wait(condition: Callable[[], Any], what: str, bound_s: float = BOUND_S) -> Any:
        deadline = time.monotonic() + bound_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"within {bound_s:g} s it never came true: {what}")
            time.sleep(0.01)
        return value

    return wait


def _processes(home: Path) -> list[str]:
    marker = f"SHOAL_TMPDIR={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0") and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
            except OSError:
                continue
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A folder for all clusters of these tests; after the last one there is no process, file or thread."""
    # Not tmp_path: its name is too long for Unix sockets below it.
    home = Path(tempfile.mkdtemp(prefix="data-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in ("SHOAL_TMPDIR", "SHOAL_ADDRESS")}
    os.environ["SHOAL_TMPDIR"] = str(home)
    try:
        yield
        deadline = time.monotonic() + GONE_S
        left: dict[str, Any] = {}
        while time.monotonic() < deadline:
            threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("shoal-data")]
            left = {"processes": _processes(home), "files": os.listdir(home), "threads": threads}
            if not any(left.values()):
                break
            time.sleep(0.05)
        assert not any(left.values()), f"{GONE_S:g} s after the last test there still are: {left}"
    finally:
        shutil.rmtree(home, ignore_errors=True)
        os.environ.pop("SHOAL_TMPDIR")
        os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A private cluster of two CPUs."""
    context = shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield context
    shoal.shutdown()
