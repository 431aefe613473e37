"""What a lease brings to its worker: the job's paths, the runtime environment, the accelerators."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from .. import _packages, _runtime
from ..job_config import Limits

_CALL_TIMEOUT_S = 30.0


class Environment:
    """Applies the differences from one lease to the next; a worker usually keeps its job and environment for life."""

    def __init__(self, engine: Any, has_gpus: bool) -> None:
        self._engine = engine
        self._has_gpus = has_gpus
        self._job_id = b""
        self._runtime_env = ""
        self._saved: dict[str, str | None] = {}
        self._paths: list[str] = []
        self._directory = ""

    def apply(self, job_id: bytes, runtime_env: str, gpus: list[str]) -> None:
        """Raises RuntimeEnvSetupError."""
        if job_id != self._job_id:
            self._enter_job(job_id)
        if runtime_env != self._runtime_env:
            self._enter_environment(runtime_env)
        if gpus or self._has_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)

    def _enter_job(self, job_id: bytes) -> None:
        from shoal_raylet.v1 import raylet_pb2

        request = raylet_pb2.FinishJobRequest(job_id=job_id).SerializeToString()
        config = raylet_pb2.JobConfig.FromString(self._engine.call("raylet/JobConfig", request, _CALL_TIMEOUT_S))
        self._job_id = job_id
        self._engine.job_id = job_id
        state = _runtime.state
        state.job_id = job_id
        state.namespace = config.namespace
        state.limits = Limits(config)
        state.limits.apply(self._engine)
        known = set(sys.path)
        for i, path in enumerate(p for p in config.sys_path if p not in known and os.path.exists(p)):
            sys.path.insert(i, path)
        _configure_logging(config)
        if config.metadata.get("compat.ray"):
            from ..compat.ray import install

            install(shadow=True)  # the driver was asked already
        if config.working_dir and os.path.isdir(config.working_dir):
            self._directory = config.working_dir
            _change_directory(config.working_dir)

    def _enter_environment(self, text: str) -> None:
        from ..exceptions import RuntimeEnvSetupError

        self._leave_environment()
        env = json.loads(text) if text else {}
        for name, value in (env.get("env_vars") or {}).items():
            if "$" in value and name in os.environ:
                continue  # the zygote has set it; to expand it here would name itself again
            self._saved[name] = os.environ.get(name)
            os.environ[name] = value
        try:
            if env.get("working_dir"):
                directory = _packages.fetch(env["working_dir"])
                _change_directory(directory)
                self._add_path(directory)
            for uri in env.get("py_modules") or ():
                self._add_path(_packages.fetch(uri))
        except Exception as error:
            raise RuntimeEnvSetupError(f"{type(error).__name__}: {error}") from error
        self._runtime_env = text

    def _add_path(self, directory: str) -> None:
        sys.path.insert(0, directory)
        self._paths.append(directory)

    def _leave_environment(self) -> None:
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._saved.clear()
        for path in self._paths:
            with contextlib.suppress(ValueError):
                sys.path.remove(path)
        self._paths.clear()
        if self._directory:
            _change_directory(self._directory)
        self._runtime_env = ""


def _configure_logging(config: Any) -> None:
    from .._logging_config import LOGGING_CONFIG, LoggingConfig, configure

    described = config.metadata.get(LOGGING_CONFIG)
    if described:
        configure(LoggingConfig(**json.loads(described)))


def _change_directory(directory: str) -> None:
    # A driver's directory may be unreadable for this user or gone on this node; tasks then run where the worker is.
    with contextlib.suppress(OSError):
        os.chdir(directory)
