"""Pickled functions: stored once at the GCS, cached once for the node."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

import grpc
from shoal_gcs.v1 import gcs_pb2 as gcs

from .gcs_client import GcsClient
from .rpc import RpcFailed
from .v1 import raylet_pb2 as pb

_log = logging.getLogger(__name__)

NAMESPACE = "functions"
# Limit: bytes of functions kept here; the GCS has them all.
MAX_CACHED_BYTES = 256 << 20
# How long somebody waits for a function that its driver has not stored yet.
WAIT_S = 30.0
# One try to store one, and between two.
STORE_S, STORE_PAUSE_S = 30.0, 0.5


class FunctionNotFound(Exception):
    pass


class Functions:
    def __init__(self, client: GcsClient) -> None:
        self._client = client
        self._cached: OrderedDict[bytes, bytes] = OrderedDict()  # job + function -> FunctionRecord
        self._bytes = 0
        self._coming: dict[bytes, asyncio.Future[bytes]] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._storing: dict[bytes, asyncio.Task[None]] = {}

    def _keep(self, key: bytes, record: bytes) -> None:
        old = self._cached.pop(key, b"")
        self._cached[key] = record
        self._bytes += len(record) - len(old)
        while self._bytes > MAX_CACHED_BYTES and len(self._cached) > 1:
            self._bytes -= len(self._cached.popitem(last=False)[1])
        coming = self._coming.pop(key, None)
        if coming is not None and not coming.done():
            coming.set_result(record)

    async def put(self, payload: bytes, timeout_s: float) -> None:
        """Workers of this node have it at once; the answer comes when the GCS has it.

        Drivers do not wait for that, nor ask again: it is tried until the GCS has it, or the job is over. Workers of other nodes look for it there alone.
        Raises RpcFailed.
        """
        record = pb.FunctionRecord.FromString(payload)
        key = record.job_id + record.function_id
        if key not in self._cached:
            self._keep(key, payload)
        storing = self._storing.get(key)
        if storing is None:
            job_id = b"" if record.outlives_job else record.job_id
            request = gcs.KvPutRequest(namespace=NAMESPACE, key=key, value=payload, overwrite=record.outlives_job, job_id=job_id)
            storing = self._storing[key] = asyncio.ensure_future(self._store(request))
            storing.add_done_callback(lambda task: self._stored(key, task))
        try:
            await asyncio.wait_for(asyncio.shield(storing), timeout_s)
        except TimeoutError:
            text = f"no control store has taken function {record.function_id.hex()} in {timeout_s:g} s; it is tried on"
            raise RpcFailed(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], text) from None

    async def _store(self, request: gcs.KvPutRequest) -> None:
        while True:
            try:
                await self._client.call("KvPut", request, gcs.KvPutReply, STORE_S)
                return
            except RpcFailed as error:
                if not error.unheard:
                    raise
                _log.warning("function %s is not stored yet, and is tried again: %s", request.key[4:].hex(), error)
            await asyncio.sleep(STORE_PAUSE_S)

    def _stored(self, key: bytes, task: asyncio.Task[None]) -> None:
        if self._storing.get(key) is task:
            del self._storing[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("function %s could not be stored: %s", key[4:].hex(), error)

    async def get(self, payload: bytes, timeout_s: float) -> bytes:
        """Raises FunctionNotFound when it does not come in time."""
        asked = pb.FunctionRecord.FromString(payload)
        key = asked.job_id + asked.function_id
        record = self._cached.get(key)
        if record is not None:
            self._cached.move_to_end(key)
            return record
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(self._fetch(key, coming))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)
        try:
            return await asyncio.wait_for(asyncio.shield(coming), min(timeout_s, WAIT_S))
        except TimeoutError:
            raise FunctionNotFound(f"function {asked.function_id.hex()} of job {asked.job_id.hex()} did not come within {min(timeout_s, WAIT_S):g} s") from None

    async def _fetch(self, key: bytes, coming: asyncio.Future[bytes]) -> None:
        try:
            request = gcs.KvGetRequest(namespace=NAMESPACE, key=key, wait_ms=int(WAIT_S * 1000))
            reply = await self._client.call("KvGet", request, gcs.KvGetReply, WAIT_S + 5.0)
            if reply.found:
                self._keep(key, reply.value)
            elif not coming.done():
                coming.set_exception(FunctionNotFound(f"function {key[4:].hex()} of job {key[:4].hex()} is not at the GCS after {WAIT_S:g} s"))
        except Exception as error:
            if not coming.done():
                coming.set_exception(FunctionNotFound(f"function {key[4:].hex()}: the GCS did not answer: {error}"))
        finally:
            if self._coming.get(key) is coming:
                del self._coming[key]
            if coming.done() and not coming.cancelled():
                coming.exception()  # looked at: nobody may be waiting any more

    async def close(self) -> None:
        running = [*self._fetches, *self._storing.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def forget_job(self, job_id: bytes) -> None:
        for key in [key for key in self._cached if key[:4] == job_id]:
            self._bytes -= len(self._cached.pop(key))
        for key in [key for key in self._storing if key[:4] == job_id]:
            self._storing[key].cancel()
