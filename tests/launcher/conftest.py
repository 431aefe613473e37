"""A place for launched clusters: the user's state, the nodes' folders, and the proof that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GONE_S = 5.0


class Place:
    """`temp`: where nodes keep their files. `state`: XDG_STATE_HOME. `file`: the cluster file."""

    def __init__(self, temp: Path, state: Path, file: Path) -> None:
        self.temp, self.state, self.file = temp, state, file

    def write(self, text: str) -> None:
        self.file.write_text(f"temp_dir: {self.temp}\n{text}")

    def shoal(self, *arguments: str, code: int = 0, timeout_s: float = 90.0) -> str:
        """`shoal ...`; both its streams."""
        command = [sys.executable, "-m", "shoal._cli", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s)
        assert done.returncode == code, f"shoal {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The living nodes in the folders of the cluster `demo`, by the name of the folder."""
        from shoal._supervisor.directories import living_nodes

        found = {}
        for directory in sorted((self.temp / "demo").glob("*")):
            for node in living_nodes(directory):
                found[directory.name] = {"id": node.node_id, "pid": node.supervisor_pid, "gcs": node.gcs_address}
        return found

    def alive(self) -> set[str]:
        """Ids of the nodes that the head counts as alive."""
        status = json.loads(self.shoal("exec", str(self.file), "shoal status --json"))
        return {node["node_id"] for node in status["nodes"] if node["state"] == "ALIVE"}

    def processes(self) -> dict[int, str]:
        """Living processes that this place's folders are named to."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                ours = f"SHOAL_TMPDIR={self.temp}/".encode() in (entry / "environ").read_bytes()
                if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
            except OSError:
                continue
        return found

    def leftovers(self) -> tuple[dict[int, str], list[str], list[str]]:
        return self.processes(), sorted(os.listdir(self.temp)), sorted(os.listdir(self.state))

    def expect_nothing(self) -> None:
        deadline = time.monotonic() + GONE_S
        while any(self.leftovers()):
            if time.monotonic() > deadline:
                pytest.fail(f"{GONE_S:g} s later there still are: {self.leftovers()}")
            time.sleep(0.01)


def make_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # Not tmp_path: its name is too long for Unix sockets below it.
    root = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    (root / "t").mkdir(mode=0o700)
    (root / "state").mkdir(mode=0o700)
    place = Place(root / "t", root / "state", root / "cluster.yaml")
    monkeypatch.setenv("XDG_STATE_HOME", str(place.state))
    monkeypatch.delenv("SHOAL_ADDRESS", raising=False)
    monkeypatch.delenv("SHOAL_TMPDIR", raising=False)
    try:
        yield place
        place.expect_nothing()
    finally:
        for pid in place.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from make_place(monkeypatch)
