"""The doors by which work comes into a worker: nothing heavy is imported here but by `imported`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .imports import imported

# Arrow's allocator gives memory back to the system within 10 ms by default, and the next task fetches it again page by page, which takes longer than what the
# task does with it. It asks once, when it is imported.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")
imported("shoal.data._run.tasks")


def map_task(chain: Any, index: int, read: Any, *blocks: Any) -> Iterator[Any]:
    """Steps over what is read, or over blocks."""
    yield from imported("shoal.data._run.tasks").map_blocks(chain, index, read, blocks)


def reduce_task(chain: Any, index: int, reducer: Any, cuts: Any, *blocks: Any) -> Iterator[Any]:
    """Steps over what a reducer makes of parts of blocks."""
    yield from imported("shoal.data._run.tasks").reduce_blocks(chain, index, reducer, cuts, blocks)


class MapWorker:
    """The actor of a pool: makes the users' objects once."""

    def __init__(self, chain: Any) -> None:
        imported("shoal.data._run.tasks").make_objects(chain)
        self.chain = chain

    def run(self, index: int, read: Any, *blocks: Any) -> Iterator[Any]:
        yield from imported("shoal.data._run.tasks").map_blocks(self.chain, index, read, blocks)
