"""The object store's figures beside memcpy, the disk and a plain socket of the same run: puts (warm, first, by two at once), gets, spilling, restoring,
transfers of one value and of many small ones, one value to many nodes. `first put` follows init() at once, while the reserve of warm pages is being filled;
`put, 2 s on` is the first one of a cluster that was started two seconds ago.

    python benchmarks/store.py                               # every row; 6 GB through 1.2 GB of memory
    python benchmarks/store.py --total-mb 1500 --room-mb 300  # smaller
    python benchmarks/store.py --object-mb 256 --idle-s 60   # also the first put after a minute without any, in the median of four
    python benchmarks/store.py --peer /path/to/python        # the same rows with Ray in that environment, and ratios

Floors of puts are copies by `memcpy` into plain shared memory, in turn with the puts, since what a copy takes varies by half from minute to minute on a virtual
machine; both are medians. For `put` and `two puts` that memory was touched before, by each writer; for `first, fresh`, the first put once more, it never was:
what the machine itself takes to give pages, and a virtual machine may take long; for `put, idle` it lay as idle. `first put` and `put, 2 s on` are of five
starts. What is put was read just before: an array that lay idle, too, would be measured with it, for the host of a virtual machine may take idle memory away,
whoever's it is. `disk` writes and reads one file by direct I/O (as `dd oflag=direct bs=8M`); `socket` sends over loopback TCP: the best of three, as is what
stands beside them. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MB = 1_000_000
STEP = 8 << 20
TRIES = 3
SMALL = 64  # values of 1 MB
STARTS = 5
FIRST, SOON = "first put GB/s", "put, 2 s on GB/s"
FRESH = "first, fresh GB/s"
PUT, TWO_PUTS, IDLE = "put GB/s", "two puts GB/s", "put, idle GB/s"
COPIES = {row: f"copy for {row}" for row in (FRESH, PUT, TWO_PUTS, IDLE)}  # in turn with them
TURNS, TWO_TURNS, IDLE_TURNS = 12, 6, 4


def best(work: Callable[[], float]) -> float:
    return max(work() for _ in range(TRIES))


def rate(nbytes: int, work: Callable[[], Any]) -> float:
    """GB/s."""
    began = time.perf_counter()
    work()
    return nbytes / (time.perf_counter() - began) / 1e9


def in_turn(rows: dict[str, Callable[[], float]], turns: int, wait_s: float = 0.0) -> dict[str, list[float]]:
    """Each is first as often as last."""
    found: dict[str, list[float]] = {row: [] for row in rows}
    for turn in range(turns):
        time.sleep(wait_s)
        for row in list(rows)[:: 1 if turn % 2 else -1]:
            found[row].append(rows[row]())
    return found


def medians(when: str, found: dict[str, list[float]]) -> dict[str, float]:
    print(f"{when}: " + "; ".join(f"{row} {' '.join(f'{value:.2f}' for value in values)}" for row, values in found.items()), file=sys.stderr)
    return {row: statistics.median(values) for row, values in found.items()}


class Copy:
    """Into plain shared memory that was touched before."""

    def __init__(self, nbytes: int) -> None:
        self.source, self.into = np.ones(nbytes, np.uint8), np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
        self.into[:] = 1

    def __call__(self) -> float:
        self.source.max()
        return rate(len(self.source), self.once)

    def once(self) -> None:
        np.copyto(self.into, self.source)


def fresh(source: np.ndarray) -> float:
    """A copy into memory that was never touched: what the machine itself takes for pages."""
    into = np.frombuffer(mmap.mmap(-1, len(source)), np.uint8)
    source.max()
    return rate(len(source), lambda: np.copyto(into, source))


def disk(place: str, nbytes: int) -> tuple[float, float]:
    """(writing, reading) with direct I/O; buffered where the file system has none."""
    path = os.path.join(place, "floor")
    buffer = mmap.mmap(-1, STEP)
    buffer.write(os.urandom(1 << 20) * (STEP >> 20))

    def opened(flags: int) -> int:
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError:
            return os.open(path, flags, 0o600)

    def write() -> None:
        fd = opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(nbytes // STEP):
            os.write(fd, buffer)
        os.close(fd)

    def read() -> None:
        fd = opened(os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)

    nbytes = nbytes // STEP * STEP
    out = rate(nbytes, write), rate(nbytes, read)
    os.unlink(path)
    return out


def plain_socket(nbytes: int) -> float:
    data, into = bytes(nbytes), memoryview(bytearray(nbytes))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()

        def work() -> None:
            thread = threading.Thread(target=sender.sendall, args=(data,))
            thread.start()
            at = 0
            while at < nbytes:
                at += receiver.recv_into(into[at : at + STEP])
            thread.join()

        with receiver:
            return best(lambda: rate(nbytes, work))


def two_writers(api: Any, nbytes: int) -> dict[str, float]:
    """Of two processes that put at the same time, together."""

    @api.remote  # type: ignore[untyped-decorator]
    class Writer:
        def __init__(self) -> None:
            self.copied = Copy(nbytes)

        def put(self, count: int) -> float:
            return rate(count * nbytes, lambda: [api.put(self.copied.source) for _ in range(count)])

        def copy(self, count: int) -> float:
            return rate(count * nbytes, lambda: [self.copied.once() for _ in range(count)])  # type: ignore[func-returns-value]

    writers = [Writer.remote() for _ in range(2)]  # type: ignore[attr-defined]
    api.get([writer.put.remote(6) for writer in writers])
    rows = {
        TWO_PUTS: lambda: float(sum(api.get([writer.put.remote(6) for writer in writers]))),
        COPIES[TWO_PUTS]: lambda: float(sum(api.get([writer.copy.remote(6) for writer in writers]))),
    }
    return medians("two writers", in_turn(rows, TWO_TURNS))


def after_starts(api: Any, nbytes: int) -> dict[str, float]:
    """The first put of a cluster, right after it was started and two seconds later."""
    value = np.ones(nbytes, np.uint8)

    def first(wait_s: float) -> float:
        api.init(num_cpus=2, object_store_memory=16 * nbytes, include_dashboard=False, log_to_driver=False)
        try:
            time.sleep(wait_s)
            value.max()
            return rate(nbytes, lambda: api.put(value))
        finally:
            api.shutdown()

    rows = {FIRST: lambda: first(0.0), SOON: lambda: first(2.0), COPIES[FRESH]: lambda: fresh(value)}
    found = medians("after a start", in_turn(rows, STARTS))
    return found | {FRESH: found[FIRST]}


def local_rows(api: Any, nbytes: int, idle_s: float) -> dict[str, float]:
    """Puts and gets of values that fit."""
    api.init(num_cpus=2, object_store_memory=16 * nbytes, include_dashboard=False, log_to_driver=False)
    try:
        value = np.ones(nbytes, np.uint8)
        rows: dict[str, float] = {}

        def put() -> float:
            refs: list[Any] = []
            value.max()
            found = rate(nbytes, lambda: refs.append(api.put(value)))
            refs.clear()
            time.sleep(0.1)
            return found

        copy = Copy(nbytes)
        for _ in range(3):
            put()
        rows |= medians("puts", in_turn({PUT: put, COPIES[PUT]: copy}, TURNS))
        ref = api.put(value)
        api.get(ref)
        calls = 200
        began = time.perf_counter()
        for _ in range(calls):
            api.get(ref)
        get_us = (time.perf_counter() - began) / calls * 1e6
        rows |= {"get µs": get_us}
        if idle_s:
            rows |= medians(f"after {idle_s:g} s", in_turn({IDLE: put, COPIES[IDLE]: copy}, IDLE_TURNS, idle_s))
        return rows | two_writers(api, nbytes)
    finally:
        api.shutdown()


def spill_rows(api: Any, place: str, nbytes: int, total: int, room: int) -> dict[str, float]:
    """A working set larger than memory: written once, read in another order."""
    api.init(num_cpus=2, object_store_memory=room, include_dashboard=False, log_to_driver=False, object_spilling_directory=place)
    try:
        count = total // nbytes
        value = np.random.default_rng(1).integers(0, 255, nbytes, dtype=np.uint8)
        refs: list[Any] = []

        def write() -> None:
            refs.extend(api.put(value) for _ in range(count))

        def read() -> None:
            for n in np.random.default_rng(2).permutation(count):
                assert api.get(refs[n])[-1] == value[-1]
                gc.collect(0)

        return {"spill GB/s": rate(count * nbytes, write), "restore GB/s": rate(count * nbytes, read)}
    finally:
        refs.clear()
        api.shutdown()


def transfer_rows(api: Any, nbytes: int) -> dict[str, float]:
    """From one node to another on this machine: a large value, and many small ones that are asked for at once."""
    cluster_utils = importlib.import_module(f"{api.__name__}.cluster_utils")
    room = max(12 * nbytes, 6 * SMALL * MB)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": room})
    try:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=room)
        api.init(address=cluster.address, log_to_driver=False)

        @api.remote(resources={"there": 0.01})  # type: ignore[untyped-decorator]
        def make(nbytes: int) -> Any:
            return np.ones(nbytes, np.uint8)

        def once(nbytes: int, count: int = 1) -> float:
            refs = [make.remote(nbytes) for _ in range(count)]
            api.wait(refs, num_returns=count, fetch_local=False)
            return rate(count * nbytes, lambda: api.get(refs))

        once(nbytes)
        large = best(lambda: once(nbytes))
        return {"transfer GB/s": large, "many of 1 MB GB/s": best(lambda: once(MB, SMALL))}
    finally:
        api.shutdown()
        cluster.shutdown()


def broadcast_rows(api: Any, nbytes: int, count: int = 4) -> dict[str, float]:
    """One value, read by a task on each of several nodes of this machine, at once."""
    cluster_utils = importlib.import_module(f"{api.__name__}.cluster_utils")
    room = max(8 * nbytes, 100 * MB)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": room})
    try:
        for n in range(count):
            cluster.add_node(num_cpus=1, resources={f"node{n}": 1}, object_store_memory=room)
        api.init(address=cluster.address, log_to_driver=False)

        @api.remote(num_cpus=0)  # type: ignore[untyped-decorator]
        def read(value: Any) -> int:
            return len(value)

        tasks = [read.options(resources={f"node{n}": 0.01}) for n in range(count)]
        api.get([task.remote(b"") for task in tasks])

        def once() -> float:
            ref = api.put(np.ones(nbytes, np.uint8))
            return rate(count * nbytes, lambda: api.get([task.remote(ref) for task in tasks]))

        return {"broadcast GB/s": best(once)}
    finally:
        api.shutdown()
        cluster.shutdown()


def measure(name: str, given: argparse.Namespace) -> dict[str, float]:
    api = importlib.import_module(name)
    nbytes = given.object_mb * MB
    rows = after_starts(api, nbytes) | local_rows(api, nbytes, given.idle_s)
    with tempfile.TemporaryDirectory(dir=given.disk, prefix="store-") as place:
        rows |= spill_rows(api, place, nbytes, given.total_mb * MB, given.room_mb * MB)
    return rows | transfer_rows(api, nbytes) | broadcast_rows(api, nbytes)


def floors(given: argparse.Namespace) -> dict[str, float]:
    """Those that do not take turns."""
    (write, read), sent = disk(given.disk, 1_000 * MB), plain_socket(given.object_mb * MB)
    return {"spill GB/s": write, "restore GB/s": read} | dict.fromkeys(("transfer GB/s", "many of 1 MB GB/s", "broadcast GB/s"), sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--object-mb", type=int, default=64, help="size of one value")
    parser.add_argument("--total-mb", type=int, default=6_000, help="the working set")
    parser.add_argument("--room-mb", type=int, default=1_200, help="the store's memory")
    parser.add_argument("--idle-s", type=float, default=0, help="also the first put after so long without one; 0: not")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a folder on the disk to measure")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has Ray")
    parser.add_argument("--only-rows-of", metavar="MODULE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_rows_of:
        print(json.dumps(measure(given.only_rows_of, given)))
        return
    floor = floors(given)
    ours = measure("shoal", given)
    floor |= {row: ours.pop(copy) for row, copy in COPIES.items() if copy in ours}
    floor |= dict.fromkeys((FIRST, SOON), floor[PUT])
    theirs: dict[str, float] = {}
    if given.peer:
        options = [f"--{name}={getattr(given, name.replace('-', '_'))}" for name in ("object-mb", "total-mb", "room-mb", "idle-s", "disk")]
        done = subprocess.run([given.peer, __file__, "--only-rows-of", "ray", *options], check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
        theirs = json.loads(done.stdout.splitlines()[-1])
    print(f"{given.object_mb} MB values; {given.total_mb} MB through {given.room_mb} MB of memory; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print(f"{'':<18}{'floor':>10}{'shoal':>10}{'/floor':>8}" + (f"{'ray':>10}{'shoal is':>12}" if theirs else ""))
    for row, value in ours.items():
        line = f"{row:<18}{floor.get(row, float('nan')):>10.2f}{value:>10.2f}{value / floor[row] if row in floor else float('nan'):>8.2f}"
        if row in theirs:
            ratio = theirs[row] / value if row.endswith("µs") else value / theirs[row]
            line += f"{theirs[row]:>10.2f}{ratio:>10.1f} x"
        print(line)


if __name__ == "__main__":
    main()
