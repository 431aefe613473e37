"""A model made ready for many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..session import get_context

if TYPE_CHECKING:
    import torch

__all__ = ["prepare_model"]


def prepare_model(
    model: torch.nn.Module,
    move_to_device: bool | torch.device = True,
    parallel_strategy: str | None = "ddp",
    parallel_strategy_kwargs: dict[str, Any] | None = None,
) -> torch.nn.Module:
    """Moves a model to the worker's device and wraps it, so that gradients are averaged over the workers.

    Args:
        model: the same in all workers (rank 0's parameters are sent to the others).
        move_to_device: True (default), False, or the device to move to.
        parallel_strategy: "ddp" (default), "fsdp" (parameters are divided among the workers; needs GPUs), or None. One worker alone needs none.
        parallel_strategy_kwargs: for `DistributedDataParallel` or `FullyShardedDataParallel`.

    Raises:
        NoSessionError: outside of a training function.
        ValueError: another strategy, or "fsdp" on CPUs.
    """
    import torch

    from .devices import get_device

    if parallel_strategy not in ("ddp", "fsdp", None):
        raise ValueError(f"parallel_strategy={parallel_strategy!r}: 'ddp', 'fsdp' or None is wanted")
    world_size = get_context().get_world_size()
    device = move_to_device if isinstance(move_to_device, torch.device) else get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if move_to_device is not False:
        model = model.to(device)
    kwargs = dict(parallel_strategy_kwargs or {})
    if world_size == 1 or parallel_strategy is None:
        return model
    if parallel_strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        if device.type == "cuda" and move_to_device is not False:
            kwargs = {"device_ids": [device], "output_device": device, **kwargs}
        return DistributedDataParallel(model, **kwargs)
    if device.type == "cpu":
        raise ValueError("parallel_strategy='fsdp' needs workers with GPUs (ScalingConfig(use_gpu=True)): PyTorch does not divide models on CPUs")
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, **{"device_id": device, **kwargs})
