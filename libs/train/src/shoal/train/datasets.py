"""How datasets are dealt out to workers. Anything with `streaming_split(n, equal=..., locality_hints=...)` is split; everything else is given whole to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = ["DataConfig"]


class DataConfig:
    """Which datasets are split.

    Args:
        datasets_to_split: "all" (default), or the names of those to split; the others are given whole to each worker.
        enable_shard_locality: whether blocks rather go to workers on the nodes that hold them (default).

    Raises:
        TypeError: datasets_to_split is neither.
    """

    def __init__(self, datasets_to_split: Literal["all"] | Sequence[str] = "all", *, enable_shard_locality: bool = True) -> None:
        if datasets_to_split != "all" and (isinstance(datasets_to_split, str) or not all(isinstance(name, str) for name in datasets_to_split)):
            raise TypeError(f"datasets_to_split={datasets_to_split!r}: 'all' or a list of names is wanted")
        self._to_split = datasets_to_split
        self._locality = enable_shard_locality

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError for a name to split that there is no dataset of."""
        if self._to_split != "all" and (unknown := sorted(set(self._to_split) - set(names))):
            raise ValueError(f"datasets_to_split names {', '.join(unknown)}, but the datasets are: {', '.join(names) or 'none'}")

    def configure(
        self, datasets: Mapping[str, Any], world_size: int, worker_handles: Sequence[Any] | None = None, worker_node_ids: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Name to shard, for each worker. Override it to split in another way; called for each attempt."""
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            split = (self._to_split == "all" or name in self._to_split) and hasattr(dataset, "streaming_split")
            parts = self._split(dataset, world_size, worker_node_ids) if split else [_whole(dataset)] * world_size
            for shard, part in zip(shards, parts, strict=True):
                shard[name] = part
        return shards

    def _split(self, dataset: Any, world_size: int, node_ids: Sequence[str] | None) -> list[Any]:
        hints = list(node_ids) if self._locality and node_ids is not None else None
        return list(dataset.streaming_split(world_size, equal=True, locality_hints=hints))


def _whole(dataset: Any) -> Any:
    # A dataset that can be split is given as what its shards would be: an iterator over it.
    return dataset.iterator() if hasattr(dataset, "streaming_split") and hasattr(dataset, "iterator") else dataset
