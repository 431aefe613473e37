"""A real raylet that ends real workers for what they hold, and leaves no control group behind."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from raylet_node import alive, wait_for
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.wire import WorkerDied
from shoal_raylet.cgroups import _V1, Group, GroupsRefused, MemoryGroups
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
LIMIT = 64 * MIB


def groups_here(directory):
    """Whether this machine lets this process make limited groups and move processes into them."""
    groups = MemoryGroups(f"probe{os.getpid()}", directory)
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        group = groups.make(sleeper.pid, b"probe", LIMIT)
        ready = True
    except (GroupsRefused, OSError):
        ready = False
    finally:
        sleeper.kill()
        sleeper.wait()
    if ready:
        wait_for(group.remove, "the end of the probe's group")
    assert groups.close()
    return ready


@pytest.fixture(params=["auto", "poll"])
def mode(request, tmp_path):
    if request.param == "auto" and not groups_here(tmp_path):
        pytest.skip("this machine does not let the tests make control groups with a memory limit")
    return request.param


def lease(place, node, **fields):
    driver = place.client(node)
    driver.demand(**fields)
    return driver, driver.grant().worker_id


def info(node, worker):
    return next(info for info in node.state().workers if info.worker_id == worker)


def hold(node, worker, mib):
    """It may be ended before it answers."""
    task = os.urandom(16)
    node.order(worker, "task", task.hex(), "mymodule.hog")
    with contextlib.suppress(OSError, ValueError):
        node.order(worker, "hold", mib * MIB)
    return task


def died(driver):
    return WorkerDied.unpack(driver.expect(Type.WORKER_DIED, 30))


def test_a_worker_that_takes_more_than_its_limit_is_ended_and_told(place, mode):
    node = place.node(resources={"memory": 1 << 30}, memory_limits=mode)
    driver, worker = lease(place, node, resources={"memory": LIMIT})
    assert info(node, worker).memory_limit_bytes == LIMIT
    task = hold(node, worker, 200)
    told = died(driver)
    assert (told.worker_id, told.task_id, told.code) == (worker, task, Code.MEMORY_LIMIT)
    assert "the limit is 64 MiB" in told.cause and "at its peak" in told.cause and "mymodule.hog" in told.cause
    assert ("control group" in told.cause) == (mode == "auto")
    assert node.state().memory_kills == 1
    report = wait_for(lambda: place.gcs.deaths and place.gcs.deaths[0], "the report to the GCS")
    assert not report.intended, "an actor would restart"


def test_a_worker_within_its_limit_goes_on(place, mode):
    node = place.node(resources={"memory": 1 << 30}, memory_limits=mode, memory_monitor_refresh_ms=20)
    _driver, worker = lease(place, node, resources={"memory": 256 * MIB})
    hold(node, worker, 100)
    assert info(node, worker).memory_bytes > 100 * MIB
    assert node.order(worker, "leases"), "it answers"


def test_what_a_workers_children_share_with_it_counts_once(place):
    node = place.node(resources={"memory": 1 << 30}, memory_limits="poll", memory_monitor_refresh_ms=20)
    driver, worker = lease(place, node, resources={"memory": 256 * MIB})
    hold(node, worker, 100)
    for _ in range(3):
        node.order(worker, "fork")
    assert info(node, worker).memory_bytes > 256 * MIB, "seen one by one it is too much"
    assert node.order(worker, "leases"), "and it goes on"
    hold(node, worker, 300)
    assert died(driver).code == Code.MEMORY_LIMIT


def test_without_enforcement_memory_is_counted_only(place):
    node = place.node(resources={"memory": 1 << 30}, memory_limits="off")
    _driver, worker = lease(place, node, resources={"memory": LIMIT})
    hold(node, worker, 100)
    assert info(node, worker).memory_limit_bytes == 0 and node.order(worker, "leases")


def test_a_node_that_is_short_of_memory_ends_who_holds_it_and_nobody_else(place):
    node = place.node(cpus=3, memory_usage_threshold=1e-6, memory_monitor_refresh_ms=50)
    idle, other = lease(place, node)
    driver, worker = lease(place, node)
    task = hold(node, worker, 100)
    told = died(driver)
    assert (told.worker_id, told.task_id, told.code) == (worker, task, Code.MEMORY_LIMIT), "alone: it pays a retry"
    assert "the node is short of memory" in told.cause and "Most is held by pid" in told.cause
    assert node.order(other, "leases"), "one that holds nothing is left"
    assert died(idle).worker_id == worker
    assert 'reason="shortage"} 1' in node.stub.Metrics(pb.Empty(), timeout=10).text


def test_the_nodes_groups_go_with_it_also_when_it_is_killed(place, tmp_path):
    if not groups_here(tmp_path):
        pytest.skip("this machine does not let the tests make control groups with a memory limit")
    node = place.node(resources={"memory": 1 << 30})
    _driver, worker = lease(place, node, resources={"memory": LIMIT})
    base = Path((node.directory / "cgroup").read_text().strip())
    group = base / worker.hex()[:12]
    assert str(info(node, worker).pid) in (group / "cgroup.procs").read_text().split()
    child = node.order(worker, "spawn")
    assert str(child) in (group / "cgroup.procs").read_text().split(), "what a worker starts counts with it"
    os.kill(info(node, worker).pid, signal.SIGKILL)
    wait_for(lambda: not group.exists(), "the end of the worker's group")
    wait_for(lambda: not alive(child), "its child, which somebody must reap")
    node.stop()
    assert not base.exists() and not (node.directory / "cgroup").exists()


# -- groups, without a raylet -----------------------------------------------------------------------------------------------------


def version_2(root, controllers="cpu memory"):
    """As much of a cgroup tree as plain files can be; a real one makes these files by itself."""
    own = root / "sys/fs/cgroup/user"
    own.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/user\n")
    (own / "cgroup.controllers").write_text(f"{controllers}\n")
    (own / "cgroup.subtree_control").write_text("\n")
    return own


def test_version_2_gets_a_limit_without_swap_and_ends_all_of_a_group_together(tmp_path, monkeypatch):
    own = version_2(tmp_path)
    mkdir = Path.mkdir

    def with_files(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        if path.is_relative_to(own):
            for name in ("cgroup.subtree_control", "memory.oom.group"):
                (path / name).write_text("")

    monkeypatch.setattr(Path, "mkdir", with_files)
    group = MemoryGroups("node", tmp_path, root=tmp_path).make(4321, b"\xab" * 16, LIMIT)
    assert group.path == own / "shoal-node" / "abababababab"
    written = {name: (group.path / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cgroup.procs")}
    assert written == {"memory.max": str(LIMIT), "memory.swap.max": "0", "memory.oom.group": "1", "cgroup.procs": "4321"}
    assert "+memory" in (own / "cgroup.subtree_control").read_text() and "+memory" in (own / "shoal-node/cgroup.subtree_control").read_text()
    (group.path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (group.path / "memory.peak").write_text("77\n")
    assert (group.kills(), group.peak()) == (2, 77)


def test_where_no_group_can_be_made_the_reason_is_told(tmp_path):
    version_2(tmp_path, controllers="cpu")
    with pytest.raises(GroupsRefused, match="no control group with a memory controller"):
        MemoryGroups("node", tmp_path, root=tmp_path).make(1, b"w", LIMIT)
    with pytest.raises(GroupsRefused, match="/nowhere has no memory controller"):
        MemoryGroups("node", tmp_path, parent="/nowhere").make(1, b"w", LIMIT)
    assert not (tmp_path / "cgroup").exists()


def test_a_group_that_has_gone_counts_as_removed(tmp_path):
    assert Group(tmp_path / "gone", _V1, LIMIT).remove()


def test_the_raylet_refuses_a_wrong_variable_by_name(place, monkeypatch):
    monkeypatch.setenv("SHOAL_MEMORY_LIMITS", "hard")
    assert "memory_limits='hard'" in place.node().ready["error"]
