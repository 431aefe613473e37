"""Where `init()` goes: to a running node on this host, or to a private cluster that it starts."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._runtime import ADDRESS_VARIABLE
from ._supervisor.config import NodeConfig
from ._supervisor.directories import NodeFile, base_directory, living_nodes
from ._supervisor.launch import LaunchFailed, launch
from ._supervisor.ports import someone_listens, split_address
from ._supervisor.spawn import Spawned

if TYPE_CHECKING:
    from ._init_options import InitOptions

_SERVICES = ("gcs", "raylet", "objectstore", "supervisor")


@dataclass
class Bootstrapped:
    """A living node on this host. `on_shutdown` ends what was started for this process; for a running cluster it does nothing."""

    node_dir: str
    node_id: bytes
    gcs_address: str
    http_address: str
    on_shutdown: Callable[[], None]
    address_info: dict[str, Any] = field(default_factory=dict)

    @property
    def close(self) -> Callable[[], None]:
        return self.on_shutdown


def connect(options: InitOptions, spawned: Spawned | None = None) -> Bootstrapped:
    """`spawned`: a supervisor's process, for a private cluster.

    Raises ConnectionError (no such cluster), ValueError (options that do not fit), RuntimeError (a private cluster that does not start)."""
    base = base_directory(options.temp_dir)
    address = options.address if options.address is not None else os.environ.get(ADDRESS_VARIABLE) or None
    if address == "local":
        return _start(options, base, spawned)
    if address and address != "auto":
        _refuse_resources(options, f"The cluster is at {address}")
        return _attach(find_node(base, address))
    running = [node for node in living_nodes(base) if not node.private]
    if running:
        _refuse_resources(options, f"The cluster is at {running[0].gcs_address}")
        return _attach(running[0])
    if address == "auto":
        raise ConnectionError(
            f"address=\"auto\": no cluster of this user runs on this host (looked in {base} for n-*/node.json of a living `shoal start`). "
            "Run `shoal start --head` first, or leave the address away for a private cluster."
        )
    return _start(options, base, spawned)


def find_node(base: Path, address: str) -> NodeFile:
    """This host's living node of the cluster whose GCS is at `address` (HOST:PORT, or several with commas). Raises ConnectionError."""
    if "://" in address:
        raise ConnectionError(f"address={address!r}: a remote client (…://) is not supported; run on a node of the cluster and give HOST:PORT of its GCS")
    try:
        wanted = {_normal(part) for part in address.split(",") if part.strip()}
    except ValueError as error:
        raise ConnectionError(f"address={address!r}: {error}. Give HOST:PORT, \"auto\" or \"local\".") from error
    for node in living_nodes(base):
        if wanted & {_normal(part) for part in node.gcs_address.split(",")}:
            return node
    silent = [why for why in (someone_listens(part.strip()) for part in address.split(",")) if why]
    if len(silent) == len(address.split(",")):
        raise ConnectionError(f"address={address!r}: nobody answers there ({silent[0]}). Is the cluster's head running, and is this its GCS address?")
    raise ConnectionError(
        f"address={address!r}: this host has no node of that cluster (looked in {base}). A driver needs one to join: "
        f"run `shoal start --address {address}` here first."
    )


def _normal(address: str) -> tuple[str, int]:
    host, port = split_address(address)
    if host in ("localhost", "0.0.0.0", "::1", "::"):
        return "127.0.0.1", port
    try:
        return socket.gethostbyname(host), port
    except OSError:
        return host, port


def _refuse_resources(options: InitOptions, where: str) -> None:
    given = [name for name in ("num_cpus", "num_gpus", "memory", "resources", "labels", "object_store_memory", "preload") if getattr(options, name) is not None]
    if given:
        raise ValueError(
            f"When connecting to an existing cluster, {' and '.join(given)} must not be provided: its nodes have what `shoal start` gave them. "
            f"{where}; for a private one with these options use address=\"local\"."
        )


def _attach(node: NodeFile) -> Bootstrapped:
    return _result(node.node_dir, node.node_id, node.gcs_address, node.http_address, lambda: None)


def _start(options: InitOptions, base: Path, spawned: Spawned | None) -> Bootstrapped:
    try:
        started = launch(lambda: private_config(options, base), own=True, meanwhile=_import_ahead, spawned=spawned)
    except LaunchFailed as error:
        raise RuntimeError(f"init() could not start a private cluster: {error}") from error
    told = started.started
    return _result(told.node_dir, told.node_id, told.gcs_address, told.http_address, started.stop)


def _result(node_dir: str, node_id: str, gcs_address: str, http_address: str, on_shutdown: Callable[[], None]) -> Bootstrapped:
    info = {"node_dir": node_dir, "webui_url": http_address, "http_address": http_address}
    return Bootstrapped(node_dir, bytes.fromhex(node_id), gcs_address, http_address, on_shutdown, info)


def private_config(options: InitOptions, base: Path) -> NodeConfig:
    """What a private cluster for these options is told. Raises ValueError naming the option."""
    from ._supervisor.resources import node_labels, node_resources, store_bytes  # while the supervisor starts

    unknown = [name for name, value in options.system_config.items() if name not in _SERVICES or not isinstance(value, dict)]
    if unknown:
        example = '{"gcs": {"lease_s": 5}}'
        raise ValueError(f"_system_config[{unknown[0]!r}]: settings are given by service, as in {example}; services: {', '.join(_SERVICES)}")
    host = options.node_ip_address or "127.0.0.1"
    objects = store_bytes(int(options.object_store_memory) if options.object_store_memory is not None else None)
    memory = int(options.memory) if options.memory is not None else None
    return NodeConfig(
        base=str(base),
        private=bool(options.system_config.get("supervisor", {}).get("private", True)),
        host=host,
        http=options.include_dashboard is not False,
        http_host=options.dashboard_host,
        http_port=options.dashboard_port or 0,
        resources=node_resources(
            num_cpus=options.num_cpus, num_gpus=options.num_gpus, memory=memory, object_store_bytes=objects, custom=options.resources, host=host, head=True
        ),
        labels=node_labels(options.labels, "", ""),
        object_store_bytes=objects,
        log_level=options.logging_level,
        settings=_settings(options),
    )


def _settings(options: InitOptions) -> dict[str, Any]:
    settings = dict(options.system_config)
    if options.preload:
        settings["raylet"] = {**settings.get("raylet", {}), "preload": options.preload}
    return settings


def _import_ahead() -> None:
    """While the services start: what the driver imports next anyway."""
    for name in ("cloudpickle", "shoal_gcs.v1.gcs_pb2", "shoal_raylet.v1.raylet_pb2", "shoal._control", "shoal._logs", "shoal._worker.main", "shoal.actor"):
        importlib.import_module(name)
