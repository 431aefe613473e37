"""The lease that a worker runs under: what its tasks may use, and what they pass on to theirs."""

from __future__ import annotations

from typing import Any

from .. import _runtime

# Limit: depths of nesting whose scopes are kept; a scope is a few words.
_MAX_SCOPES = 1024


class Lease:
    __slots__ = ("_scopes", "accelerators", "capture", "incarnation", "job_id", "lease_id", "max_calls", "placement_group", "resources", "runtime_env")

    def __init__(self, lease_id: int = 0, context: Any = None) -> None:
        self.lease_id = lease_id
        self.job_id = bytes(context.job_id) if context else b""
        self.resources: dict[str, int] = dict(context.resources) if context else {}
        self.accelerators: dict[str, list[str]] = {k: list(v.ids) for k, v in context.accelerators.items()} if context else {}
        self.placement_group = bytes(context.placement_group_id) if context else b""
        self.capture = bool(context.capture_child_tasks) if context else False
        self.runtime_env = str(context.runtime_env) if context else ""
        self.max_calls = int(context.max_calls) if context else 0
        self.incarnation = int(context.incarnation) if context else 0
        self._scopes: dict[int, _runtime.Scope] = {}

    def scope(self, depth: int, job_id: bytes) -> _runtime.Scope:
        """What a task of this depth passes on; the same object each time, so that remote functions can tell it by identity."""
        scope = self._scopes.get(depth)
        if scope is None or scope.job_id != job_id:
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            scope = self._scopes[depth] = _runtime.Scope(depth + 1, self.placement_group, self.capture, self.runtime_env, job_id)
        return scope


def parse(lease_id: int, raw: bytes) -> Lease:
    from shoal_raylet.v1 import raylet_pb2

    return Lease(lease_id, raylet_pb2.LeaseContext.FromString(raw))
