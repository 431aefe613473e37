"""Where records outlive the process: memory, SQLite, Redis, behind one contract (`backend.Backend`) with one conformance suite."""

from .backend import Backend, Batch, Claim, Fenced, Led, Opened, StorageError, StorageUnavailable, open_backend
from .writer import Writer

__all__ = ["Backend", "Batch", "Claim", "Fenced", "Led", "Opened", "StorageError", "StorageUnavailable", "Writer", "open_backend"]
