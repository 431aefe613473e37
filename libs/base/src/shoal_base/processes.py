"""What the kernel offers to who keeps processes, and what it lets this process use. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import stat
from pathlib import Path

from .sockets import MAX_PATH_BYTES

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
# cgroup v1 says "no limit" with a number near 2^63, rounded to pages.
V1_UNLIMITED = 1 << 60
# The longest path below a base directory: n-<12 hex>/w/<32 hex>.sock
_BELOW_BASE_BYTES = len("/n-123456789abc/w/.sock") + 32


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_parent_death_signal(number: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """The kernel sends this signal when the thread that forked us ends. `parent`: its pid, read before the fork; if it has gone since, the signal comes now.

    After a fork, in the child. The signal comes when the forking *thread* ends: fork from a thread that lives as long as its process."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def set_name(name: str) -> None:
    """What `ps -o comm` and `top` show of the calling thread's process; the kernel keeps 15 bytes."""
    _libc().prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def children() -> list[int]:
    """Pids of this process's own, whichever thread has forked them."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            found += map(int, (task / "children").read_text().split())
    return found


def become_subreaper() -> None:
    """Orphans below us become our children, so that we reap them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def pidfd_open(pid: int) -> int:
    """A descriptor that becomes readable when the process ends. Raises ProcessLookupError when it has ended and was reaped."""
    return os.pidfd_open(pid)


def raise_descriptor_limit() -> int:
    """To the hard limit: each connection is a descriptor. Returns the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def describe_exit(status: int) -> str:
    """A raw wait status, for people.

    >>> describe_exit(9), describe_exit(256), describe_exit(0)
    ('was killed by SIGKILL', 'exited with code 1', 'exited with code 0')
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}" + (" and dumped core" if os.WCOREDUMP(status) else "")
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


# -- what we may use ------------------------------------------------------------------------------------


def available_cpus(root: Path = Path("/")) -> float:
    """CPUs by affinity and by cgroup quota, at least one; fractional quotas are rounded down. `root` is for tests."""
    cpus = float(len(os.sched_getaffinity(0)))
    for directory in cgroup_directories(root, "cpu"):
        quota = _cpu_quota(directory)
        if quota is not None:
            cpus = min(cpus, quota)
    return max(1.0, float(int(cpus)))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes by cgroup limit and by what the machine has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in cgroup_directories(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(directory / name)
            if limit is not None and 0 < limit < V1_UNLIMITED:
                total = min(total, limit)
    return total


def cgroup_directories(root: Path, controller: str) -> list[Path]:
    """The directories whose limits hold for us: our cgroup, then those above it, for v2 and for the v1 controller. `root` is for tests."""
    found: list[Path] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # v2
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = next((m for m in (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller) if m.is_dir()), root)
        else:
            continue
        inner = Path(path.lstrip("/"))
        # In a container the path is often the host's, which is not mounted here; the mount's own root then is our cgroup.
        found.extend(directory for part in (inner, *inner.parents) if (directory := mount / part).is_dir() and ".." not in part.parts)
    return found


def _cpu_quota(directory: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us, period_us = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# -- directories ----------------------------------------------------------------------------------------


def base_directory() -> Path:
    """`$SHOAL_TMPDIR` or `/tmp/shoal-UID`: made with mode 0700.

    Raises PermissionError when it is another user's or open to others, ValueError when its path is too long."""
    uid = os.geteuid()
    base = Path(os.environ.get("SHOAL_TMPDIR") or f"/tmp/shoal-{uid}").absolute()
    length = len(os.fsencode(base))
    if length + _BELOW_BASE_BYTES > MAX_PATH_BYTES:
        longest = MAX_PATH_BYTES - _BELOW_BASE_BYTES
        raise ValueError(f"{base} has {length} bytes; with more than {longest} the Unix sockets below it have no room: set SHOAL_TMPDIR to a shorter directory")
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = base.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != uid:
        raise PermissionError(f"{base} is no directory of uid {uid}: remove it, or set SHOAL_TMPDIR")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise PermissionError(f"{base} has mode {stat.S_IMODE(info.st_mode):04o}, others can reach the sockets in it: chmod 700 it, or set SHOAL_TMPDIR")
    return base


def node_directory(node_id: bytes, *, create: bool = True) -> Path:
    """`n-<first 12 hex of the node's id>` in the base directory, with `w/` and `logs/`."""
    path = base_directory() / f"n-{node_id.hex()[:12]}"
    if create:
        for directory in (path, path / "w", path / "logs"):
            directory.mkdir(mode=0o700, exist_ok=True)
    return path
