"""Who is which rank. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """Of a worker that is at `index` among those given."""

    index: int
    world_rank: int
    local_rank: int
    local_world_size: int
    node_rank: int


def assign(workers: Sequence[tuple[str, Sequence[str]]]) -> list[Rank]:
    """Ranks for workers given as (node id, GPU ids): neighbours on a node are neighbours in rank, and in the order of their GPUs.

    >>> [rank.index for rank in assign([("a", ["1"]), ("b", ["0"]), ("a", ["0"])])]
    [2, 0, 1]
    """
    nodes: dict[str, list[int]] = {}
    for index, (node_id, _) in enumerate(workers):
        nodes.setdefault(node_id, []).append(index)
    ranks: list[Rank] = []
    for node_rank, members in enumerate(nodes.values()):
        for local_rank, index in enumerate(sorted(members, key=lambda i: (_gpu_order(workers[i][1]), i))):
            ranks.append(Rank(index, len(ranks), local_rank, len(members), node_rank))
    return ranks


def _gpu_order(ids: Sequence[str]) -> list[tuple[int, str]]:
    return sorted((int(gpu), "") if gpu.isdigit() else (0, gpu) for gpu in ids)
