"""What workers are given at their start: modules that were imported before the fork, and a number of native threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal
from shoal.cluster_utils import Cluster

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def preloading() -> Iterator[Any]:
    variables = {name: os.environ.pop(name, None) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    yield shoal.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, preload=["numpy", "colorsys"])
    shoal.shutdown()
    os.environ.update({name: value for name, value in variables.items() if value is not None})


@shoal.remote
def threads() -> tuple[str | None, list[int]]:
    import numpy as np
    import threadpoolctl

    np.ones((4, 4)) @ np.ones((4, 4))
    return os.environ.get("OMP_NUM_THREADS"), [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]


def test_native_threads_follow_the_cpus_of_the_task(preloading):
    assert shoal.get(threads.remote(), timeout=60) == ("1", [1])
    most = min(3, os.cpu_count() or 1)  # OpenBLAS starts no more than there are
    told, pools = shoal.get(threads.options(num_cpus=3).remote(), timeout=60)
    assert told == "3" and pools in ([3], [most])
    assert shoal.get(threads.options(num_cpus=0.5).remote(), timeout=60) == ("1", [1])


def test_what_the_user_has_set_stays(preloading):
    told, _ = shoal.get(threads.options(num_cpus=3, runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}}).remote(), timeout=60)
    assert told == "2"


def test_an_actor_has_one_thread_unless_it_holds_cpus(preloading):
    class Counter:
        def threads(self):
            return os.environ["OMP_NUM_THREADS"]

    assert shoal.get(shoal.remote(Counter).remote().threads.remote(), timeout=60) == "1"
    assert shoal.get(shoal.remote(num_cpus=2)(Counter).remote().threads.remote(), timeout=60) == "2"


def test_preloaded_modules_are_there_before_the_first_task(preloading):
    @shoal.remote
    def loaded():
        return [name in sys.modules for name in ("numpy", "colorsys", "pandas")], Path("/proc/self/oom_score_adj").read_text().strip()

    assert shoal.get(loaded.remote(), timeout=60) == ([True, True, False], "1000")


def test_siblings_draw_different_numbers(preloading):
    @shoal.remote
    class Dice:
        def roll(self):
            import random

            import numpy as np

            return random.random(), float(np.random.random())

    dice = [Dice.remote() for _ in range(3)]
    rolls = shoal.get([one.roll.remote() for one in dice], timeout=60)
    assert len({first for first, _ in rolls}) == len({second for _, second in rolls}) == 3


def proportional_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def test_an_idle_worker_takes_less_than_12_mib():
    @shoal.remote
    class Idle:  # in here: it travels whole, and no worker imports this file with all of pytest
        def pid(self):
            return os.getpid()

    shoal.shutdown()
    with shoal.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False):
        idle = [Idle.remote() for _ in range(4)]
        sizes = [proportional_mib(pid) for pid in shoal.get([one.pid.remote() for one in idle], timeout=60)]
    assert max(sizes) < 12, sizes


@shoal.remote
class Learner:
    def __init__(self):
        self.loaded = "torch" in sys.modules

    def product(self):
        import torch

        ones = torch.ones(256, 256)
        return self.loaded, float((ones @ ones).sum()), torch.get_num_threads(), float(torch.rand(1)), os.getppid()


def test_torch_is_preloaded_without_threads_and_works_after_the_fork():
    pytest.importorskip("torch")
    shoal.shutdown()
    with shoal.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, preload=["torch"]):
        learners = [Learner.remote() for _ in range(2)] + [Learner.options(num_cpus=2).remote()]
        answers = shoal.get([learner.product.remote() for learner in learners], timeout=100)
        zygote = answers[0][-1]
        assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    assert [answer[:3] for answer in answers] == [(True, 256.0**3, 1)] * 2 + [(True, 256.0**3, 2)]
    assert len({answer[3] for answer in answers}) == 3, "each is seeded anew"


def test_preload_is_checked_where_it_is_given():
    shoal.shutdown()
    for wrong, error in (("numpy", TypeError), (["not a module"], ValueError)):
        with pytest.raises(error, match="preload"):
            shoal.init("local", preload=wrong)


@shoal.remote
class Curious:
    def look(self):
        import logging
        from pathlib import Path

        files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        parent = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[1])
        return [name for name in sys.modules if name == "grpc"], files, logging.getLogger().handlers, parent, Path("/proc/self/comm").read_text().strip()


def test_a_worker_has_nothing_of_the_supervisor_that_its_zygote_is_forked_from():
    shoal.shutdown()
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node = cluster.head_node
        cluster.connect(namespace="curious")
        modules, files, handlers, parent, name = shoal.get(Curious.remote().look.remote(), timeout=60)
        assert parent == node.pid_of("zygote") and name == "shoal-worker"
        assert not modules and not handlers
        assert not [file for file in files if file.endswith((".json", "lock", "supervisor.log", "nodes")) or "shoal-output" in file], files
        # Another one is executed, in its place.
        node.kill("zygote")
        again = shoal.get(Curious.options(max_restarts=-1, max_task_retries=-1).remote().look.remote(), timeout=60)
        assert again[0] == modules and again[3] == node.pid_of("zygote") != parent
        shoal.shutdown()
