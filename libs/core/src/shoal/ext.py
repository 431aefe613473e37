"""For authors of libraries: what a library may use of the runtime beyond the user API. Public and versioned with `shoal`.

- `kv_put`, `kv_get`, `kv_delete`, `kv_keys`: small values in the control store.
- `watch_nodes`, `watch_actors`, `watch_drains`: changes as they happen.
- `drain_node`: takes a node out of the cluster without losing what runs there.
- `object_size`, `object_places`: of an object that a reference names.
- Entry points: `shoal.commands` (sub-commands of `shoal`: a click command each), `shoal.http` (routes on the head: a function that takes a `Router`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._core.engine import ObjectRef

__all__ = [
    "ActorChange", "HttpRequest", "HttpResponse", "NodeChange", "ObjectPlace", "Router", "Watch", "drain_node", "kv_delete", "kv_get", "kv_keys", "kv_put",
    "object_places", "object_size", "watch_actors", "watch_drains", "watch_nodes",
]  # fmt: skip

KV_TIMEOUT_S = 30.0


# -- KV ------------------------------------------------------------------------------------------------------


def _gcs(what: str, method: str, request: Any, timeout_s: float = KV_TIMEOUT_S) -> bytes:
    from ._calls import ask

    return ask(what, f"gcs/{method}", request, timeout_s)


def kv_put(key: bytes, value: bytes, *, namespace: str, overwrite: bool = True, with_job: bool = False) -> bool:
    """Stores a value; whether the key is new. `with_job`: it is deleted when this process's job ends.

    With `overwrite=False` one of several callers is told True, and stays so when the control store was started again before it had answered.
    """
    from shoal_gcs.v1 import gcs_pb2

    from ._runtime import state

    request = gcs_pb2.KvPutRequest(
        namespace=namespace, key=key, value=value, overwrite=overwrite, job_id=state.job_id if with_job else b"",
        request_id=b"" if overwrite else os.urandom(16),
    )  # fmt: skip
    return bool(gcs_pb2.KvPutReply.FromString(_gcs("ext.kv_put()", "KvPut", request)).added)


def kv_get(key: bytes, *, namespace: str, wait_s: float = 0.0) -> bytes | None:
    """The value, or None. `wait_s`: how long to wait for the key to appear."""
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.KvGetRequest(namespace=namespace, key=key, wait_ms=int(wait_s * 1000))
    reply = gcs_pb2.KvGetReply.FromString(_gcs("ext.kv_get()", "KvGet", request, wait_s + KV_TIMEOUT_S))
    return bytes(reply.value) if reply.found else None


def kv_delete(key: bytes, *, namespace: str, prefix: bool = False) -> int:
    """Deletes the key, or all keys with this prefix; how many there were."""
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.KvDeleteRequest(namespace=namespace, key=key, prefix=prefix)
    return int(gcs_pb2.KvDeleteReply.FromString(_gcs("ext.kv_delete()", "KvDelete", request)).deleted)


def kv_keys(prefix: bytes = b"", *, namespace: str) -> list[bytes]:
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.KvKeysRequest(namespace=namespace, prefix=prefix)
    return [bytes(key) for key in gcs_pb2.KvKeysReply.FromString(_gcs("ext.kv_keys()", "KvKeys", request)).keys]


# -- watches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeChange:
    """A node as it is now."""

    node_id: str
    alive: bool
    draining: bool
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    cause: str  # of its death


@dataclass(frozen=True)
class ActorChange:
    """An actor as it is now. `state`: PENDING_CREATION, ALIVE, RESTARTING or DEAD."""

    actor_id: str
    state: str
    class_name: str
    name: str
    namespace: str
    node_id: str
    pid: int
    restarts: int
    cause: str


class Watch:
    """Calls until `close()`; a context manager. The calls come one at a time, on a thread of the runtime: they must not wait.

    The same state may be told twice."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Channel:
    """One subscription of the process, shared by its watches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.handlers: list[Callable[[bytes], None]] = []
        self.generation = -1

    def add(self, handler: Callable[[bytes], None]) -> Watch:
        from ._runtime import connected, state

        connected("a watch of shoal.ext")
        control = state.control
        assert control is not None
        with self.lock:
            if self.generation != state.generation:  # another cluster than the last watch's
                self.handlers.clear()
                self.generation = state.generation
            if self.handlers:
                # A new subscription, for its snapshot: the new watch begins with it, the others see once more how things are.
                control.stop_listening(self.name)
            self.handlers.append(handler)
            control.listen(self.name, self._on_event)
        return Watch(lambda: self._remove(handler))

    def _remove(self, handler: Callable[[bytes], None]) -> None:
        from ._runtime import state

        with self.lock:
            with contextlib.suppress(ValueError):
                self.handlers.remove(handler)
            if not self.handlers and state.control is not None and self.generation == state.generation:
                state.control.stop_listening(self.name)

    def _on_event(self, _channel: str, payload: bytes) -> None:
        with self.lock:
            handlers = list(self.handlers)
        for handler in handlers:
            handler(payload)


_nodes, _actors = _Channel("nodes"), _Channel("actors")
_ACTOR_STATES = ("PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD")


def watch_nodes(on_change: Callable[[NodeChange], None]) -> Watch:
    """`on_change` for every node now, then for every change."""
    return _nodes.add(lambda payload: on_change(_node_change(payload)))


def watch_drains(on_drain: Callable[[NodeChange], None]) -> Watch:
    """`on_drain` once for each node that is to leave."""
    told: set[str] = set()

    def handle(payload: bytes) -> None:
        change = _node_change(payload)
        if change.alive and change.draining and change.node_id not in told:
            told.add(change.node_id)
            on_drain(change)

    return _nodes.add(handle)


def watch_actors(on_change: Callable[[ActorChange], None]) -> Watch:
    """`on_change` for every actor now, then for every change."""
    return _actors.add(lambda payload: on_change(_actor_change(payload)))


def _node_change(payload: bytes) -> NodeChange:
    from shoal_base.resources import from_units
    from shoal_gcs.v1 import gcs_pb2

    node = gcs_pb2.Node.FromString(payload)
    resources = {name: from_units(units) for name, units in node.resources.items()}
    return NodeChange(node.node_id.hex(), node.alive, node.draining, node.address, resources, dict(node.labels), node.death_cause)


def _actor_change(payload: bytes) -> ActorChange:
    from shoal_gcs.v1 import gcs_pb2

    actor = gcs_pb2.Actor.FromString(payload)
    return ActorChange(
        actor.actor_id.hex(), _ACTOR_STATES[actor.state], actor.class_name, actor.name, actor.namespace, actor.node_id.hex(), actor.pid, actor.restarts,
        actor.death_cause,
    )  # fmt: skip


def drain_node(node_id: str, *, reason: str = "", deadline_s: float = 0.0) -> None:
    """The node takes nothing new from now on: tasks that run there end, restartable actors start elsewhere. It ends when nothing is left, also no object that
    lies there alone, or after `deadline_s` seconds (0: no deadline). Watch it with `watch_nodes`.

    Raises ValueError for what is no node id, shoal.exceptions.RpcError when there is no such living node, or when it is the head and no other stands by.
    """
    from shoal_gcs.v1 import gcs_pb2

    try:
        wanted = bytes.fromhex(node_id)
    except ValueError:
        raise ValueError(f"node_id={node_id!r} is no hexadecimal id; nodes()[i]['NodeID'] is one") from None
    if not 0 <= deadline_s < float("inf"):
        raise ValueError(f"deadline_s={deadline_s!r}: seconds from now, or 0 for no deadline")
    request = gcs_pb2.DrainNodeRequest(node_id=wanted, reason=reason, within_ms=max(1, int(deadline_s * 1000)) if deadline_s else 0)
    _gcs("ext.drain_node()", "DrainNode", request)


# -- objects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectPlace:
    """Where a copy of an object lies. `inline`: with its owner, not in an arena."""

    node_id: str
    size_bytes: int
    inline: bool


def object_places(refs: list[ObjectRef[Any]]) -> list[list[ObjectPlace]]:
    """For each reference the known places of its value; empty while it is not ready, or when this process has not learnt them."""
    from ._runtime import connected

    engine: Any = connected("ext.object_places()")
    return [[ObjectPlace(node_id.hex(), size, inline) for node_id, size, inline in engine.locations(ref)] for ref in refs]


def object_size(ref: ObjectRef[Any]) -> int | None:
    """Bytes of the stored value; None while it is not known here."""
    places = object_places([ref])[0]
    return places[0].size_bytes if places else None


# -- HTTP on the head ----------------------------------------------------------------------------------------


class HeadCluster(Protocol):
    """What a handler may ask of the cluster."""

    async def kv_get(self, key: bytes, namespace: str) -> bytes | None: ...
    async def kv_put(self, key: bytes, value: bytes, namespace: str, overwrite: bool = True) -> bool: ...
    async def kv_delete(self, key: bytes, namespace: str, prefix: bool = False) -> int: ...
    async def kv_keys(self, prefix: bytes, namespace: str) -> list[bytes]: ...
    async def list(self, resource: str, filters: list[str] | None = None, limit: int = 1000) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class HttpRequest:
    """An authenticated request. `params`: from the path's `{names}`."""

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    cluster: HeadCluster


@dataclass
class HttpResponse:
    """`body`: bytes, or anything that JSON can say."""

    body: Any = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Router(Protocol):
    """What the function of an entry point `shoal.http` is given: it adds its routes, all below /api/."""

    def add(self, method: str, path: str, handler: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None: ...
