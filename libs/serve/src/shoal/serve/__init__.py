"""Model serving: deployments, composition, HTTP, autoscaling and rolling updates, under Ray Serve's names.

What is named here is imported on first use, so that `import shoal.serve` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        RunTarget,
        delete,
        get_app_handle,
        get_deployment_handle,
        http_address,
        run,
        run_many,
        set_traffic,
        shutdown,
        shutdown_async,
        start,
        status,
    )
    from .batching import batch
    from .class_routes import ingress
    from .config import AutoscalingConfig, HTTPOptions, ProxyLocation
    from .context import ReplicaContext, get_multiplexed_model_id, get_replica_context
    from .deployments import Application, Deployment, deployment
    from .exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
    from .handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
    from .multiplex import multiplexed

_EXPORTS = {
    "api": ("RunTarget", "delete", "get_app_handle", "get_deployment_handle", "http_address", "run", "run_many", "set_traffic", "shutdown", "shutdown_async",
            "start", "status"),
    "batching": ("batch",),
    "config": ("AutoscalingConfig", "HTTPOptions", "ProxyLocation"),
    "context": ("ReplicaContext", "get_multiplexed_model_id", "get_replica_context"),
    "deployments": ("Application", "Deployment", "deployment"),
    "exceptions": ("BackPressureError", "DeploymentUnavailableError", "RayServeException", "RequestCancelledError"),
    "handle": ("DeploymentHandle", "DeploymentResponse", "DeploymentResponseGenerator"),
    "class_routes": ("ingress",),
    "multiplex": ("multiplexed",),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "Application", "AutoscalingConfig", "BackPressureError", "Deployment", "DeploymentHandle", "DeploymentResponse", "DeploymentResponseGenerator",
    "DeploymentUnavailableError", "HTTPOptions", "ProxyLocation", "RayServeException", "ReplicaContext", "RequestCancelledError", "RunTarget",
    "batch", "delete", "deployment", "get_app_handle", "get_deployment_handle", "get_multiplexed_model_id", "get_replica_context", "http_address",
    "ingress", "multiplexed", "run", "run_many", "set_traffic", "shutdown", "shutdown_async", "start", "status",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        if name in ("api", "autoscaling", "config", "context", "exceptions", "handle", "metrics", "schema"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
