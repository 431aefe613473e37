"""The arena beside memcpy, in one run: python benchmarks/arena.py [--size MIB] [--seconds S]

`put` is create, copy, seal, free, as a client does it; `memcpy` copies the same bytes into shared memory that this process has touched. Compare the ratio.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from shoal_objectstore import Arena, NeedExtent, Store, create_arena
from shoal_objectstore._arena import WHOLE, Writable

MIB = 1 << 20
TIMES = 5000


def random(nbytes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)


def best_rate(work: Callable[[], object], nbytes: int, seconds: float) -> float:
    """GB/s of the median round."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return nbytes / statistics.median(times) / 1e9


def lend(store: Store, arena: Arena, nbytes: int) -> None:
    extent = store.reserve(nbytes, WHOLE) if nbytes > store.extent_bytes // 4 else store.reserve(store.extent_bytes)
    store.lend_extent(extent, arena.client)
    arena.add_extent(extent)


def create(store: Store, arena: Arena, nbytes: int) -> Writable:
    try:
        return arena.create(nbytes)
    except NeedExtent:
        lend(store, arena, nbytes)
        return arena.create(nbytes)


def put(store: Store, arena: Arena, data: np.ndarray) -> tuple[int, int]:
    try:
        return arena.put(data.data)
    except NeedExtent:
        lend(store, arena, data.nbytes)
        return arena.put(data.data)


def in_child(work: Callable[[], float]) -> Callable[[], float]:
    """Starts it in a forked process; the answer is waited for later."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(write)

    def answer() -> float:
        out = float(os.read(read, 100))
        os.close(read)
        os.waitpid(pid, 0)
        return out

    return answer


def memcpy_rate(data: np.ndarray, seconds: float) -> float:
    shared = mmap.mmap(-1, data.nbytes)
    target = np.frombuffer(shared, np.uint8)
    target[:] = 1
    return best_rate(lambda: ctypes.memmove(target.ctypes.data, data.ctypes.data, data.nbytes), data.nbytes, seconds) if data.nbytes else 0.0


def put_rate(store: Store, client: int, data: np.ndarray, seconds: float) -> float:
    arena = Arena(store.fd, client)

    def one() -> None:
        arena.free(*put(store, arena, data))

    one()
    return best_rate(one, data.nbytes, seconds)


def row(name: str, rate: float, beside: float) -> None:
    print(f"{name:58} {rate:8.2f} {beside:8.2f} {rate / beside:7.2f}", flush=True)


def one_writer(store: Store, client: int, nbytes: int, seconds: float) -> None:
    data = random(nbytes)
    beside = memcpy_rate(data, seconds)
    row(f"put {nbytes / MIB:g} MiB, one writer", put_rate(store, client, data, seconds), beside)


def two_writers(store: Store, clients: tuple[int, int], nbytes: int, seconds: float) -> float:
    """What two copies at once have, GB/s together."""
    data = random(nbytes)
    copies = [in_child(lambda: memcpy_rate(data, seconds)) for _ in clients]
    beside = sum(answer() for answer in copies)

    def work(client: int, extent: int) -> float:
        arena = Arena(store.fd, client)
        arena.add_extent(extent)

        def one() -> None:
            arena.free(*arena.put(data.data))

        one()
        return best_rate(one, nbytes, seconds)

    answers = []
    for client in clients:
        extent = store.reserve(nbytes, WHOLE)
        store.lend_extent(extent, client)
        answers.append(in_child(partial(work, client, extent)))
    row(f"put {nbytes / MIB:g} MiB, two writers at once", sum(answer() for answer in answers), beside)
    return beside


def first_puts(store: Store, clients: tuple[int, int], nbytes: int, beside: float) -> tuple[Arena, tuple[int, int]]:
    """The second client, and what it has put."""
    data = random(nbytes)
    store.sweep()
    store.trim(0)
    for client, when in zip(clients, ("no warm pages", "from the warm reserve"), strict=True):
        arena = Arena(store.fd, client)
        start = time.perf_counter()
        location = put(store, arena, data)
        row(f"first put of {nbytes / MIB:g} MiB, {when}", nbytes / (time.perf_counter() - start) / 1e9, beside)
        store.warm(nbytes)
    return arena, location


def gets(reader: Arena, what: str, location: tuple[int, int]) -> None:
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        view = memoryview(reader.get(*location))
        times.append(time.perf_counter() - start)
        del view
    print(f"get {what}: {statistics.median(times) * 1e6:.2f} us, 99th {sorted(times)[TIMES * 99 // 100] * 1e6:.2f} us")


def small_puts(arena: Arena) -> None:
    value, times = b"x" * 1024, []
    for _ in range(TIMES):
        start = time.perf_counter()
        location = arena.put(value)
        times.append(time.perf_counter() - start)
        arena.free(*location)
    print(f"put 1 KiB: {statistics.median(times) * 1e6:.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=256, help="MiB of the large object")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row")
    given = parser.parse_args()
    large = int(given.size * MIB)
    store = Store(create_arena(max(8 * large, 1 << 30)))
    print(f"{'row':58} {'GB/s':>8} {'memcpy':>8} {'ratio':>7}")
    for client, nbytes in enumerate((100 << 10, MIB, 16 * MIB, large), 1):
        one_writer(store, client, nbytes, given.seconds)
    beside = two_writers(store, (5, 6), large, given.seconds)
    arena, location = first_puts(store, (7, 8), large, beside / 2)
    reader = Arena(store.fd, 9)
    gets(reader, f"{given.size:g} MiB", location)
    gets(reader, "100 KiB", put(store, arena, random(100 << 10)))
    small_puts(arena)


if __name__ == "__main__":
    main()
