"""What memory is in use: the node's, by control group or machine, and each process's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal_base.processes import V1_UNLIMITED, cgroup_directories

# Of a control group: used, limit, and what of it can be dropped; version 2, then 1.
_FILES = (("memory.current", "memory.max", "inactive_file"), ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"))
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Limit: of a process's name in a message.
_NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Bytes; `where` says whose they are: of the machine, or of a control group with a limit."""

    used: int
    total: int
    where: str

    @property
    def share(self) -> float:
        return self.used / self.total if self.total else 0.0


class NodeReader:
    """Reads what binds first: the machine, or a control group around this process. What can be dropped (clean file pages) counts as free."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._groups = cgroup_directories(root, "memory")

    def read(self) -> NodeUsage:
        """Raises OSError or ValueError where /proc does not tell."""
        fields = _fields(self._meminfo)
        total = fields["MemTotal"] << 10
        fullest = NodeUsage(total - (fields["MemAvailable"] << 10), total, "the machine")
        for directory in self._groups:
            usage = _group_usage(directory)
            if usage is not None and usage.share > fullest.share and usage.total < total:
                fullest = usage
        return fullest


def _group_usage(directory: Path) -> NodeUsage | None:
    """None: it has no limit, or tells nothing."""
    for usage, limit, droppable in _FILES:
        with contextlib.suppress(OSError, ValueError):
            allowed = int((directory / limit).read_text())  # "max" is no number
            if allowed >= V1_UNLIMITED:
                return None
            used = int((directory / usage).read_text()) - _fields(directory / "memory.stat").get(droppable, 0)
            return NodeUsage(max(0, used), allowed, f"the control group {directory}")
    return None


def _fields(path: Path) -> dict[str, int]:
    """Lines of `name: number` or `name number`."""
    out: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.replace(":", " ").partition(" ")
        value = rest.split()
        if value and value[0].isdigit():
            out[name] = int(value[0])
    return out


def anonymous_bytes(pid: int) -> int:
    """A process's memory that is no file and not the shared arena, also in swap; what it shares with the process it was forked from is counted. 0 when it
    has gone."""
    try:
        fields = _fields(Path(f"/proc/{pid}/status"))
    except (OSError, ValueError):
        return 0
    return (fields.get("RssAnon", 0) + fields.get("VmSwap", 0)) << 10


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def proportional_bytes(pids: Iterable[int]) -> int:
    """Like `anonymous_bytes` of all of them, a page that several share counted once. It takes the kernel 40 ms and more for each GB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
            total += fields.get("Pss_Anon", 0) + fields.get("SwapPss", 0)
    return total << 10


def largest_processes(count: int) -> list[tuple[int, str, int]]:
    """(pid, name, bytes of its own) of the processes on this machine that hold most, whoever they belong to."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = Path(f"/proc/{entry}/statm").read_text().split()
            found.append((max(0, int(pages[1]) - int(pages[2])) * _PAGE, int(entry)))
    found.sort(reverse=True)
    return [(pid, process_name(pid), size) for size, pid in found[:count]]


def process_name(pid: int) -> str:
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return (line or Path(f"/proc/{pid}/comm").read_text().strip())[:_NAME_CHARACTERS]
    return "?"


def show_bytes(size: float) -> str:
    """
    >>> show_bytes(300 << 20), show_bytes(5 << 30), show_bytes(1000)
    ('300 MiB', '5.0 GiB', '1000 B')
    """
    if size >= 1 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / (1 << 20):.0f} MiB" if size >= 1 << 20 else f"{size:.0f} B"
