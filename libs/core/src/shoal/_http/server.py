"""The HTTP process: the application, who may ask, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from shoal_base import logs

from . import drains, metrics, state
from .cluster import ClusterClient, Refused, Unreachable
from .extensions import add_extensions

_log = logging.getLogger("shoal.http")
# What anyone may ask.
OPEN_PATHS = frozenset({"/healthz", "/api/version"})
# Limit: a request's body; files are uploaded in parts.
MAX_BODY_BYTES = 256 << 20
_STOP_GRACE_S = 0.5
CLUSTER: web.AppKey[ClusterClient] = web.AppKey("cluster", ClusterClient)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class HttpConfig:
    listener: int  # a listening socket's descriptor, inherited
    gcs_addresses: list[str]
    secrets_dir: Path
    node_dir: Path
    log_level: str = "INFO"
    log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    ready_fd: int = -1


def _json(data: Any, status: int = 200) -> web.Response:
    return web.json_response(data, status=status, dumps=lambda value: json.dumps(value, separators=(",", ":"), default=str))


def _error(status: int, text: str) -> web.Response:
    return _json({"error": text}, status)


def authorized(header: str, token: bytes) -> bool:
    scheme, _, given = header.partition(" ")
    # In constant time: how long a refusal takes must not tell how much of the token was right.
    return bool(token) and scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Authentication, and errors as JSON."""
    cluster = request.app[CLUSTER]
    if request.path not in OPEN_PATHS and not authorized(request.headers.get("Authorization", ""), cluster.user_token):
        response = _error(401, "a user token is needed: send `Authorization: Bearer $(shoal get-auth-token)`")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, error.text or error.reason)
    except state.BadRequest as error:
        return _error(400, str(error))
    except Unreachable as error:
        return _error(503, str(error))
    except Refused as error:
        return _error(502, f"{error.code.name}: {error}")
    except ConnectionResetError:
        raise
    except Exception as error:
        _log.exception("%s %s failed", request.method, request.path)
        return _error(500, f"{type(error).__name__}: {error}")


async def healthz(request: web.Request) -> web.StreamResponse:
    """200 while the control store answers."""
    from shoal_gcs.v1 import gcs_pb2

    try:
        await request.app[CLUSTER].ask_gcs("Info", gcs_pb2.Empty(), gcs_pb2.InfoReply, 5.0)
    except (Unreachable, Refused) as error:
        return web.Response(status=503, text=f"the control store does not answer: {error}\n")
    return web.Response(text="success\n")


async def version(_request: web.Request) -> web.StreamResponse:
    return _json(state.version())


async def cluster_status(request: web.Request) -> web.StreamResponse:
    return _json(await state.status(request.app[CLUSTER]))


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise state.BadRequest(f"{name}={text!r} is no number") from None


async def list_resource(request: web.Request) -> web.StreamResponse:
    limit = _number(request, "limit", state.DEFAULT_LIMIT)
    return _json(await state.listed(request.app[CLUSTER], request.match_info["resource"], request.query.getall("filter", []), limit))


async def get_resource(request: web.Request) -> web.StreamResponse:
    resource, wanted = request.match_info["resource"], request.match_info["id"]
    found = await state.one(request.app[CLUSTER], resource, wanted)
    return _json({"result": found}) if found is not None else _error(404, f"no {resource} with an id that begins with {wanted!r}")


async def drain_node(request: web.Request) -> web.StreamResponse:
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError as error:
        raise state.BadRequest(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise state.BadRequest("the body is a JSON object")
    return _json(await drains.drain(request.app[CLUSTER], request.match_info["id"], body))


async def summary(request: web.Request) -> web.StreamResponse:
    return _json(await state.summary(request.app[CLUSTER], request.match_info["resource"]))


async def why(request: web.Request) -> web.StreamResponse:
    return _json(await state.why(request.app[CLUSTER], request.match_info["wanted"]))


async def timeline(request: web.Request) -> web.StreamResponse:
    return _json(await state.timeline(request.app[CLUSTER]))


async def memory(request: web.Request) -> web.StreamResponse:
    return _json(await state.memory(request.app[CLUSTER]))


async def list_logs(request: web.Request) -> web.StreamResponse:
    return _json(await state.logs(request.app[CLUSTER], request.query.get("glob", "*"), request.query.get("node_id", "")))


async def read_log(request: web.Request) -> web.StreamResponse:
    """A log file as it is, from `tail` lines before its end (-1: all); with follow=1 as it grows."""
    name, node_id = request.query.get("name", ""), request.query.get("node_id", "")
    nodes = [node for node in await request.app[CLUSTER].nodes() if node.alive and node.node_id.hex().startswith(node_id)]
    if not name or len(nodes) != 1:
        raise state.BadRequest(f"name= and a node_id= that fits one living node are needed; {len(nodes)} fit")
    chunks = request.app[CLUSTER].read_log(nodes[0].address, name, _number(request, "tail", 1000), request.query.get("follow") == "1")
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    try:
        async for chunk in chunks:
            if not response.prepared:
                await response.prepare(request)
            await response.write(chunk)
    except Refused as error:
        if response.prepared:
            raise
        return _error(404, str(error))
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof()
    return response


async def prometheus(request: web.Request) -> web.StreamResponse:
    return web.Response(body=(await metrics.page(request.app[CLUSTER])).encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def make_app(cluster: ClusterClient) -> web.Application:
    app = web.Application(middlewares=[guard], client_max_size=MAX_BODY_BYTES)
    app[CLUSTER] = cluster
    app.add_routes([
        web.get("/healthz", healthz),
        web.get("/api/version", version),
        web.get("/api/cluster_status", cluster_status),
        web.get("/api/v0/logs", list_logs),
        web.get("/api/v0/logs/file", read_log),
        web.get("/api/v0/memory", memory),
        web.get("/api/v0/timeline", timeline),
        web.get("/api/v0/summary/{resource}", summary),
        web.get("/api/v0/why/{wanted}", why),
        web.post("/api/v0/nodes/{id}/drain", drain_node),
        web.get("/metrics", prometheus),
    ])
    add_extensions(app, cluster)
    # Last, since they match anything.
    app.add_routes([web.get("/api/v0/{resource}", list_resource), web.get("/api/v0/{resource}/{id}", get_resource)])
    return app


async def serve(config: HttpConfig) -> int:
    cluster = ClusterClient(config.gcs_addresses, config.secrets_dir)
    runner = web.AppRunner(make_app(cluster), access_log=None, handle_signals=False, shutdown_timeout=_STOP_GRACE_S)
    await runner.setup()
    listener = socket.socket(fileno=config.listener)
    listener.setblocking(False)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await web.SockSite(runner, listener).start()
    _tell_ready(config.ready_fd)
    await ended.wait()
    await runner.cleanup()
    await cluster.close()
    return 0


def _tell_ready(fd: int) -> None:
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.write(fd, json.dumps({"pid": os.getpid()}).encode() + b"\n")
            os.close(fd)


def run(config: HttpConfig) -> int:
    """For a forked process: returns when it has been told to end."""
    logs.setup("http", config.node_dir / "logs", config.log_level, config.log_encoding)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config))
