"""Blocks cut into batches of one size, in the form the consumer wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from . import tables


class Form(Protocol):
    """A representation of rows. A block is converted once, and batches are slices of it."""

    def make(self, table: pa.Table) -> Any: ...
    def cut(self, rows: Any, start: int, end: int) -> Any: ...
    def join(self, parts: list[Any]) -> Any: ...
    def give(self, rows: Any) -> Any:
        """The batch as the consumer gets it."""


class ArrowForm:
    def make(self, table: pa.Table) -> Any:
        return table

    def cut(self, rows: Any, start: int, end: int) -> Any:
        return rows.slice(start, end - start)

    def join(self, parts: list[Any]) -> Any:
        return tables.concat(parts)

    def give(self, rows: Any) -> Any:
        return rows


class PandasForm(ArrowForm):
    def give(self, rows: Any) -> Any:
        return tables.to_pandas(rows)


class NumpyForm:
    def make(self, table: pa.Table) -> Any:
        return tables.to_numpy(table)

    def cut(self, rows: Any, start: int, end: int) -> Any:
        return {name: array[start:end] for name, array in rows.items()}

    def join(self, parts: list[Any]) -> Any:
        return {name: _join_arrays([part[name] for part in parts]) for name in parts[0]}

    def give(self, rows: Any) -> Any:
        return rows


def _join_arrays(arrays: list[np.ndarray]) -> np.ndarray:
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    joined = np.empty(sum(map(len, arrays)), dtype=object)  # tensors of several shapes
    joined[:] = [row for array in arrays for row in array]
    return joined


class TorchForm(NumpyForm):
    """Tensors in memory of their own: blocks are read-only, and are shared with others.

    A batch is copied when it is given, not a block when it is taken: the memory of the batch before it is used again and is in the cache, while a new block's
    would have to be fetched from the system page by page.
    """

    def __init__(self, dtypes: Any, device: Any, pin_memory: bool) -> None:
        self.dtypes = dtypes
        self.device = device
        self.pin_memory = pin_memory

    def make(self, table: pa.Table) -> Any:
        import torch

        made = tables.to_numpy(table)
        for name, array in made.items():
            if array.dtype.kind not in "biufc":
                raise TypeError(
                    f"iter_torch_batches: column {name!r} holds {array.dtype} values, of which no tensor can be made; "
                    "drop it, or convert batches with collate_fn"
                )
            if array.dtype in (np.uint16, np.uint32, np.uint64) and not hasattr(torch, "uint64"):
                made[name] = array.astype(np.int64)
        return made

    def give(self, rows: Any) -> Any:
        return {name: self._tensor(name, array) for name, array in rows.items()}

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        import torch

        # What was joined of two blocks is a copy already.
        tensor = torch.from_numpy(array if array.flags.writeable and array.flags.owndata else array.copy())
        dtype = self.dtypes.get(name) if isinstance(self.dtypes, Mapping) else self.dtypes
        if dtype is not None:
            tensor = tensor.to(dtype=dtype)
        if self.pin_memory:
            tensor = tensor.pin_memory()
        return tensor if self.device is None else tensor.to(self.device, non_blocking=self.pin_memory)


def form_of(batch_format: str) -> Form:
    made: Form = {"numpy": NumpyForm, "pandas": PandasForm, "pyarrow": ArrowForm}[batch_format]()  # type: ignore[assignment]
    return made


def batches(converted: Iterator[tuple[int, Any]], form: Form, size: int | None, drop_last: bool) -> Iterator[Any]:
    """`converted`: pairs of a number of rows and these, in `form`."""
    held: list[Any] = []
    held_rows = 0
    for rows, block in converted:
        if size is None:
            yield form.give(block)
            continue
        start = 0
        if held:
            start = min(size - held_rows, rows)
            held.append(form.cut(block, 0, start))
            held_rows += start
            if held_rows < size:
                continue
            yield form.give(form.join(held))
            held, held_rows = [], 0
        full = start + (rows - start) // size * size
        for at in range(start, full, size):
            yield form.give(form.cut(block, at, at + size))
        if full < rows:
            held, held_rows = [form.cut(block, full, rows)], rows - full
    if held and not drop_last:
        yield form.give(form.join(held) if len(held) > 1 else held[0])


def locally_shuffled(blocks: Iterator[pa.Table], buffer_rows: int, seed: int | None) -> Iterator[pa.Table]:
    """The rows in an order that is random among at least `buffer_rows` neighbours."""
    random = np.random.default_rng(seed)
    buffer: pa.Table | None = None
    for block in blocks:
        for start in range(0, block.num_rows, buffer_rows):
            part = block.slice(start, buffer_rows)
            buffer = part if buffer is None else tables.concat([buffer, part])
            if buffer.num_rows > buffer_rows:
                buffer = buffer.combine_chunks().take(pa.array(random.permutation(buffer.num_rows)))
                ready = buffer.num_rows - buffer_rows
                yield buffer.slice(0, ready)
                buffer = buffer.slice(ready)
    if buffer is not None and buffer.num_rows:
        yield buffer.combine_chunks().take(pa.array(random.permutation(buffer.num_rows)))
