"""shoal.testing, as somebody else's tests use it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import shoal
from shoal import testing
from shoal.exceptions import ActorDiedError, WorkerCrashedError
from shoal.testing import Leak, no_leaks, shoal_cluster, shoal_faults, shoal_no_leaks, wait_until  # noqa: F401 (fixtures, as by pytest_plugins)

# Each test has clusters of its own here.
pytestmark = pytest.mark.timeout(100)


@shoal.remote(num_cpus=0, max_restarts=1)
class Keeper:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n


def test_actors_workers_and_nodes_die_on_purpose(shoal_cluster, shoal_faults):  # noqa: F811
    import os

    cluster = shoal_cluster(2, num_cpus=1)
    assert len(cluster.list_all_nodes()) == 2
    keeper = Keeper.remote()
    assert shoal.get([keeper.add.remote(), keeper.add.remote()], timeout=60) == [1, 2]
    before = shoal_faults.kill_actor(keeper)
    assert wait_until(lambda: shoal_faults.pid_of(keeper) != before)
    assert shoal.get(keeper.add.remote(), timeout=60) == 1
    with shoal_faults.frozen(shoal_faults.pid_of(keeper)), pytest.raises(shoal.exceptions.GetTimeoutError):
        shoal.get(keeper.add.remote(), timeout=0.3)
    assert shoal.get(keeper.add.remote(), timeout=60) == 3
    shoal_faults.kill_actor(keeper)
    with pytest.raises(ActorDiedError):
        shoal.get(keeper.add.remote(), timeout=60)

    @shoal.remote(max_retries=0)
    def sits(path):
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        os.rename(path, path + ".pid")
        import threading

        threading.Event().wait(60)

    path = os.path.join(os.environ["SHOAL_TMPDIR"], "..", f"sits-{os.getpid()}")
    ref = sits.remote(path)
    wait_until(lambda: os.path.exists(path + ".pid"))
    with open(path + ".pid") as file:
        shoal_faults.kill(int(file.read()))
    os.unlink(path + ".pid")
    with pytest.raises(WorkerCrashedError):
        shoal.get(ref, timeout=60)
    shoal_faults.kill_node(cluster, cluster.worker_nodes[0])
    wait_until(lambda: sum(node["Alive"] for node in shoal.nodes()) == 1)


def test_what_is_left_is_named():
    with pytest.raises(Leak, match="'files': \\['something'\\]"), no_leaks(bound_s=0.05) as left:
        (left.home / "something").write_text("")
    assert not left.home.exists()


def test_a_wait_has_a_bound_and_says_for_what():
    with pytest.raises(TimeoutError, match=r"within 0.01 s it never came true: the moon"):
        testing.wait_until(lambda: False, 0.01, "the moon")
    assert testing.wait_until(lambda: 3) == 3


def test_the_documented_plug_in_works_in_somebody_elses_tests(tmp_path):
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text().partition("## Tests of your own")[2]
    conftest, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_mine.py").write_text(test + "\ndef test_that_fails(shoal_no_leaks):\n    (shoal_no_leaks.home / 'left').write_text('')\n")
    env = {name: value for name, value in os.environ.items() if name != "SHOAL_TMPDIR"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=env, cwd=tmp_path)
    assert "2 passed, 1 error" in done.stdout and "Leak: " in done.stdout and "'left'" in done.stdout, done.stdout + done.stderr
