"""What a user says about a run: how many workers, where the results go, what happens after failures, which checkpoints stay."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .callbacks import UserCallback

__all__ = ["CheckpointConfig", "FailureConfig", "RunConfig", "ScalingConfig"]

PLACEMENT_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
DEFAULT_STORAGE = "~/shoal_results"
# A node that has the accelerator has one of this resource; a bundle takes the smallest amount, only to be placed there.
_ACCELERATOR_TYPE_SHARE = 0.001


def _whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={value!r}: an integer from {low} on is wanted")


@dataclass
class ScalingConfig:
    """How many workers, and what each needs.

    Args:
        num_workers: processes that run the training function (default 1). 0: no processes, the function runs where `fit()` is called.
            A pair `(min, max)`: as many as the cluster has room for when the group starts, anew after each failure.
        use_gpu: each worker gets a GPU (unless `resources_per_worker` says how many), and PyTorch speaks NCCL.
        resources_per_worker: e.g. `{"CPU": 2, "GPU": 0.5}`. Default: one CPU, with `use_gpu` one CPU and one GPU.
        placement_strategy: "PACK" (default: on few nodes), "SPREAD", "STRICT_PACK" (on one node), "STRICT_SPREAD" (each on another).
        accelerator_type: workers only go to nodes with this type.
        label_selector: labels that the nodes must have: one mapping for all workers, or a list with one for each.

    Raises:
        ValueError: naming the field and its value.

    >>> ScalingConfig(num_workers=2, resources_per_worker={"CPU": 2}).total_resources
    {'CPU': 4}
    """

    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: dict[str, str] | list[dict[str, str]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.num_workers, tuple):
            if len(self.num_workers) != 2:
                raise ValueError(f"num_workers={self.num_workers!r}: a number, or a pair (min, max), is wanted")
            for value in self.num_workers:
                _whole("num_workers", value, 1)
            if self.num_workers[0] > self.num_workers[1]:
                raise ValueError(f"num_workers={self.num_workers!r}: the first is the smallest number of workers, and so not larger than the second")
        else:
            _whole("num_workers", self.num_workers, 0)
        if self.placement_strategy not in PLACEMENT_STRATEGIES:
            raise ValueError(f"placement_strategy={self.placement_strategy!r}: one of {', '.join(PLACEMENT_STRATEGIES)} is wanted")
        self._check_resources()
        self._check_labels()

    def _check_resources(self) -> None:
        given = self.resources_per_worker
        if given is None:
            return
        if not isinstance(given, Mapping):
            raise ValueError(f"resources_per_worker={given!r}: a dict of resource names to amounts is wanted, such as {{'CPU': 2}}")
        for name, amount in given.items():
            if not isinstance(name, str) or isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
                raise ValueError(f"resources_per_worker[{name!r}]={amount!r}: an amount from 0 on is wanted")
        if not any(given.values()):
            raise ValueError(f"resources_per_worker={given!r}: a worker needs some resource")
        if given.get("GPU") and not self.use_gpu:
            raise ValueError(f"resources_per_worker asks for {given['GPU']} GPU, but use_gpu=False: set use_gpu=True")
        if self.use_gpu and given.get("GPU") == 0:
            raise ValueError("use_gpu=True, but resources_per_worker says 'GPU': 0: leave it out, or set use_gpu=False")

    def _check_labels(self) -> None:
        selector = self.label_selector
        if isinstance(selector, list):
            if self.elasticity_enabled:
                raise ValueError("label_selector is a list, one for each worker, but num_workers is a range: give one mapping for all")
            if len(selector) != self.num_workers:
                raise ValueError(f"label_selector has {len(selector)} entries for {self.num_workers} workers: one mapping for all, or one for each, is wanted")

    @property
    def elasticity_enabled(self) -> bool:
        """Whether the number of workers is a range."""
        return isinstance(self.num_workers, tuple)

    @property
    def min_workers(self) -> int:
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def resources_of_a_worker(self) -> dict[str, float]:
        """What one worker holds, defaults filled in; no zeros."""
        resources: dict[str, float] = dict(self.resources_per_worker) if self.resources_per_worker is not None else {"CPU": 1}
        if self.use_gpu:
            resources.setdefault("GPU", 1)
        if self.accelerator_type:
            resources.setdefault(f"accelerator_type:{self.accelerator_type}", _ACCELERATOR_TYPE_SHARE)
        return {name: amount for name, amount in resources.items() if amount}

    @property
    def num_cpus_per_worker(self) -> float:
        return self.resources_of_a_worker.get("CPU", 0)

    @property
    def num_gpus_per_worker(self) -> float:
        return self.resources_of_a_worker.get("GPU", 0)

    @property
    def additional_resources_per_worker(self) -> dict[str, float]:
        """What a worker holds beside CPUs and GPUs."""
        return {name: amount for name, amount in self.resources_of_a_worker.items() if name not in ("CPU", "GPU")}

    @property
    def total_resources(self) -> dict[str, float]:
        """What all workers hold together, at the largest number of them."""
        return {name: amount * self.max_workers for name, amount in self.resources_of_a_worker.items()}


@dataclass
class FailureConfig:
    """What happens when workers fail.

    Args:
        max_failures: how often the workers are started again, from the last checkpoint (default 0: never; -1: always).
    """

    max_failures: int = 0

    def __post_init__(self) -> None:
        _whole("max_failures", self.max_failures, -1)


@dataclass
class CheckpointConfig:
    """Which checkpoints stay.

    Args:
        num_to_keep: so many, and the latest one in any case; the others are deleted. Default: all.
        checkpoint_score_attribute: the metric, reported with a checkpoint, by which the best ones are chosen. `a/b` is key b of the dict at key a.
            Default: the latest ones stay.
        checkpoint_score_order: "max" (default): the larger the better; or "min".
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.num_to_keep is not None:
            _whole("num_to_keep", self.num_to_keep, 1)
        if self.checkpoint_score_order not in ("max", "min"):
            raise ValueError(f"checkpoint_score_order={self.checkpoint_score_order!r}: 'max' or 'min' is wanted")


@dataclass
class RunConfig:
    """A run's name, the place of its results, and its policies.

    Args:
        name: the run's folder below `storage_path`. A trainer with the name and the path of an earlier run goes on from its last checkpoint.
            Default: made from the time.
        storage_path: a folder, or the URI of one in any filesystem that pyarrow or fsspec knows. On several nodes it must be one that all of them see.
            Default: `~/shoal_results`.
        storage_filesystem: a `pyarrow.fs.FileSystem` or fsspec filesystem that `storage_path` is a path of.
        failure_config: default: a failure ends the run.
        checkpoint_config: default: all checkpoints stay.
        callbacks: called in the process that calls `fit()`.
        worker_runtime_env: the runtime environment of the workers.
    """

    name: str | None = None
    storage_path: str | None = None
    storage_filesystem: Any = None
    failure_config: FailureConfig | None = None
    checkpoint_config: CheckpointConfig | None = None
    callbacks: Sequence[UserCallback] | None = None
    worker_runtime_env: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.name is not None and (not isinstance(self.name, str) or not self.name or self.name in (".", "..") or "/" in self.name):
            raise ValueError(f"name={self.name!r}: the name of a folder is wanted, not empty and without '/'")
        if isinstance(self.storage_path, Path):
            self.storage_path = str(self.storage_path)
        if self.storage_path is not None and not isinstance(self.storage_path, str):
            raise ValueError(f"storage_path={self.storage_path!r}: a path or a URI is wanted")
        if self.storage_path is None and self.storage_filesystem is None:
            self.storage_path = os.environ.get("SHOAL_STORAGE_PATH") or DEFAULT_STORAGE
        if self.storage_path is None:
            raise ValueError("storage_filesystem is given without storage_path: say which folder of it")
        self.failure_config = self.failure_config or FailureConfig()
        self.checkpoint_config = self.checkpoint_config or CheckpointConfig()
