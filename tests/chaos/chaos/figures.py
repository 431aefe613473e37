"""`python -m chaos.figures`: how soon each fault is noticed and work goes on, and what the loss of one of three nodes costs; for docs/recovery.md.

Every fault is done `--runs` times, one at a time, under the workload whose answers are known; a wrong answer ends it with 1. As root.
"""

from __future__ import annotations

import argparse
import bisect
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .faults import FAULTS, kinds
from .machines import HEAD, HOME, RECORDS, STANDBY, VICTIMS, Machines, wait_until
from .network import Network
from .program import Program
from .run import Report, Run
from .schedule import each

# What fails, the fault that is done, its bound by default, and how one reads the second figure.
ROWS = [
    ("a worker process", "worker killed", "noticed in 0.1 s", "a task on its node"),
    ("a node's raylet", "raylet killed", "at once", "a task that ran there, elsewhere"),
    ("a node, its host answers", "node killed", "at once", "a task that ran there, elsewhere"),
    ("a node, its host is silent", "host lost", "about 12 s", "a task that ran there, elsewhere"),
    ("the object store's process", "store killed", "1 s", "a put and a get there"),
    ("the control store, restarted", "control store killed", "2 s", "a call of an actor found by name"),
    ("a head's machine, with a standby", "head lost", "5 s", "a call of an actor found by name"),
    ("the network of a node", "partition", "about 12 s", "a task that ran there, elsewhere"),
    ("the disk is full (nothing is noticed)", "disk full", "at once", "a put and a get there, once there is room"),
    ("memory is short", "memory short", "1 s", "the ended task's next try has ended"),
    ("the driver, in the middle of puts", "driver killed", "5 s", "a detached actor of its answers"),
    ("the driver is stopped for 15 to 30 s", "driver stopped", "-", "a detached actor of its answers, once it goes on"),
]
THROUGHPUT = "throughput"
# Of each fault, to one cluster.
BATCH = 3


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def machines_of(numbers: list[int], lease_s: float) -> Iterator[Machines]:
    network = Network(numbers, 1)
    try:
        machines = Machines(network, lease_s=lease_s)
        try:
            yield machines
        finally:
            machines.close()
    finally:
        network.close()


def measure(runs: int, names: list[str], lease_s: float, *, standby: bool) -> Report:
    """A new cluster now and then: a supervisor takes more and more time for a service that ends again and again."""
    report = Report(1)
    for first in range(0, runs, BATCH):
        some = measure_some(min(BATCH, runs - first), names, lease_s, standby=standby)
        report.outcomes += some.outcomes
        report.failures += some.failures
    return report


def measure_some(runs: int, names: list[str], lease_s: float, *, standby: bool) -> Report:
    chosen = kinds(lease_s, names, standby=standby)
    everyone = [HEAD, HOME, *VICTIMS]
    events = each(1, runs, chosen, {"head": [HEAD], "home": [HOME], "any": list(VICTIMS), "victim": list(VICTIMS)})
    with machines_of([*everyone, *((STANDBY, RECORDS) if standby else ())], lease_s) as machines:
        run = Run(machines, 1, say)
        try:
            run.play(events, one_at_a_time=True)
            return run.finish()
        finally:
            run.close()


def table(reports: list[Report]) -> str:
    lines = ["| what fails | bound | times | noticed, s: median, worst | goes on, s: median, worst | what goes on |", "| --- | --- | --- | --- | --- | --- |"]
    for what, name, bound, goes_on in ROWS:
        mine = [one for report in reports for one in report.outcomes if one.event.kind == name and not one.skipped and not one.failure]
        if mine:
            noticed = spread([one.noticed_s for one in mine if one.noticed_s is not None])
            lines.append(f"| {what} | {bound} | {len(mine)} | {noticed} | {spread([one.recovered_s or 0.0 for one in mine])} | {goes_on} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "-"


# -- throughput over the loss of one of three nodes ----------------------------------------------------------------------


def rate(rows: list[tuple[float, int]], start: float, end: float) -> float:
    """Tasks a second in that time. `rows`: (when, how many had ended by then)."""
    times = [when for when, _ in rows]
    first, last = rows[bisect.bisect_left(times, start)], rows[min(bisect.bisect_left(times, end), len(rows) - 1)]
    return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else 0.0


def worst(rows: list[tuple[float, int]], start: float, end: float, width_s: float = 1.0) -> float:
    return min(rate(rows, when, when + width_s) for when, _ in rows if start <= when <= end - width_s)


def throughput(fault_name: str, lease_s: float, before_s: float = 6.0) -> str:
    """A row: before, during and after."""
    lost = VICTIMS[0]
    during_s, after_s = (1.5 * lease_s, 6.0) if fault_name == "host lost" else (3.0, 6.0)
    rows: list[tuple[float, int]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append((row["at"], row["done"]))

    with machines_of([HEAD, HOME, lost], lease_s) as machines:
        flow = Program(machines, HOME, "flow", [machines.gcs_address], note)
        time.sleep(before_s)
        event = each(1, 1, kinds(lease_s, [fault_name]), {"victim": [lost]})[0]
        fault = FAULTS[fault_name](machines, event)
        at = time.monotonic()
        fault.begin()
        wait_until(lambda: rows and rows[-1][0] > at + during_s + after_s, "the tasks to go on", 60.0)
        status = flow.end()
        if status != 0:
            raise RuntimeError(f"the tasks' driver ended with {status}: {flow.words()}")
    before, after = rate(rows, at - before_s + 1, at), rate(rows, at + during_s, at + during_s + after_s)
    low, during = worst(rows, at, at + during_s), rate(rows, at, at + during_s)
    return f"| {fault_name} | {before:.0f} | {low:.0f} | {during:.0f} in {during_s:g} s | {after:.0f} |"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left
    parser = argparse.ArgumentParser(prog="python -m chaos.figures", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="of each fault (default 50)")
    parser.add_argument("--lease-s", type=float, default=10.0, help="a node that is silent for so long is dead (default 10)")
    parser.add_argument("--kinds", default="", help=f"only these, separated by semicolons, of: {'; '.join([*(row[1] for row in ROWS), THROUGHPUT])}")
    given = parser.parse_args()
    known = [*(name for _, name, _, _ in ROWS), THROUGHPUT]
    wanted = [name.strip() for name in given.kinds.split(";") if name.strip()] or known
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"there is no figure {unknown[0]!r}")
    names = [name for name in wanted if name != THROUGHPUT]
    alone = [name for name in names if not FAULTS[name].needs_standby]
    reports = [measure(given.runs, alone, given.lease_s, standby=False)] if alone else []
    if len(alone) < len(names):
        reports.append(measure(given.runs, [name for name in names if FAULTS[name].needs_standby], given.lease_s, standby=True))
    if reports:
        print(table(reports))
    if THROUGHPUT in wanted:
        print("\n| one of three nodes | tasks/s before | worst second | during | after |\n| --- | --- | --- | --- | --- |")
        for name in ("node killed", "host lost"):
            print(throughput(name, given.lease_s), flush=True)
    failures = [failure for report in reports for failure in report.failures]
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
