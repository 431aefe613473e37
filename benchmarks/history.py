"""What a cluster remembers of ten million tasks: the memory of each kind of process after the first tenth and after the last.

    python benchmarks/history.py                     # 10,000,000: some two minutes
    python benchmarks/history.py --tasks 1000000

Every hundredth task fails, since failures are kept longer than the rest. MiB, each page divided by those who share it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter

import processes
import shoal

BATCH = 10_000
MARKS = 10
TIMEOUT_S = 300.0
SETTLE_S = 3.0  # failures are reported once a second


@shoal.remote(max_retries=0)
def nothing(fails: bool) -> None:
    if fails:
        raise ValueError("on purpose")


def run(count: int) -> None:
    refs = [nothing.remote(n % 100 == 0) for n in range(count)]
    shoal.wait(refs, num_returns=count, timeout=TIMEOUT_S)


def memory() -> Counter[str]:
    found = Counter({"driver": processes.proportional_mib(os.getpid())})
    for pid in processes.started():
        found[processes.name_of(pid)] += processes.proportional_mib(pid)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000_000)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    shoal.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        for mark in range(1, MARKS + 1):
            begun = time.perf_counter()
            for _ in range(given.tasks // MARKS // BATCH):
                run(BATCH)
            rate = given.tasks / MARKS / (time.perf_counter() - begun)
            time.sleep(SETTLE_S)
            row = memory()
            listed = "  ".join(f"{name} {row[name]:.1f}" for name in sorted(row))
            print(f"{given.tasks // MARKS * mark:>12,} tasks, {rate:9,.0f}/s   {listed}", flush=True)
    finally:
        shoal.shutdown()


if __name__ == "__main__":
    main()
