"""The zygote's words with the raylet: forks, ends, and its own end."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


class Zygote:
    def __init__(self, tmp_path, *arguments: str) -> None:
        self.tmp_path = tmp_path
        self.node_dir = tmp_path / "no-node"
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(30)
        self.log = open(tmp_path / "zygote.log", "w+")  # noqa: SIM115 - closed by end()
        command = [sys.executable, "-m", "shoal._worker.zygote", "--control-fd", str(theirs.fileno()), *arguments]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=self.log, stdout=self.log)
        theirs.close()
        self.buffer = b""

    def read(self):
        while b"\n" not in self.buffer:
            data = self.ours.recv(4096)
            assert data, self.text()
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def fork(self, number: int, **env: str):
        request = {
            "op": "fork", "id": number, "worker_id": os.urandom(16).hex(), "node_dir": str(self.node_dir), "start_token": "t", "env": env,
            "stdout": str(self.tmp_path / f"{number}.out"), "stderr": str(self.tmp_path / f"{number}.err"),
        }  # fmt: skip
        self.ours.sendall(json.dumps(request).encode() + b"\n")

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def end(self) -> int:
        self.ours.close()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.log.close()


@pytest.fixture
def zygote(tmp_path):
    made = Zygote(tmp_path)
    yield made
    made.end()


def test_it_says_when_it_is_ready_and_ends_with_its_socket(zygote):
    assert zygote.read() == {"op": "ready", "pid": zygote.process.pid}
    assert zygote.end() == 0


def test_a_child_that_cannot_join_ends_and_is_reported_with_its_status(zygote, tmp_path):
    assert zygote.read()["op"] == "ready"
    zygote.fork(7)
    forked = zygote.read()
    assert forked["op"] == "forked" and forked["id"] == 7 and forked["pid"] > 0
    assert zygote.read() == {"op": "exited", "pid": forked["pid"], "status": 1 << 8}
    assert "no-node" in (tmp_path / "7.err").read_text()


def test_many_forks_at_once_are_all_reported(zygote):
    assert zygote.read()["op"] == "ready"
    for i in range(20):
        zygote.fork(i)
    seen = [zygote.read() for _ in range(40)]
    forked = {m["pid"] for m in seen if m["op"] == "forked"}
    assert len(forked) == 20 and {m["pid"] for m in seen if m["op"] == "exited"} == forked


def test_a_module_that_leaves_threads_behind_is_named_and_left_out(tmp_path):
    (tmp_path / "leaves_threads.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n")
    (tmp_path / "is_quiet.py").write_text("value = 1\n")
    (tmp_path / "is_broken.py").write_text("raise RuntimeError('broken module')\n")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{tmp_path}:{before}"
    try:
        made = Zygote(tmp_path, "--preload", "leaves_threads,is_quiet,is_broken")
        assert made.read() == {"op": "ready", "pid": made.process.pid}
        assert len(list(Path(f"/proc/{made.process.pid}/task").iterdir())) == 1
        text = made.text()
        assert "leaves_threads leaves threads behind" in text and "is_broken cannot be preloaded" in text and "is_quiet" not in text
    finally:
        os.environ["PYTHONPATH"] = before
        made.end()


@pytest.mark.parametrize("module", ["numpy", "pandas"])
def test_what_brings_threads_only_for_its_pools_is_preloaded_without_them(tmp_path, module):
    pytest.importorskip(module)
    made = Zygote(tmp_path, "--preload", module)
    try:
        assert made.read()["op"] == "ready"
        assert made.text() == ""
        assert len(list(Path(f"/proc/{made.process.pid}/task").iterdir())) == 1
    finally:
        made.end()


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killing_the_zygote_kills_its_children(tmp_path):
    # A child that waits: its node directory holds a socket that accepts and never answers.
    with tempfile.TemporaryDirectory(prefix="zyg-") as directory, socket.socket(socket.AF_UNIX) as listener:
        node = Path(directory)  # with a short name, because of the sockets in it
        (node / "w").mkdir()
        listener.settimeout(30)
        listener.bind(str(node / "raylet.sock"))
        listener.listen(4)
        made = Zygote(tmp_path)
        made.node_dir = node
        assert made.read()["op"] == "ready"
        made.fork(1)
        pid = made.read()["pid"]
        accepted, _ = listener.accept()
        made.process.send_signal(signal.SIGKILL)
        made.process.wait(10)
        deadline = time.monotonic() + 10
        while runs(pid):
            assert time.monotonic() < deadline, "the child outlives its zygote"
            time.sleep(0.01)
        accepted.close()
        made.end()


SPAWNS = """
import os, subprocess
if "SHOAL_TEST_LEFT" in os.environ:
    os.register_at_fork(after_in_child=lambda: open(os.environ["SHOAL_TEST_LEFT"], "w").write(str(subprocess.Popen(["sleep", "600"]).pid)))
"""


def test_what_a_dead_worker_has_started_ends_soon_after_it(tmp_path, monkeypatch):
    left = tmp_path / "left"
    (tmp_path / "spawns.py").write_text(SPAWNS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("SHOAL_TEST_LEFT", str(left))
    made = Zygote(tmp_path, "--preload", "spawns")
    try:
        assert made.read()["op"] == "ready"
        made.fork(1)  # it cannot join, and ends
        assert [made.read()["op"], made.read()["op"]] == ["forked", "exited"]
        orphan = int(left.read_text())
        deadline = time.monotonic() + 10
        while runs(orphan):
            assert time.monotonic() < deadline, "the orphan outlives the worker that had started it"
            time.sleep(0.01)
    finally:
        made.end()
