"""What memory is in use: the node's, by control group or machine, and each process's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal_base.processes import V1_UNLIMITED, cgroup_directories

# Of a control group: used, limit, and what of it can be dropped; version 2, then 1.
_FILES = (("memory.current", "memory.max", "inactive_file"), ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"))
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Limit: of a process's name in a message.
_NAME_CHARACTERS = 60
# Limit: of a file that the kernel tells such things in; the largest, memory.stat, has some 2 KiB.
_MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Bytes; `where` says whose they are: of the machine, or of a control group with a limit. `tightest`: used and total of whichever of them has least left,
    what could be dropped counted as used."""

    used: int
    total: int
    where: str
    tightest: tuple[int, int] = field(default=(0, 0), compare=False)

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
        fields = _fields(self._meminfo, ("MemTotal", "MemAvailable"))
        total = fields["MemTotal"] << 10
        fullest = NodeUsage(total - (fields["MemAvailable"] << 10), total, "the machine")
        tightest = (fullest.used, total)
        for directory in self._groups:
            group = _Group.read(directory)
            if group is None or group.limit >= total:
                continue
            tightest = max(tightest, (group.used, group.limit), key=lambda one: one[0] - one[1])
            # What it could drop takes the kernel longer to tell than all the rest: asked for only where it can matter.
            if group.used > fullest.share * group.limit:
                with contextlib.suppress(OSError, ValueError):
                    fullest = max(fullest, group.usage(), key=lambda one: one.share)
        return replace(fullest, tightest=tightest)


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group with a limit; `used` with what it could drop."""

    directory: Path
    used: int
    limit: int
    droppable: str

    @staticmethod
    def read(directory: Path) -> _Group | None:
        """None: it has no limit, or tells nothing."""
        for usage, limit, droppable in _FILES:
            with contextlib.suppress(OSError, ValueError):
                allowed = int(_text(directory / limit))  # "max" is no number
                return None if allowed >= V1_UNLIMITED else _Group(directory, int(_text(directory / usage)), allowed, droppable)
        return None

    def usage(self) -> NodeUsage:
        """Raises OSError or ValueError."""
        droppable = _fields(self.directory / "memory.stat", (self.droppable,)).get(self.droppable, 0)
        return NodeUsage(max(0, self.used - droppable), self.limit, f"the control group {self.directory}")


def _text(path: Path) -> str:
    """A small file of the kernel, in three calls of it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MOST_BYTES).decode()
    finally:
        os.close(fd)


def _fields(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Lines of `name: number` or `name number`, those that are named."""
    out: dict[str, int] = {}
    text = "\n" + _text(path)
    for name in names:
        _, _, rest = text.partition(f"\n{name}")
        value = rest.partition("\n")[0].lstrip(":").split()
        if value and value[0].isdigit():
            out[name] = int(value[0])
    return out


def anonymous_bytes(pid: int) -> int:
    """A process's memory that is no file and not the shared arena, also in swap; what it shares with the process it was forked from is counted. 0 when it
    has gone."""
    try:
        fields = _fields(Path(f"/proc/{pid}/status"), ("RssAnon", "VmSwap"))
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
            fields = _fields(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon", "SwapPss"))
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
