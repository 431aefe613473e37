"""Routes of libraries on the head's HTTP server: entry points of the group `shoal.http`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from .cluster import ClusterClient

from shoal.ext import HttpRequest, HttpResponse, Router

_log = logging.getLogger("shoal.http")
GROUP = "shoal.http"


class HeadCluster:
    """What a library's handler may ask of the cluster."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    async def kv_get(self, key: bytes, namespace: str) -> bytes | None:
        from shoal_gcs.v1 import gcs_pb2

        reply = await self._client.ask_gcs("KvGet", gcs_pb2.KvGetRequest(namespace=namespace, key=key), gcs_pb2.KvGetReply)
        return bytes(reply.value) if reply.found else None

    async def kv_put(self, key: bytes, value: bytes, namespace: str, overwrite: bool = True) -> bool:
        from shoal_gcs.v1 import gcs_pb2

        request_id = b"" if overwrite else os.urandom(16)
        request = gcs_pb2.KvPutRequest(namespace=namespace, key=key, value=value, overwrite=overwrite, request_id=request_id)
        return bool((await self._client.ask_gcs("KvPut", request, gcs_pb2.KvPutReply)).added)

    async def kv_delete(self, key: bytes, namespace: str, prefix: bool = False) -> int:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KvDeleteRequest(namespace=namespace, key=key, prefix=prefix)
        return int((await self._client.ask_gcs("KvDelete", request, gcs_pb2.KvDeleteReply)).deleted)

    async def kv_keys(self, prefix: bytes, namespace: str) -> list[bytes]:
        from shoal_gcs.v1 import gcs_pb2

        reply = await self._client.ask_gcs("KvKeys", gcs_pb2.KvKeysRequest(namespace=namespace, prefix=prefix), gcs_pb2.KvKeysReply)
        return [bytes(key) for key in reply.keys]

    async def list(self, resource: str, filters: list[str] | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        from .state import listed

        rows: list[dict[str, Any]] = (await listed(self._client, resource, filters or [], limit))["result"]
        return rows


@dataclass
class _Routes:
    """The Router that a library's function fills."""

    rows: list[tuple[str, str, Callable[[HttpRequest], Awaitable[HttpResponse]]]] = field(default_factory=list)

    def add(self, method: str, path: str, handler: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        if not path.startswith("/api/"):
            raise ValueError(f"route {path!r}: a library's routes begin with /api/")
        self.rows.append((method.upper(), path, handler))


def _adapt(handler: Callable[[HttpRequest], Awaitable[HttpResponse]], cluster: HeadCluster) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        asked = HttpRequest(
            method=request.method, path=request.path, params=dict(request.match_info), query=dict(request.query), headers=dict(request.headers),
            body=await request.read(), cluster=cluster,
        )  # fmt: skip
        answer = await handler(asked)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        return web.Response(status=answer.status, body=body, headers={"Content-Type": answer.content_type, **answer.headers})

    return handle


def add_extensions(app: web.Application, client: ClusterClient) -> None:
    """A library that cannot be loaded is named in the log and left out: the rest of the server is not its business."""
    cluster = HeadCluster(client)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        routes: Any = _Routes()
        try:
            fill: Callable[[Router], None] = point.load()
            fill(routes)
            for method, path, handler in routes.rows:
                app.router.add_route(method, path, _adapt(handler, cluster))
        except Exception:
            _log.exception("the routes of %s (%s) cannot be added", point.name, point.value)
