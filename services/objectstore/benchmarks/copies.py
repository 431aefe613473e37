"""How fast one large copy is, by where in a page its destination begins as seen from its source: what include/shoal_copy.h goes by.

    python services/objectstore/benchmarks/copies.py            # 256 MB
    python services/objectstore/benchmarks/copies.py --mb 32

Into huge pages that were touched before (small ones hide it), by the C library's memmove; GB/s, the best of three and the worst.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import time

PAGE = 4096
AHEAD = (0, 16, 64, 128, 256, 512, 1024, 2048, 3072, 4032)
TRIES = 3


def touched(nbytes: int) -> tuple[mmap.mmap, int]:
    """Memory that is there, and where."""
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, 1, nbytes)
    return memory, address


def rate(to: int, source: int, nbytes: int) -> float:
    began = time.perf_counter()
    ctypes.memmove(to, source, nbytes)
    return nbytes / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=256, help="of one copy, in millions of bytes (256)")
    nbytes = parser.parse_args().mb * 1_000_000
    # Pages whole, and one more for what is added.
    room = -(-nbytes // PAGE) * PAGE + PAGE
    source, into = touched(room), touched(room)
    print(f"{'bytes ahead':>11} {'best':>6} {'worst':>6}   a copy of {nbytes / 1e6:g} MB, GB/s")
    for ahead in AHEAD:
        rates = [rate(into[1] + ahead, source[1], nbytes) for _ in range(TRIES)]
        print(f"{ahead:>11} {max(rates):>6.1f} {min(rates):>6.1f}")


if __name__ == "__main__":
    main()
