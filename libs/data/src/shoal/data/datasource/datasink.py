"""What can be written to in parallel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import pyarrow as pa

if TYPE_CHECKING:
    from .datasource import TaskContext

__all__ = ["Datasink", "WriteResult"]

T = TypeVar("T")


@dataclass(frozen=True)
class WriteResult(Generic[T]):
    """What was written, and what each `write` returned."""

    num_rows: int
    size_bytes: int
    write_returns: list[T]


class Datasink(ABC, Generic[T]):
    """Base class of what can be written to in parallel. It is pickled into the tasks; `on_…` are called in the program."""

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Before anything runs. `schema`: of the rows, if it is known by then."""

    @abstractmethod
    def write(self, blocks: Iterable[pa.Table], ctx: TaskContext) -> T:
        """Writes rows, in a worker. It is called again for the same rows if the worker dies."""

    def on_write_complete(self, write_result: WriteResult[T]) -> None:
        """When all is written."""

    def on_write_failed(self, error: Exception) -> None:
        """When something raised; what was written so far is the sink's to undo. The error goes on to who called."""

    def get_name(self) -> str:
        """For `explain()` and messages."""
        return type(self).__name__.removesuffix("Datasink") or type(self).__name__

    @property
    def min_rows_per_write(self) -> int | None:
        """Blocks are put together until they have so many rows."""
        return None
