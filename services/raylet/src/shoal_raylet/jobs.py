"""Jobs as this node knows them: their settings, and the drivers that began here."""

from __future__ import annotations

import asyncio
import logging
import uuid

from shoal_gcs.v1 import gcs_pb2 as gcs

from .gcs_client import GcsClient
from .rpc import RpcFailed
from .v1 import raylet_pb2 as pb

_log = logging.getLogger(__name__)
# In JobConfig.metadata: whether the driver wants its workers' output.
LOG_TO_DRIVER = "log_to_driver"
# How long the end of a job is told to a GCS that does not answer; the GCS finds out by the node's end otherwise.
_FINISH_TIMEOUT_S = 30.0


class Jobs:
    def __init__(self, client: GcsClient) -> None:
        self._client = client
        self._configs: dict[bytes, asyncio.Future[pb.JobConfig]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def add(self, register: pb.RegisterWorker, worker_id: bytes, node_id: bytes, pid: int) -> tuple[bytes, str]:
        """A new job for a driver; (job id, namespace). Raises RpcFailed."""
        config = register.job_config
        config.metadata[LOG_TO_DRIVER] = "1" if register.log_to_driver else "0"
        namespace = register.namespace or config.namespace or str(uuid.uuid4())
        config.namespace = namespace
        job = gcs.Job(
            namespace=namespace, entrypoint=register.entrypoint, driver_worker_id=worker_id, driver_node_id=node_id, driver_pid=pid,
            config=config.SerializeToString(), max_actors=config.max_actors,
            max_pending_tasks=config.max_pending_tasks, max_object_bytes=config.max_object_bytes,
        )  # fmt: skip
        reply = await self._client.call("AddJob", gcs.AddJobRequest(job=job), gcs.Job)
        known: asyncio.Future[pb.JobConfig] = asyncio.get_running_loop().create_future()
        known.set_result(config)
        self._configs[bytes(reply.job_id)] = known
        return bytes(reply.job_id), reply.namespace or namespace

    async def config(self, job_id: bytes, timeout_s: float = 10.0) -> pb.JobConfig:
        """Raises RpcFailed."""
        coming = self._configs.get(job_id)
        if coming is None or (coming.done() and coming.exception() is not None):
            coming = self._configs[job_id] = asyncio.ensure_future(self._fetch(job_id, timeout_s))
        config: pb.JobConfig = await asyncio.shield(coming)
        return config

    async def _fetch(self, job_id: bytes, timeout_s: float) -> pb.JobConfig:
        job = await self._client.call("GetJob", gcs.JobQuery(job_id=job_id), gcs.Job, timeout_s)
        config: pb.JobConfig = pb.JobConfig.FromString(job.config)
        return config

    def known(self, job_id: bytes) -> pb.JobConfig | None:
        """What is here already; asks for the rest."""
        coming = self._configs.get(job_id)
        if coming is None:
            coming = self._configs[job_id] = asyncio.ensure_future(self._fetch(job_id, 10.0))
            coming.add_done_callback(_seen)
        if coming.done() and not coming.cancelled() and coming.exception() is None:
            return coming.result()
        return None

    def finish(self, job_id: bytes) -> None:
        """Its driver is gone."""
        task = asyncio.ensure_future(self._finish(job_id))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finish(self, job_id: bytes) -> None:
        try:
            await self._client.call("FinishJob", gcs.FinishJobRequest(job_id=job_id), gcs.Empty, _FINISH_TIMEOUT_S)
        except RpcFailed as error:
            _log.error("the end of job %s was not told to the GCS: %s", job_id.hex(), error)

    def forget(self, job_id: bytes) -> None:
        self._configs.pop(job_id, None)

    async def close(self, grace_s: float = 1.0) -> None:
        """Ends that are on their way get a moment."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=grace_s)
        for task in self._ending:
            task.cancel()
        for coming in self._configs.values():
            coming.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)


def _seen(future: asyncio.Future[pb.JobConfig]) -> None:
    if not future.cancelled():
        future.exception()
