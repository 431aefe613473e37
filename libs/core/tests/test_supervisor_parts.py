"""The supervisor's parts that need no services."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
from shoal._supervisor.children import children_of, fork_service, kill_descendants, kill_marked
from shoal._supervisor.config import NodeConfig, Started
from shoal._supervisor.ports import bind_listener, free_port, is_taken, someone_listens, split_address
from shoal._supervisor.secrets import prepare_secrets
from shoal._supervisor.supervisor import FIRST_PAUSE_S, MAX_FAILURES, MOST_PAUSE_S, STEADY_S, Record
from shoal_base.processes import become_subreaper


def test_a_configuration_survives_its_pipe_and_unknown_settings_are_named():
    config = NodeConfig(base="/x", resources={"CPU": 10000}, settings={"gcs": {"lease_s": 3}})
    assert NodeConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="colour"):
        NodeConfig.from_json(b'{"base": "/x", "colour": 1}')
    assert Started.from_line(Started(node_id="ab").to_line()) == Started(node_id="ab")


def test_pauses_between_failures_grow_to_a_bound_and_a_steady_life_resets_them():
    record = Record()
    pauses = []
    for _ in range(MAX_FAILURES):
        assert record.failed("x", 0.1, 100.0)
        pauses.append(record.timer - 100.0)
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S)
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE_S
    assert not record.failed("y", 0.1, 100.0)
    assert record.history[-1] == "y"
    assert record.failed("z", STEADY_S + 1, 100.0)
    assert record.failures == 1


def test_a_service_runs_in_a_fork_with_its_output_in_a_file(tmp_path):
    output = tmp_path / "x.err"

    def run(ready_fd):
        print("words", file=sys.stderr, flush=True)
        os.write(ready_fd, b"{}\n")
        return 7

    child = fork_service("x", run, output, [])
    assert os.read(child.ready_fd, 100) == b"{}\n"
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 7
    assert child.last_words() == "words"
    child.close()


def test_a_service_that_raises_ends_with_its_traceback_in_the_file(tmp_path):
    def run(_ready_fd):
        raise LookupError("what went wrong")

    child = fork_service("x", run, tmp_path / "x.err", [])
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 70
    assert "LookupError: what went wrong" in child.last_words()
    assert b"what went wrong" in os.read(child.ready_fd, 1000)
    child.close()


def test_orphans_fall_to_the_sub_reaper_and_are_killed():
    """In a process of its own: it becomes a sub-reaper for good."""
    code = """
import os, subprocess, sys
from shoal._supervisor.children import children_of, kill_descendants
from shoal_base.processes import become_subreaper
become_subreaper()
spared = subprocess.Popen(["sleep", "60"])
subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sh -c 'sleep 60 & sleep 60' &"])
assert len(children_of({os.getpid()})) >= 3
kill_descendants({spared.pid}, 5.0)
assert children_of({os.getpid()}) == [spared.pid], children_of({os.getpid()})
spared.kill()
spared.wait()
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
    assert callable(kill_descendants)
    assert callable(become_subreaper)


def test_processes_are_found_by_what_their_environment_held_at_their_start():
    marker = f"SHOAL_TEST_MARK={os.urandom(8).hex()}"
    name, _, value = marker.partition("=")
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, name: value})
    other = subprocess.Popen(["sleep", "60"])
    try:
        deadline = time.monotonic() + 5
        while not kill_marked(marker.encode()) and time.monotonic() < deadline:
            time.sleep(0.01)  # the environment appears with exec
        assert marked.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert other.pid not in children_of({os.getpid()})


def test_ports_free_taken_and_listened_on():
    port = free_port("127.0.0.1")
    assert not is_taken("127.0.0.1", port)
    assert someone_listens(f"127.0.0.1:{port}")
    with bind_listener("127.0.0.1", port) as listener:
        assert listener.getblocking() is False
        assert is_taken("127.0.0.1", port)
        assert someone_listens(f"127.0.0.1:{port}") == ""
        with pytest.raises(OSError, match="in use"):
            bind_listener("127.0.0.1", port)
    assert isinstance(listener, socket.socket)


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:0", "host:70000"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="no HOST:PORT"):
        split_address(text)


def config(**more):
    return NodeConfig(base="/x", **more)


def test_a_head_makes_its_secrets_readable_by_nobody_else(tmp_path):
    assert prepare_secrets(config(head=True), tmp_path) == tmp_path
    for name in ("node.secret", "user.token"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert (tmp_path / "node.secret").read_text() != (tmp_path / "user.token").read_text()


def test_a_directory_of_secrets_is_used_as_it_is_and_must_be_complete_to_join(tmp_path):
    given = tmp_path / "secrets"
    with pytest.raises(ValueError, match=r"node\.secret does not exist"):
        prepare_secrets(config(head=False, secrets_dir=str(given)), tmp_path)
    prepare_secrets(config(head=True, secrets_dir=str(given)), tmp_path)
    before = (given / "node.secret").read_text()
    assert prepare_secrets(config(head=False, secrets_dir=str(given)), tmp_path) == given
    assert (given / "node.secret").read_text() == before
    (given / "node.secret").chmod(0o644)
    with pytest.raises(PermissionError, match="others can read"):
        prepare_secrets(config(head=False, secrets_dir=str(given)), tmp_path)


def test_one_token_gives_the_same_secrets_on_every_node(tmp_path):
    token, head, node = tmp_path / "token", tmp_path / "head", tmp_path / "node"
    head.mkdir()
    node.mkdir()
    with pytest.raises(FileNotFoundError):
        prepare_secrets(config(head=False, token_file=str(token)), node)
    prepare_secrets(config(head=True, token_file=str(token)), head)
    prepare_secrets(config(head=False, token_file=str(token)), node)
    for name in ("node.secret", "user.token"):
        assert (head / name).read_text() == (node / name).read_text()
    assert (head / "user.token").read_text().strip() == token.read_text().strip()
    assert (head / "node.secret").read_text() != token.read_text().strip()
