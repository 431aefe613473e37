from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal_base import processes


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_v2_quotas_and_limits_hold_from_every_level(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    put(tmp_path / "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    put(tmp_path / "sys/fs/cgroup/a/cpu.max", "100000 100000")
    put(tmp_path / "sys/fs/cgroup/a/b/memory.max", "max")
    put(tmp_path / "sys/fs/cgroup/a/memory.max", "1000000")
    assert processes.available_cpus(tmp_path) == 1
    assert processes.available_memory(tmp_path) == 1_000_000


def test_v1_quotas_and_limits_hold(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/x\n")
    put(tmp_path / "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "150000")
    put(tmp_path / "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000")
    put(tmp_path / "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000000")
    put(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", str((1 << 63) - 4096))
    assert processes.available_cpus(tmp_path) == 1
    assert processes.available_memory(tmp_path) == 2_000_000


def test_a_hosts_path_that_is_not_mounted_falls_back_to_the_mounts_root(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/system.slice/docker-123.scope\n")
    put(tmp_path / "sys/fs/cgroup/memory.max", "3000000")
    assert processes.available_memory(tmp_path) == 3_000_000


def test_without_cgroups_the_machine_counts(tmp_path: Path) -> None:
    assert processes.available_cpus(tmp_path) == len(os.sched_getaffinity(0))
    assert processes.available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit(3)", "exited with code 3"), ("import os; os.kill(os.getpid(), 15)", "was killed by SIGTERM")],
)
def test_an_exit_is_described_as_it_was(code: str, said: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", code])
    _, status = os.waitpid(child.pid, 0)
    child.returncode = 0
    assert processes.describe_exit(status) == said


def test_a_pidfd_tells_the_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = processes.pidfd_open(child.pid)
    try:
        assert select.select([fd], [], [], 0)[0] == []
        child.communicate(b"\n", timeout=30)
        assert select.select([fd], [], [], 10)[0] == [fd]
    finally:
        os.close(fd)


def test_a_child_dies_with_its_parent() -> None:
    code = """
import os, signal, sys
from shoal_base.processes import set_parent_death_signal
me = os.getpid()
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    set_parent_death_signal(parent=me)
    os.write(w, b"x")
    signal.pause()
os.read(r, 1)
print(pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    fd = processes.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.kill()
        assert select.select([fd], [], [], 10)[0] == [fd]
    finally:
        parent.communicate(timeout=10)
        os.close(fd)


def test_a_child_whose_parent_has_already_gone_dies_at_once() -> None:
    code = "from shoal_base.processes import set_parent_death_signal; set_parent_death_signal(parent=1 << 30)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL


def test_orphans_come_to_the_subreaper() -> None:
    code = """
import os
from shoal_base.processes import become_subreaper
become_subreaper()
r, w = os.pipe()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os.read(r, 1)
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
os.write(w, b"x")
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """pytest's own directories are too long for Unix sockets below them."""
    with tempfile.TemporaryDirectory(prefix="sh-") as directory:
        yield Path(directory)


def test_node_directories_are_private_and_one_for_each_node(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TMPDIR", str(short_tmp / "s"))
    path = processes.node_directory(bytes(range(16)))
    assert path == short_tmp / "s" / "n-000102030405"
    assert sorted(p.name for p in path.iterdir()) == ["logs", "w"]
    assert all(p.stat().st_mode & 0o777 == 0o700 for p in (short_tmp / "s", path, path / "w"))


def test_a_base_directory_open_to_others_is_refused(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TMPDIR", str(short_tmp))
    short_tmp.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        processes.base_directory()


def test_a_base_directory_too_long_for_sockets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path / ("x" * 80)))
    with pytest.raises(ValueError, match="SHOAL_TMPDIR to a shorter"):
        processes.base_directory()


def test_the_descriptor_limit_goes_up_to_the_hard_one() -> None:
    code = "import resource; from shoal_base.processes import raise_descriptor_limit as r; assert r() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
