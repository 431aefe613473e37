"""`shoal up` over SSH: against a real sshd of this test's own, whose loopback addresses are the machines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs sshd and ssh: apt-get install openssh-server openssh-client"),
]

MACHINES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
SMALL = "num_cpus: 1, object_store_memory: 134217728"
PROGRAM = """
import shoal
shoal.init()
@shoal.remote(resources={"worker": 1})
class Where:
    def node(self):
        return shoal.get_runtime_context().get_node_id()
print(*shoal.get([w.node.remote() for w in [Where.remote(), Where.remote()]], timeout=60))
"""


@dataclass
class Sshd:
    port: int
    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "user"

    @property
    def known(self) -> Path:
        return self.folder / "known"

    def file(self, workers: int = 2, more: str = "") -> str:
        return (
            f"cluster_name: demo\nprovider:\n  type: ssh\n  head_ip: {MACHINES[0]}\n  worker_ips: {json.dumps(MACHINES[1 : workers + 1])}\n"
            f"auth: {{ssh_private_key: {self.key}, ssh_port: {self.port}, ssh_known_hosts: {self.known}}}\n"
            f"env: {{PATH: '{Path(sys.executable).parent}:$PATH'}}\n"
            f"head: {{{SMALL}, port: 0, http_port: 0}}\nworker: {{{SMALL}, resources: {{worker: 1}}}}\n{more}"
        )


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    assert SSHD is not None
    folder = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
    privileged = Path("/run/sshd")  # where sshd, when it is root's, wants an empty folder
    made = False
    if os.geteuid() == 0 and not privileged.exists():
        privileged.mkdir(mode=0o755)
        made = True
    make_key(folder / "host")
    make_key(folder / "user")
    make_key(folder / "stranger")
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind((MACHINES[0], 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\n" + "".join(f"ListenAddress {host}\n" for host in MACHINES) + f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield Sshd(port, folder)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            privileged.rmdir()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((MACHINES[0], port), 1):
        return True
    return False


@pytest.fixture(autouse=True)
def no_connection_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while left := [str(path) for path in Path("/tmp").glob("shoal-ssh-*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_up_sets_machines_up_runs_programs_repairs_and_down_leaves_nothing(place, sshd):
    made = place.file.parent / "made"
    app = place.file.parent / "app"
    app.mkdir()
    (app / "program.py").write_text(PROGRAM)
    more = f"file_mounts: {{'{made}/app': ./app}}\nsetup_commands:\n  - echo $SHOAL_NODE_IP >> {made}/setup\n"
    place.write(sshd.file(more=more))
    told = place.shoal("up", str(place.file))
    assert "Cluster demo is up: 3 nodes" in told
    assert sorted((made / "setup").read_text().split()) == sorted(MACHINES)
    nodes = place.nodes()
    assert len(nodes) == 3 and place.alive() == {node["id"] for node in nodes.values()}
    for key in nodes:
        assert (place.temp / "demo" / key / "token").stat().st_mode & 0o777 == 0o600

    # The mounted program runs, on the workers.
    used = place.shoal("exec", str(place.file), f"python {made}/app/program.py").split()
    assert set(used) == {node["id"] for key, node in nodes.items() if key.startswith("w-")}

    # Once more: nothing happens, and nothing is set up again.
    assert "is up already" in place.shoal("up", str(place.file))
    assert place.nodes() == nodes and len((made / "setup").read_text().split()) == 3

    # A node dies: only it is started anew.
    victim = next(key for key in nodes if key.startswith("w-"))
    os.kill(nodes[victim]["pid"], signal.SIGKILL)
    place.shoal("up", str(place.file), "--yes")
    repaired = place.nodes()
    assert {key for key in nodes if repaired[key] != nodes[key]} == {victim}

    # The program changes, and a machine leaves: it is copied and set up again, and everything is started anew.
    (app / "program.py").write_text("print('changed')")
    place.write(sshd.file(workers=1, more=more))
    place.shoal("up", str(place.file), "--yes")
    assert place.shoal("exec", str(place.file), f"python {made}/app/program.py") == "changed\n"
    assert len(place.nodes()) == 2
    assert len((made / "setup").read_text().split()) == 5

    place.shoal("down", str(place.file), "--yes")
    place.expect_nothing()


def test_a_failing_setup_command_names_host_command_code_and_last_lines_and_the_rest_is_up(place, sshd):
    place.write(sshd.file(more="worker_setup_commands:\n  - if [ $SHOAL_NODE_IP = 127.0.0.3 ]; then echo no disk left >&2; exit 4; fi\n"))
    told = place.shoal("up", str(place.file), code=1)
    assert re.search(r"Error: on 127\.0\.0\.3: setup_commands 1 of 1: if .*\n  ended with code 4; its last output:\n    no disk left", told)
    assert len(place.nodes()) == 2
    place.shoal("down", str(place.file), "--yes")


def test_exec_passes_input_output_and_code_on_and_may_start_and_stop(place, sshd):
    place.write(sshd.file(workers=0))
    script = "import sys; print(sys.stdin.read()[::-1]); sys.exit(7)"
    command = [sys.executable, "-m", "shoal._cli", "exec", "--start", "--stop", str(place.file), "--", "python", "-c", script]
    done = subprocess.run(command, input="abc", capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (7, "cba\n"), done.stderr
    place.expect_nothing()


def test_attach_is_a_shell_with_a_terminal_that_goes_to_the_cluster(place, sshd):
    place.write(sshd.file(workers=0))
    command = [sys.executable, "-m", "shoal._cli", "attach", "--start", str(place.file)]
    done = subprocess.run(command, input="tty\nshoal status\nexit 3\n", capture_output=True, text=True, timeout=90)
    assert done.returncode == 3 and "Nodes: 1 alive, 0 dead" in done.stdout and "/dev/pts/" in done.stdout, done.stdout + done.stderr
    place.shoal("down", str(place.file), "--yes")


def test_a_port_that_is_taken_here_is_not_forwarded_and_the_command_does_not_run(place, sshd):
    place.write(sshd.file(workers=0))
    place.shoal("up", str(place.file))
    told = place.shoal("exec", "-p", str(sshd.port), str(place.file), "echo it ran", code=255)
    assert "it ran" not in told and "Address already in use" in told
    place.shoal("down", str(place.file), "--yes")


def test_a_key_that_is_not_accepted_is_told_with_user_and_key_and_nothing_is_left(place, sshd):
    place.write(sshd.file().replace(str(sshd.key), str(sshd.folder / "stranger")))
    told = place.shoal("up", str(place.file), code=1)
    for host in MACHINES:
        assert re.search(rf"{host} cannot be reached: .*Permission denied .*\(does .* there accept the key .*/stranger\?", told)
    place.write(sshd.file())
    place.shoal("down", str(place.file), "--yes")


def test_a_machine_that_is_not_there_is_told_and_the_others_are_left_alone(place, sshd):
    place.write(sshd.file().replace("127.0.0.3", "127.0.0.9"))
    told = place.shoal("up", str(place.file), code=1)
    assert f"Error: 127.0.0.9 cannot be reached: ssh: connect to host 127.0.0.9 port {sshd.port}: Connection refused (is sshd running there" in told
    assert place.nodes() == {}
    place.write(sshd.file())
    place.shoal("down", str(place.file), "--yes")


def test_down_keeps_what_it_could_not_reach_and_ends_the_rest(place, sshd):
    place.write(sshd.file(workers=1))
    place.shoal("up", str(place.file))
    record = place.state / "shoal/clusters/demo/record.json"
    known = json.loads(record.read_text())
    known["nodes"]["w-gone"] = {"host": "127.0.0.9", "directory": f"{place.temp}/demo/w-gone", "head": False}
    record.write_text(json.dumps(known))
    told = place.shoal("down", str(place.file), "--yes", code=1)
    assert "127.0.0.9 cannot be reached" in told
    assert place.nodes() == {} and list(json.loads(record.read_text())["nodes"]) == ["w-gone"]
    known["nodes"] = {}
    record.write_text(json.dumps(known))
    place.shoal("down", str(place.file), "--yes")


def test_a_machine_whose_key_has_changed_is_refused(place, sshd):
    other = place.file.parent / "known"
    key = (sshd.folder / "stranger.pub").read_text().split()[:2]
    other.write_text(f"[{MACHINES[0]}]:{sshd.port} {' '.join(key)}\n")
    place.write(sshd.file(workers=0).replace(str(sshd.known), str(other)))
    told = place.shoal("up", str(place.file), code=1)
    assert "Host key verification failed" in told and "ssh-keygen -R" in told
    place.write(sshd.file(workers=0))
    place.shoal("down", str(place.file), "--yes")


def test_a_machine_without_shoal_is_told(place, sshd):
    place.write(re.sub(r"env: .*\n", "", sshd.file(workers=0)))
    told = place.shoal("up", str(place.file), code=1)
    assert "on 127.0.0.1: start 1 of 1: $SHOAL_COMMAND start --head" in told and "command not found" in told
    place.shoal("down", str(place.file), "--yes")
