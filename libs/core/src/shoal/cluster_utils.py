"""Clusters of several nodes on one machine, of real processes: for tests.

::

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=2, resources={"special": 1})
    shoal.init(address=cluster.address)
    ...
    shoal.shutdown()
    cluster.shutdown()
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from shoal_base.auth import read_secret

from ._supervisor.config import NodeConfig
from ._supervisor.directories import base_directory
from ._supervisor.launch import Launched, launch
from ._supervisor.resources import node_labels, node_resources, store_bytes
from ._supervisor.spawn import wait_exit

_POLL_S = 0.02
_HTTP_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 30.0
# What a test's node has if nothing is said: little, so that many fit one machine.
DEFAULT_CPUS = 1
DEFAULT_STORE_BYTES = 150 << 20
_NODE_ARGS = (
    "num_cpus", "num_gpus", "memory", "object_store_memory", "resources", "labels", "node_name", "host", "storage", "system_config", "port", "node_port",
    "http_port", "log_level", "standby", "secrets_dir",
)  # fmt: skip


class ClusterNode:
    """One node: a supervisor and its services."""

    def __init__(self, launched: Launched, head: bool) -> None:
        self._launched = launched
        self.head = head
        self.node_id = launched.started.node_id
        self.node_dir = launched.started.node_dir
        self.address = launched.started.node_address
        self.gcs_address = launched.started.gcs_address
        self.http_address = launched.started.http_address
        self.cluster_dir = launched.started.cluster_dir
        self.supervisor_pid = launched.process.pid

    @property
    def unique_id(self) -> str:
        return self.node_id

    @property
    def process(self) -> Any:
        """The supervisor's Popen."""
        return self._launched.process

    def pid_of(self, service: str) -> int:
        """The pid of "gcs", "raylet", "objectstore", "http" or "zygote" now. Raises LookupError."""
        name = f"shoal-{service}"[:15]
        # A zygote is the supervisor's child, and the raylet's once it was started again.
        parents = {self.supervisor_pid, *([self.pid_of("raylet")] if service == "zygote" else [])}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent in parents and (entry / "comm").read_text().strip() == name:
                        return int(entry.name)
                except (OSError, ValueError):
                    continue
        raise LookupError(f"node {self.node_id[:12]} runs no {service}")

    def kill(self, service: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to one service; its pid."""
        pid = self.pid_of(service)
        os.kill(pid, number)
        return pid

    def alive(self) -> bool:
        return self._launched.process.poll() is None

    def end(self, graceful: bool, timeout_s: float = 10.0) -> None:
        if graceful:
            self._launched.stop()
            return
        # The whole node at once, as when its power goes: first the raylet, so that it cannot say goodbye.
        for service in ("raylet", "objectstore"):
            try:
                self.kill(service)
            except (LookupError, ProcessLookupError):  # it may end by itself, too
                continue
        self._launched.process.kill()
        wait_exit(self._launched.process, timeout_s)
        _wait(lambda: not os.path.exists(self.node_dir) and not os.path.exists(self.cluster_dir), timeout_s, f"the files of node {self.node_id[:12]} to go")

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:12]} at {self.address}{', head' if self.head else ''})"


def _api() -> Any:
    """The package's lazy exports, which no type checker sees."""
    return import_module("shoal")


def _wait(condition: Any, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(_POLL_S)


class Cluster:
    """Ray's `ray.cluster_utils.Cluster`: one head, then as many nodes as are added. All end with this process."""

    def __init__(
        self, initialize_head: bool = False, connect: bool = False, head_node_args: dict[str, Any] | None = None, shutdown_at_exit: bool = True
    ) -> None:  # fmt: skip
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        self.connected = False
        if not initialize_head and connect:
            raise ValueError("connect=True needs initialize_head=True: there is no cluster to connect to yet")
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def address(self) -> str:
        """HOST:PORT of the control store: what `init(address=...)` takes."""
        return self._head().gcs_address

    gcs_address = address

    def _head(self) -> ClusterNode:
        if self.head_node is None:
            raise RuntimeError("the cluster has no head: add_node() first")
        return self.head_node

    def connect(self, namespace: str | None = None) -> Any:
        """`init` of this process at this cluster."""
        context = _api().init(address=self.address, namespace=namespace)
        self.connected = True
        return context

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Starts a node (the first one is the head) and returns when it serves. Arguments as those of `init`, and `node_name`, `host`, `storage`.

        Raises TypeError for an unknown argument, LaunchFailed when it does not come up.
        """
        if unknown := sorted(set(node_args) - set(_NODE_ARGS)):
            raise TypeError(f"add_node() does not know {', '.join(unknown)}; it knows {', '.join(_NODE_ARGS)}")
        head = self.head_node is None or bool(node_args.get("standby"))
        node = ClusterNode(launch(lambda: self._config(head, node_args), own=True), head)
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        if wait and node is not self.head_node:
            self.wait_for_nodes()
        return node

    def _config(self, head: bool, args: dict[str, Any]) -> NodeConfig:
        host = args.get("host", "127.0.0.1")
        objects = store_bytes(args.get("object_store_memory", DEFAULT_STORE_BYTES))
        resources = node_resources(
            num_cpus=args.get("num_cpus", DEFAULT_CPUS), num_gpus=args.get("num_gpus", 0), memory=args.get("memory"), object_store_bytes=objects,
            custom=args.get("resources"), host=host, head=head,
        )  # fmt: skip
        config = NodeConfig(
            base=str(base_directory()), head=head, standby=bool(args.get("standby")), host=host, port=args.get("port", 0), node_port=args.get("node_port", 0),
            http_port=args.get("http_port", 0),
            resources=resources, labels=node_labels(args.get("labels"), "", args.get("node_name", "")), node_name=args.get("node_name", ""),
            object_store_bytes=objects, storage=args.get("storage", ""), settings=args.get("system_config") or {}, log_level=args.get("log_level", "INFO"),
        )  # fmt: skip
        if self.head_node is not None:
            config.gcs_addresses = [] if head else [self.address]
            config.secrets_dir = self._secrets_dir()
        config.secrets_dir = args.get("secrets_dir", config.secrets_dir)
        return config

    def _secrets_dir(self) -> str:
        return str(json.loads(Path(self._head().node_dir, "node.json").read_text())["secrets_dir"])

    def remove_node(self, node: ClusterNode, allow_graceful: bool = False, wait: bool = True) -> None:
        """Ends a node: without warning, or in good order.

        Args:
            wait: until the control store counts it no more, where there is another head to ask; at most 30 s. False: returns once its processes are gone.

        Raises:
            TimeoutError: the control store still counts it.
        """
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.remove(node)
        node.end(allow_graceful)
        if wait and not node.head and self.head_node is not None:
            self._wait_for_end(node.node_id)

    def _wait_for_end(self, node_id: str) -> None:
        def gone() -> bool:
            return not any(row["node_id"] == node_id and row["state"] == "ALIVE" for row in self.states())

        _wait(gone, _END_TIMEOUT_S, f"the control store to count node {node_id[:12]} no more")

    def list_all_nodes(self) -> list[ClusterNode]:
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def states(self) -> list[dict[str, Any]]:
        """The nodes as the control store knows them, as in `/api/v0/nodes`."""
        head = self._head()
        host, _, port = head.http_address.rpartition(":")
        token = read_secret(Path(self._secrets_dir()) / "user.token").decode()
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_HTTP_TIMEOUT_S)
        try:
            connection.request("GET", "/api/v0/nodes?limit=10000", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"the head answered {response.status}: {body[:500].decode('utf-8', 'replace')}")
            rows: list[dict[str, Any]] = json.loads(body)["result"]
            return rows
        finally:
            connection.close()

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Until the control store counts exactly the nodes that were added and not removed as alive. Raises TimeoutError."""
        wanted = {node.node_id for node in self.list_all_nodes()}

        def as_wanted() -> bool:
            return {row["node_id"] for row in self.states() if row["state"] == "ALIVE"} == wanted

        _wait(as_wanted, timeout, f"the control store to count {len(wanted)} living nodes")

    def remaining_processes_alive(self) -> bool:
        """Whether every node's supervisor runs."""
        return all(node.alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """Ends all nodes, the head last. Disconnects first if `connect` was used."""
        if self.connected:
            _api().shutdown()
            self.connected = False
        for node in reversed(self.list_all_nodes()):
            node.end(graceful=True)
        self.worker_nodes = []
        self.head_node = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
