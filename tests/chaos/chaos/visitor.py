"""A driver that is stopped or killed: it has actors, tasks that never end, and objects.

`python -m chaos.visitor ADDRESS DETACHED` says what it has, and answers each line it reads with a round of puts and gets. What it leaves behind must be
nothing but the detached actor of that name.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import shoal

from chaos.probe import NAME

BOUND_S = 90.0
LARGE = 4 << 20
COUNT = 6


# Retried: what is under way may meet another fault.
@shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Kept:
    def pid(self) -> int:
        return os.getpid()

    def answer(self) -> int:
        return 1


@shoal.remote(num_cpus=0, max_retries=-1)
def endless(began: Any) -> None:
    shoal.get(began.answer.remote(), timeout=BOUND_S)
    while True:
        time.sleep(1.0)


def tell(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def once() -> bool:
    """Puts, and gets in another order."""
    refs = [shoal.put(np.full(LARGE // 8, n)) for n in range(COUNT)]
    return all(int(shoal.get(refs[n], timeout=BOUND_S).sum()) == n * (LARGE // 8) for n in reversed(range(COUNT)))


def main() -> None:
    address, name = sys.argv[1:3]
    shoal.init(address=address, namespace=NAME, log_to_driver=False)
    detached = Kept.options(name=name, lifetime="detached").remote()
    actors = [Kept.remote() for _ in range(2)]
    pids = shoal.get([actor.pid.remote() for actor in actors], timeout=BOUND_S)
    shoal.get(detached.pid.remote(), timeout=BOUND_S)
    waiting = endless.remote(actors[0])
    kept = [shoal.put(np.full(LARGE // 8, n)) for n in range(COUNT)]
    tell(ready=True, job=shoal.get_runtime_context().get_job_id(), pids=pids)
    for line in sys.stdin:
        if line.strip() == "round":
            began = time.monotonic()
            tell(right=once(), began=began, at=time.monotonic())
    del waiting, kept
    shoal.shutdown()


if __name__ == "__main__":
    main()
