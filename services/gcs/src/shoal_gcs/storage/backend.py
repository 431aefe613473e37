"""The contract of a storage back end.

    StorageError                 it cannot be used; the message says what to do. State is never discarded to get going.
    ├── Fenced                   another control store has taken over: this one must end
    └── StorageUnavailable       not now; the same batch may be tried again
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

SCHEMA_VERSION = 1

# (table, key) -> record, or None: deleted. Later writes of a key replace earlier ones, so a batch holds each key once.
Batch = dict[tuple[str, bytes], bytes | None]


class StorageError(Exception):
    pass


class Fenced(StorageError):
    pass


class StorageUnavailable(StorageError):
    pass


@dataclass(slots=True)
class Opened:
    """`epoch` counts the starts on this storage, from 1. `cluster_id` was made at the first."""

    epoch: int
    cluster_id: bytes
    records: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)


class Backend(ABC):
    """Blocking, used by one thread at a time.

    `open` is called once, first. From its return on, no other process can write with an older epoch, or none can open it at all.
    `apply` is atomic: all of the batch or nothing; when it returns, the batch survives a SIGKILL of this process.
    """

    name: str
    blocks = True  # False: `apply` only touches memory and may be called on the event loop

    @abstractmethod
    def open(self, fresh_cluster_id: bytes) -> Opened:
        """Raises StorageError."""

    @abstractmethod
    def apply(self, batch: Batch) -> None:
        """Raises StorageUnavailable (nothing was written, try again), Fenced, or StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


def open_backend(where: str, durability: str = "normal") -> Backend:
    """`memory`, `sqlite:PATH`, `redis://[:PASSWORD@]HOST:PORT/DB[?name=CLUSTER]`.

    Raises StorageError for anything else.
    """
    if durability not in ("normal", "full"):
        raise StorageError(f"durability {durability!r}: choose normal (survives a kill) or full (survives a power cut)")
    kind, _, rest = where.partition(":")
    if where == "memory":
        from .memory import MemoryBackend

        return MemoryBackend()
    if kind == "sqlite" and rest:
        from .sqlite import SqliteBackend

        return SqliteBackend(rest, full=durability == "full")
    if kind in ("redis", "rediss", "unix"):
        from .redis import RedisBackend

        return RedisBackend(where)
    raise StorageError(f"storage {where!r}: choose memory, sqlite:PATH or redis://HOST:PORT/DB")
