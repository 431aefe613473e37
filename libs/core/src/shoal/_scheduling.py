"""A caller's options as the messages that the scheduler reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _options, _runtime
from .runtime_env import canonical, check_runtime_env, inherited


def runtime_env_text(options: Mapping[str, Any], scope: _runtime.Scope) -> str:
    """The environment of a task or an actor: its own over its parent's, as canonical JSON."""
    own = options.get("runtime_env")
    parent = scope.runtime_env or _runtime.state.runtime_env
    if not own:
        return parent
    from ._packages import upload

    return canonical(upload(inherited(parent, check_runtime_env(own))))


def inherited_group(scope: _runtime.Scope) -> bytes:
    return scope.placement_group if scope.capture else b""


def lease_class(options: Mapping[str, Any], scope: _runtime.Scope, job_id: bytes, name: str) -> bytes:
    """A task's LeaseClass, in bytes that are equal for equal classes."""
    from shoal_raylet.v1 import raylet_pb2

    resources = _options.resources_of(options, _options.DEFAULT_TASK_CPUS)
    place = _options.placement_of(options, resources, inherited_group(scope))
    message = raylet_pb2.LeaseClass()
    place.fill(message)
    message.runtime_env = runtime_env_text(options, scope)
    message.job_id = job_id
    message.depth = scope.depth
    message.name = name
    message.final = options.get("max_retries") == 0
    message.max_calls = options.get("max_calls") or 0
    return bytes(message.SerializeToString(deterministic=True))


def task_extra(options: Mapping[str, Any]) -> bytes:
    """What few tasks need: the exceptions that are worth a retry."""
    exceptions = options.get("retry_exceptions")
    if not isinstance(exceptions, list | tuple) or not exceptions:
        return b""
    from shoal_raylet.v1 import raylet_pb2

    from ._serialization import pickle_value

    pickled, _, _ = pickle_value(tuple(exceptions))
    return bytes(raylet_pb2.TaskExtra(retry_exceptions=pickled).SerializeToString(deterministic=True))
