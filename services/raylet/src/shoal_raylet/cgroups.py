"""Control groups with a hard memory limit, one for each worker whose tasks have `memory=`. cgroup v2 and v1, where this process may make groups."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

import msgspec
from shoal_base.processes import cgroup_directories

# Names this node's group in its directory, so that whoever removes the directory removes the group.
NAME_FILE = "cgroup"


class _Files(msgspec.Struct, frozen=True):
    version: int
    limit: str
    peak: str
    kills: str  # has a line `oom_kill N`
    swap: str
    swap_is_sum: bool  # the limit of memory and swap together


_V1 = _Files(1, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "memory.memsw.limit_in_bytes", True)
_V2 = _Files(2, "memory.max", "memory.peak", "memory.events", "memory.swap.max", False)


class GroupsRefused(Exception):
    """No group with a memory limit can be made here; the text says why."""


class Group:
    """One worker's."""

    def __init__(self, path: Path, files: _Files, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._files = files

    def fill(self, pid: int) -> None:
        """Makes the group, with its limit, and moves a process into it. Raises OSError; then nothing is left of it."""
        self.path.mkdir()
        try:
            (self.path / self._files.limit).write_text(str(self.limit))
            with contextlib.suppress(OSError):  # without swap accounting, and without swap, there is none
                (self.path / self._files.swap).write_text(str(self.limit if self._files.swap_is_sum else 0))
            if self._files.version == 2:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / "memory.oom.group").write_text("1")  # the worker and what it started end together
            (self.path / "cgroup.procs").write_text(str(pid))
        except OSError:
            self.remove()
            raise

    def kills(self) -> int:
        """How many processes of it the kernel has ended for want of memory."""
        with contextlib.suppress(OSError, ValueError, StopIteration):
            text = (self.path / self._files.kills).read_text()
            return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
        return 0

    def peak(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.path / self._files.peak).read_text())
        return self.limit  # kernels before 5.19 do not tell; who was ended had reached it

    def remove(self) -> bool:
        """Ends what is left in it. False: that is not gone yet, try again."""
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, (self.path / "cgroup.procs").read_text().split()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        return remove_directory(self.path)


def remove_directory(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


class MemoryGroups:
    """This node's group below the one that the raylet is in, or below `parent`; made when the first worker needs it."""

    def __init__(self, name: str, node_dir: Path, parent: str = "", root: Path = Path("/")) -> None:
        self._name = name
        self._node_dir = node_dir
        self._parent = Path(parent) if parent else None
        self._root = root
        self._base: Path | None = None
        self._files = _V1

    def make(self, pid: int, worker_id: bytes, limit: int) -> Group:
        """Moves a worker into a group of its own. Raises GroupsRefused (never here), OSError (not this time)."""
        if self._base is None:
            self._base = self._open()
        group = Group(self._base / worker_id.hex()[:12], self._files, limit)
        group.fill(pid)
        return group

    def _open(self) -> Path:
        parent, self._files = self._find()
        base = parent / f"shoal-{self._name}"
        try:
            if self._files is _V2:
                _pass_on(parent)
            (self._node_dir / NAME_FILE).write_text(f"{base}\n")
            base.mkdir()
            if self._files is _V2:
                _pass_on(base)
        except OSError as error:
            remove_directory(base)
            (self._node_dir / NAME_FILE).unlink(missing_ok=True)
            hint = "; a group that has processes of its own cannot have limited ones below it" if error.errno == errno.EBUSY else ""
            raise GroupsRefused(f"{error.strerror or error} at {parent}{hint}") from error
        return base

    def _find(self) -> tuple[Path, _Files]:
        for directory in [self._parent] if self._parent else cgroup_directories(self._root, "memory"):
            if (directory / _V1.limit).exists():
                return directory, _V1
            with contextlib.suppress(OSError):
                if "memory" in (directory / "cgroup.controllers").read_text().split():
                    return directory, _V2
        raise GroupsRefused(f"{self._parent} has no memory controller" if self._parent else "this machine has no control group with a memory controller")

    def close(self) -> bool:
        """False: a worker's group is still there, try again."""
        if self._base is None:
            return True
        if not remove_directory(self._base):
            return False
        (self._node_dir / NAME_FILE).unlink(missing_ok=True)
        self._base = None
        return True


def _pass_on(directory: Path) -> None:
    """Groups below a v2 group may have memory limits."""
    control = directory / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
