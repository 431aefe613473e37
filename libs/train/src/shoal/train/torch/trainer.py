"""The trainer for PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..config import RunConfig, ScalingConfig
from ..datasets import DataConfig
from ..trainer import DataParallelTrainer
from .config import TorchConfig

__all__ = ["TorchTrainer"]


class TorchTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose workers form a process group of `torch.distributed`.

    Args:
        train_loop_per_worker: takes nothing or its config; `prepare_model` and `prepare_data_loader` make its model and data ready.
        torch_config: how the workers speak to each other. Default: NCCL if they have GPUs, else gloo.

    The others as in `DataParallelTrainer`.

    Example::

        def train_loop(config):
            model = prepare_model(torch.nn.Linear(4, 1))
            loader = prepare_data_loader(DataLoader(dataset, batch_size=32, shuffle=True))
            ...
            shoal.train.report({"loss": loss.item()})

        result = TorchTrainer(train_loop, train_loop_config={"epochs": 3}, scaling_config=ScalingConfig(num_workers=2)).fit()
    """

    def __init__(
        self, train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any], *, train_loop_config: dict[str, Any] | None = None,
        torch_config: TorchConfig | None = None, scaling_config: ScalingConfig | None = None, run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None, dataset_config: DataConfig | None = None, resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        if torch_config is not None and not isinstance(torch_config, TorchConfig):
            raise TypeError(f"torch_config must be a TorchConfig, got {type(torch_config).__name__}: {torch_config!r}")
        super().__init__(
            train_loop_per_worker, train_loop_config=train_loop_config, backend_config=torch_config or TorchConfig(), scaling_config=scaling_config,
            run_config=run_config, datasets=datasets, dataset_config=dataset_config, resume_from_checkpoint=resume_from_checkpoint,
        )  # fmt: skip
