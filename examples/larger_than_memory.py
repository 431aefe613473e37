"""Sorts more numbers than the object store has memory for: the values go to disk and come back, and the program says nothing of it.

    python examples/larger_than_memory.py                          # 1 GB through a store of 256 MB
    python examples/larger_than_memory.py --gb 20 --store-mb 2000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import shoal

MB = 1_000_000
PART_BYTES = 16 * MB


@shoal.remote
def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 62, PART_BYTES // 8)


@shoal.remote
def split(part: np.ndarray, ways: int) -> list[np.ndarray]:
    """One piece for each range of values."""
    bounds = np.linspace(0, 1 << 62, ways + 1)[1:-1].astype(np.int64)
    part = np.sort(part)
    return np.split(part, np.searchsorted(part, bounds))


@shoal.remote
def merge(*pieces: np.ndarray) -> np.ndarray:
    return np.sort(np.concatenate(pieces))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="how much is sorted")
    parser.add_argument("--store-mb", type=int, default=256, help="the object store's memory")
    given = parser.parse_args()
    shoal.init(object_store_memory=given.store_mb * MB)
    began = time.perf_counter()
    ways = max(1, int(given.gb * 1000 * MB / PART_BYTES))
    parts = [numbers.remote(seed) for seed in range(ways)]
    pieces = [split.options(num_returns=ways).remote(part, ways) for part in parts] if ways > 1 else [[part] for part in parts]
    del parts
    merged = [merge.remote(*column) for column in zip(*pieces, strict=True)]
    del pieces
    last, count = -1, 0
    for ref in merged:
        values = shoal.get(ref)
        assert values[0] >= last
        assert (np.diff(values) >= 0).all()
        last, count = values[-1], count + len(values)
        del values
    assert count == ways * (PART_BYTES // 8)
    seconds = time.perf_counter() - began
    print(f"sorted {count:,} numbers, {count * 8 / 1e9:.1f} GB, through a store of {given.store_mb} MB in {seconds:.1f} s")
    shoal.shutdown()


if __name__ == "__main__":
    main()
