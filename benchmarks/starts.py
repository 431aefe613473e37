"""What a start, a first task and an actor's life cost: CPU time by process, which other programs on the machine hardly change.

    python benchmarks/starts.py                  # one start, then 5 times 20 actors
    python benchmarks/starts.py --actors 200 --rounds 1

Each number is milliseconds of CPU of all threads, by the kernel's own count (`schedstat`); workers that have ended are counted by their zygote, which the
kernel tells in steps of 10 ms for all of them together. The clock's figures are printed beside them, and mean something on an idle machine alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import Counter
from pathlib import Path

import processes
import shoal

SETTLE_S = 1.5
END_S = 1.0
TIMEOUT_S = 60.0
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@shoal.remote
def nothing() -> None:
    pass


@shoal.remote
class Idle:
    def nothing(self) -> None:
        pass


def ended_ms(pid: int) -> float:
    """Of its children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * _TICK_MS


def spent() -> Counter[str]:
    """Milliseconds so far, by kind of process."""
    found: Counter[str] = Counter()
    for pid in [os.getpid(), *processes.started()]:
        with contextlib.suppress(OSError):  # it ended while it was looked at
            name = "driver" if pid == os.getpid() else processes.name_of(pid)
            found[name] += 1000 * processes.cpu_s(pid)  # type: ignore[assignment]
            if Path(f"/proc/{pid}/comm").read_text().strip() == "shoal-zygote":
                found[name] += ended_ms(pid)  # type: ignore[assignment]
    return found


def show(what: str, before: Counter[str], after: Counter[str], count: int = 1) -> None:
    parts = {name: (after[name] - before[name]) / count for name in sorted(after)}
    listed = "  ".join(f"{name} {ms:.1f}" for name, ms in parts.items() if abs(ms) >= 0.05)
    print(f"{what:34} {sum(parts.values()):7.1f}   {listed}", flush=True)


def lives(count: int) -> tuple[Counter[str], Counter[str], Counter[str], float]:
    """Counts before, with all created and called, and after they have ended; actors a second."""
    before, began = spent(), time.perf_counter()
    actors = [Idle.remote() for _ in range(count)]  # type: ignore[attr-defined]
    shoal.get([actor.nothing.remote() for actor in actors], timeout=TIMEOUT_S)
    rate = count / (time.perf_counter() - began)
    created = spent()
    del actors
    time.sleep(END_S)
    return before, created, spent(), rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPUs; milliseconds of CPU: all, then by process")
    begun, clock = spent(), time.perf_counter()
    shoal.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    ready, ready_s = spent(), time.perf_counter() - clock
    shoal.get(nothing.remote(), timeout=TIMEOUT_S)
    ran, ran_s = spent(), time.perf_counter() - clock
    show(f"init(), {ready_s:.3f} s", begun, ready)
    show(f"first task, {ran_s - ready_s:.3f} s", ready, ran)
    time.sleep(SETTLE_S)
    for _ in range(given.rounds):
        before, created, ended, rate = lives(given.actors)
        show(f"an actor, created and called {rate:4.0f}/s", before, created, given.actors)
        show("its end", created, ended, given.actors)
    shoal.shutdown()


if __name__ == "__main__":
    main()
