"""How many threads the native libraries of a worker use: as many as its lease has CPUs, at least one, unless the user has set a number."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from shoal_base.resources import UNIT

OMP = "OMP_NUM_THREADS"
# Each library has one of its own, and takes that of OpenMP where it is not set.
OWN = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# pyarrow's second allocator, which it does not use if nothing is said, would begin with a thread; pandas imports pyarrow.
_NO_BACKGROUND = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Those read the variables when they are loaded; later they have to be told.
_NATIVE = ("numpy", "scipy", "sklearn", "torch")


class Threads:
    """Follows the leases of a worker. What was imported before the fork was so with one thread."""

    def __init__(self) -> None:
        self._ours: str | None = None
        self._told = 1

    def apply(self, cpu_units: int) -> None:
        """For a lease with so many CPUs, in 1/10,000."""
        shown = os.environ.get(OMP)
        if shown is None or shown == self._ours:
            wanted = max(1, cpu_units // UNIT)
            if shown != str(wanted):
                self._ours = os.environ[OMP] = str(wanted)
        else:
            wanted = _number(shown)
        self._tell(next((count for name in OWN if (count := _number(os.environ.get(name, "")))), wanted))

    def _tell(self, count: int) -> None:
        if count == self._told or not count:
            return
        self._told = count
        if not any(name in sys.modules for name in _NATIVE):
            return
        import threadpoolctl

        threadpoolctl.threadpool_limits(count)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(count)


def _number(text: str) -> int:
    """0: the user has set something else, which is left as it is.

    >>> _number("4"), _number("4,2"), _number("dynamic")
    (4, 4, 0)
    """
    with contextlib.suppress(ValueError):
        return max(0, int(text.split(",")[0]))
    return 0


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Native libraries that are imported inside start no threads: a fork would lose them, and keep the locks that they held."""
    wanted = {**dict.fromkeys((OMP, *OWN), "1"), **_NO_BACKGROUND}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
