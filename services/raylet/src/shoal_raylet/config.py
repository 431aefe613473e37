"""Settings of one raylet, from the command line or from whoever forks it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from shoal_base.addresses import parse_address
from shoal_base.logs import Encoding

from .memory_watch import LIMIT_MODES, WatchSettings
from .shortage import Threshold

T = TypeVar("T")
# Limit: on the zygote's start when it imports what the user wants.
PRELOAD_TIMEOUT_S = 600.0


class Config(msgspec.Struct):
    """Resources are integers in 1/10,000. Port 0: any free one."""

    node_dir: Path
    gcs: list[str]
    secrets_dir: Path
    worker_command: list[str]
    resources: dict[str, int]
    node_id: bytes = msgspec.field(default_factory=lambda: os.urandom(16))
    host: str = "127.0.0.1"
    port: int = 0
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    head: bool = False
    name: str = ""
    object_store_bytes: int = 256 << 20
    http_address: str = ""
    gpu_ids: list[str] = msgspec.field(default_factory=list)  # default: "0", "1", ... as many as resources["GPU"]
    ready_fd: int = -1
    log_level: str = "INFO"
    log_encoding: Encoding = "TEXT"
    worker_limit: int = 0  # 0: max(64, 16 * CPU)
    prestart: int = -1  # -1: min(CPU, 4)
    infeasible_timeout_s: float = 10.0
    autoscaler: bool = False
    worker_start_timeout_s: float = 60.0
    register_timeout_s: float = 30.0  # for the GCS to answer at the start
    log_file_bytes: int = 64 << 20
    log_files_kept: int = 1000  # of dead workers
    log_kept_s: float = 7 * 86_400.0
    wait_for_store: bool = True  # clients are let in once the store has laid the arena out
    preload: list[str] = msgspec.field(default_factory=list)  # modules that the zygote imports for its workers
    zygote: tuple[int, int] | None = None  # pid and socket of one that our parent has forked; any further one is the worker command
    # None: as the environment says, else Ray's defaults. See `watch_settings`.
    memory_usage_threshold: float | None = None
    min_memory_free_bytes: int | None = None
    memory_monitor_refresh_ms: int | None = None
    memory_limits: str | None = None
    memory_cgroup: str | None = None
    own_process: bool = True  # becomes a sub-reaper and ends orphans; off when it shares its process

    def gpus(self) -> dict[str, int]:
        """Units of each device."""
        units = self.resources.get("GPU", 0)
        ids = self.gpu_ids or [str(i) for i in range(-(-units // 10_000))]
        return {gpu: min(10_000, max(0, units - 10_000 * i)) for i, gpu in enumerate(ids)} if units else {}

    def zygote_command(self) -> list[str]:
        return [*self.worker_command, "--preload", ",".join(self.preload)] if self.preload else self.worker_command

    def zygote_timeout_s(self) -> float:
        """Modules that are imported in advance may take their time."""
        return PRELOAD_TIMEOUT_S if self.preload or os.environ.get("SHOAL_PRELOAD") else self.worker_start_timeout_s

    def watch_settings(self, environ: Mapping[str, str] = os.environ) -> WatchSettings:
        """Raises ValueError naming the setting that is wrong."""
        share = _setting(self.memory_usage_threshold, environ, ("SHOAL_MEMORY_USAGE_THRESHOLD", "RAY_memory_usage_threshold"), 0.95, float)
        free = _setting(self.min_memory_free_bytes, environ, ("SHOAL_MIN_MEMORY_FREE_BYTES", "RAY_min_memory_free_bytes"), -1, int)
        refresh = _setting(self.memory_monitor_refresh_ms, environ, ("SHOAL_MEMORY_MONITOR_REFRESH_MS", "RAY_memory_monitor_refresh_ms"), 250, int)
        limits = _setting(self.memory_limits, environ, ("SHOAL_MEMORY_LIMITS",), "auto", str)
        cgroup = _setting(self.memory_cgroup, environ, ("SHOAL_MEMORY_CGROUP",), "", str)
        return WatchSettings(Threshold(share, free), refresh, limits, cgroup)


def _setting(given: T | None, environ: Mapping[str, str], names: tuple[str, ...], default: T, kind: Callable[[str], T]) -> T:
    if given is not None:
        return given
    for name in names:
        if text := environ.get(name):
            try:
                return kind(text)
            except ValueError as error:
                raise ValueError(f"{name}={text!r} is no number") from error
    return default


def _addresses(text: str) -> list[str]:
    out = [part.strip() for part in text.split(",") if part.strip()]
    for address in out:
        try:
            parse_address(address)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if not out:
        raise argparse.ArgumentTypeError("at least one HOST:PORT is needed")
    return out


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def parse(argv: Sequence[str] | None = None) -> Config:
    parser = argparse.ArgumentParser(prog="python -m shoal_raylet", description="Shoal's node agent: schedules, leases and runs workers on this node.")
    parser.add_argument("--node-dir", type=Path, required=True, help="the node's directory: sockets and logs")
    parser.add_argument("--gcs", type=_addresses, required=True, metavar="HOST:PORT[,HOST:PORT]", help="the control store, or several to try in turn")
    parser.add_argument("--secrets-dir", type=Path, required=True, help="where node.secret and user.token lie")
    parser.add_argument("--worker-command", type=json.loads, required=True, help="JSON list: the zygote's command line; --control-fd N is appended")
    parser.add_argument("--resources", type=_mapping, required=True, help='JSON, in 1/10,000: {"CPU": 40000}')
    parser.add_argument("--node-id", default="", help="32 hex digits; default: random")
    parser.add_argument("--host", default="127.0.0.1", help="the address others reach this node by")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--labels", type=_mapping, default={}, help="JSON")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--name", default="")
    parser.add_argument("--object-store-bytes", type=int, default=256 << 20)
    parser.add_argument("--http-address", default="")
    parser.add_argument("--gpu-ids", default="", help="comma-separated device ids; default 0, 1, ...")
    parser.add_argument("--ready-fd", type=int, default=-1, help="one JSON line is written here when the raylet serves")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-encoding", default="TEXT", choices=["TEXT", "JSON"])
    parser.add_argument("--worker-limit", type=int, default=0, help="workers for tasks; 0: max(64, 16 * CPU)")
    parser.add_argument("--prestart", type=int, default=-1, help="workers started in advance; -1: min(CPU, 4)")
    parser.add_argument("--infeasible-timeout-s", type=float, default=10.0)
    parser.add_argument("--register-timeout-s", type=float, default=30.0, help="how long to try a GCS that does not answer")
    parser.add_argument("--preload", type=_names, default=[], metavar="MODULE[,MODULE]", help="modules that are imported once, before workers are forked")
    parser.add_argument("--memory-usage-threshold", type=float, default=None, help="share of the node's memory above which workers are ended; default 0.95")
    parser.add_argument("--memory-monitor-refresh-ms", type=int, default=None, help="how often that is looked at; default 250, 0: never")
    parser.add_argument("--memory-limits", choices=LIMIT_MODES, default=None, help="how memory= is held: control groups where allowed, else by looking")
    parser.add_argument("--autoscaler", action="store_true", help="what fits no node waits for one instead of failing")
    given = vars(parser.parse_args(argv))
    node_id, gpu_ids = given.pop("node_id"), given.pop("gpu_ids")
    if node_id and (len(node_id) != 32 or any(c not in "0123456789abcdef" for c in node_id)):
        parser.error(f"--node-id {node_id!r}: 32 hex digits are wanted")
    if node_id:
        given["node_id"] = bytes.fromhex(node_id)
    return Config(**given, gpu_ids=[gpu for gpu in gpu_ids.split(",") if gpu])
