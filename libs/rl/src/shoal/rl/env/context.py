"""What an environment's class or function is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EnvContext(dict[str, Any]):
    """The `env_config`, as a dict, and whose environment it is.

    Attributes:
        worker_index: 0 in the algorithm's own process, else the env runner's number from 1.
        num_workers: how many env runners there are.
        vector_index: which of the runner's environments.
        remote: whether the runner is an actor.
    """

    def __init__(self, env_config: Mapping[str, Any], worker_index: int = 0, vector_index: int = 0, remote: bool = False, num_workers: int = 0) -> None:
        super().__init__(env_config)
        self.worker_index = worker_index
        self.vector_index = vector_index
        self.remote = remote
        self.num_workers = num_workers
