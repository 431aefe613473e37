"""What the cluster has."""

from __future__ import annotations

from typing import Any

from ._calls import ask


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
