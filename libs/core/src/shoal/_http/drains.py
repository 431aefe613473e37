"""Nodes that are to go: POST /api/v0/nodes/{id}/drain."""

from __future__ import annotations

import math
from typing import Any

from shoal_gcs.v1 import gcs_pb2 as gcs

from .cluster import ClusterClient
from .state import BadRequest

MAX_DEADLINE_S = 365 * 86_400.0


async def drain(cluster: ClusterClient, wanted: str, body: dict[str, Any]) -> dict[str, Any]:
    """`wanted`: the beginning of a living node's id, or its name. Raises BadRequest, and what asking the control store raises."""
    if unknown := sorted(set(body) - {"reason", "deadline_s"}):
        raise BadRequest(f"unknown: {', '.join(unknown)}; reason and deadline_s are known")
    reason, deadline_s = body.get("reason", ""), body.get("deadline_s", 0)
    if not isinstance(reason, str) or not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= MAX_DEADLINE_S or math.isnan(deadline_s):
        raise BadRequest(f"reason={reason!r}, deadline_s={deadline_s!r}: a text, and seconds from now (0: no deadline)")
    nodes = [node for node in await cluster.nodes() if node.alive and wanted and (node.node_id.hex().startswith(wanted) or node.name == wanted)]
    if len(nodes) != 1:
        raise BadRequest(f"{len(nodes)} living nodes have an id that begins with {wanted!r}, or that name; one must. `shoal list nodes` shows them")
    request = gcs.DrainNodeRequest(node_id=nodes[0].node_id, reason=reason, within_ms=max(1, int(deadline_s * 1000)) if deadline_s else 0)
    await cluster.ask_gcs("DrainNode", request, gcs.Empty)
    return {"node_id": nodes[0].node_id.hex(), "deadline_s": deadline_s}
