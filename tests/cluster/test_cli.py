"""`shoal` as a person uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time

import pytest
import shoal
from shoal._supervisor.directories import living_nodes

pytestmark = pytest.mark.timeout(120)


class Holder:
    def hold(self, mib):
        self.kept = os.urandom(1 << 20) * mib
        return os.getpid()


def test_a_head_serves_status_lists_and_logs_and_stops(home, head):
    status = home.cli("status")
    assert "Nodes: 1 alive, 0 dead" in status
    assert "0 of 2" in status
    assert head["node_id"][:12] in status
    assert json.loads(home.cli("status", "--json"))["nodes"][0]["node_id"] == head["node_id"]
    assert head["node_id"] in home.cli("list", "nodes")
    assert home.cli("list", "nodes", "--filter", "state=DEAD", "--format", "json").strip() == "[]"
    for resource in ("actors", "tasks", "jobs", "workers", "placement-groups", "objects"):
        home.cli("list", resource)
    assert "is_head_node: true" in home.cli("get", "nodes", head["node_id"][:8])
    assert "raylet.log" in home.cli("logs")
    assert "serves at" in home.cli("logs", "raylet.log")
    assert "capacity" in home.cli("memory").lower()
    home.cli("summary", "tasks")
    token = home.cli("get-auth-token").strip()
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert shoal.__version__ in home.cli("version")


def test_init_joins_the_running_head_and_leaves_it_running(home, head):
    context = shoal.init(log_to_driver=False)
    try:
        assert context["gcs_address"] == head["gcs"]
        assert shoal.get(shoal.remote(lambda: 5).remote(), timeout=30) == 5
        assert "RUNNING" in home.cli("list", "jobs")
    finally:
        shoal.shutdown()
    assert living_nodes(home.path)
    with pytest.raises(ValueError, match="num_cpus must not be provided"):
        shoal.init(num_cpus=1)
    with shoal.init("local", num_cpus=1, object_store_memory=128 << 20) as private:
        assert private["gcs_address"] != head["gcs"]
    with shoal.init(head["gcs"]) as again:
        assert again["gcs_address"] == head["gcs"]


def test_memory_shows_what_nodes_and_processes_hold_and_the_limits(home, head):
    with shoal.init(log_to_driver=False):
        holder = shoal.remote(memory=200 << 20)(Holder).options(name="holder").remote()
        pid = shoal.get(holder.hold.remote(64), timeout=60)
        shown = home.cli("memory", "--units", "MB")
        row = next(line.split() for line in shown.splitlines() if line.startswith(f"{pid} "))
        assert row[2] == "ACTOR" and row[-2:] == ["200.0", "MB"] and 64 <= float(row[-4]) < 128
        assert "ENDED FOR MEMORY" in shown and "CAPACITY" in shown
        assert f"\n{pid} " not in home.cli("memory", "--stats-only")
        pids = [int(line.split()[0]) for line in home.cli("memory", "--sort-by", "pid").splitlines() if re.match(r"\d+ ", line)]
        assert pid in pids and pids == sorted(pids)


def test_a_second_node_joins_and_runs_tasks(home, head):
    options = ("--num-cpus", "1", "--resources", '{"second": 1}', "--labels", "zone=b", "--object-store-memory", str(128 << 20))
    out = home.cli("start", "--address", head["gcs"], *options)
    assert "joined the cluster" in out
    shoal.init(log_to_driver=False)
    try:
        nodes = {row["NodeID"] for row in shoal.nodes()}
        assert len(nodes) == 2
        where = shoal.remote(lambda: shoal.get_runtime_context().get_node_id()).options(resources={"second": 1})
        assert shoal.get(where.remote(), timeout=30) in nodes - {head["node_id"]}
    finally:
        shoal.shutdown()
    assert "Nodes: 2 alive" in home.cli("status")
    assert "Stopped 2 nodes" in home.cli("stop")


def test_a_node_with_another_secret_is_refused(home, head, tmp_path):
    home.cli("get-auth-token", "--generate", str(tmp_path / "other"))
    began = time.monotonic()
    out = home.cli("start", "--address", head["gcs"], "--token-file", str(tmp_path / "other"), code=1)
    assert time.monotonic() - began < 10
    assert re.search("secret|signature|authentic", out, re.IGNORECASE), out
    assert len(living_nodes(home.path)) == 1


def test_one_token_file_serves_a_head_and_those_who_join(home, tmp_path):
    token = tmp_path / "token"
    small = ("--num-cpus", "1", "--object-store-memory", str(128 << 20))
    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--token-file", str(token), *small)
    assert token.stat().st_mode & 0o777 == 0o600
    assert home.cli("get-auth-token").strip() == token.read_text().strip()
    home.cli("start", "--address", living_nodes(home.path)[0].gcs_address, "--token-file", str(token), *small)
    assert "Nodes: 2 alive" in home.cli("status")
    home.cli("stop")
    home.expect_nothing()
    assert token.exists()


def test_nobody_to_join_is_an_error_within_ten_seconds(home):
    began = time.monotonic()
    assert "no control store answers" in home.cli("start", "--address", "127.0.0.1:1", code=1)
    assert time.monotonic() - began < 10


def test_a_taken_port_is_named_with_its_option(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        out = home.cli("start", "--head", "--port", port, "--http-port", "0", code=1)
        assert port in out
        assert "--port" in out
        out = home.cli("start", "--head", "--port", "0", "--http-port", port, code=1)
        assert port in out
        assert "--http-port" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "either --head"),
        (["start", "--head", "--address", "a:1"], "either --head"),
        (["start", "--address", "nonsense"], "HOST:PORT"),
        (["start", "--address", "127.0.0.1:1", "--port", "3"], "--port is for the head"),
        (["start", "--head", "--resources", "{"], "no JSON"),
        (["start", "--head", "--resources", '{"x": -1}'], "cannot be negative"),
        (["start", "--head", "--resources", '{"CPU": 1}'], "num_cpus"),
        (["start", "--head", "--num-cpus", "many"], "--num-cpus"),
        (["start", "--head", "--object-store-memory", "5"], "64 MiB"),
        (["start", "--standby"], "either --head"),
        (["start", "--address", "a:1", "--standby"], "give --head, too"),
        (["start", "--head", "--standby"], "needs the --storage redis://"),
        (["start", "--head", "--standby", "--storage", "redis://h:1/0"], "takes the cluster's secrets"),
        (["list", "spoons"], "spoons"),
    ],
)
def test_wrong_options_are_named(home, arguments, message):
    out = home.cli(*arguments, code=1 if ("--resources" in arguments and arguments[-1] != "{") or "--object-store-memory" in arguments else 2)
    assert message in out


@pytest.mark.parametrize("command", ["status", "memory", "logs", "get-auth-token"])
def test_without_a_cluster_commands_say_how_to_start_one(home, command):
    assert "shoal start --head" in home.cli(command, code=1)


def test_stop_without_a_cluster_is_no_error(home):
    assert "No node" in home.cli("stop")


def test_a_head_reached_by_its_http_address_wants_the_token(home, head):
    elsewhere = home.path / "elsewhere"  # where no node of ours is found
    elsewhere.mkdir(mode=0o700)
    arguments = ["status", "--address", head["http"], "--temp-dir", str(elsewhere)]
    assert "token" in home.cli(*arguments, code=1)
    assert "Nodes: 1" in home.cli(*arguments, "--token-file", f"{head['secrets']}/user.token")
    elsewhere.rmdir()


def test_a_blocking_start_ends_with_its_signal(home):
    command = [sys.executable, "-m", "shoal._cli", "start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1", "--block"]
    process = home.program(command, "To end it")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    home.expect_nothing(1.0)


def test_a_killed_blocking_start_takes_its_node_along(home):
    command = [sys.executable, "-m", "shoal._cli", "start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1", "--block"]
    process = home.program(command, "To end it")
    process.kill()
    process.wait()
    home.expect_nothing()


def test_stop_by_force_leaves_nothing(home):
    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1")
    assert "by force" in home.cli("stop", "--force")
    home.expect_nothing(1.0)


def test_a_node_that_cannot_end_is_killed_after_the_grace_period(home):
    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1")
    os.kill(living_nodes(home.path)[0].supervisor_pid, signal.SIGSTOP)
    assert "by force" in home.cli("stop", "--grace-period", "0.5")
    home.expect_nothing(1.0)


def test_records_in_a_named_database_outlive_the_head(home, tmp_path):
    start = ["start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1", "--storage", f"sqlite:{tmp_path / 'gcs.db'}"]
    home.cli(*start)
    first = json.loads(home.cli("status", "--json"))
    home.cli("stop")
    home.cli(*start)
    second = json.loads(home.cli("status", "--json"))
    home.cli("stop")
    assert second["cluster_id"] == first["cluster_id"]
    assert second["gcs_epoch"] > first["gcs_epoch"]


def test_a_corrupt_database_is_one_clear_error(home, tmp_path):
    broken = tmp_path / "gcs.db"
    broken.write_bytes(b"this is no database" * 1000)
    out = home.cli("start", "--head", "--port", "0", "--http-port", "0", "--storage", f"sqlite:{broken}", code=1)
    assert str(broken) in out
