"""`shoal up` with nodes on this machine: up, work, a fault, up again, down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(120)

SMALL = "num_cpus: 1, object_store_memory: 134217728"
FILE = f"""\
cluster_name: demo
provider: {{type: local, workers: 2}}
head: {{{SMALL}}}
worker: {{{SMALL}, resources: {{worker: 1}}}}
"""
PROGRAM = """
import shoal
shoal.init()
@shoal.remote(resources={"worker": 1})
class Where:
    def node(self):
        return shoal.get_runtime_context().get_node_id()
print(*shoal.get([w.node.remote() for w in [Where.remote(), Where.remote()]], timeout=60))
"""


def test_up_runs_programs_repairs_what_died_and_down_leaves_nothing(place):
    place.write(FILE)
    told = place.shoal("up", str(place.file))
    assert "Cluster demo is up: 3 nodes" in told
    nodes = place.nodes()
    assert set(nodes) == {"head", "worker-1", "worker-2"}
    assert place.alive() == {node["id"] for node in nodes.values()}

    # A program runs on its workers.
    (place.file.parent / "program.py").write_text(PROGRAM)
    used = place.shoal("exec", str(place.file), f"python {place.file.parent / 'program.py'}").split()
    assert set(used) == {nodes["worker-1"]["id"], nodes["worker-2"]["id"]}

    # Once more: nothing happens.
    assert "is up already" in place.shoal("up", str(place.file))
    assert place.nodes() == nodes

    # A node dies: only it is started anew.
    os.kill(nodes["worker-1"]["pid"], signal.SIGKILL)
    assert "worker-1] worker" in place.shoal("up", str(place.file), "--yes")
    repaired = place.nodes()
    assert repaired["worker-1"]["id"] != nodes["worker-1"]["id"]
    assert (repaired["head"], repaired["worker-2"]) == (nodes["head"], nodes["worker-2"])

    # The head dies: all are started anew, and belong to it.
    os.kill(repaired["head"]["pid"], signal.SIGKILL)
    place.shoal("up", str(place.file), "--yes")
    again = place.nodes()
    assert len({node["gcs"] for node in again.values()}) == 1
    assert place.alive() == {node["id"] for node in again.values()}

    assert "Nothing of the cluster demo runs any more" in place.shoal("down", str(place.file), "--yes")
    place.expect_nothing()
    assert "is not up" in place.shoal("exec", str(place.file), "true", code=1)
    assert "Nothing of the cluster demo" in place.shoal("down", str(place.file), "--yes")


def test_a_changed_file_restarts_only_its_part_and_asks_before(place):
    place.write(FILE)
    place.shoal("up", str(place.file))
    before = place.nodes()
    place.write(FILE.replace("workers: 2", "workers: 1").replace("resources: {worker: 1}", "resources: {worker: 2}"))
    told = place.shoal("up", str(place.file), code=1)
    assert "To be stopped: worker-2 on 127.0.0.1: is no longer in the file" in told
    assert "To be stopped: worker-1 on 127.0.0.1: its start has changed" in told
    assert "give --yes" in told
    assert place.nodes() == before

    place.shoal("up", str(place.file), "--no-restart", "--yes")
    assert place.nodes() == {key: before[key] for key in ("head", "worker-1")}

    place.shoal("up", str(place.file), "--yes")
    after = place.nodes()
    assert after["head"] == before["head"] and after["worker-1"]["id"] != before["worker-1"]["id"]

    place.shoal("down", str(place.file), "--yes", "--workers-only")
    assert place.nodes() == {"head": before["head"]}
    place.shoal("down", str(place.file), "--yes")


def test_exec_passes_input_output_and_code_on_and_may_start_and_stop(place):
    place.write(FILE.replace("workers: 2", "workers: 0"))
    script = "import sys; print(sys.stdin.read()[::-1]); sys.exit(7)"
    command = [sys.executable, "-m", "shoal._cli", "exec", "--start", "--stop", str(place.file), "--", "python", "-c", script]
    done = subprocess.run(command, input="abc", capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (7, "cba\n"), done.stderr
    place.expect_nothing()


def test_attach_is_a_shell_that_goes_to_the_cluster(place):
    place.write(FILE.replace("workers: 2", "workers: 0"))
    command = [sys.executable, "-m", "shoal._cli", "attach", "--start", str(place.file)]
    done = subprocess.run(command, input="shoal status\nexit 3\n", capture_output=True, text=True, timeout=90, env={**os.environ, "SHELL": "/bin/bash"})
    assert done.returncode == 3 and "Nodes: 1 alive, 0 dead" in done.stdout, done.stdout + done.stderr
    place.shoal("down", str(place.file), "--yes")


def test_a_failing_setup_command_names_node_command_code_and_last_lines_and_the_rest_is_up(place):
    place.write(FILE + "setup_commands:\n  - 'true'\n  - case $SHOAL_TMPDIR in *worker-2) echo no disk left; exit 4;; esac\n")
    told = place.shoal("up", str(place.file), code=1)
    assert re.search(r"Error: on worker-2: setup_commands 2 of 2: case .*\n  ended with code 4; its last output:\n    no disk left", told)
    assert set(place.nodes()) == {"head", "worker-1"}
    place.write(FILE)
    place.shoal("up", str(place.file), "--yes")
    assert set(place.nodes()) == {"head", "worker-1", "worker-2"}
    place.shoal("down", str(place.file), "--yes")


def test_start_commands_that_start_nothing_are_told(place):
    place.write(FILE.replace(f"head: {{{SMALL}}}\n", "head_start_commands: ['true']\n"))
    told = place.shoal("up", str(place.file), code=1)
    assert "on head: the head's start commands ended well, but no head runs in" in told
    place.shoal("down", str(place.file), "--yes")


def test_own_start_commands_find_what_they_need_in_variables(place):
    own = '"$SHOAL_COMMAND start --head --host $SHOAL_NODE_IP --port 0 --http-port 0 --num-cpus 1 --node-name $NAME --token-file $SHOAL_TOKEN_FILE"'
    place.write(f"cluster_name: demo\nprovider: {{type: local}}\nenv: {{NAME: mine}}\nhead_start_commands: [{own}]\n")
    place.shoal("up", str(place.file))
    assert "mine" in place.shoal("exec", str(place.file), "shoal status")
    place.shoal("down", str(place.file), "--yes")


def test_two_at_once_start_one_cluster(place):
    place.write(FILE.replace("workers: 2", "workers: 1"))
    command = [sys.executable, "-m", "shoal._cli", "up", str(place.file)]
    both = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("is up already" in text for text in told) == 1
    assert set(place.nodes()) == {"head", "worker-1"}
    place.shoal("down", str(place.file), "--yes")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_up_that_is_ended_in_the_middle_is_finished_by_the_next(place, number):
    mark = place.file.parent / "mark"
    slow = f"setup_commands:\n  - test -e {mark} || {{ touch {mark}; exec sleep 60; }}\n"
    place.write(FILE.replace("workers: 2", "workers: 0") + slow)
    process = subprocess.Popen([sys.executable, "-m", "shoal._cli", "up", str(place.file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) != 0
    # What SIGKILL left of the command goes with its own time; it is no part of the cluster.
    for pid, name in place.processes().items():
        if "sleep" in name:
            assert number == signal.SIGKILL
            os.kill(pid, signal.SIGKILL)
    place.shoal("up", str(place.file))
    assert set(place.nodes()) == {"head"}
    place.shoal("down", str(place.file), "--yes")


def test_a_typo_in_the_file_is_one_line_with_its_place(place):
    place.write(FILE.replace("workers", "wokers"))
    told = place.shoal("up", str(place.file), code=1)
    assert told == f"Error: {place.file}:3: provider.wokers: unknown key; did you mean 'workers'?\n"


def test_addresses_are_printed_without_touching_anything(place):
    place.write("cluster_name: demo\nprovider: {type: ssh, head_ip: 10.9.9.1, worker_ips: [10.9.9.2, 10.9.9.3]}\n")
    assert place.shoal("get-head-ip", str(place.file)) == "10.9.9.1\n"
    assert place.shoal("get-worker-ips", str(place.file)) == "10.9.9.2\n10.9.9.3\n"
