"""/metrics: one page of Prometheus text from the GCS, every raylet and every store, and of what users' programs count (`shoal.util.metrics`)."""

from __future__ import annotations

import asyncio
import time

from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_objectstore.v1 import objectstore_pb2 as store
from shoal_raylet.v1 import raylet_pb2 as raylet

from .cluster import MAX_ASKED, RAYLET, STORE, ClusterClient

# Where processes put their numbers, see shoal.util.metrics.
USER_NAMESPACE = "shoal.metrics"
# A living process writes every 15 s.
GONE_AFTER_S = 60.0


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


class Freshness:
    """Tells what living processes wrote from what dead ones left: theirs does not change any more. Goes by this host's clock alone."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[bytes, float]] = {}

    def sort(self, found: dict[bytes, bytes], now: float) -> tuple[list[bytes], list[bytes]]:
        """(texts to show, keys to delete).

        >>> seen = Freshness()
        >>> seen.sort({b"a": b"1"}, 0.0), seen.sort({b"a": b"1"}, 61.0)
        (([b'1'], []), ([], [b'a']))
        """
        before, self._seen = self._seen, {}
        stale = []
        for key, value in found.items():
            known = before.get(key)
            since = known[1] if known is not None and known[0] == value else now
            if now - since > GONE_AFTER_S:
                stale.append(key)
            else:
                self._seen[key] = (value, since)
        return [value for value, _ in self._seen.values()], stale


_freshness = Freshness()


async def user_metrics(cluster: ClusterClient) -> list[str]:
    keys = list((await cluster.ask_gcs("KvKeys", gcs.KvKeysRequest(namespace=USER_NAMESPACE), gcs.KvKeysReply)).keys)
    slots = asyncio.Semaphore(MAX_ASKED)

    async def one(key: bytes) -> gcs.KvGetReply:
        async with slots:
            return await cluster.ask_gcs("KvGet", gcs.KvGetRequest(namespace=USER_NAMESPACE, key=key), gcs.KvGetReply)

    replies = await asyncio.gather(*(one(key) for key in keys))
    found = {bytes(key): bytes(reply.value) for key, reply in zip(keys, replies, strict=True) if reply.found}
    texts, stale = _freshness.sort(found, time.monotonic())
    for key in stale:
        await cluster.ask_gcs("KvDelete", gcs.KvDeleteRequest(namespace=USER_NAMESPACE, key=key), gcs.KvDeleteReply)
    return [text.decode() for text in texts]


async def page(cluster: ClusterClient) -> str:
    own, raylets, stores, users = await asyncio.gather(
        cluster.ask_gcs("Metrics", gcs.Empty(), gcs.MetricsReply),
        cluster.ask_all(RAYLET + "Metrics", raylet.Empty(), raylet.MetricsReply),
        cluster.ask_all(STORE + "Metrics", store.Empty(), store.MetricsReply),
        user_metrics(cluster),
    )
    parts = [with_node(reply.text, node.node_id.hex()) for node, reply in raylets[0]] + [with_node(reply.text, node.node_id.hex()) for node, reply in stores[0]]
    silent = len(raylets[1]) + len(stores[1])
    trouble = f"# HELP shoal_metrics_silent Services that did not answer this scrape\n# TYPE shoal_metrics_silent gauge\nshoal_metrics_silent {silent}\n"
    return merge([own.text, *parts, *users, trouble])
