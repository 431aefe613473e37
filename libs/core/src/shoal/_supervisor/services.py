"""How each service is run in a fork of the supervisor. Imports happen in `load()`, once, before the first fork."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from .config import NodeConfig

# What workers need as well as the services do.
_FOR_WORKERS = ("asyncio", "concurrent.futures.thread", "inspect", "traceback", "shoal_gcs.v1.gcs_pb2", "shoal_raylet.v1.raylet_pb2")
_ZYGOTE = "shoal._worker.zygote"
_SHARED = ("grpc.aio", "shoal_base.connection", "shoal_base.auth", "shoal_base.grpc_auth", "shoal_gcs.v1.gcs_pb2")


class Places(msgspec.Struct):
    """What the services of one node share."""

    node_id: str
    node_dir: Path
    cluster_dir: Path
    secrets_dir: Path
    gcs_addresses: list[str]
    http_address: str = ""
    cluster_id: str = ""  # hex; what the control store has said once: from then on it must find that cluster again


def load_for_workers() -> None:
    """What the zygote would import again otherwise. Not grpc, which workers do without: a user's own version of it must find no other."""
    for name in _FOR_WORKERS:
        importlib.import_module(name)


def load() -> None:
    """Imports what all services share, once. What only one of them needs it imports itself, at the same time as the others do.

    No thread and no channel may exist afterwards: forks would inherit their locks.
    """
    for name in _SHARED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop")


def loaded() -> None:
    """In each process, once it has imported what it needs."""
    gc.freeze()  # what is shared stays shared: the collector must not write to it
    gc.enable()


def default_storage(cluster_dir: Path) -> str:
    return f"sqlite:{cluster_dir / 'gcs.sqlite'}"


def run_gcs(config: NodeConfig, places: Places, port: int, ready_fd: int) -> int:
    from shoal_gcs.__main__ import run
    from shoal_gcs.config import Config

    loaded()
    return run(
        Config(
            secrets_dir=places.secrets_dir, host=config.host, port=port, storage=config.storage or default_storage(places.cluster_dir),
            log_dir=places.node_dir / "logs", log_level=config.log_level, log_encoding=config.log_encoding, ready_fd=ready_fd, http_address=places.http_address,
            standby=config.standby or (config.shared_storage and bool(places.cluster_id)), cluster_id=bytes.fromhex(places.cluster_id),
            **_settings(config, "gcs"),
        )
    )  # fmt: skip


def run_zygote(config: NodeConfig, control_fd: int) -> int:
    """The node's first one."""
    from shoal._worker import zygote

    sys.argv[:] = [zygote.__file__]
    zygote.serve(control_fd, config.settings.get("raylet", {}).get("preload", []))
    return 0


def run_raylet(config: NodeConfig, places: Places, zygote: tuple[int, int] | None, ready_fd: int) -> int:
    from shoal_raylet.__main__ import run
    from shoal_raylet.config import Config

    loaded()
    settings = _settings(config, "raylet")
    if config.resources.get("GPU"):
        from .resources import visible_gpus

        settings = {"gpu_ids": visible_gpus() or [], **settings}
    return run(
        Config(
            node_dir=places.node_dir, gcs=places.gcs_addresses, secrets_dir=places.secrets_dir,
            worker_command=config.worker_command or [sys.executable, "-P", "-m", _ZYGOTE], zygote=zygote,
            resources=config.resources, node_id=bytes.fromhex(places.node_id), host=config.host, port=config.node_port, labels=config.labels,
            head=config.head, name=config.node_name, object_store_bytes=config.object_store_bytes, http_address=places.http_address, ready_fd=ready_fd,
            log_level=config.log_level, log_encoding=config.log_encoding, **settings,
        )
    )  # fmt: skip


def run_store(config: NodeConfig, places: Places, ready_fd: int) -> int:
    from shoal_objectstore.__main__ import run
    from shoal_objectstore.config import Config

    loaded()
    return run(
        Config(
            node_dir=places.node_dir, node_id=bytes.fromhex(places.node_id), secrets_dir=places.secrets_dir, raylet_sock=places.node_dir / "raylet.sock",
            ready_fd=ready_fd, log_level=config.log_level, log_encoding=config.log_encoding, **_settings(config, "objectstore"),
        )
    )  # fmt: skip


def run_http(config: NodeConfig, places: Places, listener: int, ready_fd: int) -> int:
    from shoal._http.server import HttpConfig, run

    return run(
        HttpConfig(
            listener=listener, gcs_addresses=places.gcs_addresses, secrets_dir=places.secrets_dir, node_dir=places.node_dir,
            log_level=config.log_level, log_encoding=config.log_encoding, ready_fd=ready_fd,
        )
    )  # fmt: skip


def _settings(config: NodeConfig, service: str) -> dict[str, Any]:
    """`settings={"gcs": {"lease_s": 3}}` sets fields of a service's own Config."""
    return dict(config.settings.get(service, {}))
