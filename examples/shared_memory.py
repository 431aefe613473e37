"""A shared-memory store for the programs of one machine, without a cluster: `pip install shoal-objectstore numpy`.

    python examples/shared_memory.py

One process serves a folder. Others put values under names and read them where they lie: no copy, no message with the bytes, views that nobody can write to.
What exceeds the memory goes to disk and comes back.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from shoal_objectstore import Client

MB = 1_000_000


def total(directory: str, name: str) -> float:
    """In another process: a view of what the first one put."""
    with Client(directory) as store:
        array = store.get(name, timeout=10)
        assert not array.flags.writeable
        return float(array.sum())


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="store-") as directory:
        server = subprocess.Popen([sys.executable, "-m", "shoal_objectstore", "serve", "--dir", directory, "--memory", "200M"])
        try:
            share(directory)
        finally:
            server.terminate()
            server.wait(30)
        left = sorted(set(os.listdir(directory)) - {"logs"})
        assert not left, left


def share(directory: str) -> None:
    with Client(directory, timeout=30) as store:
        store.put("weights", np.full(5 * MB, 0.5))
        with multiprocessing.get_context("spawn").Pool(2) as others:
            sums = others.starmap(total, [(directory, "weights")] * 4)
        assert sums == [2.5 * MB] * 4
        print(f"4 readers in 2 other processes: {sums}")

        began = time.perf_counter()
        store.get("weights")
        print(f"get of 40 MB: {(time.perf_counter() - began) * 1e6:.0f} µs")

        for n in range(20):
            store.put(f"part-{n:02d}", np.full(5 * MB, float(n)))
        for n in range(20):
            assert store.get(f"part-{n:02d}")[-1] == n
        told = store.stats()
        print(f"800 MB through a store of 200 MB: {told['spilled_bytes'] / MB:,.0f} MB written to disk, {told['restored_bytes'] / MB:,.0f} MB read back")
        for name in store.names():
            store.delete(name)


if __name__ == "__main__":
    main()
