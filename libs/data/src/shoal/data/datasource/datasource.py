"""What can be read in parallel."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .._block import tables

if TYPE_CHECKING:
    from ..context import DataContext

__all__ = ["BlockMetadata", "Datasource", "ReadTask", "TaskContext"]


@dataclass(frozen=True)
class BlockMetadata:
    """What is known of a task's rows before they are read; None: nothing is.

    Attributes:
        num_rows: how many.
        size_bytes: of memory; it decides how many tasks may run at a time.
        input_files: that it reads.
    """

    num_rows: int | None = None
    size_bytes: int | None = None
    input_files: list[str] | None = None


class ReadTask:
    """One task of a `Datasource`.

    Args:
        read_fn: gives blocks: pyarrow tables, data frames, or dicts of columns. It is pickled, and runs in a worker; again if that dies.
        metadata: what is known of them.
        schema: of the blocks, if it is known.
        per_task_row_limit: more rows than these are not taken from it.
    """

    def __init__(
        self, read_fn: Callable[[], Iterable[Any]], metadata: BlockMetadata, schema: pa.Schema | None = None, per_task_row_limit: int | None = None
    ) -> None:
        if not callable(read_fn):
            raise TypeError(f"ReadTask: read_fn must be a function without arguments, and is {read_fn!r}")
        self.read_fn = read_fn
        self.metadata = metadata
        self.schema = schema
        self.per_task_row_limit = per_task_row_limit

    def __call__(self) -> Iterator[pa.Table]:
        """The blocks. Raises BatchTypeError for what is none."""
        blocks = (tables.of_batch(block, "read_fn of a ReadTask") for block in self.read_fn())
        yield from tables.limited(blocks, self.per_task_row_limit)


class Datasource(ABC):
    """Base class of what can be read in parallel. It stays in the program; only its tasks travel."""

    @abstractmethod
    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None) -> list[ReadTask]:
        """About `parallelism` tasks; their blocks, in this order, are the dataset. Called at each execution.

        With `per_task_row_limit` no task need give more rows."""

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all rows, if it is known."""
        return None

    def get_name(self) -> str:
        """For `explain()` and messages."""
        return type(self).__name__.removesuffix("Datasource") or type(self).__name__


@dataclass(frozen=True)
class TaskContext:
    """Which task writes: `task_idx` is the same when it is tried again."""

    task_idx: int
    op_name: str


def ask_for_tasks(datasource: Datasource, parallelism: int, row_limit: int | None, context: DataContext) -> list[ReadTask]:
    """`get_read_tasks`, which may take fewer arguments: the later ones are advice."""
    advice: dict[str, Any] = {"per_task_row_limit": row_limit, "data_context": context}
    taken = inspect.signature(datasource.get_read_tasks).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    found = datasource.get_read_tasks(parallelism, **{name: value for name, value in advice.items() if anything or name in taken})
    for task in found:
        if not isinstance(task, ReadTask):
            raise TypeError(f"{type(datasource).__name__}.get_read_tasks must give ReadTask objects, and gave {type(task).__name__}")
    return list(found)
