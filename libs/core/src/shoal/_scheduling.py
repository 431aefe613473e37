"""A caller's options as the messages that the scheduler reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _options, _runtime
from ._core.engine import TASK_RETRY_EXCEPTIONS, TASK_TIMED, TASK_UNRECORDED
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
    """What few tasks need: the exceptions that are worth a retry, a limit of time."""
    exceptions, timeout_s = options.get("retry_exceptions"), options.get("timeout_s")
    listed = tuple(exceptions) if isinstance(exceptions, list | tuple) else ()
    if not listed and timeout_s is None:
        return b""
    from shoal_raylet.v1 import raylet_pb2

    from ._serialization import pickle_value

    extra = raylet_pb2.TaskExtra(timeout_s=timeout_s or 0.0)
    if listed:
        extra.retry_exceptions, _, _ = pickle_value(listed)
    return bytes(extra.SerializeToString(deterministic=True))


def task_flags(options: Mapping[str, Any]) -> int:
    """The flags of a Task that follow from its options alone."""
    flags = TASK_RETRY_EXCEPTIONS if options.get("retry_exceptions") else 0
    if options.get("timeout_s") is not None:
        flags |= TASK_TIMED
    if options.get("enable_task_events") is False:
        flags |= TASK_UNRECORDED
    return flags
