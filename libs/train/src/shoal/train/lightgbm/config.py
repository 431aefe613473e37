"""How the workers of LightGBM find each other."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import dataclass
from typing import Any, ClassVar

from ..backend import Backend, BackendConfig, WorkerGroup
from ..errors import NoSessionError

__all__ = ["LightGBMConfig", "get_network_params"]

# What LightGBM is told in this process; None: there is no group.
_network: dict[str, Any] | None = None


@dataclass
class LightGBMConfig(BackendConfig):
    """The network of the workers.

    Args:
        time_out: minutes that a worker waits for the others (default 2).

    Raises:
        ImportError: LightGBM is not installed. ValueError: naming the field.
    """

    time_out: int = 2

    imports: ClassVar[tuple[str, ...]] = ("lightgbm",)

    def __post_init__(self) -> None:
        if isinstance(self.time_out, bool) or not isinstance(self.time_out, int) or self.time_out < 1:
            raise ValueError(f"time_out={self.time_out!r}: a whole number of minutes above 0 is wanted")
        if importlib.util.find_spec("lightgbm") is None:
            raise ImportError("LightGBM is not installed here: pip install 'shoal-train[lightgbm]'")

    @property
    def backend_cls(self) -> type[Backend]:
        return LightGBMBackend


class LightGBMBackend(Backend):
    """Tells each worker the addresses of all before the training function begins; LightGBM itself connects them."""

    def on_start(self, worker_group: WorkerGroup, backend_config: LightGBMConfig) -> None:
        if len(worker_group) == 1:
            worker_group.execute(_join, [], backend_config.time_out)
            return
        # A port that was free a moment ago: LightGBM takes a number, and no socket.
        ports = worker_group.execute(_free_port)
        addresses = [(worker.node_ip, port) for worker, port in zip(worker_group.workers, ports, strict=True)]
        worker_group.execute(_join, addresses, backend_config.time_out)


def get_network_params() -> dict[str, Any]:
    """Parameters of `lightgbm.train` by which the workers find each other: `lightgbm.train({**params, **get_network_params()}, …)`.

    Raises:
        NoSessionError: called outside of a worker of a `LightGBMTrainer`.
    """
    if _network is None:
        raise NoSessionError("get_network_params() tells the workers of a LightGBMTrainer about each other: call it in the training function")
    return dict(_network)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def _join(addresses: list[tuple[str, int]], time_out: int) -> None:
    global _network
    from .._run.worker import context_of_process

    if not addresses:
        _network = {}
        return
    _network = {
        "machines": ",".join(f"{ip}:{port}" for ip, port in addresses), "num_machines": len(addresses),
        "local_listen_port": addresses[context_of_process().world_rank][1], "time_out": time_out,
    }  # fmt: skip
