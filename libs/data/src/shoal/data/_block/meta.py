"""What is known of a block without reading it; it travels apart from the block."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa


class BlockMeta(NamedTuple):
    """`extra`: what an operator leaves for the next one's plan, such as a sample of keys. `seconds`: the task's time for this block."""

    rows: int
    size_bytes: int
    schema: pa.Schema | None = None
    extra: Any = None
    seconds: float = 0.0


class Bundle(NamedTuple):
    """A block in the object store, and what is known of it."""

    ref: Any
    meta: BlockMeta


def meta_of(table: pa.Table, extra: Any = None, seconds: float = 0.0) -> BlockMeta:
    return BlockMeta(table.num_rows, table.nbytes, table.schema, extra, seconds)
