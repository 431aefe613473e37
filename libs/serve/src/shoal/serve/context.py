"""Where a piece of code runs: in which replica, for which request."""

from __future__ import annotations

import asyncio
import random
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from .exceptions import RayServeException

NAMESPACE = "serve"
CONTROLLER_NAME = "SERVE_CONTROLLER_ACTOR"
PROXY_NAME = "SERVE_PROXY_ACTOR"


@dataclass(frozen=True)
class ReplicaContext:
    """What a replica can know of itself.

    `replica_tag` names it in the whole cluster, `servable_object` is the instance that serves."""

    app_name: str
    deployment: str
    replica_tag: str
    servable_object: Any = None

    @property
    def replica_id(self) -> str:
        return self.replica_tag


class RequestContext(NamedTuple):
    """Of the request that is being answered; passed on with every call of a handle."""

    request_id: str
    route: str
    model_id: str


class _Process:
    """`loop` is set in processes of Serve's own, replicas and proxies: all routing happens on it."""

    replica: ReplicaContext | None = None
    loop: asyncio.AbstractEventLoop | None = None


process = _Process()
current_request: ContextVar[RequestContext | None] = ContextVar("shoal_serve_request", default=None)


def new_request_id() -> str:
    return f"{random.getrandbits(64):016x}"


def get_replica_context() -> ReplicaContext:
    """Of the replica that calls this. Raises RayServeException outside of one."""
    if process.replica is None:
        raise RayServeException("serve.get_replica_context() may only be called from within a replica of a deployment")
    return process.replica


def get_multiplexed_model_id() -> str:
    """The model that the current request asks for: `handle.options(multiplexed_model_id=...)`, or the HTTP header `serve_multiplexed_model_id`. Empty: none."""
    request = current_request.get()
    return request.model_id if request is not None else ""
