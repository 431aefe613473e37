"""A million tasks from one driver: how fast they queue, what each costs while it waits, how answerable the driver stays, and how fast they end.

    python benchmarks/million.py                         # 1,000,000
    python benchmarks/million.py --tasks 100000
    python benchmarks/million.py --each                  # also the slowest call of all, in CPU time; asking for it slows the others down
    python benchmarks/million.py --peer PYTHON           # the same with Ray, in the environment of that interpreter

Until all are queued, tasks that wait for a file hold every CPU, so that queueing is measured alone. Then a signal is sent and `wait` is called, and their
latencies noted; then the CPUs come free, and the rate is that of all tasks to their last result.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CPUS = 4
TIMEOUT_S = 3600.0
MARK = "FIGURES "


def give(number: int) -> int:
    return number


def hold(path: str, number: int) -> None:
    Path(f"{path}.{number}").touch()
    while not os.path.exists(path):
        time.sleep(0.01)


def private_bytes() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Anonymous:"))


def timed(remote: Any, numbers: range, slowest: list[float]) -> list[Any]:
    """Submits, and notes the longest that one call kept this thread busy: another program on its core is not counted."""
    refs = []
    before = time.thread_time()
    for number in numbers:
        refs.append(remote.remote(number))
        now = time.thread_time()
        slowest[0] = max(slowest[0], now - before)
        before = now
    return refs


def inside(name: str, tasks: int, each: bool) -> dict[str, float]:
    """In the engine's own interpreter."""
    core: Any = importlib.import_module(name)
    core.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    remote, held = core.remote(give), core.remote(hold)
    with tempfile.TemporaryDirectory() as folder:
        gate = os.path.join(folder, "go")
        holders = [held.remote(gate, number) for number in range(CPUS)]
        while not all(os.path.exists(f"{gate}.{number}") for number in range(CPUS)):
            time.sleep(0.01)
        [remote.remote(0) for _ in range(1000)]
        before, begin = private_bytes(), time.perf_counter()
        refs: list[Any] = []
        slowest, call = 0.0, [0.0]
        for _ in range(20):
            began = time.perf_counter()
            numbers = range(tasks // 20)
            refs += timed(remote, numbers, call) if each else [remote.remote(number) for number in numbers]
            slowest = max(slowest, (time.perf_counter() - began) / (tasks // 20))
        queued_s = time.perf_counter() - begin
        bytes_each = (private_bytes() - before) / tasks
        begin = time.perf_counter()
        core.wait(refs[:1000], timeout=0)
        waited_s = time.perf_counter() - begin
        sent = time.perf_counter()
        heard_s = float("nan")
        try:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            core.get(refs)
        except KeyboardInterrupt:
            heard_s = time.perf_counter() - sent - 0.5
        begin = time.perf_counter()
        Path(gate).touch()
        core.get(holders)
        for first in range(0, tasks, 10_000):
            core.get(refs[first : first + 10_000])
        finished_s = time.perf_counter() - begin
    core.shutdown()
    return {
        **({"slowest call, ms of CPU": call[0] * 1e3} if each else {}),
        "queued, per s": tasks / queued_s, "queued, slowest twentieth, per s": 1 / slowest, "bytes of the driver each": bytes_each,
        "wait of 1000, ms": waited_s * 1e3, "a signal in get(), ms": heard_s * 1e3, "finished, per s": tasks / finished_s,
    }  # fmt: skip


def measured(python: str, name: str, tasks: int, each: bool) -> dict[str, float]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--inside", name, "--tasks", str(tasks), *(["--each"] if each else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            figures: dict[str, float] = json.loads(line[len(MARK) :])
            return figures
    raise SystemExit(f"{name} in {python} ended with {done.returncode}:\n{done.stdout[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--each", action="store_true", help="time each call")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter whose environment has Ray")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(MARK + json.dumps(inside(given.inside, given.tasks, given.each)))
        return
    print(f"{given.tasks:,} tasks, load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    figures = {"shoal": measured(sys.executable, "shoal", given.tasks, given.each)}
    if given.peer:
        figures["ray"] = measured(given.peer, "ray", given.tasks, given.each)
    for name in figures["shoal"]:
        print(f"{name:<36}" + "".join(f"{found[name]:>14,.1f}" for found in figures.values()))
    if given.json is not None:
        given.json.write_text(json.dumps({"tasks": given.tasks, "load_1_min": os.getloadavg()[0], **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
