"""One private cluster for each test file, and what every end-to-end test may rely on."""

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

BOUND_S = 30.0
# Nothing may be left so long after the last test.
GONE_S = 5.0


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


class Left:
    """What there is of Shoal's below one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.shared = set(os.listdir("/dev/shm"))

    def processes(self) -> dict[int, str]:
        marker = f"SHOAL_TMPDIR={self.home}".encode()
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

    def sockets(self) -> list[str]:
        return [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if line.split()[-1].startswith(f"{self.home}/")]

    def children(self) -> list[int]:
        return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]

    def all(self) -> dict[str, Any]:
        found = {
            "processes": self.processes(), "children": self.children(), "sockets": self.sockets(), "files": sorted(os.listdir(self.home)),
            "shared memory": sorted(set(os.listdir("/dev/shm")) - self.shared),
            "arenas": [where for fd in Path("/proc/self/fd").iterdir() if "memfd:" in (where := _link(fd))],
        }  # fmt: skip
        return {what: things for what, things in found.items() if things}


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A folder for all clusters of these tests; after the last one there is no process, socket, file or shared memory."""
    # Not tmp_path: its name is too long for Unix sockets below it.
    home = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in ("SHOAL_TMPDIR", "SHOAL_ADDRESS")}
    os.environ["SHOAL_TMPDIR"] = str(home)
    left = Left(home)
    try:
        yield
        deadline = time.monotonic() + GONE_S
        while (found := left.all()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not found, f"{GONE_S:g} s after the last test there still are: {found}"
    finally:
        for pid in left.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.pop("SHOAL_TMPDIR")
        os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A private cluster of four CPUs, two resources `thing`, and no GPU."""
    context = shoal.init("local", num_cpus=4, resources={"thing": 2}, labels={"zone": "a"}, log_to_driver=False, include_dashboard=False)
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
