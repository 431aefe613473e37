"""The program that runs while things break: rounds of work whose answers are known, in some threads, until it is told to stop.

`python -m chaos.workload SEED LEDGERS ADDRESS THREADS PAUSE_S` says a line of JSON for each round that ended, and reads commands, a line each:
`stop` (no new rounds; `{"stopped": ...}` when the last one has ended and everything was dropped) and `end`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shoal
from shoal.exceptions import ObjectStoreFullError, OutOfDiskError, RayActorError

from chaos.ledger import Calls, broken_promises, write

# Longer than anything may take: who waits so long waits for ever.
WAIT_S = 150.0
MIB = 1 << 20
PART = 50_000  # numbers in a part of the shuffle: 400 KB
LARGE = 8 * MIB
# A call's answer when the runtime says that it may have run or not.
UNKNOWN = (RayActorError,)
# What a full disk is called: nothing is wrong, and nothing was computed.
NO_ROOM = (OutOfDiskError, ObjectStoreFullError)


class Wrong(AssertionError):
    """The answer is not the one that it must be."""


def check(got: Any, wanted: Any, what: str) -> None:
    if got != wanted:
        raise Wrong(f"{what}: {got!r} came, and it must be {wanted!r}")


# -- what runs on the cluster ------------------------------------------------------------------------------------------


@shoal.remote(max_retries=-1)
def square(x: int, s: float) -> int:
    time.sleep(s)
    return x * x


@shoal.remote(max_retries=-1)
def tree(depth: int, width: int) -> int:
    """How many leaves it has, counted by tasks of its own."""
    if depth == 0:
        return 1
    return sum(shoal.get([tree.remote(depth - 1, width) for _ in range(width)], timeout=WAIT_S))


@shoal.remote(max_retries=-1)
def split(seed: int, ways: int) -> Any:
    numbers = np.random.default_rng(seed).integers(0, 1 << 30, PART * ways)
    parts = [numbers[numbers % ways == way] for way in range(ways)]
    return parts if ways > 1 else parts[0]


@shoal.remote(max_retries=-1)
def merge(*parts: Any) -> tuple[int, int]:
    return sum(len(part) for part in parts), int(sum(part.sum() for part in parts))


@shoal.remote(max_retries=-1)
def large(n: int) -> Any:
    return np.full(LARGE // 8, n, dtype=np.int64)


@shoal.remote(max_retries=-1)
def total(array: Any) -> int:
    return int(array.sum())


@shoal.remote(max_retries=-1)
def items(n: int) -> Iterator[Any]:
    for i in range(n):
        yield np.full(20_000, i)


@shoal.remote(max_retries=-1)
def passed_on(refs: list[Any]) -> list[Any]:
    return refs


@shoal.remote(num_cpus=0, max_restarts=-1)
class Counter:
    """Writes down each increment before it answers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.life = f"{os.getpid()}-{time.time_ns()}"
        self.n = 0

    def add(self, token: str, s: float) -> tuple[str, int]:
        time.sleep(s)
        self.n += 1
        write(self.path, self.life, self.n, token)
        return self.life, self.n


# -- rounds ------------------------------------------------------------------------------------------------------------


class Rounds:
    def __init__(self, seed: int, ledgers: Path) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.ledgers = ledgers
        self.number = 0

    def kinds(self) -> list[Callable[[], None]]:
        return [self.tasks, self.nested, self.shuffle, self.larger_than_memory, self.counting, self.counting_retried, self.stream, self.lending]

    def tasks(self) -> None:
        count, s = self.random.randint(20, 200), self.random.choice([0, 0.001, 0.02])
        answers = shoal.get([square.remote(x, s) for x in range(count)], timeout=WAIT_S)
        check(answers, [x * x for x in range(count)], "squares")

    def nested(self) -> None:
        depth, width = self.random.choice([(2, 4), (3, 3), (1, 10)])
        check(shoal.get(tree.remote(depth, width), timeout=WAIT_S), width**depth, "leaves of the tree")

    def shuffle(self) -> None:
        maps, ways = self.random.randint(2, 6), self.random.randint(2, 4)
        seeds = [self.random.randrange(1 << 30) for _ in range(maps)]
        parts = [split.options(num_returns=ways).remote(seed, ways) for seed in seeds]
        merged = shoal.get([merge.remote(*column) for column in zip(*parts, strict=True)], timeout=WAIT_S)
        del parts
        numbers = [np.random.default_rng(seed).integers(0, 1 << 30, PART * ways) for seed in seeds]
        wanted = (sum(len(part) for part in numbers), int(sum(part.sum() for part in numbers)))
        check((sum(count for count, _ in merged), sum(sum_ for _, sum_ in merged)), wanted, "the shuffled numbers' count and sum")

    def larger_than_memory(self) -> None:
        """More than a store has memory for, some made here and some on the machines; every one is read in another order."""
        wanted = {n: n * (LARGE // 8) for n in range(20)}
        refs = {n: shoal.put(np.full(LARGE // 8, n, dtype=np.int64)) if n < 8 else large.remote(n) for n in wanted}
        order = self.random.sample(list(wanted), len(wanted))
        for n in order[:10]:
            check(shoal.get(total.remote(refs[n]), timeout=WAIT_S), wanted[n], f"large object {n}, summed by a task")
        for n in order[10:]:
            check(int(shoal.get(refs.pop(n), timeout=WAIT_S).sum()), wanted[n], f"large object {n}, read here")

    def counting(self) -> None:
        self._count(retried=False)

    def counting_retried(self) -> None:
        self._count(retried=True)

    def _count(self, retried: bool) -> None:
        self.number += 1
        name = f"{self.seed}-{self.number}"
        path = self.ledgers / f"{name}.ledger"
        path.touch()
        calls = Calls(retried)
        actor = Counter.options(max_task_retries=-1 if retried else 0).remote(str(path))
        count, s = self.random.randint(20, 80), self.random.choice([0.0, 0.005, 0.02])
        under_way = {}
        for n in range(count):
            under_way[f"{name}-{n}"] = actor.add.remote(f"{name}-{n}", s)
            if n % 10 == 9:
                self._collect(under_way, calls)
        self._collect(under_way, calls)
        del actor
        wrong = broken_promises(path.read_text().splitlines(), calls)
        if wrong:
            raise Wrong(f"{len(wrong)} promises about counting were broken ({path}): {'; '.join(wrong[:3])}")
        path.unlink()

    def _collect(self, under_way: dict[str, Any], calls: Calls) -> None:
        while under_way:
            token, ref = under_way.popitem()
            try:
                life, number = shoal.get(ref, timeout=WAIT_S)
                calls.answered[token] = (life, number)
            except UNKNOWN:
                calls.unknown.add(token)

    def stream(self) -> None:
        count = self.random.randint(5, 30)
        got = [int(shoal.get(ref, timeout=WAIT_S)[0]) for ref in items.options(num_returns="streaming").remote(count)]
        check(got, list(range(count)), "the stream's items")

    def lending(self) -> None:
        """References inside values, through two tasks and back; the values are this process's own."""
        own = [shoal.put(n) for n in range(5)] + [square.remote(n, 0.0) for n in range(5)]
        there = passed_on.remote([passed_on.remote(own[:3]), *own[3:]])
        first, *rest = shoal.get(there, timeout=WAIT_S)
        del own, there
        got = shoal.get(shoal.get(first, timeout=WAIT_S), timeout=WAIT_S) + shoal.get(rest, timeout=WAIT_S)
        check(got, [0, 1, 2, 3, 4, 0, 1, 4, 9, 16], "the values behind references that were passed on")


# -- the program -------------------------------------------------------------------------------------------------------

_telling = threading.Lock()


def tell(**row: Any) -> None:
    with _telling:
        print(json.dumps(row), flush=True)


def run_rounds(seed: int, ledgers: Path, pause_s: float, stop: threading.Event) -> None:
    rounds = Rounds(seed, ledgers)
    bag: list[Callable[[], None]] = []
    while not stop.is_set():
        bag = bag or rounds.random.sample(rounds.kinds(), len(rounds.kinds()))
        one = bag.pop()
        began = time.monotonic()
        error = refused = ""
        try:
            one()
        except NO_ROOM as full:
            refused = f"{type(full).__name__}: {full}"
        except Exception:
            error = traceback.format_exc()
        gc.collect()  # a traceback's frames keep references
        tell(round=one.__name__, thread=seed, began=began, took=time.monotonic() - began, error=error, refused=refused)
        stop.wait(pause_s)


def main() -> None:
    seed, ledgers, address, count, pause_s = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    shoal.init(address=address, log_to_driver=False)
    stop = threading.Event()
    threads = [threading.Thread(target=run_rounds, args=(seed * 1000 + n, ledgers, pause_s, stop), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    tell(ready=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
            for thread in threads:
                thread.join(WAIT_S * 2)
            tell(stopped=[thread.name for thread in threads if thread.is_alive()])
        elif line.strip() == "end":
            break
    shoal.shutdown()


if __name__ == "__main__":
    main()
