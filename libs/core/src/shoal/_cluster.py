"""What the cluster has."""

from __future__ import annotations

import json
import logging
from typing import Any

from ._calls import ask

_log = logging.getLogger("shoal")
TIMELINE_TIMEOUT_S = 60.0


def nodes() -> list[dict[str, Any]]:
    """Every node, living and dead.

    Raises:
        NotConnectedError: init() was not called.
    """
    from shoal_base.resources import from_units
    from shoal_gcs.v1 import gcs_pb2

    found = []
    for node in gcs_pb2.NodeList.FromString(ask("nodes()", "gcs/ListNodes")).nodes:
        host, _, port = node.address.rpartition(":")
        found.append({
            "NodeID": node.node_id.hex(), "Alive": node.alive, "alive": node.alive, "NodeManagerAddress": host, "NodeManagerHostname": node.hostname,
            "NodeManagerPort": int(port or 0), "ObjectManagerPort": int(port or 0), "NodeName": node.name or host, "DeathReasonMessage": node.death_cause,
            "Resources": {name: from_units(units) for name, units in node.resources.items()} if node.alive else {}, "Labels": dict(node.labels),
            "IsHead": node.is_head, "Draining": node.draining,
        })  # fmt: skip
    return found


def cluster_resources() -> dict[str, float]:
    """The sum of all living nodes' resources."""
    return _sum_resources("cluster_resources()", "resources")


def available_resources() -> dict[str, float]:
    """What of them is free now."""
    return _sum_resources("available_resources()", "available")


def _sum_resources(what: str, which: str) -> dict[str, float]:
    from shoal_base.resources import add, from_units
    from shoal_gcs.v1 import gcs_pb2

    total: dict[str, int] = {}
    for node in gcs_pb2.NodeList.FromString(ask(what, "gcs/ListNodes")).nodes:
        if node.alive:
            add(total, getattr(node, which))
    return {name: from_units(units) for name, units in total.items() if units > 0 or which == "resources"}


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """What ran when: the tasks and calls of actors that ended lately, as Chrome's trace events (chrome://tracing, ui.perfetto.dev).

    Each has its name, begin and duration in microseconds, node, worker, ids, and whether it failed. The history is bounded: 2,048 for each living worker,
    20,000 of dead workers for each node. `enable_task_events=False` in a task's options leaves it out.

    Args:
        filename: where to write them as JSON; None: they are returned.

    Raises:
        NotConnectedError: init() was not called. RayStateApiException: the head cannot be asked.
    """
    from . import _runtime
    from .util.state.api import ask as ask_head

    _runtime.connected("timeline()")
    answer = ask_head("/api/v0/timeline", None, TIMELINE_TIMEOUT_S)
    for warning in answer["warnings"]:
        _log.warning("timeline(): %s", warning)
    trace: list[dict[str, Any]] = answer["result"]
    if filename is None:
        return trace
    with open(filename, "w") as file:
        json.dump(trace, file)
    return None
