"""Lines that workers print, on their way to the driver."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shoal_gcs.v1 import gcs_pb2 as gcs

from .jobs import LOG_TO_DRIVER
from .rpc import RpcFailed
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet

_log = logging.getLogger(__name__)
# Limit: batches that wait for the GCS; the files keep what is dropped here.
MAX_BATCHES = 2000
# Limit: lines of one batch; a worker that prints more gets more batches.
MAX_LINES = 1000
_PUBLISH_TIMEOUT_S = 5.0


class LogPublisher:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._queue: asyncio.Queue[pb.LogBatch] = asyncio.Queue(MAX_BATCHES)
        self._task = asyncio.ensure_future(self._publish())
        self._dropped = 0

    def deliver(self, worker_id: bytes, is_err: bool, marked: str, lines: list[str]) -> None:
        worker = self._raylet.scheduler.core.workers.by_id.get(worker_id)
        if worker is None or not worker.job:
            return
        # Lines are read later than they were printed, so that their mark counts, and what runs now only where there is none.
        name = (worker.actor.name if worker.actor is not None else "") or marked
        session = self._raylet.sessions.get(worker_id)
        if not name and session is not None:
            name = self._raylet.control.read(session.record).task_name
        for at in range(0, len(lines), MAX_LINES):
            batch = pb.LogBatch(
                job_id=worker.job, node_id=self._raylet.node_id, node_ip=self._raylet.config.host, pid=worker.pid, name=name, is_err=is_err,
                lines=lines[at : at + MAX_LINES],
            )  # fmt: skip
            if self._queue.full():
                self._dropped += len(self._queue.get_nowait().lines)
            self._queue.put_nowait(batch)

    async def _publish(self) -> None:
        while True:
            batch = await self._queue.get()
            try:
                await self._publish_one(batch)
            except (RpcFailed, TimeoutError) as error:
                _log.debug("a batch of %d lines was not published: %s", len(batch.lines), error)

    async def _publish_one(self, batch: pb.LogBatch) -> None:
        config = await self._raylet.jobs.config(batch.job_id)
        if config.metadata.get(LOG_TO_DRIVER) != "1":
            return
        if self._dropped:
            batch.lines.append(f"({self._dropped} lines were dropped on the way; the files on node {self._raylet.node_id.hex()[:12]} have them)")
            self._dropped = 0
        event = gcs.Event(channel=f"logs:{batch.job_id.hex()}", payload=batch.SerializeToString())
        await self._raylet.gcs.call("Publish", event, gcs.Empty, _PUBLISH_TIMEOUT_S)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
