"""The contract of a storage back end.

    StorageError                 it cannot be used; the message says what to do. State is never discarded to get going.
    ├── Fenced                   another control store has taken over: this one must end
    ├── Led                      another control store leads this cluster, and its term is not over
    └── StorageUnavailable       not now; the same may be tried again
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

SCHEMA_VERSION = 1

# (table, key) -> record, or None: deleted. Later writes of a key replace earlier ones, so a batch holds each key once.
Batch = dict[tuple[str, bytes], bytes | None]


class StorageError(Exception):
    pass


class Fenced(StorageError):
    pass


class StorageUnavailable(StorageError):
    pass


class Led(StorageError):
    """`address`: who leads, HOST:PORT."""

    def __init__(self, text: str, address: str, epoch: int, cluster_id: bytes) -> None:
        super().__init__(text)
        self.address = address
        self.epoch = epoch
        self.cluster_id = cluster_id


class Opened(msgspec.Struct):
    """`epoch` counts the starts on this storage, from 1. `cluster_id` was made at the first."""

    epoch: int
    cluster_id: bytes
    records: dict[str, list[tuple[bytes, bytes]]] = msgspec.field(default_factory=dict)


class Claim(msgspec.Struct, frozen=True):
    """Who wants to lead, and for how long at a time. Whoever comes from the same address is the same head, started again."""

    address: str
    term_s: float


class Backend(ABC):
    """Blocking, used by one thread at a time; `renew` may be called from another.

    `open` is called once, first; again only when it raised. From its return on, no other process can write with an older epoch, or none can open it at all.
    `apply` is atomic: all of the batch or nothing; when it returns, the batch survives a SIGKILL of this process.
    """

    name: str
    blocks = True  # False: `apply` only touches memory and may be called on the event loop
    shared = False  # True: control stores of several machines reach it; one leads at a time, and others may stand by

    @abstractmethod
    def open(self, fresh_cluster_id: bytes, *, expected: bytes = b"", claim: Claim | None = None) -> Opened:
        """`expected`: the cluster that must be in it; b"": any, and an empty one is given the fresh id. `claim` is for shared back ends.

        Raises Led, StorageUnavailable, StorageError; then nothing was changed.
        """

    @abstractmethod
    def apply(self, batch: Batch) -> None:
        """Raises StorageUnavailable (nothing was written for others to see: the same batch again), Fenced, or StorageError."""

    def renew(self) -> Sequence[str]:
        """Begins the term anew; the addresses of those who stand by. Raises Fenced, StorageUnavailable, StorageError. For shared back ends with a claim."""
        raise StorageError(f"storage in {self.name} has no terms")

    def resign(self) -> None:  # noqa: B027 (most have no term)
        """Ends the term early, for a successor's sake. Never raises."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


def lost(where: str, expected: bytes, found: bytes) -> StorageError:
    """What was there is no more, or is another cluster's."""
    now = f"cluster {found.hex()}" if found else "no cluster at all"
    return StorageError(
        f"{where} held cluster {expected.hex()} and now holds {now}: it was emptied, or replaced. Nothing was written to it; restore its data, "
        "or stop the cluster's nodes and start a new cluster"
    )


def open_backend(where: str, durability: str = "normal") -> Backend:
    """`memory`, `sqlite:PATH`, `redis://[:PASSWORD@]HOST:PORT[,HOST:PORT]/DB[?name=CLUSTER]`: several servers are shards.

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
