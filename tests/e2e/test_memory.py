"""Memory on real processes: `memory=` holds, a node that is short ends the right task, and nobody pays who need not. Blocks of 100 to 400 MB."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shoal
from shoal.exceptions import ActorDiedError, ActorOutOfMemoryError, OutOfMemoryError, RayActorError

pytestmark = pytest.mark.timeout(180)
MIB = 1 << 20
LIMIT = 100 * MIB


def grow_to(mib: int, hold_s: float = 0.0) -> int:
    """Slowly enough for one who looks now and then, and never beyond what is said."""
    blocks = []
    for _ in range(mib // 10):
        blocks.append(os.urandom(MIB) * 10)
        time.sleep(0.01)
    end = time.monotonic() + hold_s
    while time.monotonic() < end:
        time.sleep(0.05)
    return sum(map(len, blocks))


def own_group() -> Path | None:
    """The v1 group with memory limits that this process is in, if groups can be made below it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            group = Path("/sys/fs/cgroup/memory" + path)
            group = group if group.is_dir() else Path("/sys/fs/cgroup/memory")
            return group if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK) else None
    return None


@pytest.fixture(scope="module", params=["auto", "poll"])
def limited(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cluster that holds tasks to `memory=` by control groups where they can be made, and one that looks."""
    settings = {"raylet": {"memory_limits": request.param, "memory_monitor_refresh_ms": 50}}
    context = shoal.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=settings)
    yield context
    groups = [Path(file.read_text().strip()) for file in Path(context["session_dir"]).glob("cgroup")]
    shoal.shutdown()
    if request.param == "auto" and own_group() is not None:
        assert groups, "groups can be made here, and were not"
    assert not any(map(Path.exists, groups)), "the cluster's control groups went with it"


def test_a_task_over_its_memory_fails_with_its_peak_and_its_limit(limited):
    @shoal.remote(memory=LIMIT, max_retries=0)
    def hog():
        return grow_to(400, hold_s=30)

    with pytest.raises(OutOfMemoryError) as caught:
        shoal.get(hog.remote(), timeout=60)
    text = str(caught.value)
    assert "hog" in text and "at its peak" in text and "the limit is 100 MiB" in text and "Raise memory=" in text


def test_a_task_within_its_memory_is_left_alone(limited):
    @shoal.remote(memory=4 * LIMIT)
    def modest():
        return grow_to(100)

    assert shoal.get(modest.remote(), timeout=60) == 100 * MIB


def test_it_pays_a_retry_each_time_and_then_fails(limited, tmp_path):
    @shoal.remote(memory=LIMIT, max_retries=2)
    def hog():
        (tmp_path / f"{time.monotonic_ns()}").touch()
        return grow_to(400, hold_s=30)

    with pytest.raises(OutOfMemoryError):
        shoal.get(hog.remote(), timeout=120)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_actor_over_its_memory_restarts_while_it_may_and_then_is_dead(limited):
    @shoal.remote(memory=LIMIT, max_restarts=1)
    class Keeper:
        def keep(self, mib):
            self.kept = grow_to(mib, hold_s=30 if mib > 100 else 0)
            return self.kept

        def pid(self):
            return os.getpid()

    keeper = Keeper.remote()
    first = shoal.get(keeper.pid.remote(), timeout=60)
    with pytest.raises(RayActorError, match="the limit is 100 MiB"):
        shoal.get(keeper.keep.remote(400), timeout=60)
    deadline = time.monotonic() + 60
    while True:
        try:
            second = shoal.get(keeper.pid.remote(), timeout=60)
            break
        except RayActorError:  # on its way back
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert second != first
    with pytest.raises(ActorOutOfMemoryError, match="the limit is 100 MiB") as caught:
        shoal.get(keeper.keep.remote(400), timeout=60)
    assert isinstance(caught.value, ActorDiedError) and isinstance(caught.value, OutOfMemoryError)


def test_an_actor_whose_init_takes_too_much_is_dead_with_the_reason(limited):
    @shoal.remote(memory=LIMIT)
    class Hog:
        def __init__(self):
            self.kept = grow_to(400, hold_s=30)

        def ping(self):
            return 1

    with pytest.raises(ActorOutOfMemoryError, match="the limit is 100 MiB"):
        shoal.get(Hog.remote().ping.remote(), timeout=60)


def own_charge() -> int:
    """Bytes of pages that are files' (shared memory among them) in the control group of this worker; -1 where it has none of its own."""
    group = own_group()
    if group is None or "shoal-" not in group.as_posix():
        return -1
    told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(told["cache"])


def test_a_worker_is_not_charged_for_what_it_returns_puts_and_reads_in_shared_memory(limited, request):
    """Its own memory is the one array; what the store holds of it, and of an argument twice as large as its limit, is the store's."""

    @shoal.remote(memory=2 * LIMIT, max_retries=0)
    def work(argument):
        part = np.full(100 * MIB // 8, 7)
        refs = [shoal.put(part) for _ in range(2)]
        total = int(argument.sum()) + sum(int(shoal.get(ref)[-1]) for ref in refs)
        return part, total, own_charge()

    argument = shoal.put(np.ones(400 * MIB // 8, np.int64))
    part, total, charged = shoal.get(work.remote(argument), timeout=120)
    assert (total, part.nbytes, int(part[0]), int(part[-1])) == (400 * MIB // 8 + 14, 100 * MIB, 7, 7)
    assert charged < 32 * MIB, "tables of the arena, and files of programs"
    if own_group() is not None and "auto" in request.node.name:
        assert charged >= 0, "its group was looked at"


def test_tasks_without_memory_are_not_limited(limited):
    @shoal.remote
    def free():
        return grow_to(200)

    assert shoal.get(free.remote(), timeout=60) == 200 * MIB


_KILLED = """
import json, os, sys, time
import shoal

context = shoal.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)

@shoal.remote(memory=100 << 20)
def sleep():
    time.sleep(600)

sleep.remote()
cgroup = os.path.join(context["session_dir"], "cgroup")
while not os.path.exists(cgroup) or not os.path.exists(open(cgroup).read().strip()):
    time.sleep(0.01)
node = json.load(open(os.path.join(context["session_dir"], "node.json")))
print(json.dumps({"group": open(cgroup).read().strip(), "supervisor": node["supervisor_pid"]}), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("who", ["driver", "supervisor"])
def test_a_cluster_that_is_killed_leaves_no_control_group_behind(who):
    if own_group() is None:
        pytest.skip("this process may not make control groups (cgroup v1)")
    with subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        try:
            told = json.loads(driver.stdout.readline())
            os.kill(told["supervisor"] if who == "supervisor" else driver.pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while Path(told["group"]).exists():
                assert time.monotonic() < deadline, f"{told['group']} is still there"
                time.sleep(0.05)
        finally:
            driver.kill()


# -- a node that is short -------------------------------------------------------------------------------------------------------------------

# In a process of its own: the whole cluster lives in a control group of 1200 MiB, of which 600 may be in use.
_SHORT = """
import json, os, sys, time
sys.path.insert(0, sys.argv[2])
open(os.path.join(sys.argv[1], "cgroup.procs"), "w").write(str(os.getpid()))
import shoal
from shoal.exceptions import OutOfMemoryError
from test_memory import grow_to, MIB

shoal.init("local", num_cpus=3, object_store_memory=64 << 20, include_dashboard=False, log_to_driver=False,
           _system_config={"raylet": {"memory_usage_threshold": 0.5, "memory_monitor_refresh_ms": 100}})
notes = sys.argv[3]

@shoal.remote(max_retries=1)
def hold(number):
    with open(os.path.join(notes, str(number)), "a") as file:
        file.write("x")
    return grow_to(220, hold_s=3)

@shoal.remote(max_retries=0)
def too_large():
    return grow_to(800, hold_s=60)

held = shoal.get([hold.remote(n) for n in range(3)], timeout=150)
starts = [os.path.getsize(os.path.join(notes, str(n))) for n in range(3)]
try:
    shoal.get(too_large.remote(), timeout=100)
    error = ""
except OutOfMemoryError as raised:
    error = str(raised)
shoal.shutdown()
print(json.dumps({"held": held, "starts": starts, "error": error}))
"""


@pytest.fixture
def small_machine() -> Iterator[Path]:
    parent = own_group()
    if parent is None:
        pytest.skip("a node can be made small only where this process may make control groups (cgroup v1)")
    group = parent / f"shoal-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(1200 * MIB))
        yield group
    finally:
        deadline = time.monotonic() + 30
        while group.exists():
            with contextlib.suppress(OSError):
                group.rmdir()
            assert time.monotonic() < deadline, f"{group} is not empty: {(group / 'cgroup.procs').read_text()}"
            time.sleep(0.05)


def test_a_node_that_is_short_ends_the_newest_of_several_for_nothing_and_the_one_that_is_too_large_for_good(small_machine, tmp_path):
    command = [sys.executable, "-c", _SHORT, str(small_machine), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["held"] == [220 * MIB] * 3, "all three came to their end, one after the others"
    assert sum(told["starts"]) > 3 and max(told["starts"]) >= 2
    assert "hold is tried again in 1 s, at no charge to its max_retries" in done.stderr
    assert "the node is short of memory" in told["error"] and "Most is held by pid" in told["error"] and "too_large" in told["error"]
