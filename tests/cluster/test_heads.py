"""A head that dies, is stopped or is drained, with another one standing by: names are found, work goes on, and the old one ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import shoal
from shoal.cluster_utils import Cluster, ClusterNode
from shoal.testing import wait_until

sys.path.insert(0, str(Path(__file__).parents[2] / "services/gcs/tests/fakes"))

from redis_process import RedisProcess, redis_process

pytestmark = pytest.mark.timeout(150)
BOUND_S = 60.0
TERM_S = 1.5
FAST = {"gcs": {"head_term_s": TERM_S, "heartbeat_s": 0.5, "lease_s": 6.0}}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_process(tmp_path / "redis") as server:
        yield server


class Pair:
    """Two heads and a node with the work; the driver is on that node."""

    def __init__(self, storage: str, secrets: Path) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "storage": storage, "secrets_dir": str(secrets), "system_config": FAST})
        assert self.cluster.head_node is not None
        self.first: ClusterNode = self.cluster.head_node
        self.second = self.cluster.add_node(num_cpus=0, standby=True, storage=storage, secrets_dir=str(secrets), system_config=FAST)
        self.node = self.cluster.add_node(num_cpus=3, secrets_dir=str(secrets))

    def statuses(self, head: ClusterNode) -> dict:
        self.cluster.head_node = head
        return {row["node_id"]: row["state"] for row in self.cluster.states()}

    def forget(self, head: ClusterNode) -> None:
        """It was ended by the test."""
        self.cluster.head_node = self.second
        self.cluster.worker_nodes = [node for node in self.cluster.worker_nodes if node not in (head, self.second)]


@pytest.fixture
def pair(home, redis, tmp_path, monkeypatch) -> Iterator[Pair]:
    made = Pair(redis.url, tmp_path / "secrets")
    # The driver attaches to the node with the work, not to the head that is to die.
    monkeypatch.setattr("shoal._bootstrap.living_nodes", lambda base: [node for node in _living(base) if node.node_id == made.node.node_id])
    try:
        shoal.init(address=made.cluster.address, log_to_driver=False)
        try:
            yield made
        finally:
            shoal.shutdown()
    finally:
        made.cluster.shutdown()


def _living(base):
    from shoal._supervisor.directories import living_nodes

    return living_nodes(base)


@shoal.remote(max_restarts=-1, num_cpus=1)
class Counter:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count


@shoal.remote(num_cpus=1)
def slow_square(x):
    time.sleep(0.05)
    return x * x


@contextmanager
def work(results: list) -> Iterator[None]:
    """Tasks, one after the other, all the while."""
    ended = threading.Event()

    def submit() -> None:
        n = 0
        while not ended.is_set():
            results.append((n, shoal.get(slow_square.remote(n), timeout=60)))
            n += 1

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


def until_a_new_named_actor(name: str) -> float:
    """Seconds until the control store has taken a new actor, found it by name, and it has answered."""
    began = time.monotonic()

    def made():
        try:
            return Counter.options(name=name, get_if_exists=True).remote()
        except shoal.exceptions.RayError:
            return None

    handle = wait_until(made, BOUND_S, "a new actor")
    assert shoal.get(shoal.get_actor(name).next.remote(), timeout=60) == 1
    del handle
    return time.monotonic() - began


def test_after_the_head_was_killed_the_standby_leads_names_are_found_and_work_was_not_disturbed(pair):
    counter = Counter.options(name="kept").remote()
    assert shoal.get(counter.next.remote(), timeout=60) == 1
    results: list = []
    with work(results):
        wait_until(lambda: len(results) > 3, BOUND_S, "work before")
        pair.first.end(graceful=False)
        pair.forget(pair.first)
        assert shoal.get(shoal.get_actor("kept").next.remote(), timeout=60) == 2
        until_a_new_named_actor("new")
        before = len(results)
        wait_until(lambda: len(results) > before + 3, BOUND_S, "work after")
    assert all(result == n * n for n, result in results)
    wait_until(lambda: pair.statuses(pair.second).get(pair.first.node_id) == "DEAD", BOUND_S, "the old head's node is dead")
    assert pair.statuses(pair.second)[pair.node.node_id] == "ALIVE"


def test_a_stopped_head_is_replaced_and_stands_by_when_it_goes_on(pair):
    counter = Counter.options(name="kept").remote()
    assert shoal.get(counter.next.remote(), timeout=60) == 1
    old = pair.first.kill("gcs", signal.SIGSTOP)
    try:
        assert shoal.get(shoal.get_actor("kept").next.remote(), timeout=60) == 2
        until_a_new_named_actor("new")
    finally:
        os.kill(old, signal.SIGCONT)
    wait_until(lambda: _gone(old), BOUND_S, "the stopped one finds out and ends")

    def stands_by():
        pair.cluster.head_node = pair.second
        return pair.first.gcs_address in _status(pair.second)["standby_heads"]

    wait_until(stands_by, BOUND_S, "its supervisor has started it again, and it stands by")
    assert shoal.get(shoal.get_actor("kept").next.remote(), timeout=60) == 3
    # And asked at its old place, the first head's HTTP is told where to look.
    assert _status(pair.first)["gcs_epoch"] == _status(pair.second)["gcs_epoch"] == 2
    pair.cluster.head_node = pair.first


def test_the_command_line_starts_a_standby_refuses_a_stranger_and_drains_the_head_to_it(home, redis, tmp_path):
    from shoal._supervisor.directories import living_nodes

    token, storage = str(tmp_path / "token"), ["--storage", redis.url, "--system-config", '{"gcs": {"head_term_s": 3}}']
    size = ["--num-cpus", "1", "--object-store-memory", str(128 << 20), "--http-port", "0"]
    home.cli("start", "--head", "--port", "0", "--token-file", token, *storage, *size)
    first = living_nodes(home.path)[0]
    try:
        wrong = str(tmp_path / "wrong")
        Path(wrong).write_text("another cluster's token, and long enough for one")
        os.chmod(wrong, 0o600)
        refused = home.cli("start", "--head", "--standby", "--port", "0", "--token-file", wrong, *storage, *size, code=1)
        assert "the node secret is not this cluster's" in refused
        assert "is led by the head at" in home.cli("start", "--head", "--port", "0", "--token-file", token, *storage, *size, code=1)
        assert "Standby head" in home.cli("start", "--head", "--standby", "--port", "0", "--token-file", token, *storage, *size)
        second = next(node for node in living_nodes(home.path) if node.node_id != first.node_id)
        shown = wait_until(lambda: _shows(home.cli("status", "--address", second.http_address), second.gcs_address), BOUND_S, "the standby in the status")
        assert "Heads that stand by" in shown
        out = home.cli("drain", first.node_id, "--wait", "--address", second.http_address)
        assert "has ended: drained: asked to" in out or "has ended: another head leads, and has it no more" in out
        wait_until(lambda: _status(second).get("gcs_epoch") == 2, BOUND_S, "the standby leads")
    finally:
        home.cli("stop")


def _shows(out: str, words: str) -> str:
    return out if words in out else ""


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _status(head: ClusterNode) -> dict:
    import http.client
    import json

    from shoal_base.auth import read_secret

    secrets = json.loads(Path(head.node_dir, "node.json").read_text())["secrets_dir"]
    host, _, port = head.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        token = read_secret(Path(secrets) / "user.token").decode()
        connection.request("GET", "/api/cluster_status", headers={"Authorization": f"Bearer {token}"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
