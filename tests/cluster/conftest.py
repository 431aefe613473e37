"""A folder of its own for each test's nodes, and the proof that nothing is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BOUND_S = 30.0
# Nothing may be left so long after a driver was killed.
GONE_S = 5.0


def wait_for(condition: Callable[[], Any], what: str, bound_s: float = BOUND_S) -> Any:
    deadline = time.monotonic() + bound_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"within {bound_s:g} s it never came true: {what}")
        time.sleep(0.01)
    return value


def processes_of(home: Path) -> dict[int, str]:
    """Living processes, but this one, that were started with this folder as theirs: pid to name."""
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


class Home:
    """The folder that SHOAL_TMPDIR names in this test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._programs: list[subprocess.Popen[str]] = []

    def processes(self) -> dict[int, str]:
        return processes_of(self.path)

    def leftovers(self) -> tuple[dict[int, str], list[str]]:
        return self.processes(), sorted(os.listdir(self.path))

    def expect_nothing(self, bound_s: float = GONE_S) -> None:
        deadline = time.monotonic() + bound_s
        while any(self.leftovers()):
            if time.monotonic() > deadline:
                pytest.fail(f"{bound_s:g} s later there still are: {self.leftovers()}")
            time.sleep(0.01)

    def cli(self, *arguments: str, code: int = 0, timeout_s: float = 60.0) -> str:
        """Runs `shoal ...`; its output, both streams. Fails the test when it ends with another code."""
        command = [sys.executable, "-m", "shoal._cli", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s)
        assert done.returncode == code, f"shoal {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        assert "Traceback" not in done.stdout
        return done.stdout

    def driver(self, code: str) -> subprocess.Popen[str]:
        """A Python program that has printed READY."""
        return self.program([sys.executable, "-c", code], "READY")

    def program(self, command: list[str], said: str) -> subprocess.Popen[str]:
        """A program that has printed a line with these words. The test ends it; its pipe is closed here."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._programs.append(process)
        assert process.stdout is not None
        if not any(said in line for line in process.stdout):
            pytest.fail(f"{command[:3]} ended with {process.wait()} before it said {said!r}")
        return process

    def close(self) -> None:
        for process in self._programs:
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    # Not tmp_path: its name is too long for Unix sockets below it.
    path = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    monkeypatch.setenv("SHOAL_TMPDIR", str(path))
    monkeypatch.delenv("SHOAL_ADDRESS", raising=False)
    shared = sorted(os.listdir("/dev/shm"))
    made = Home(path)
    try:
        yield made
        made.expect_nothing()
        assert sorted(os.listdir("/dev/shm")) == shared
    finally:
        made.close()
        for pid in made.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def head(home: Home) -> Iterator[dict[str, str]]:
    """A head that `shoal start --head` started, by its own node.json."""
    from shoal._supervisor.directories import living_nodes

    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "2", "--object-store-memory", str(128 << 20))
    node = living_nodes(home.path)[0]
    yield {
        "gcs": node.gcs_address, "http": node.http_address, "node_id": node.node_id, "node_dir": node.node_dir, "pid": str(node.supervisor_pid),
        "secrets": node.secrets_dir,
    }  # fmt: skip
    home.cli("stop")
