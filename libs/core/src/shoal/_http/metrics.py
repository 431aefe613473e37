"""/metrics: one page of Prometheus text from the GCS, every raylet and every store."""

from __future__ import annotations

import asyncio

from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_objectstore.v1 import objectstore_pb2 as store
from shoal_raylet.v1 import raylet_pb2 as raylet

from .cluster import RAYLET, STORE, ClusterClient


def merge(texts: list[str]) -> str:
    """Samples of one metric together, its HELP and TYPE once, as the format demands.

    >>> print(merge(["# TYPE a gauge\\na{n=\\"1\\"} 1\\n", "# TYPE a gauge\\na{n=\\"2\\"} 2\\n"]), end="")
    # TYPE a gauge
    a{n="1"} 1
    a{n="2"} 2
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                samples.setdefault(family, [])
                if not any(line.split(" ", 2)[1] == known.split(" ", 2)[1] for known in head):
                    head.append(line)
            elif line and not line.startswith("#"):
                name = line.partition("{")[0].partition(" ")[0]
                # A histogram's samples carry suffixes of its family's name.
                samples.setdefault(family if family and name.startswith(family) else name, []).append(line)
    lines = [line for family, rows in samples.items() if rows for line in (*heads.get(family, ()), *rows)]
    return "".join(f"{line}\n" for line in lines)


def with_node(text: str, node: str) -> str:
    """The label `node` on every sample that lacks it: two nodes' samples must not look like one's.

    >>> print(with_node("# TYPE a gauge\\na 1\\nb{x=\\"2\\"} 3\\n", "n1"), end="")
    # TYPE a gauge
    a{node="n1"} 1
    b{node="n1",x="2"} 3
    """
    lines = []
    for line in text.splitlines():
        if line and not line.startswith("#") and 'node="' not in line:
            name, brace, rest = line.partition("{")
            line = f'{name}{{node="{node}",{rest}' if brace else '{}{{node="{}"}} {}'.format(line.partition(" ")[0], node, line.partition(" ")[2])
        lines.append(f"{line}\n")
    return "".join(lines)


async def page(cluster: ClusterClient) -> str:
    own, raylets, stores = await asyncio.gather(
        cluster.ask_gcs("Metrics", gcs.Empty(), gcs.MetricsReply),
        cluster.ask_all(RAYLET + "Metrics", raylet.Empty(), raylet.MetricsReply),
        cluster.ask_all(STORE + "Metrics", store.Empty(), store.MetricsReply),
    )
    parts = [with_node(reply.text, node.node_id.hex()) for node, reply in raylets[0]] + [with_node(reply.text, node.node_id.hex()) for node, reply in stores[0]]
    silent = len(raylets[1]) + len(stores[1])
    trouble = f"# HELP shoal_metrics_silent Services that did not answer this scrape\n# TYPE shoal_metrics_silent gauge\nshoal_metrics_silent {silent}\n"
    return merge([own.text, *parts, trouble])
