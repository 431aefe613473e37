"""Datasets of PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import shoal

from .._block import tables
from ..context import DataContext
from ..datasource import BlockMetadata, Datasource, ReadTask

# Rows that become a table at once.
ROWS_AT_ONCE = 1024


class TorchDatasource(Datasource):
    """A dataset with indices is read by several tasks; one that can only be iterated over, by one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None) -> list[ReadTask]:
        ref = shoal.put(self.dataset)
        if not has_indices(self.dataset):
            return [ReadTask(partial(_items, ref, None, per_task_row_limit), BlockMetadata())]
        rows = len(self.dataset)
        tasks = max(1, min(parallelism, rows))
        edges = [rows * i // tasks for i in range(tasks + 1)]
        return [ReadTask(partial(_items, ref, range(start, end), per_task_row_limit), BlockMetadata(end - start)) for start, end in itertools.pairwise(edges)]

    def get_name(self) -> str:
        return "Torch"


def has_indices(dataset: Any) -> bool:
    """PyTorch gives every dataset a `__getitem__`, that of an iterable one does nothing but raise; it may even know its length."""
    import torch.utils.data

    if isinstance(dataset, torch.utils.data.IterableDataset):
        return False
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _items(ref: Any, indices: range | None, limit: int | None) -> Iterator[pa.Table]:
    dataset = shoal.get(ref)
    items = iter(dataset) if indices is None else map(dataset.__getitem__, indices)
    items = itertools.islice(items, limit)
    while rows := [{"item": item} for item in itertools.islice(items, ROWS_AT_ONCE)]:
        yield tables.of_rows(rows, "from_torch")
