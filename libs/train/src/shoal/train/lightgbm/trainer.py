"""The trainer for LightGBM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..config import RunConfig, ScalingConfig
from ..datasets import DataConfig
from ..trainer import DataParallelTrainer
from .config import LightGBMConfig

__all__ = ["LightGBMTrainer"]


class LightGBMTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers grow one model of trees together, each from its part of the rows.

    Args:
        train_loop_per_worker: takes nothing or its config; it calls `lightgbm.train` with `get_network_params()`, and with `tree_learner` "data" or "voting".
        lightgbm_config: how the workers find each other.

    The others as in `DataParallelTrainer`. Workers need the same number of CPUs as LightGBM's `num_threads`.

    Example::

        def train_loop():
            rows = shoal.train.get_dataset_shard("train").materialize().to_pandas()
            params = {"objective": "binary", "tree_learner": "data", "num_threads": 1, "pre_partition": True, **get_network_params()}
            lightgbm.train(params, lightgbm.Dataset(rows.drop(columns="y"), rows["y"]), callbacks=[RayTrainReportCallback()])

        result = LightGBMTrainer(train_loop, datasets={"train": ds}, scaling_config=ScalingConfig(num_workers=2)).fit()
        model = RayTrainReportCallback.get_model(result.checkpoint)
    """

    def __init__(
        self, train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any], *, train_loop_config: dict[str, Any] | None = None,
        lightgbm_config: LightGBMConfig | None = None, scaling_config: ScalingConfig | None = None, run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None, dataset_config: DataConfig | None = None, resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        if lightgbm_config is not None and not isinstance(lightgbm_config, LightGBMConfig):
            raise TypeError(f"lightgbm_config must be a LightGBMConfig, got {type(lightgbm_config).__name__}: {lightgbm_config!r}")
        super().__init__(
            train_loop_per_worker, train_loop_config=train_loop_config, backend_config=lightgbm_config or LightGBMConfig(), scaling_config=scaling_config,
            run_config=run_config, datasets=datasets, dataset_config=dataset_config, resume_from_checkpoint=resume_from_checkpoint,
        )  # fmt: skip
