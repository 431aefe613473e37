"""Records in one SQLite file: write-ahead log, one transaction a batch, locked to one process."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from .backend import SCHEMA_VERSION, Backend, Batch, Claim, Opened, StorageError, StorageUnavailable, lost

APPLICATION_ID = 0x53484F4C  # "SHOL"
LOCK_WAIT_S = 3.0  # a predecessor that was just killed may still be ending
ROWS_A_STATEMENT = 200  # SQLite's oldest limit is 999 variables in one statement
EPOCH, CLUSTER_ID = "epoch", "cluster_id"

# Errors after which the same batch may succeed later: a full disk, an I/O error, a lock.
_TRANSIENT = frozenset(getattr(sqlite3, name) for name in ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_NOMEM"))


class SqliteBackend(Backend):
    name = "sqlite"

    def __init__(self, path: str, full: bool = False) -> None:
        self._path = Path(path).absolute()
        self._full = full
        self._db: sqlite3.Connection | None = None

    def open(self, fresh_cluster_id: bytes, *, expected: bytes = b"", claim: Claim | None = None) -> Opened:
        if expected and not self._path.exists():
            raise lost(f"storage file {self._path}", expected, b"")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StorageError(f"storage file {self._path}: {error.strerror}; give a path that this user can write") from error
        try:
            return self._open(fresh_cluster_id, expected)
        except sqlite3.Error as error:
            self.close()
            raise self._explain(error) from error
        except StorageError:
            self.close()
            raise

    def apply(self, batch: Batch) -> None:
        if self._db is None:
            raise StorageError(f"storage file {self._path} is not open")
        try:
            self._write(self._db, batch)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            explained = self._explain(error)
            if error.sqlite_errorcode & 0xFF in _TRANSIENT:
                raise StorageUnavailable(str(explained)) from error
            raise explained from error

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self, fresh_cluster_id: bytes, expected: bytes) -> Opened:
        db = self._db = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if self._full else 'NORMAL'}")
        db.execute("BEGIN EXCLUSIVE")
        self._check_schema(db)
        if expected:
            self._check_cluster(db, expected)
        db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB)")
        db.execute("CREATE TABLE IF NOT EXISTS records (tbl TEXT, key BLOB, record BLOB, PRIMARY KEY (tbl, key))")
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        meta = dict(db.execute("SELECT name, value FROM meta"))
        opened = Opened(int(meta.get(EPOCH, 0)) + 1, bytes(meta.get(CLUSTER_ID) or fresh_cluster_id))
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(EPOCH, opened.epoch), (CLUSTER_ID, opened.cluster_id)])
        for table, key, record in db.execute("SELECT tbl, key, record FROM records ORDER BY rowid"):
            opened.records.setdefault(table, []).append((key, record))
        db.execute("COMMIT")
        return opened

    def _check_schema(self, db: sqlite3.Connection) -> None:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise StorageError(f"storage file {self._path} is another program's database; give another path")
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"storage file {self._path} has schema version {version}, and this release of shoal-gcs knows up to {SCHEMA_VERSION}; "
                "start the newer release again, or give another path"
            )
        if tables:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(" ".join(verdict.split()))

    def _check_cluster(self, db: sqlite3.Connection, expected: bytes) -> None:
        known = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
        row = db.execute("SELECT value FROM meta WHERE name = ?", (CLUSTER_ID,)).fetchone() if known else None
        found = bytes(row[0]) if row else b""
        if found != expected:
            raise lost(f"storage file {self._path}", expected, found)

    def _write(self, db: sqlite3.Connection, batch: Batch) -> None:
        puts = [(*place, record) for place, record in batch.items() if record is not None]
        gone = [place for place, record in batch.items() if record is None]
        statements = [*_statements("INSERT OR REPLACE INTO records VALUES ", puts, "")]
        statements += _statements("DELETE FROM records WHERE (tbl, key) IN (VALUES ", gone, ")")
        # Each step gives up the interpreter's lock and must win it back from a busy event loop, so there are as few as can be.
        if len(statements) == 1:
            db.execute(*statements[0])
            return
        db.execute("BEGIN")
        for statement in statements:
            db.execute(*statement)
        db.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> StorageError:
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageError(f"storage file {self._path} is in use by another control store; stop that one, or give another path")
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, None):
            return StorageError(f"storage file {self._path} is damaged ({error}); nothing in it was changed: restore a backup, or move it away to begin anew")
        if primary == sqlite3.SQLITE_FULL:
            return StorageError(f"storage file {self._path}: the disk is full; free space on it")
        return StorageError(f"storage file {self._path}: {error}")


def _statements(head: str, rows: Sequence[tuple[str | bytes | None, ...]], tail: str) -> list[tuple[str, list[str | bytes | None]]]:
    made = []
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        some = rows[start : start + ROWS_A_STATEMENT]
        marks = ",".join(["(" + ",".join("?" * len(some[0])) + ")"] * len(some))
        made.append((head + marks + tail, [value for row in some for value in row]))
    return made
