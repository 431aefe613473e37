"""The processes of a cluster that this one has started: their names, CPU time and memory, by the kernel's own count."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def started() -> list[int]:
    """All that this process has started, and what those have."""
    found = [os.getpid()]
    for one in found:
        with contextlib.suppress(OSError):  # it ended while it was looked at
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]


def name_of(pid: int) -> str:
    """Of which part of the cluster it is."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
    if name in ("shoal-zygote", "shoal-worker"):
        return "zygote and workers"
    return name.removeprefix("shoal-") if name.startswith("shoal-") else "supervisor"


def cpu_s(pid: int) -> float:
    """Of all its threads that live; `schedstat`, since the counters of `stat` round each short wake-up to a tick."""
    total_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def proportional_mib(pid: int) -> float:
    """Each page divided by those who share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
