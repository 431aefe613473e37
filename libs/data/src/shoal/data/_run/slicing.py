"""Parts of blocks as blocks of their own."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import shoal

from .._block.meta import BlockMeta, Bundle
from .._block.tables import compact
from .tasks import limit_threads


def _slice(block: pa.Table, start: int, end: int) -> tuple[pa.Table, int]:
    limit_threads()
    part = compact(block.slice(start, end - start))
    return part, part.nbytes


_remote: Any = None


def slice_block(bundle: Bundle, start: int, end: int, wait: bool = False) -> Bundle:
    """The rows from `start` up to `end`; the block itself if those are all."""
    global _remote
    if start == 0 and end == bundle.meta.rows:
        return bundle
    if _remote is None:
        _remote = shoal.remote(_slice).options(num_returns=2, name="SliceBlock")
    part, size = _remote.remote(bundle.ref, start, end)
    rows = end - start
    size_bytes = shoal.get(size) if wait else bundle.meta.size_bytes * rows // max(1, bundle.meta.rows)
    return Bundle(part, BlockMeta(rows, size_bytes, bundle.meta.schema))
