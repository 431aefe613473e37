"""One private cluster for each test file that asks for it, and nothing left behind after the last test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal

GONE_S = 10.0


def processes_of(home: Path) -> dict[int, str]:
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
def nothing_is_left() -> Iterator[Path]:
    """A folder for all clusters of these tests; after the last one neither a process nor a file is in it."""
    home = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in ("SHOAL_TMPDIR", "SHOAL_ADDRESS", "SHOAL_STORAGE_PATH")}
    os.environ["SHOAL_TMPDIR"] = str(home)
    try:
        yield home
        deadline = time.monotonic() + GONE_S
        while ((found := processes_of(home)) or os.listdir(home)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not found, f"{GONE_S:g} s after the last test there still are processes: {found}"
        assert not os.listdir(home)
    finally:
        for pid in processes_of(home):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.pop("SHOAL_TMPDIR")
        os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield shoal.init("local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    shoal.shutdown()


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    def wait(condition: Callable[[], Any], what: str, bound_s: float = 30.0) -> Any:
        deadline = time.monotonic() + bound_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"within {bound_s:g} s it never came true: {what}")
            time.sleep(0.01)
        return value

    return wait
