"""The core's figures, beside what the machine itself can do in the same run.

    python benchmarks/core.py                          # every row, some minutes
    python benchmarks/core.py --only 'task*'           # those whose names match
    python benchmarks/core.py --json figures.json      # for machines, with the machine's description

A latency has its median and 99th percentile over single calls; a rate is the median of several windows. The last column compares with the floor that
the row stands on: one ping-pong over a Unix socket between two processes, or one copy of the same bytes. The ping-pong is measured twice, with both sides
asleep until the other's bytes arrive, and with both awake; the core spins for a moment before it sleeps, so it is compared with the second, the lower one.
Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shoal
from shoal.util import placement_group, remove_placement_group

MIB = 1 << 20
BATCH = 1000
WARM_UP_CALLS = 20
WINDOWS = 5
# Limit: no single figure may keep a run waiting for longer.
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Figure:
    """What was measured: a latency (`p50_us` and `p99_us`) or a rate (`per_s`); `gb_per_s` where bytes are moved."""

    p50_us: float | None = None
    p99_us: float | None = None
    per_s: float | None = None
    gb_per_s: float | None = None
    floor: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Meter:
    """How long to measure, and how."""

    seconds: float

    def latency(self, call: Callable[[], object], size_bytes: int = 0, floor: str | None = None) -> Figure:
        """Single calls, one after the other."""
        for _ in range(WARM_UP_CALLS):
            call()
        samples: list[float] = []
        end = time.perf_counter() + self.seconds
        while (start := time.perf_counter()) < end:
            call()
            samples.append(time.perf_counter() - start)
        samples.sort()
        p50_s, p99_s = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
        return Figure(p50_us=p50_s * 1e6, p99_us=p99_s * 1e6, gb_per_s=size_bytes / p50_s / 1e9 if size_bytes else None, floor=floor)

    def rate(self, batch: Callable[[], object], count: int, size_bytes: int = 0) -> Figure:
        """Batches of `count`, as many as fit in each of several windows."""
        batch()
        rates = [self._window(batch, count) for _ in range(WINDOWS)]
        per_s = statistics.median(rates)
        return Figure(per_s=per_s, gb_per_s=per_s * size_bytes / 1e9 if size_bytes else None)

    def _window(self, batch: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        done = 0
        while (elapsed := time.perf_counter() - start) < self.seconds / WINDOWS or not done:
            batch()
            done += count
        return done / elapsed


Row = Callable[[Meter], Figure]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def register(measure: Row) -> Row:
        ROWS[name] = measure
        return measure

    return register


# -- floors: what two processes and one memory can do -------------------------------------------------------------

PING_PONG = "floor: ping-pong, awake"
PING_PONG_ASLEEP = "floor: ping-pong, asleep"
COPY_1_MIB = "floor: memcpy, 1 MiB"
COPY_400_MIB = "floor: memcpy, 400 MiB"
PING_BYTES = 64


def receive(sock: socket.socket) -> bytes:
    """Waits as the socket is set to: a blocking one sleeps in the kernel, another one is asked again and again."""
    while True:
        try:
            return sock.recv(PING_BYTES)
        except BlockingIOError:
            continue


def ping_pong(asleep: bool) -> Row:
    """64 bytes over a Unix socket to another process and back, in as few calls of the kernel as there can be."""

    def measure(meter: Meter) -> Figure:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for sock in (ours, theirs):
            sock.setblocking(asleep)
        child = os.fork()
        if child == 0:
            ours.close()
            while data := receive(theirs):
                theirs.sendall(data)
            os._exit(0)
        theirs.close()
        ping = b"p" * PING_BYTES

        def once() -> None:
            ours.sendall(ping)
            receive(ours)

        try:
            return meter.latency(once)
        finally:
            ours.close()
            os.waitpid(child, 0)

    return measure


def copying(size_bytes: int) -> Row:
    """A copy between two arrays whose pages have been touched."""

    def measure(meter: Meter) -> Figure:
        source, target = np.ones(size_bytes, dtype=np.uint8), np.zeros(size_bytes, dtype=np.uint8)
        return meter.latency(lambda: np.copyto(target, source), size_bytes)

    return measure


# Measured before there is a cluster whose processes could disturb them, or threads that a fork would lose.
FLOORS: dict[str, Row] = {
    PING_PONG_ASLEEP: ping_pong(asleep=True), PING_PONG: ping_pong(asleep=False), COPY_1_MIB: copying(MIB), COPY_400_MIB: copying(400 * MIB),
}  # fmt: skip


# -- what runs remotely -------------------------------------------------------------------------------------------


@shoal.remote
def nothing(*_: object) -> None:
    pass


@shoal.remote(num_cpus=0)
class Plain:
    def nothing(self, *_: object) -> None:
        pass

    def run_tasks(self, count: int) -> None:
        shoal.get([nothing.remote() for _ in range(count)])

    def call(self, others: list[Any], count: int) -> None:
        shoal.get([other.nothing.remote() for _ in range(count) for other in others])


# A class of its own: whatever a class refers to is imported in its worker, and NumPy takes longer than the rest of an actor's creation.
@shoal.remote(num_cpus=0)
class Writer:
    def __init__(self, size_bytes: int) -> None:
        # Once, and written to: the first touch of a page costs more than its copy, and untouched pages are all the same one, which the cache holds.
        self.array = np.ones(size_bytes, dtype=np.uint8)

    def nothing(self) -> None:
        pass

    def put(self, count: int) -> None:
        for _ in range(count):
            shoal.put(self.array)


@shoal.remote(num_cpus=0)
class Async:
    async def nothing(self, *_: object) -> None:
        pass


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=TIMEOUT_S)


def started(count: int, actor_class: Any = Plain, *args: object, **options: Any) -> list[Any]:
    """Actors that have answered once."""
    actors = [actor_class.options(**options).remote(*args) for _ in range(count)]
    get([actor.nothing.remote() for actor in actors])
    return actors


# -- tasks --------------------------------------------------------------------------------------------------------


@row("task, one at a time")
def _(meter: Meter) -> Figure:
    return meter.latency(lambda: get(nothing.remote()), floor=PING_PONG)


@row("tasks, 1000 at once")
def _(meter: Meter) -> Figure:
    return meter.rate(lambda: get([nothing.remote() for _ in range(BATCH)]), BATCH)


@row("tasks from 4 actors at once")
def _(meter: Meter) -> Figure:
    actors = started(4)
    return meter.rate(lambda: get([actor.run_tasks.remote(BATCH) for actor in actors]), 4 * BATCH)


@row("tasks, a chain of 200")
def _(meter: Meter) -> Figure:
    def chain() -> None:
        last = nothing.remote()
        for _ in range(199):
            last = nothing.remote(last)
        get(last)

    return meter.rate(chain, 200)


@row("tasks, 1000 waited for one by one")
def _(meter: Meter) -> Figure:
    def drain() -> None:
        left = [nothing.remote() for _ in range(BATCH)]
        while left:
            ready, left = shoal.wait(left, timeout=TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"{len(left)} tasks were not ready after {TIMEOUT_S:g} s")

    return meter.rate(drain, BATCH)


# -- actors -------------------------------------------------------------------------------------------------------


@row("actor call, one at a time")
def _(meter: Meter) -> Figure:
    [actor] = started(1)
    return meter.latency(lambda: get(actor.nothing.remote()), floor=PING_PONG)


@row("actor calls, 1000 at once")
def _(meter: Meter) -> Figure:
    [actor] = started(1)
    return meter.rate(lambda: get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actor calls, 1000 at once, 16 threads")
def _(meter: Meter) -> Figure:
    [actor] = started(1, max_concurrency=16)
    return meter.rate(lambda: get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actor calls, 4 callers to 2 actors")
def _(meter: Meter) -> Figure:
    callers, servers = started(4), started(2)
    return meter.rate(lambda: get([caller.call.remote(servers, BATCH // 2) for caller in callers]), 4 * BATCH)


@row("async actor call, one at a time")
def _(meter: Meter) -> Figure:
    [actor] = started(1, Async)
    return meter.latency(lambda: get(actor.nothing.remote()), floor=PING_PONG)


@row("async actor calls, 1000 at once")
def _(meter: Meter) -> Figure:
    [actor] = started(1, Async)
    return meter.rate(lambda: get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actors, 20 created and called")
def _(meter: Meter) -> Figure:
    # Their handles go at the end of each batch, and the actors with them.
    return meter.rate(lambda: started(20) and None, 20)


@row("placement groups, 20 created and removed")
def _(meter: Meter) -> Figure:
    def cycle() -> None:
        groups = [placement_group([{"CPU": 0.001}]) for _ in range(20)]
        for group in groups:
            if not group.wait(TIMEOUT_S):
                raise TimeoutError(f"a placement group was not ready after {TIMEOUT_S:g} s")
        for group in groups:
            remove_placement_group(group)

    return meter.rate(cycle, 20)


# -- objects ------------------------------------------------------------------------------------------------------


@row("put, an int")
def _(meter: Meter) -> Figure:
    return meter.latency(lambda: shoal.put(0))


@row("get, an int")
def _(meter: Meter) -> Figure:
    ref = shoal.put(0)
    return meter.latency(lambda: get(ref))


@row("put, 1 MiB")
def _(meter: Meter) -> Figure:
    array = np.ones(MIB, dtype=np.uint8)
    return meter.latency(lambda: shoal.put(array), array.nbytes, COPY_1_MIB)


@row("get, 1 MiB")
def _(meter: Meter) -> Figure:
    # In place: no bytes are moved, so there is no rate of bytes.
    ref = shoal.put(np.ones(MIB, dtype=np.uint8))
    return meter.latency(lambda: get(ref))


@row("put, 400 MiB")
def _(meter: Meter) -> Figure:
    array = np.ones(400 * MIB, dtype=np.uint8)
    return meter.latency(lambda: shoal.put(array), array.nbytes, COPY_400_MIB)


@row("put, 4 writers of 80 MiB")
def _(meter: Meter) -> Figure:
    writers = started(4, Writer, 80 * MIB)
    return meter.rate(lambda: get([writer.put.remote(4) for writer in writers]), 16, 80 * MIB)


@row("get, a list of 10,000 references")
def _(meter: Meter) -> Figure:
    refs = [shoal.put(i) for i in range(10_000)]
    holder = shoal.put(refs)
    return meter.rate(lambda: get(holder), 1)


@row("tasks, each with 1 MiB of its own")
def _(meter: Meter) -> Figure:
    array = np.ones(MIB, dtype=np.uint8)
    return meter.rate(lambda: get([nothing.remote(array) for _ in range(100)]), 100, array.nbytes)


@row("tasks, all with the same 1 MiB")
def _(meter: Meter) -> Figure:
    ref = shoal.put(np.ones(MIB, dtype=np.uint8))
    return meter.rate(lambda: get([nothing.remote(ref) for _ in range(500)]), 500)


@row("task, 1000 references as arguments")
def _(meter: Meter) -> Figure:
    refs = [shoal.put(i) for i in range(1000)]
    return meter.rate(lambda: get(nothing.remote(*refs)), 1)


# -- the run ------------------------------------------------------------------------------------------------------


def once(action: Callable[[], object]) -> Figure:
    """What happens once in a run: no percentiles."""
    start = time.perf_counter()
    action()
    return Figure(p50_us=(time.perf_counter() - start) * 1e6)


def measured(measure: Row, meter: Meter) -> Figure:
    """A row that fails is a figure too, never left out."""
    try:
        return measure(meter)
    except Exception as error:
        return Figure(error=f"{type(error).__name__}: {error}"[:300])


def run(meter: Meter, pattern: str, num_cpus: int) -> Iterator[tuple[str, Figure]]:
    for name, measure in FLOORS.items():
        yield name, measured(measure, meter)
    yield "init", once(lambda: shoal.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False))
    try:
        yield "first task", once(lambda: get(nothing.remote()))
        for name, measure in ROWS.items():
            if fnmatch.fnmatch(name, pattern):
                yield name, measured(measure, meter)
    finally:
        ended = once(shoal.shutdown)
    yield "shutdown", ended


def line(name: str, figure: Figure, floors: dict[str, Figure]) -> str:
    if figure.error is not None:
        return f"{name:<42} {figure.error}"
    cells = [(figure.p50_us, "10,.1f"), (figure.p99_us, "10,.1f"), (figure.per_s, "12,.0f"), (figure.gb_per_s, "8.2f")]
    text = " ".join(format(value, spec) if value is not None else " " * int(spec.split(",")[0].split(".")[0]) for value, spec in cells)
    floor = floors.get(figure.floor or "")
    if floor is None or not floor.p50_us or not figure.p50_us:
        return f"{name:<42} {text}".rstrip()
    return f"{name:<42} {text}  {figure.p50_us / floor.p50_us:5.1f} × {(figure.floor or '').removeprefix('floor: ')}"


def machine(num_cpus: int) -> dict[str, Any]:
    return {
        "shoal": shoal.__version__, "python": platform.python_version(), "system": platform.platform(), "cores": len(os.sched_getaffinity(0)),
        "num_cpus": num_cpus, "load_1_min": os.getloadavg()[0],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows whose names match, as in a shell; floors and init are always measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each row is measured (default 3)")
    parser.add_argument("--num-cpus", type=int, default=4, help="CPUs of the cluster (default 4)")
    given = parser.parse_args()
    if not any(fnmatch.fnmatch(name, given.only) for name in ROWS):
        parser.error(f"--only {given.only!r} matches none of: {', '.join(ROWS)}")

    about = machine(given.num_cpus)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{'':<42} {'p50 µs':>10} {'p99 µs':>10} {'per s':>12} {'GB/s':>8}")
    figures: dict[str, Figure] = {}
    for name, figure in run(Meter(given.seconds), given.only, given.num_cpus):
        figures[name] = figure
        print(line(name, figure, figures), flush=True)
    if given.json is not None:
        rows = {name: {key: value for key, value in asdict(figure).items() if value is not None} for name, figure in figures.items()}
        given.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    return 1 if any(figure.error for figure in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
