"""A data loader made ready for many workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..session import get_context

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

__all__ = ["prepare_data_loader"]


def prepare_data_loader(data_loader: DataLoader[Any], add_dist_sampler: bool = True, move_to_device: bool = True, auto_transfer: bool = True) -> Any:
    """Gives each worker its part of the data, and moves batches to the worker's device.

    The batch size is that of one worker. A loader that shuffles goes on to do so; call `loader.sampler.set_epoch(epoch)` before each epoch for another order.

    Args:
        data_loader: one that reads all the data, the same in all workers.
        add_dist_sampler: whether to divide the data (default). Data of an `IterableDataset` is never divided.
        move_to_device: whether to move batches to the worker's device (default).
        auto_transfer: on GPUs: whether to move the next batch while the last one is worked on (default).

    Raises:
        NoSessionError: outside of a training function.
        ValueError: the loader has a batch sampler of its own, which cannot be divided.
    """
    from .devices import get_device

    world_size, rank = get_context().get_world_size(), get_context().get_world_rank()
    if add_dist_sampler and world_size > 1:
        data_loader = _divided(data_loader, world_size, rank)
    device = get_device()
    if move_to_device and device.type != "cpu":
        return MovingLoader(data_loader, device, auto_transfer)
    return data_loader


def _divided(loader: DataLoader[Any], world_size: int, rank: int) -> DataLoader[Any]:
    from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

    if isinstance(loader.dataset, IterableDataset) or isinstance(loader.sampler, DistributedSampler):
        return loader
    if loader.batch_size is None:
        raise ValueError("the data loader has a batch_sampler of its own, or batch_size=None: divide its data yourself, and give add_dist_sampler=False")
    shuffle = not isinstance(loader.sampler, SequentialSampler)
    # The loader's generator seeds its workers; the order comes from the seed of this sampler, which all ranks must have in common.
    sampler: Any = DistributedSampler(loader.dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, drop_last=loader.drop_last)
    kept = ("num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context", "generator", "persistent_workers")
    options: dict[str, Any] = {name: getattr(loader, name) for name in kept}
    options["batch_size"] = loader.batch_size
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
    return DataLoader(loader.dataset, sampler=sampler, **options)


class MovingLoader:
    """Yields another loader's batches on a device; all else is that loader's."""

    def __init__(self, loader: Any, device: torch.device, ahead: bool) -> None:
        self._loader = loader
        self._device = device
        self._ahead = ahead and device.type == "cuda"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._ahead:
            yield from self._moved_ahead()
        else:
            for batch in self._loader:
                yield moved(batch, self._device, False)

    def _moved_ahead(self) -> Iterator[Any]:
        import torch

        beside = torch.cuda.Stream(self._device)
        last: Any = None
        waiting = False
        for batch in self._loader:
            if waiting:
                torch.cuda.current_stream(self._device).wait_stream(beside)
                _used_here(last)
            with torch.cuda.stream(beside):
                following = moved(batch, self._device, True)
            if waiting:
                yield last
            last, waiting = following, True
        if waiting:
            torch.cuda.current_stream(self._device).wait_stream(beside)
            _used_here(last)
            yield last


def moved(batch: Any, device: torch.device, non_blocking: bool) -> Any:
    """A batch with all its tensors on the device, whatever lists, tuples and dicts they lie in."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, Mapping):
        return {key: moved(value, device, non_blocking) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device, non_blocking) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device, non_blocking) for value in batch)
    return batch


def _used_here(batch: Any) -> None:
    # The memory must not be given away while the stream that computes still reads it.
    import torch

    if isinstance(batch, torch.Tensor):
        batch.record_stream(torch.cuda.current_stream(batch.device))
    elif isinstance(batch, Mapping):
        for value in batch.values():
            _used_here(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            _used_here(value)
