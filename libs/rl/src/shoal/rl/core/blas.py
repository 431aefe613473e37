"""Matrix products of a learner or runner stay on one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

from threadpoolctl import ThreadpoolController

# Below so many multiplications in one product OpenBLAS stays on one thread by itself.
_ALONE = 1 << 17


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread(largest_product: int) -> Iterator[None]:
    """For matrices this narrow the hand-over to other threads costs more than they save, and on a busy machine many times more.

    `largest_product`: rows x inputs x outputs; where it is small nothing is done, since the switch costs a tenth of a millisecond.
    """
    if largest_product <= _ALONE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield
