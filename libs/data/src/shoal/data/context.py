"""Settings of datasets that are made in this process."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DataContext", "ExecutionOptions", "ExecutionResources"]

MIB = 1 << 20


@dataclass
class ExecutionResources:
    """Limits of one execution. None: what the cluster has.

    Args:
        cpu: CPUs that tasks may use at the same time.
        object_store_memory: bytes of blocks that wait, and that running tasks are about to make.
    """

    cpu: float | None = None
    object_store_memory: float | None = None


@dataclass
class ExecutionOptions:
    """How plans are executed. Blocks always come in the order of their input."""

    resource_limits: ExecutionResources = field(default_factory=ExecutionResources)


@dataclass
class DataContext:
    """Settings; each dataset keeps those that were current when it was made.

    Args:
        target_max_block_size: bytes of a block, 128 MiB. Less is used where the object store is small.
        target_min_block_size: readers make no blocks below this where they choose, 1 MiB.
        read_op_min_num_blocks: None: twice the CPUs.
        broadcast_join_threshold: bytes up to which the right side of a join is sent whole to every task.
        memory_fraction: the part of the object stores that an execution's blocks may take.

    Example::

        DataContext.get_current().target_max_block_size = 16 * 1024 * 1024
    """

    target_max_block_size: int = 128 * MIB
    target_min_block_size: int = 1 * MIB
    read_op_min_num_blocks: int | None = None
    broadcast_join_threshold: int = 64 * MIB
    single_task_threshold: int = 32 * MIB
    memory_fraction: float = 0.5
    execution_options: ExecutionOptions = field(default_factory=ExecutionOptions)

    @staticmethod
    def get_current() -> DataContext:
        global _current
        with _lock:
            if _current is None:
                _current = DataContext()
            return _current

    def copy(self) -> DataContext:
        return copy.deepcopy(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            from .exceptions import near

            raise AttributeError(f"DataContext has no setting {name!r}.{near(name, self.__dataclass_fields__)}")
        super().__setattr__(name, value)


_lock = threading.Lock()
_current: DataContext | None = None
