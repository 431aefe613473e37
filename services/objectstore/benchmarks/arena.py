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

import numpy as np
from shoal_objectstore import Arena, NeedExtent, Store, create_arena
from shoal_objectstore._arena import WHOLE

MIB = 1 << 20


def best_rate(work: Callable[[], None], nbytes: int, seconds: float) -> float:
    """GB/s of the median round."""
    times = []
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


def put(store: Store, arena: Arena, data: np.ndarray) -> tuple[int, int]:
    try:
        return arena.put(data)
    except NeedExtent:
        lend(store, arena, data.nbytes)
        return arena.put(data)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=256, help="MiB of the large object")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row")
    given = parser.parse_args()
    large = int(given.size * MIB)
    fd = create_arena(max(8 * large, 1 << 30))
    store = Store(fd)
    rng = np.random.default_rng(0)
    print(f"{'row':58} {'GB/s':>8} {'memcpy':>8} {'ratio':>7}")

    def row(name: str, rate: float, beside: float) -> None:
        print(f"{name:58} {rate:8.2f} {beside:8.2f} {rate / beside:7.2f}", flush=True)

    client = 1
    for size in (100 << 10, MIB, 16 * MIB, large):
        data = rng.integers(0, 255, size, np.uint8)
        beside = memcpy_rate(data, given.seconds)
        row(f"put {size / MIB:g} MiB, one writer", put_rate(store, client, data, given.seconds), beside)
        client += 1
    data = rng.integers(0, 255, large, np.uint8)
    copies = [in_child(lambda: memcpy_rate(data, given.seconds)) for _ in range(2)]
    beside = sum(c() for c in copies)
    extents = []
    for writer in (client, client + 1):
        extent = store.reserve(large, WHOLE)
        store.lend_extent(extent, writer)
        extents.append(extent)

    def writer(number: int, extent: int) -> float:
        arena = Arena(store.fd, number)
        arena.add_extent(extent)

        def one() -> None:
            arena.free(*arena.put(data))

        one()
        return best_rate(one, large, given.seconds)

    writers = [in_child(lambda n=client + i, e=extent: writer(n, e)) for i, extent in enumerate(extents)]  # type: ignore[misc]
    row(f"put {given.size:g} MiB, two writers at once", sum(w() for w in writers), beside)
    client += 2

    cold, warm = Arena(store.fd, client), Arena(store.fd, client + 1)
    store.sweep()
    store.trim(0)
    start = time.perf_counter()
    put(store, cold, data)
    row(f"first put of {given.size:g} MiB, no warm pages", large / (time.perf_counter() - start) / 1e9, beside / 2)
    store.warm(large)
    start = time.perf_counter()
    location = put(store, warm, data)
    row(f"first put of {given.size:g} MiB, from the warm reserve", large / (time.perf_counter() - start) / 1e9, beside / 2)

    reader = Arena(store.fd, client + 2)
    for what, at in ((f"{given.size:g} MiB", location), ("100 KiB", put(store, warm, rng.integers(0, 255, 100 << 10, np.uint8)))):
        times = []
        for _ in range(5000):
            start = time.perf_counter()
            view = memoryview(reader.get(*at))
            times.append(time.perf_counter() - start)
            del view
        print(f"get {what}: {statistics.median(times) * 1e6:.2f} us, 99th {sorted(times)[4950] * 1e6:.2f} us")
    small = b"x" * 1024
    times = []
    for _ in range(5000):
        start = time.perf_counter()
        at = warm.put(small)
        times.append(time.perf_counter() - start)
        warm.free(*at)
    print(f"put 1 KiB: {statistics.median(times) * 1e6:.2f} us")


if __name__ == "__main__":
    main()
