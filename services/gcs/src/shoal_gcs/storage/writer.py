"""Writes in batches: what one turn of the event loop, or the time of the batch before, brings together is one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from .backend import Backend, Batch, StorageError, StorageUnavailable

RETRY_FIRST_S = 0.05
RETRY_LONGEST_S = 2.0
RETRY_TOTAL_S = 30.0  # Limit: then the control store ends rather than promise what it cannot keep

_log = logging.getLogger(__name__)


class Writer:
    """Belongs to one event loop. `put` and `delete` never block; `durable` tells when all of them so far have reached the storage.

    A write that fails for good calls `on_failure` once; whoever waits gets the error.
    """

    def __init__(self, backend: Backend, on_failure: Callable[[StorageError], None]) -> None:
        self._backend = backend
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._batch: Batch = {}
        self._waiter: asyncio.Future[None] | None = None  # of what is gathered
        self._current: asyncio.Future[None] | None = None  # of what is being written
        self._busy = False
        self._scheduled = False
        self._failed: StorageError | None = None
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.batches = 0
        self.records = 0
        if backend.blocks:
            self._thread = threading.Thread(target=self._run, name="shoal-gcs-writer", daemon=True)
            self._thread.start()

    def put(self, table: str, key: bytes, record: bytes | None) -> None:
        self._batch[table, key] = record
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self._loop.call_soon(self._hand_over)

    def delete(self, table: str, key: bytes) -> None:
        self.put(table, key, None)

    def durable(self) -> asyncio.Future[None] | None:
        """None: nothing is outstanding, neither gathered nor being written. Waiters share a future; shield it when awaiting it.

        Whoever puts nothing waits too: a request that found its work already done may have found what is only being written.
        """
        if self._failed is not None:
            raise self._failed
        if self._batch and self._backend.blocks:
            if self._waiter is None:
                self._waiter = self._loop.create_future()
            return self._waiter
        if self._busy and self._current is None:
            self._current = self._loop.create_future()
        return self._current

    async def close(self) -> None:
        """Writes what is left, then closes the back end."""
        with contextlib.suppress(StorageError):
            last = self.durable()
            if last is not None:
                await asyncio.wait([last], timeout=RETRY_TOTAL_S)
        self._closing.set()
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, RETRY_TOTAL_S)
        elif self._batch:
            self._hand_over()
        if self._backend.shared:
            await asyncio.to_thread(self._backend.resign)
        self._backend.close()

    def _hand_over(self) -> None:
        self._scheduled = False
        if self._busy or not self._batch or self._failed is not None:
            return
        batch, self._batch = self._batch, {}
        waiter, self._waiter = self._waiter, None
        self.batches += 1
        self.records += len(batch)
        if self._thread is None:
            try:
                self._backend.apply(batch)
            except StorageError as error:
                self._fail(error)
            return
        self._busy = True
        self._current = waiter
        self._queue.put(batch)

    def _written(self, error: StorageError | None) -> None:
        self._busy = False
        waiter, self._current = self._current, None
        if waiter is not None and not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
                waiter.exception()  # somebody may have stopped waiting
        if error is not None:
            self._fail(error)
        else:
            self._hand_over()

    def _fail(self, error: StorageError) -> None:
        if self._failed is None:
            self._failed = error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
                self._waiter.exception()
            self._on_failure(error)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            error = self._apply(batch)
            try:
                self._loop.call_soon_threadsafe(self._written, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _apply(self, batch: Batch) -> StorageError | None:
        pause = RETRY_FIRST_S
        until = time.monotonic() + RETRY_TOTAL_S
        while True:
            try:
                self._backend.apply(batch)
            except StorageUnavailable as error:
                if time.monotonic() + pause > until or self._closing.is_set():
                    return error
                _log.warning("%s; trying again in %.2f s", error, pause)
                self._closing.wait(pause)
                pause = min(pause * 2, RETRY_LONGEST_S)
            except StorageError as error:
                return error
            else:
                return None
