"""Which devices a worker has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..session import current_session

if TYPE_CHECKING:
    import torch

__all__ = ["get_device", "get_devices"]


def get_device() -> torch.device:
    """The worker's first device: a GPU if it was given one, else the CPU.

    Raises:
        NoSessionError: outside of a training function.
        RuntimeError: it was given a GPU that PyTorch does not see.
    """
    return get_devices()[0]


def get_devices() -> list[torch.device]:
    """All devices of the worker. The runtime shows a worker no GPUs but its own, so their numbers begin at 0.

    Raises:
        NoSessionError: outside of a training function.
        RuntimeError: it was given a GPU that PyTorch does not see.
    """
    import torch

    gpus = given_gpus()
    if not gpus:
        return [torch.device("cpu")]
    seen = torch.cuda.device_count()
    if seen < gpus:
        raise RuntimeError(f"this worker was given {gpus} GPU(s), but PyTorch {torch.__version__} sees {seen}: is it built for them, and is the driver there?")
    return [torch.device("cuda", index) for index in range(gpus)]


def given_gpus() -> int:
    """How many GPUs the runtime gave this process; in local mode as many as PyTorch sees."""
    from .._run.worker import in_worker

    if not in_worker():
        current_session("get_device()")
        import torch

        return torch.cuda.device_count()
    import shoal

    return len(shoal.get_gpu_ids())
