"""Iterating over a dataset's rows and batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ._block import tables
from ._block.batches import Form, TorchForm, batches, form_of, locally_shuffled
from ._run.prefetch import Prefetch

if TYPE_CHECKING:
    from .context import DataContext
    from .dataset import MaterializedDataset, Schema

__all__ = ["DataIterator"]


class Batches:
    """Can be iterated over several times; each time the data is made anew."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()


class DataIterator(ABC):
    """Rows and batches of a dataset, or of one part of a `streaming_split`. It can be sent to other workers."""

    @abstractmethod
    def _tables(self) -> Iterator[pa.Table]:
        """Its blocks."""

    @abstractmethod
    def schema(self) -> Schema | None:
        """None when there are no rows."""

    @abstractmethod
    def stats(self) -> str:
        """What its execution took, in words."""

    @abstractmethod
    def get_context(self) -> DataContext:
        """The settings it runs under."""

    def iter_rows(self) -> Iterable[dict[str, Any]]:
        """Every row as a dict."""
        return Batches(self._rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for table in self._tables():
            for start in range(0, table.num_rows, 4096):
                yield from tables.to_rows(table.slice(start, 4096))

    def iter_batches(
        self,
        *,
        prefetch_batches: int = 1,
        batch_size: int | None = 256,
        batch_format: str | None = "default",
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
    ) -> Iterable[Any]:
        """Batches of `batch_size` rows; None: whole blocks.

        Args:
            prefetch_batches: 0: nothing is done ahead; else the next block is fetched and converted in a thread.
            batch_format: `"default"` or `"numpy"`: a dict of arrays, read-only views of shared memory where that is possible; `"pandas"`; `"pyarrow"`.
            drop_last: leaves out a last batch that is not full.
            local_shuffle_buffer_size: shuffles among at least so many rows.
            local_shuffle_seed: makes that order the same each time.
        """
        form = form_of(tables.check_format(batch_format))
        return self._batches(form, prefetch_batches, batch_size, drop_last, local_shuffle_buffer_size, local_shuffle_seed, None)

    def iter_torch_batches(
        self,
        *,
        prefetch_batches: int = 1,
        batch_size: int | None = 256,
        dtypes: Any = None,
        device: Any = "auto",
        collate_fn: Callable[[dict[str, Any]], Any] | None = None,
        drop_last: bool = False,
        local_shuffle_buffer_size: int | None = None,
        local_shuffle_seed: int | None = None,
        pin_memory: bool = False,
    ) -> Iterable[Any]:
        """Batches as dicts of tensors, which may be changed in place.

        Args:
            dtypes: one torch.dtype, or one for each of some columns.
            device: where tensors go; `"auto"`: this worker's first GPU if it has one.
            collate_fn: makes the batch of a dict of arrays instead; it may run ahead in a thread. Not with `dtypes`.
            pin_memory: puts batches in pinned memory first.
        """
        if collate_fn is not None and dtypes is not None:
            raise ValueError("iter_torch_batches takes either collate_fn or dtypes: a collate_fn makes its tensors itself")
        device = _torch_device(device)
        form: Form = TorchForm(dtypes, device, pin_memory) if collate_fn is None else form_of("numpy")
        return self._batches(form, prefetch_batches, batch_size, drop_last, local_shuffle_buffer_size, local_shuffle_seed, _collate(collate_fn, device))

    def _batches(
        self, form: Form, prefetch: int, size: int | None, drop_last: bool, shuffle_rows: int | None, seed: int | None, collate: Callable[[Any], Any] | None
    ) -> Batches:
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"batch_size must be a positive number of rows or None, and is {size!r}")
        if shuffle_rows is not None and (shuffle_rows < 1 or size is None):
            raise ValueError("local_shuffle_buffer_size must be positive, and needs a batch_size")

        def convert() -> Iterator[tuple[int, Any]]:
            blocks = self._tables()
            for table in locally_shuffled(blocks, shuffle_rows, seed) if shuffle_rows is not None else blocks:
                if table.num_rows:
                    yield table.num_rows, form.make(table)

        def start() -> Iterator[Any]:
            converted: Iterator[tuple[int, Any]] = convert()
            if prefetch > 0 and collate is None:
                converted = iter(Prefetch(converted, 1))
            made = batches(converted, form, size, drop_last)
            if collate is None:
                return made
            collated = map(collate, made)
            return iter(Prefetch(_closing(collated, made), prefetch)) if prefetch > 0 else collated

        return Batches(start)

    def materialize(self) -> MaterializedDataset:
        """All of it, as a dataset of blocks in the object store."""
        from .read_api import from_arrow

        return from_arrow(list(self._tables()))


def _closing(items: Iterator[Any], source: Any) -> Iterator[Any]:
    try:
        yield from items
    finally:
        source.close()


def _torch_device(device: Any) -> Any:
    if device != "auto":
        return device
    import shoal
    import torch

    return "cuda:0" if torch.cuda.is_available() and shoal.is_initialized() and shoal.get_gpu_ids() else None


def _collate(collate_fn: Callable[[Any], Any] | None, device: Any) -> Callable[[Any], Any] | None:
    if collate_fn is None or device is None:
        return collate_fn

    def to_device(value: Any) -> Any:
        if hasattr(value, "to"):
            return value.to(device)
        if isinstance(value, dict):
            return {name: to_device(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(to_device, value))
        return value

    return lambda batch: to_device(collate_fn(batch))
