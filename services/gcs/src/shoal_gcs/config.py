"""How a control store is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from . import __version__


class Config(msgspec.Struct):
    """`secrets_dir` holds node.secret and user.token; they are made when they are not there."""

    secrets_dir: Path
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    storage: str = "memory"
    durability: str = "normal"
    standby: bool = False  # waits while another one leads, instead of giving up
    cluster_id: bytes = b""  # the cluster that the storage must hold; empty: any, or none yet
    head_term_s: float = 3.0  # in shared storage: a head that does not renew for so long is replaced by one that stands by
    log_dir: Path | None = None
    log_level: str = "INFO"
    log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    ready_fd: int = -1
    http_address: str = ""
    lease_s: float = 10.0
    heartbeat_s: float = 1.0
    infeasible_timeout_s: float = 10.0
    dead_actors_kept: int = 20_000
    dead_nodes_kept: int = 1_000
    finished_jobs_kept: int = 1_000
    history_s: float = 7 * 86_400.0  # what ended longer ago is forgotten, too


def parse(argv: Sequence[str] | None = None) -> Config:
    parser = argparse.ArgumentParser("shoal-gcs", description="Shoal's global control store: nodes, jobs, actors, placement groups, keys, channels; over gRPC.")
    add = parser.add_argument
    add("--secrets-dir", type=Path, required=True, help="holds node.secret and user.token; made when absent")
    add("--host", default="127.0.0.1", help="where to listen (default: loopback only)")
    add("--port", type=int, default=0, help="0: any free one, told on --ready-fd and in the log")
    add("--storage", default="memory", help="memory, sqlite:PATH or redis://[:PASSWORD@]HOST:PORT[,HOST:PORT]/DB[?name=CLUSTER]")
    add("--durability", default="normal", choices=["normal", "full"], help="normal: survives a kill; full: survives a power cut, and is slower")
    add("--standby", action="store_true", help="with storage in Redis: wait while another one leads, and take over when it does not renew its term")
    add("--cluster-id", type=bytes.fromhex, default=b"", help="hex: refuse a storage that does not hold this cluster, also an empty one")
    add("--head-term-s", type=float, default=3.0, help="in shared storage: a head silent for so long is replaced")
    add("--log-dir", type=Path)
    add("--log-level", default="INFO")
    add("--log-encoding", default="TEXT", choices=["TEXT", "JSON"])
    add("--ready-fd", type=int, default=-1, help="descriptor for one JSON line, once it serves or cannot")
    add("--http-address", default="", help="told to whoever asks for Info")
    add("--lease-s", type=float, default=10.0, help="a node silent for so long is dead")
    add("--heartbeat-s", type=float, default=1.0)
    add("--infeasible-timeout-s", type=float, default=10.0, help="an actor that no node can ever hold fails after so long")
    add("--dead-actors-kept", type=int, default=20_000, help="for listing; the oldest go first")
    add("--dead-nodes-kept", type=int, default=1_000)
    add("--finished-jobs-kept", type=int, default=1_000)
    add("--history-s", type=float, default=7 * 86_400.0, help="what ended longer ago is forgotten, too")
    add("--version", action="version", version=__version__)
    return Config(**vars(parser.parse_args(argv)))
