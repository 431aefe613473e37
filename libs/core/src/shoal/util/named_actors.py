"""Which actors have names."""

from __future__ import annotations

from typing import Any

from .. import _runtime
from .._calls import ask

_DEAD = 3


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living actors in this namespace; with `all_namespaces`, dicts of name and namespace."""
    from shoal_gcs.v1 import gcs_pb2

    request = gcs_pb2.ListActorsRequest(all_namespaces=all_namespaces, namespace=_runtime.state.namespace, named_only=True)
    actors = gcs_pb2.ActorList.FromString(ask("list_named_actors()", "gcs/ListActors", request)).actors
    living = [a for a in actors if a.name and a.state != _DEAD]
    return [{"name": a.name, "namespace": a.namespace} for a in living] if all_namespaces else [a.name for a in living]
