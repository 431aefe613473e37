"""How a framework is told of its workers: `BackendConfig` says what the user wants, its `Backend` does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

__all__ = ["Backend", "BackendConfig", "Worker", "WorkerGroup"]


class Worker(Protocol):
    """Where a rank runs."""

    rank: int
    local_rank: int
    node_rank: int
    node_id: str
    node_ip: str
    pid: int
    gpu_ids: Sequence[str]


class WorkerGroup(Protocol):
    """What a backend may do with the workers. Functions run beside the training function, in its process."""

    @property
    def workers(self) -> Sequence[Any]:
        """A `Worker` for each rank."""

    def __len__(self) -> int: ...

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """In all workers at once; what they return, by rank. The first failure ends it."""

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In one worker."""


class Backend:
    """Does nothing; derive from it. Its methods run in the process that calls `fit()`."""

    def on_start(self, worker_group: WorkerGroup, backend_config: Any) -> None:
        """The workers exist and know their ranks; the training function has not begun. Called for each attempt."""

    def on_shutdown(self, worker_group: WorkerGroup, backend_config: Any) -> None:
        """All workers have returned, and their processes are about to end. Not called after failures."""


class BackendConfig:
    """Derive from it for a framework of your own; `DataParallelTrainer(backend_config=...)` takes it.

    Attributes:
        imports: modules that take long to import: workers begin with them at once, while the group is put together.
    """

    imports: ClassVar[tuple[str, ...]] = ()

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend

    @property
    def train_func_context(self) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        """Makes the context that the training function is called in, in the worker."""
        return contextlib.nullcontext
