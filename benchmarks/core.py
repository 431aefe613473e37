"""The core's figures, beside what the machine itself can do in the same run, and beside Ray's where its environment is named.

    python benchmarks/core.py                          # every row, some minutes
    python benchmarks/core.py --only 'task*'           # those whose names match
    python benchmarks/core.py --peer PYTHON            # the same rows with Ray, in the environment of that interpreter, one after the other
    python benchmarks/core.py --json figures.json      # for machines, with the machine's description

A latency has its median and 99th percentile over single calls; a rate is the median of several windows. The column after them counts the system calls that the
driver's engine makes for one call, but for those of a waiter that spins. The last column compares with the floor that the row stands on: one ping-pong over a
Unix socket between two processes, or one copy of the same bytes. The ping-pong is measured twice, with both sides asleep until the other's bytes arrive, and
with both awake; the core spins for a moment before it sleeps, so it is compared with the second, the lower one. Figures from a busy machine mean little: the
load is printed.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
BATCH = 1000
WARM_UP_CALLS = 20
WINDOWS = 5
# Limit: no single figure may keep a run waiting for longer, nor the peer's whole run.
TIMEOUT_S = 120.0
PEER_TIMEOUT_S = 3600.0
MARK = "FIGURE "


@dataclass(frozen=True)
class Figure:
    """What was measured: a latency (`p50_us` and `p99_us`) or a rate (`per_s`); `gb_per_s` where bytes are moved."""

    p50_us: float | None = None
    p99_us: float | None = None
    per_s: float | None = None
    gb_per_s: float | None = None
    system_calls: float | None = None
    floor: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Meter:
    """How long to measure, and how."""

    seconds: float
    system_calls: Callable[[], int] | None = None

    def latency(self, call: Callable[[], object], size_bytes: int = 0, floor: str | None = None) -> Figure:
        """Single calls, one after the other."""
        for _ in range(WARM_UP_CALLS):
            call()
        samples: list[float] = []
        before = self.counted()
        end = time.perf_counter() + self.seconds
        while (start := time.perf_counter()) < end:
            call()
            samples.append(time.perf_counter() - start)
        calls = (self.counted() - before) / len(samples) if self.system_calls else None
        samples.sort()
        p50_s, p99_s = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
        return Figure(p50_us=p50_s * 1e6, p99_us=p99_s * 1e6, gb_per_s=size_bytes / p50_s / 1e9 if size_bytes else None, system_calls=calls, floor=floor)

    def counted(self) -> int:
        return self.system_calls() if self.system_calls else 0

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


def ping_pong(asleep: bool) -> Callable[[Meter], Figure]:
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


def copying(size_bytes: int) -> Callable[[Meter], Figure]:
    """A copy between two arrays whose pages have been touched."""

    def measure(meter: Meter) -> Figure:
        source, target = np.ones(size_bytes, dtype=np.uint8), np.zeros(size_bytes, dtype=np.uint8)
        return meter.latency(lambda: np.copyto(target, source), size_bytes)

    return measure


# Measured before there is a cluster whose processes could disturb them, or threads that a fork would lose.
FLOORS: dict[str, Callable[[Meter], Figure]] = {
    PING_PONG_ASLEEP: ping_pong(asleep=True), PING_PONG: ping_pong(asleep=False), COPY_1_MIB: copying(MIB), COPY_400_MIB: copying(400 * MIB),
}  # fmt: skip


# -- what runs remotely, by either engine: they have the same names -----------------------------------------------


def nothing(*_: object) -> None:
    pass


class Plain:
    def __init__(self, engine: str) -> None:
        self.core = importlib.import_module(engine)
        self.task = self.core.remote(nothing)

    def nothing(self, *_: object) -> None:
        pass

    def run_tasks(self, count: int) -> None:
        self.core.get([self.task.remote() for _ in range(count)])

    def call(self, others: list[Any], count: int) -> None:
        self.core.get([other.nothing.remote() for _ in range(count) for other in others])


# A class of its own: whatever a class refers to is imported in its worker, and NumPy takes longer than the rest of an actor's creation.
class Writer:
    def __init__(self, engine: str, size_bytes: int) -> None:
        self.core = importlib.import_module(engine)
        # Once, and written to: the first touch of a page costs more than its copy, and untouched pages are all the same one, which the cache holds.
        self.array = np.ones(size_bytes, dtype=np.uint8)

    def nothing(self) -> None:
        pass

    def put(self, count: int) -> None:
        for _ in range(count):
            self.core.put(self.array)


class Async:
    def __init__(self, engine: str) -> None:
        pass

    async def nothing(self, *_: object) -> None:
        pass


class Engine:
    """A module with Ray's API, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.core: Any = importlib.import_module(name)
        self.util: Any = importlib.import_module(f"{name}.util")
        self.nothing: Any = self.core.remote(nothing)
        self.classes = {cls: self.core.remote(num_cpus=0)(cls) for cls in (Plain, Writer, Async)}

    def init(self, num_cpus: int) -> None:
        self.core.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)

    def system_calls(self) -> int:
        """That its part of this process has made, but for those of a waiter that spins."""
        counts = importlib.import_module("shoal._runtime").state.engine.system_calls()
        return sum(counts.values()) - counts["polls"]

    def get(self, refs: Any) -> Any:
        return self.core.get(refs, timeout=TIMEOUT_S)

    def tasks(self, count: int, *args: object) -> None:
        self.get([self.nothing.remote(*args) for _ in range(count)])

    def started(self, count: int, cls: type[Any] = Plain, *args: object, **options: Any) -> list[Any]:
        """Actors that have answered once."""
        actors = [self.classes[cls].options(**options).remote(self.name, *args) for _ in range(count)]
        self.get([actor.nothing.remote() for actor in actors])
        return actors


Row = Callable[[Meter, Engine], Figure]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def register(measure: Row) -> Row:
        ROWS[name] = measure
        return measure

    return register


# -- tasks --------------------------------------------------------------------------------------------------------


@row("task, one at a time")
def _(meter: Meter, on: Engine) -> Figure:
    return meter.latency(lambda: on.get(on.nothing.remote()), floor=PING_PONG)


@row("tasks, 1000 at once")
def _(meter: Meter, on: Engine) -> Figure:
    return meter.rate(lambda: on.tasks(BATCH), BATCH)


@row("tasks from 4 actors at once")
def _(meter: Meter, on: Engine) -> Figure:
    actors = on.started(4)
    return meter.rate(lambda: on.get([actor.run_tasks.remote(BATCH) for actor in actors]), 4 * BATCH)


@row("tasks, a chain of 200")
def _(meter: Meter, on: Engine) -> Figure:
    def chain() -> None:
        last = on.nothing.remote()
        for _ in range(199):
            last = on.nothing.remote(last)
        on.get(last)

    return meter.rate(chain, 200)


@row("tasks, 1000 waited for one by one")
def _(meter: Meter, on: Engine) -> Figure:
    def drain() -> None:
        left = [on.nothing.remote() for _ in range(BATCH)]
        while left:
            ready, left = on.core.wait(left, timeout=TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"{len(left)} tasks were not ready after {TIMEOUT_S:g} s")

    return meter.rate(drain, BATCH)


# -- actors -------------------------------------------------------------------------------------------------------


@row("actor call, one at a time")
def _(meter: Meter, on: Engine) -> Figure:
    [actor] = on.started(1)
    return meter.latency(lambda: on.get(actor.nothing.remote()), floor=PING_PONG)


@row("actor calls, 1000 at once")
def _(meter: Meter, on: Engine) -> Figure:
    [actor] = on.started(1)
    return meter.rate(lambda: on.get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actor calls, 1000 at once, 16 threads")
def _(meter: Meter, on: Engine) -> Figure:
    [actor] = on.started(1, max_concurrency=16)
    return meter.rate(lambda: on.get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actor calls, 4 callers to 2 actors")
def _(meter: Meter, on: Engine) -> Figure:
    callers, servers = on.started(4), on.started(2)
    return meter.rate(lambda: on.get([caller.call.remote(servers, BATCH // 2) for caller in callers]), 4 * BATCH)


@row("async actor call, one at a time")
def _(meter: Meter, on: Engine) -> Figure:
    [actor] = on.started(1, Async)
    return meter.latency(lambda: on.get(actor.nothing.remote()), floor=PING_PONG)


@row("async actor calls, 1000 at once")
def _(meter: Meter, on: Engine) -> Figure:
    [actor] = on.started(1, Async)
    return meter.rate(lambda: on.get([actor.nothing.remote() for _ in range(BATCH)]), BATCH)


@row("actors, 20 created and called")
def _(meter: Meter, on: Engine) -> Figure:
    # Their handles go at the end of each batch, and the actors with them.
    return meter.rate(lambda: on.started(20) and None, 20)


@row("placement groups, 20 created and removed")
def _(meter: Meter, on: Engine) -> Figure:
    def cycle() -> None:
        groups = [on.util.placement_group([{"CPU": 0.001}]) for _ in range(20)]
        for group in groups:
            if not group.wait(TIMEOUT_S):
                raise TimeoutError(f"a placement group was not ready after {TIMEOUT_S:g} s")
        for group in groups:
            on.util.remove_placement_group(group)

    return meter.rate(cycle, 20)


# -- objects ------------------------------------------------------------------------------------------------------


@row("put, an int")
def _(meter: Meter, on: Engine) -> Figure:
    return meter.latency(lambda: on.core.put(0))


@row("get, an int")
def _(meter: Meter, on: Engine) -> Figure:
    ref = on.core.put(0)
    return meter.latency(lambda: on.get(ref))


@row("put, 1 MiB")
def _(meter: Meter, on: Engine) -> Figure:
    array = np.ones(MIB, dtype=np.uint8)
    return meter.latency(lambda: on.core.put(array), array.nbytes, COPY_1_MIB)


@row("get, 1 MiB")
def _(meter: Meter, on: Engine) -> Figure:
    # In place: no bytes are moved, so there is no rate of bytes.
    ref = on.core.put(np.ones(MIB, dtype=np.uint8))
    return meter.latency(lambda: on.get(ref))


@row("put, 400 MiB")
def _(meter: Meter, on: Engine) -> Figure:
    array = np.ones(400 * MIB, dtype=np.uint8)
    return meter.latency(lambda: on.core.put(array), array.nbytes, COPY_400_MIB)


@row("put, 4 writers of 80 MiB")
def _(meter: Meter, on: Engine) -> Figure:
    writers = on.started(4, Writer, 80 * MIB)
    return meter.rate(lambda: on.get([writer.put.remote(4) for writer in writers]), 16, 80 * MIB)


@row("get, a list of 10,000 references")
def _(meter: Meter, on: Engine) -> Figure:
    refs = [on.core.put(i) for i in range(10_000)]
    holder = on.core.put(refs)
    return meter.rate(lambda: on.get(holder), 1)


@row("tasks, each with 1 MiB of its own")
def _(meter: Meter, on: Engine) -> Figure:
    array = np.ones(MIB, dtype=np.uint8)
    return meter.rate(lambda: on.tasks(100, array), 100, array.nbytes)


@row("tasks, all with the same 1 MiB")
def _(meter: Meter, on: Engine) -> Figure:
    ref = on.core.put(np.ones(MIB, dtype=np.uint8))
    return meter.rate(lambda: on.tasks(500, ref), 500)


@row("task, 1000 references as arguments")
def _(meter: Meter, on: Engine) -> Figure:
    refs = [on.core.put(i) for i in range(1000)]
    return meter.rate(lambda: on.get(on.nothing.remote(*refs)), 1)


@row("task, 10,000 references as arguments")
def _(meter: Meter, on: Engine) -> Figure:
    refs = [on.core.put(i) for i in range(10_000)]
    return meter.rate(lambda: on.get(on.nothing.remote(*refs)), 1)


@row("task, 3,000 returns")
def _(meter: Meter, on: Engine) -> Figure:
    many = on.core.remote(num_returns=3_000)(range_of)
    return meter.rate(lambda: on.get(many.remote(3_000)), 1)


@row("get, 10,000 references to arrays of the store")
def _(meter: Meter, on: Engine) -> Figure:
    array = np.ones(128 << 10, dtype=np.uint8)
    refs = [on.core.put(array) for _ in range(10_000)]
    return meter.rate(lambda: on.get(refs), 1)


@row("stream, 10,000 small items")
def _(meter: Meter, on: Engine) -> Figure:
    numbers = on.core.remote(num_returns="streaming")(range_of)
    return meter.rate(lambda: sum(on.get(ref) for ref in numbers.remote(10_000)), 10_000)


def range_of(count: int) -> Iterator[int]:
    yield from range(count)


# -- the run ------------------------------------------------------------------------------------------------------


def once(action: Callable[[], object]) -> Figure:
    """What happens once in a run: no percentiles."""
    start = time.perf_counter()
    action()
    return Figure(p50_us=(time.perf_counter() - start) * 1e6)


def measured(measure: Callable[[], Figure]) -> Figure:
    """A row that fails is a figure too, never left out."""
    try:
        return measure()
    except Exception as error:
        return Figure(error=f"{type(error).__name__}: {error}"[:300])


def floors(meter: Meter) -> Iterator[tuple[str, Figure]]:
    for name, measure in FLOORS.items():
        yield name, measured(lambda measure=measure: measure(meter))  # type: ignore[misc]


def run(name: str, seconds: float, pattern: str, num_cpus: int) -> Iterator[tuple[str, Figure]]:
    """One engine's rows, in this process."""
    on: Any = None

    def load() -> None:
        nonlocal on
        on = Engine(name)

    yield "import", once(load)
    yield "init", once(lambda: on.init(num_cpus))
    meter = Meter(seconds, on.system_calls if name == "shoal" else None)  # Ray does not count them
    try:
        yield "first task", once(lambda: on.get(on.nothing.remote()))
        for title, measure in ROWS.items():
            if fnmatch.fnmatch(title, pattern):
                yield title, measured(lambda measure=measure: measure(meter, on))  # type: ignore[misc]
    finally:
        ended = once(on.core.shutdown)
    yield "shutdown", ended


def apart(python: str, name: str, given: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """One engine's rows, in its own interpreter."""
    command = [python, __file__, "--inside", name, "--only", given.only, "--seconds", str(given.seconds), "--num-cpus", str(given.num_cpus)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    end = time.monotonic() + PEER_TIMEOUT_S
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith(MARK):
                title, figure = json.loads(text[len(MARK) :])
                yield title, Figure(**figure)
            if time.monotonic() > end:
                process.kill()
                raise SystemExit(f"{name} took longer than {PEER_TIMEOUT_S:g} s")
    if process.returncode:
        raise SystemExit(f"{name} in {python} ended with {process.returncode}")


# -- showing ------------------------------------------------------------------------------------------------------

COLUMNS = ("10,.1f", "10,.1f", "12,.0f", "8.2f", "8.1f")


def line(name: str, figure: Figure, beside: dict[str, Figure]) -> str:
    if figure.error is not None:
        return f"{name:<42} {figure.error}"
    values = (figure.p50_us, figure.p99_us, figure.per_s, figure.gb_per_s, figure.system_calls)
    blank = [" " * int(spec.split(",")[0].split(".")[0]) for spec in COLUMNS]
    text = " ".join(format(value, spec) if value is not None else none for value, spec, none in zip(values, COLUMNS, blank, strict=True))
    floor = beside.get(figure.floor or "")
    if floor is None or not floor.p50_us or not figure.p50_us:
        return f"{name:<42} {text}".rstrip()
    return f"{name:<42} {text}  {figure.p50_us / floor.p50_us:5.1f} × {(figure.floor or '').removeprefix('floor: ')}"


def ratio(ours: Figure, theirs: Figure) -> float | None:
    """Above 1: in our favour."""
    if ours.per_s and theirs.per_s:
        return ours.per_s / theirs.per_s
    return theirs.p50_us / ours.p50_us if ours.p50_us and theirs.p50_us else None


def compared(ours: dict[str, Figure], theirs: dict[str, Figure]) -> Iterator[str]:
    def show(figure: Figure) -> str:
        return "failed" if figure.error else f"{figure.per_s:,.0f}/s" if figure.per_s else f"{figure.p50_us:,.1f} µs"

    yield f"{'':<42} {'shoal':>14} {'ray':>14} {'times':>8}"
    for name in theirs:
        if name in ours:
            times = ratio(ours[name], theirs[name])
            yield f"{name:<42} {show(ours[name]):>14} {show(theirs[name]):>14} {'' if times is None else format(times, '8.1f')}"


def machine(num_cpus: int) -> dict[str, Any]:
    return {
        "python": platform.python_version(), "system": platform.platform(), "cores": len(os.sched_getaffinity(0)), "num_cpus": num_cpus,
        "load_1_min": os.getloadavg()[0],
    }  # fmt: skip


def plain(figures: dict[str, Figure]) -> dict[str, dict[str, Any]]:
    return {name: {key: value for key, value in asdict(figure).items() if value is not None} for name, figure in figures.items()}


def inside(given: argparse.Namespace) -> None:
    for name, figure in run(given.inside, given.seconds, given.only, given.num_cpus):
        print(MARK + json.dumps([name, asdict(figure)]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows whose names match, as in a shell; floors and init are always measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter whose environment has Ray")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each row is measured (default 3)")
    parser.add_argument("--num-cpus", type=int, default=4, help="CPUs of the cluster (default 4)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not any(fnmatch.fnmatch(name, given.only) for name in ROWS):
        parser.error(f"--only {given.only!r} matches none of: {', '.join(ROWS)}")
    if given.inside:
        inside(given)
        return 0

    about = machine(given.num_cpus)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{'':<42} {'p50 µs':>10} {'p99 µs':>10} {'per s':>12} {'GB/s':>8} {'sys/call':>8}")
    below = dict[str, Figure]()
    figures: dict[str, dict[str, Figure]] = {}
    for name, figure in floors(Meter(given.seconds)):
        below[name] = figure
        print(line(name, figure, below), flush=True)
    for engine, python in (("shoal", sys.executable), ("ray", given.peer)):
        if python:
            print(engine)
            figures[engine] = {}
            for name, figure in apart(python, engine, given):
                figures[engine][name] = figure
                print(line(name, figure, below), flush=True)
    if given.peer:
        print("\n" + "\n".join(compared(figures["shoal"], figures["ray"])))
    if given.json is not None:
        rows = {engine: plain(found) for engine, found in figures.items()}
        given.json.write_text(json.dumps({"machine": about, "floors": plain(below), "rows": rows}, indent=1) + "\n")
    return 1 if any(figure.error for figure in figures["shoal"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
