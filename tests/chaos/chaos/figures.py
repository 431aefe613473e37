"""`python -m chaos.figures`: how soon each fault is noticed and work goes on, and what the loss of one of three nodes costs; for docs/recovery.md.

Every fault is done `--runs` times, one at a time to a cluster, several clusters side by side, under the workload whose answers are known; a wrong
answer ends it with 1. Interrupted, it prints what it has. As root.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .faults import FAULTS, kinds
from .machines import HEAD, HOME, RECORDS, STANDBY, VICTIMS, Machines, wait_until
from .network import Network
from .program import Program
from .run import Run, keep
from .schedule import Event, each

# What fails, the fault that is done, its bound by default, and how one reads the second figure.
# In an order in which a long one follows a short one.
ROWS = [
    ("a worker process", "worker killed", "noticed in 0.1 s", "a task on its node"),
    ("a worker stopped for 15 to 18 s", "worker stopped, long", "-", "a task on its node, after it"),
    ("a node's raylet", "raylet killed", "at once", "a task that ran there, elsewhere"),
    ("a node's raylet, stopped", "raylet stopped", "about 12 s", "a task that ran there, elsewhere"),
    ("a node, its host answers", "node killed", "at once", "a task that ran there, elsewhere"),
    ("a node, its host is silent", "host lost", "about 12 s", "a task that ran there, elsewhere"),
    ("the object store's process", "store killed", "1 s", "a put and a get there"),
    ("the network of a node", "partition", "about 12 s", "a task that ran there, elsewhere"),
    ("the control store, restarted", "control store killed", "2 s", "a call of an actor found by name"),
    ("the network of a node, in one direction", "partition one way", "about 12 s", "a task that ran there, elsewhere"),
    ("the disk is full", "disk full", "at once", "a put and a get there, once there is room"),
    ("the arena is full", "arena full", "30 s of waiting", "a put and a get there, once room is given back"),
    ("a client, in a put that waits, the arena in its hands", "client killed", "1 s", "a put and a get there"),
    ("memory is short", "memory short", "1 s", "the ended task's next try has ended"),
    ("the driver, in the middle of puts", "driver killed", "5 s", "a detached actor of its answers"),
    ("a driver stopped for 15 to 18 s", "driver stopped", "-", "a detached actor of its answers, once it goes on"),
    ("a head's machine, with a standby", "head lost", "5 s", "a call of an actor found by name"),
]
THROUGHPUT = "throughput"
# A supervisor takes more and more time for a service that ends again within less; what counts here is the first time.
STEADY_S = 61.0
# The workload's: several clusters share the processors.
THREADS, PAUSE_S = 1, 1.0
# So many kinds later begins the next cluster.
ROTATED = 3


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


# -- each fault: several clusters side by side, a process for each ---------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What one cluster does: every kind so many times, one at a time."""

    number: int
    rounds: int
    names: list[str]
    lease_s: float
    standby: bool


@dataclass(frozen=True)
class Row:
    kind: str
    noticed_s: float | None
    recovered_s: float


def events_of(part: Part) -> list[Event]:
    """In the same order each round, so that no service is killed again soon after; each cluster in another one. What lasts does so no longer than it must."""
    chance = random.Random(f"figures {part.number}")
    on = {"head": [HEAD], "home": [HOME], "any": [HEAD, HOME, *VICTIMS], "victim": list(VICTIMS)}
    found = {kind.name: kind for kind in kinds(part.lease_s, part.names, standby=part.standby)}
    first = ROTATED * part.number % len(part.names)
    events: list[Event] = []
    for _ in range(part.rounds):
        for name in part.names[first:] + part.names[:first]:
            least, most = found[name].lasts_s
            lasts = round(chance.uniform(least, min(most, 1.2 * least)), 2)
            events.append(Event(len(events) + 1, 0.0, name, chance.choice(on[found[name].on]), lasts, chance.randrange(1 << 16)))
    return events


def do(part: Part, note: Callable[[Row], None]) -> list[str]:
    """What was wrong."""
    killed: dict[tuple[str, int], float] = {}
    with machines_of([HEAD, HOME, *VICTIMS, *((STANDBY, RECORDS) if part.standby else ())], part.lease_s) as machines:
        run = Run(machines, part.number, lambda text: say(f"[{part.number}] {text}"), briefly=True, threads=THREADS, pause_s=PAUSE_S)
        try:
            for event in events_of(part):
                if run.given_up():
                    break
                if event.kind in ("store killed", "control store killed"):
                    before = killed.get((event.kind, event.machine), -STEADY_S)
                    time.sleep(max(0.0, before + STEADY_S - time.monotonic()))
                    killed[event.kind, event.machine] = time.monotonic()
                wait_until(machines.is_whole, "every machine's node to be counted")
                run.prober.at(run.prober.ask("task", machines.all[event.machine].name))  # not what a node that has just come back needs to be ready
                outcome = run.one(event)
                if not outcome.skipped and not outcome.failure:
                    note(Row(event.kind, outcome.noticed_s, outcome.recovered_s or 0.0))
            place = Path(tempfile.gettempdir()) / f"chaos-figures-{part.number}-{os.getpid()}"

            def post_mortem() -> None:
                place.mkdir()
                say(f"[{part.number}] logs and ledgers are in {keep(machines, run.report, place)}")

            return run.finish(post_mortem).failures
        finally:
            run.close()


def do_apart(part: Part, note: Callable[[Row], None]) -> list[str]:
    """In a process of its own, which ends with this one."""
    command = [sys.executable, "-m", "chaos.figures", "--part", json.dumps(asdict(part))]
    failures: list[str] | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        PARTS.append(process)
        for line in process.stdout:
            row = json.loads(line)
            if "failures" in row:
                failures = row["failures"]
            else:
                note(Row(**row))
    return [f"the process for part {part.number} ended with {process.returncode}"] if failures is None else failures


PARTS: list[subprocess.Popen[str]] = []


def parts(runs: int, names: list[str], lease_s: float, side_by_side: int) -> list[Part]:
    """Those of one cluster, then those with a standby, whose machine is lost: each set dealt to so many clusters."""
    found: list[Part] = []
    for standby in (False, True):
        mine = [name for name in names if FAULTS[name].needs_standby is standby]
        count = min(runs, side_by_side) if mine else 0
        for index in range(count):
            found.append(Part(len(found) + 1, runs // count + (index < runs % count), mine, lease_s, standby))
    return found


def measure(todo: list[Part], side_by_side: int) -> tuple[list[Row], list[str]]:
    """Rows, and what was wrong; of what was done by then, when it is interrupted."""
    rows: list[Row] = []
    failures: list[str] = []
    threads = ThreadPoolExecutor(side_by_side)
    try:
        for done in as_completed([threads.submit(do_apart, part, rows.append) for part in todo]):
            failures += done.result()
    except (KeyboardInterrupt, SystemExit):
        failures.append("interrupted")
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in PARTS:
            process.terminate()
        for process in PARTS:
            process.wait()
    return rows, failures


def table(rows: list[Row]) -> str:
    lines = ["| what fails | bound | times | noticed, s: median, worst | goes on, s: median, worst | what goes on |", "| --- | --- | --- | --- | --- | --- |"]
    for what, name, bound, goes_on in ROWS:
        mine = [row for row in rows if row.kind == name]
        if mine:
            noticed = spread([row.noticed_s for row in mine if row.noticed_s is not None])
            lines.append(f"| {what} | {bound} | {len(mine)} | {noticed} | {spread([row.recovered_s for row in mine])} | {goes_on} |")
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
    parser.add_argument("--side-by-side", type=int, default=4, help="so many clusters at a time (default 4)")
    parser.add_argument("--lease-s", type=float, default=10.0, help="a node that is silent for so long is dead (default 10)")
    parser.add_argument("--kinds", default="", help=f"only these, separated by semicolons, of: {'; '.join([*(row[1] for row in ROWS), THROUGHPUT])}")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        failures = do(Part(**json.loads(given.part)), lambda row: print(json.dumps(asdict(row)), flush=True))
        print(json.dumps({"failures": failures}), flush=True)
        return 0
    known = [*(name for _, name, _, _ in ROWS), THROUGHPUT]
    wanted = [name.strip() for name in given.kinds.split(";") if name.strip()] or known
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"there is no figure {unknown[0]!r}")
    rows, failures = measure(parts(given.runs, [name for name in wanted if name != THROUGHPUT], given.lease_s, given.side_by_side), given.side_by_side)
    if rows:
        print(table(rows), flush=True)
    if THROUGHPUT in wanted and not failures:
        print("\n| one of three nodes | tasks/s before | worst second | during | after |\n| --- | --- | --- | --- | --- |")
        for name in ("node killed", "host lost"):
            print(throughput(name, given.lease_s), flush=True)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
