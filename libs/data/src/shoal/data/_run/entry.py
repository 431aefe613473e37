"""The doors by which work comes into a worker: nothing heavy is imported here but by `imported`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .imports import imported

imported("shoal.data._run.tasks")


def map_task(chain: Any, index: int, skip: int, read: Any, *blocks: Any) -> Iterator[Any]:
    """Steps over what is read, or over blocks. `skip`: blocks that an earlier attempt gave already."""
    yield from imported("shoal.data._run.tasks").map_blocks(chain, index, skip, read, blocks)


def reduce_task(chain: Any, index: int, skip: int, reducer: Any, cuts: Any, *blocks: Any) -> Iterator[Any]:
    """Steps over what a reducer makes of parts of blocks."""
    yield from imported("shoal.data._run.tasks").reduce_blocks(chain, index, skip, reducer, cuts, blocks)


class MapWorker:
    """The actor of a pool: makes the users' objects once."""

    def __init__(self, chain: Any) -> None:
        imported("shoal.data._run.tasks").make_objects(chain)
        self.chain = chain

    def run(self, index: int, skip: int, read: Any, *blocks: Any) -> Iterator[Any]:
        yield from imported("shoal.data._run.tasks").map_blocks(self.chain, index, skip, read, blocks)
