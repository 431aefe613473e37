"""Trainers: a function on many workers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .backend import BackendConfig
from .checkpoint import Checkpoint
from .config import RunConfig, ScalingConfig
from .datasets import DataConfig
from .result import Result

__all__ = ["DataParallelTrainer"]


class DataParallelTrainer:
    """Runs a function in `ScalingConfig.num_workers` processes at once, and brings back what they report.

    Args:
        train_loop_per_worker: takes nothing or its config. In it, `shoal.train.report`, `get_checkpoint`, `get_context`, `get_dataset_shard` work.
        train_loop_config: what the function is given (default: an empty dict).
        backend_config: what the framework needs before the function begins. Default: nothing.
        scaling_config: how many workers, and what each needs. Default: one with one CPU.
        run_config: name, place of the results, policies.
        datasets: name to dataset; what has a method `streaming_split` is split among the workers, everything else is given whole to each. A function without
            arguments that makes a dataset is called for each attempt.
        dataset_config: which datasets are split.
        resume_from_checkpoint: what `get_checkpoint` gives while the run has none of its own.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> def train_loop(config):
        ...     import shoal.train
        ...     for step in range(config["steps"]):
        ...         shoal.train.report({"step": step})
        >>> trainer = DataParallelTrainer(train_loop, train_loop_config={"steps": 2}, scaling_config=ScalingConfig(num_workers=2))
        >>> trainer.fit().metrics  # doctest: +SKIP
        {'step': 1}
    """

    def __init__(
        self, train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any], *, train_loop_config: dict[str, Any] | None = None,
        backend_config: BackendConfig | None = None, scaling_config: ScalingConfig | None = None, run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None, dataset_config: DataConfig | None = None, resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        from ._run.worker import takes_config

        if not callable(train_loop_per_worker):
            raise TypeError(f"train_loop_per_worker must be a function, got {type(train_loop_per_worker).__name__}")
        takes_config(train_loop_per_worker)
        _check("train_loop_config", train_loop_config, dict)
        _check("backend_config", backend_config, BackendConfig)
        _check("scaling_config", scaling_config, ScalingConfig)
        _check("run_config", run_config, RunConfig)
        _check("datasets", datasets, Mapping)
        _check("dataset_config", dataset_config, DataConfig)
        _check("resume_from_checkpoint", resume_from_checkpoint, Checkpoint)
        self.train_loop_per_worker = train_loop_per_worker
        self.train_loop_config = train_loop_config
        self.backend_config = backend_config or BackendConfig()
        self.scaling_config = scaling_config or ScalingConfig()
        self.run_config = run_config or RunConfig()
        self.datasets = dict(datasets or {})
        self.dataset_config = dataset_config or DataConfig()
        self.dataset_config.check(list(self.datasets))
        self.resume_from_checkpoint = resume_from_checkpoint

    def fit(self) -> Result:
        """Trains until the functions of all workers have returned.

        A run with the name and the storage path of an earlier one goes on from that one's last checkpoint.

        Raises:
            WorkerGroupError: workers failed more often than `FailureConfig.max_failures` allows, or ranks did not make the same calls.
            ControllerError: no room for the workers in time (`SHOAL_TRAIN_START_TIMEOUT_S`, default 600), or the storage refused a write.
            StorageError: the storage cannot be used, or another process carries out this run.
        """
        from ._run.controller import Controller, Job
        from ._run.store import RunStore
        from .storage import open_folder

        name = self.run_config.name or f"train_run-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{uuid.uuid4().hex[:6]}"
        run_config = replace(self.run_config, name=name)
        assert run_config.storage_path is not None
        assert run_config.checkpoint_config is not None
        folder = open_folder(run_config.storage_path, run_config.storage_filesystem).child(name)
        store = RunStore(folder, name, run_config.checkpoint_config)
        job = Job(
            self.train_loop_per_worker, self.train_loop_config or {}, self.backend_config, self.scaling_config, run_config, name, self.datasets,
            self.dataset_config, self.resume_from_checkpoint,
        )  # fmt: skip
        try:
            if self.scaling_config.num_workers == 0:
                from ._run import local

                result = local.fit(job, store)
            else:
                result = Controller(job, store).fit()
        finally:
            store.close()
        if result.error is not None:
            raise result.error
        return result


def _check(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}: {value!r}")
