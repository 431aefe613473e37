"""What `init` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class InitOptions:
    """Checked. `shoal._bootstrap.connect` takes it."""

    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    resources: dict[str, float] | None = None
    labels: dict[str, str] | None = None
    object_store_memory: int | None = None
    preload: list[str] | None = None
    include_dashboard: bool | None = None
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int | None = None
    namespace: str | None = None
    runtime_env: dict[str, Any] | None = None
    local_mode: bool = False
    log_to_driver: bool = True
    logging_level: str = "INFO"
    logging_config: dict[str, Any] | None = None
    node_ip_address: str | None = None
    temp_dir: str | None = None
    system_config: dict[str, Any] = field(default_factory=dict)
    job_config: Any = None
