"""The process group of the workers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from ..backend import Backend, BackendConfig, WorkerGroup

__all__ = ["TorchConfig"]


@dataclass
class TorchConfig(BackendConfig):
    """How the workers find and speak to each other.

    Args:
        backend: "gloo", "nccl", or whatever else the installed PyTorch has. Default: nccl if workers have GPUs, else gloo.
        init_method: "env" (default: rank 0's address in MASTER_ADDR and MASTER_PORT), or "tcp" (given as URL).
        timeout_s: how long a collective operation may take (default 1800).

    Raises:
        ValueError: naming the field.
    """

    backend: str | None = None
    init_method: str = "env"
    timeout_s: int = 1800

    imports: ClassVar[tuple[str, ...]] = ("torch", "torch.distributed")

    def __post_init__(self) -> None:
        if self.init_method not in ("env", "tcp"):
            raise ValueError(f"init_method={self.init_method!r}: 'env' or 'tcp' is wanted")
        if isinstance(self.timeout_s, bool) or not isinstance(self.timeout_s, int | float) or not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s!r}: a number of seconds above 0 is wanted")
        if importlib.util.find_spec("torch") is None:
            raise ImportError("PyTorch is not installed here: pip install torch")

    @property
    def backend_cls(self) -> type[Backend]:
        return TorchBackend

    @property
    def train_func_context(self) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        return _in_group


class TorchBackend(Backend):
    """Makes the process group before the training function begins."""

    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:
        backend = backend_config.backend or ("nccl" if any(worker.gpu_ids for worker in worker_group.workers) else "gloo")
        # A port that rank 0 holds already, rather than one that was free a moment ago.
        port = worker_group.execute_single(0, _open_store, backend_config.timeout_s)
        worker_group.execute(_join, _Meeting(backend, backend_config.init_method, backend_config.timeout_s, worker_group.workers[0].node_ip, port))


@dataclass(frozen=True)
class _Meeting:
    backend: str
    init_method: str
    timeout_s: float
    address: str
    port: int


# The server that all ranks meet at; it lives as long as rank 0's process.
_store: Any = None


def _open_store(timeout_s: float) -> int:
    global _store
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    _store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    port: int = _store.port
    return port


def _join(meeting: _Meeting) -> None:
    import torch
    from torch import distributed

    from .._run.worker import context_of_process
    from ..session import TrainContext

    if not distributed.is_available():
        raise RuntimeError("this build of PyTorch has no torch.distributed")
    context: TrainContext = context_of_process()
    os.environ.update(
        MASTER_ADDR=meeting.address, MASTER_PORT=str(meeting.port), RANK=str(context.world_rank), WORLD_SIZE=str(context.world_size),
        LOCAL_RANK=str(context.local_rank), LOCAL_WORLD_SIZE=str(context.local_world_size), NODE_RANK=str(context.node_rank),
        GROUP_RANK=str(context.node_rank),
        # The server runs already: rank 0 is to join it, not to open another one.
        TORCHELASTIC_USE_AGENT_STORE=str(True),
    )  # fmt: skip
    device = None
    if meeting.backend == "nccl":
        import torch

        from .devices import get_device

        device = get_device()
        torch.cuda.set_device(device)
    url = "env://" if meeting.init_method == "env" else f"tcp://{meeting.address}:{meeting.port}"
    distributed.init_process_group(
        meeting.backend, init_method=url, rank=context.world_rank, world_size=context.world_size, timeout=timedelta(seconds=meeting.timeout_s), device_id=device
    )


@contextlib.contextmanager
def _in_group() -> Iterator[None]:
    """Around the training function, in its thread."""
    import torch

    # PyTorch may have been imported before the environment said how many; and OpenMP asks each thread for itself.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        torch.set_num_threads(int(threads))
    yield
    # After an error the process is killed: leaving could wait for ranks that are gone.
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
