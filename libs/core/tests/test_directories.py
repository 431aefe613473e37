"""Which folders belong to the living."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from shoal._supervisor import directories
from shoal._supervisor.directories import DirectoryError, HeldFile, NodeFile, base_directory, is_held, living_nodes, make_directory, sweep


def node_file(node_id="ab" * 16, **more):
    given = {"node_id": node_id, "node_dir": "/d", "cluster_dir": "/c", "gcs_address": "127.0.0.1:1", "http_address": "", "node_address": "127.0.0.1:2",
             "supervisor_pid": 1, "head": False, "private": False} | more  # fmt: skip
    return NodeFile(**given)


def living(base, name, **more):
    return HeldFile(make_directory(base, "n", name) / directories.NODE_FILE, node_file(**more).as_json())


def test_a_node_file_survives_json_and_ignores_what_a_newer_version_adds():
    node = node_file(resources={"CPU": 10000})
    text = node.as_json()
    assert NodeFile.from_json(text) == node
    assert NodeFile.from_json(text.replace("{", '{"colour": "red",', 1)) == node
    for broken in ("", "{}", "[]", "7", '{"node_id": 1}'):
        with pytest.raises(ValueError):
            NodeFile.from_json(broken)


def test_a_held_file_stays_held_while_it_is_rewritten_until_it_is_released(tmp_path):
    path = tmp_path / "node.json"
    held = HeldFile(path, "one")
    assert is_held(path)
    held.write("two")
    assert path.read_text() == "two"
    assert is_held(path)
    held.release()
    assert not is_held(path)
    assert os.listdir(tmp_path) == ["node.json"]


def test_a_file_held_by_a_process_is_free_after_it_was_killed(tmp_path):
    path = tmp_path / "node.json"
    code = f"""
from pathlib import Path
from shoal._supervisor.directories import HeldFile
held = HeldFile(Path({str(path)!r}), 'x')
print('held', flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    assert is_held(path)
    process.kill()
    process.communicate()
    assert not is_held(path)


def test_living_nodes_come_heads_first_then_the_newest(tmp_path):
    held = [
        living(tmp_path, "1", node_id="1" * 32, started_ms=5),
        living(tmp_path, "2", node_id="2" * 32, started_ms=9),
        living(tmp_path, "3", node_id="3" * 32, started_ms=1, head=True),
    ]
    dead = living(tmp_path, "4", node_id="4" * 32)
    dead.release()
    starting = HeldFile(make_directory(tmp_path, "n", "5") / directories.NODE_FILE, '{"starting": 1}')
    assert [node.node_id[0] for node in living_nodes(tmp_path)] == ["3", "2", "1"]
    for file in (*held, starting):
        file.release()


def test_only_the_directories_of_the_dead_are_swept(tmp_path):
    alive = living(tmp_path, "alive")
    living(tmp_path, "dead").release()
    cluster = make_directory(tmp_path, "c", "dead")
    (cluster / directories.LOCK_FILE).write_text("1")
    make_directory(tmp_path, "n", "new")  # somebody is about to write its file
    old = make_directory(tmp_path, "n", "old")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    (tmp_path / "other").mkdir()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["n-alive", "n-new", "other"]
    alive.release()


def test_a_base_is_made_private_or_refused(tmp_path, monkeypatch):
    # pytest's own folder has too long a name.
    monkeypatch.setattr(directories, "MAX_BASE_BYTES", 4096)
    made = base_directory(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o770)
    with pytest.raises(DirectoryError, match="can be written by others"):
        base_directory(made)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DirectoryError, match="file"):
        base_directory(file)


def test_a_base_with_too_long_a_name_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(DirectoryError, match="bytes, more than the"):
        base_directory(tmp_path / ("x" * 100))
    assert not os.listdir(tmp_path)
