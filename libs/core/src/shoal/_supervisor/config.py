"""What a supervisor is told."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
from msgspec.structs import asdict

DEFAULT_PORT = 6380  # next to Redis' and Ray's 6379, so that they can run side by side
DEFAULT_HTTP_PORT = 8265


class NodeConfig(msgspec.Struct):
    """One node. Sent as JSON by `init()` and `shoal start`; everything is already checked and detected there."""

    base: str
    head: bool = True
    private: bool = True  # ends with its owner, and is not found by others
    owner_pid: int = 0
    host: str = "127.0.0.1"
    port: int = 0  # the GCS's
    node_port: int = 0  # the raylet's
    http: bool = True
    http_host: str = "127.0.0.1"
    http_port: int = 0
    standby: bool = False  # a head that waits while another one leads
    gcs_addresses: list[str] = msgspec.field(default_factory=list)  # to join; empty on a head
    storage: str = ""  # empty: SQLite in the supervisor's own directory
    secrets_dir: str = ""  # empty: made anew
    token_file: str = ""
    resources: dict[str, int] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    node_name: str = ""
    object_store_bytes: int = 0
    worker_command: list[str] = msgspec.field(default_factory=list)  # empty: the zygote of this package
    log_level: str = "INFO"
    log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    start_timeout_s: float = 30.0
    grace_s: float = 2.0  # for the raylet and its workers to end by themselves
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def shared_storage(self) -> bool:
        """Whether heads of several machines can use it, one at a time."""
        return self.storage.partition(":")[0] in ("redis", "rediss", "unix")

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> NodeConfig:
        raw = json.loads(data)
        known = set(cls.__struct_fields__)
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        return cls(**raw)


class Started(msgspec.Struct):
    """What the supervisor answers once the node serves, or why it does not."""

    error: str = ""
    node_id: str = ""
    node_dir: str = ""
    gcs_address: str = ""
    http_address: str = ""
    node_address: str = ""
    cluster_dir: str = ""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Started:
        known = set(cls.__struct_fields__)
        return cls(**{key: value for key, value in json.loads(line).items() if key in known})
