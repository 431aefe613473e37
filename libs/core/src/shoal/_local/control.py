"""The control store of local mode: what the runtime asks of it, answered in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._calls import ALREADY_EXISTS, NOT_FOUND
from .._core.engine import CallError

if TYPE_CHECKING:
    from .engine import LocalEngine

UNIMPLEMENTED = 12


class LocalControlStore:
    """Functions, actors, placement groups, keys and values. From any thread."""

    def __init__(self, engine: LocalEngine, resources: dict[str, int], labels: dict[str, str]) -> None:
        self._engine = engine
        self._resources = resources
        self._labels = labels
        self._functions: dict[bytes, bytes] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._groups: dict[bytes, Any] = {}
        self._values: dict[tuple[str, bytes], bytes] = {}
        self._changed = threading.Condition()

    def answer(self, method: str, payload: bytes, timeout: float) -> bytes:
        """Raises CallError."""
        handler: Callable[..., Any] | None = getattr(self, f"_on_{method.rpartition('/')[2]}", None)
        if handler is None:
            raise CallError(UNIMPLEMENTED, f"init(local_mode=True) runs no cluster that could answer {method}")
        reply = handler(payload)
        return b"" if reply is None else bytes(reply.SerializeToString())

    # -- of the raylet
    def _on_FunctionPut(self, payload: bytes) -> None:
        from shoal_raylet.v1 import raylet_pb2

        self._functions[bytes(raylet_pb2.FunctionRecord.FromString(payload).function_id)] = payload

    def _on_FunctionGet(self, payload: bytes) -> Any:
        from shoal_raylet.v1 import raylet_pb2

        wanted = bytes(raylet_pb2.FunctionRecord.FromString(payload).function_id)
        return raylet_pb2.FunctionRecord.FromString(self._functions[wanted])

    def _on_Subscribe(self, _payload: bytes) -> None:
        """There is nobody else whose changes could be told."""

    def _on_PendingReasons(self, _payload: bytes) -> Any:
        from shoal_raylet.v1 import raylet_pb2

        return raylet_pb2.PendingReasons()

    # -- actors
    def _living(self, namespace: str, name: str) -> Any:
        actor = self._engine.actor(self._names.get((namespace, name), b""))
        return None if actor is None or actor.failure is not None else actor

    def _on_CreateActor(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        from .. import _actor_creation

        request = gcs_pb2.CreateActorRequest.FromString(payload)
        record = request.actor
        _actor_creation.pending_creations.pop(bytes(record.actor_id), None)
        if record.name:
            there = self._living(record.namespace, record.name)
            if there is not None:
                self._engine.forget_creation(bytes(record.actor_id))
                if request.get_if_exists:
                    return there.record
                raise CallError(ALREADY_EXISTS, f"an actor named {record.name} lives in namespace {record.namespace}")
            self._names[record.namespace, record.name] = bytes(record.actor_id)
        self._engine.create_actor(request)
        return record

    def _on_GetActor(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        query = gcs_pb2.ActorQuery.FromString(payload)
        actor = self._engine.actor(bytes(query.actor_id)) if query.actor_id else self._living(query.namespace, query.name)
        if actor is None:
            raise CallError(NOT_FOUND, f"no actor {query.name or query.actor_id.hex()}")
        return self._as_told(actor)

    def _as_told(self, actor: Any) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        actor.record.state = gcs_pb2.ACTOR_ALIVE if actor.failure is None else gcs_pb2.ACTOR_DEAD
        actor.record.death_cause = actor.exiting
        return actor.record

    def _on_ListActors(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.ListActorsRequest.FromString(payload)
        found = [self._as_told(actor) for actor in self._engine.actors()]
        return gcs_pb2.ActorList(
            actors=[a for a in found if (a.name or not request.named_only) and (request.all_namespaces or a.namespace == request.namespace)]
        )

    def _on_KillActor(self, payload: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KillActorRequest.FromString(payload)
        actor = self._engine.actor(bytes(request.actor_id))
        if actor is None or actor.failure is not None:
            return
        if not request.no_restart and (actor.record.max_restarts < 0 or actor.record.restarts < actor.record.max_restarts):
            actor.restart(request.reason)
        else:
            actor.end(f"{request.reason}.")

    def _on_ActorOutOfScope(self, payload: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        actor = self._engine.actor(bytes(gcs_pb2.ActorOutOfScopeRequest.FromString(payload).actor_id))
        if actor is not None:
            actor.end("all handles to it are gone.")

    # -- the one node
    def _on_ListNodes(self, _payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        from .._runtime import state

        node = gcs_pb2.Node(node_id=state.node_id, address="127.0.0.1:0", hostname="localhost", name="local", labels=self._labels, alive=True, is_head=True)
        for name, units in self._resources.items():
            node.resources[name] = node.available[name] = units
        return gcs_pb2.NodeList(nodes=[node])

    # -- placement groups: everything fits
    def _on_CreatePlacementGroup(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        from .. import _groups
        from .._runtime import state

        group = gcs_pb2.CreatePlacementGroupRequest.FromString(payload).group
        group.state = gcs_pb2.PG_CREATED
        for index, bundle in enumerate(group.bundles):
            bundle.index, bundle.node_id = index, state.node_id
        self._groups[bytes(group.placement_group_id)] = group
        _groups.of_connection().note(bytes(group.placement_group_id), _groups.CREATED)
        return group

    def _on_GetPlacementGroup(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        query = gcs_pb2.PlacementGroupQuery.FromString(payload)
        for key, group in self._groups.items():
            named = query.name and (group.name, group.namespace) == (query.name, query.namespace) and group.state == gcs_pb2.PG_CREATED
            if key == query.placement_group_id or named:
                return group
        raise CallError(NOT_FOUND, f"no placement group {query.name or query.placement_group_id.hex()}")

    def _on_RemovePlacementGroup(self, payload: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        from .. import _groups

        key = bytes(gcs_pb2.PlacementGroupQuery.FromString(payload).placement_group_id)
        if key in self._groups:
            self._groups[key].state = gcs_pb2.PG_REMOVED
            _groups.of_connection().note(key, _groups.REMOVED)

    def _on_ListPlacementGroups(self, _payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        return gcs_pb2.PlacementGroupList(groups=list(self._groups.values()))

    # -- keys and values
    def _on_KvPut(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KvPutRequest.FromString(payload)
        key = (request.namespace, bytes(request.key))
        with self._changed:
            added = key not in self._values
            if added or request.overwrite:
                self._values[key] = bytes(request.value)
            self._changed.notify_all()
        return gcs_pb2.KvPutReply(added=added)

    def _on_KvGet(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KvGetRequest.FromString(payload)
        key = (request.namespace, bytes(request.key))
        with self._changed:
            self._changed.wait_for(lambda: key in self._values, request.wait_ms / 1000)
            return gcs_pb2.KvGetReply(found=key in self._values, value=self._values.get(key, b""))

    def _on_KvDelete(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KvDeleteRequest.FromString(payload)
        with self._changed:
            gone = [k for k in self._values if k[0] == request.namespace and (k[1] == request.key or (request.prefix and k[1].startswith(request.key)))]
            for key in gone:
                del self._values[key]
        return gcs_pb2.KvDeleteReply(deleted=len(gone))

    def _on_KvKeys(self, payload: bytes) -> Any:
        from shoal_gcs.v1 import gcs_pb2

        request = gcs_pb2.KvKeysRequest.FromString(payload)
        with self._changed:
            return gcs_pb2.KvKeysReply(keys=sorted(k[1] for k in self._values if k[0] == request.namespace and k[1].startswith(request.prefix)))
