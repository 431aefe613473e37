"""One call that runs in this process: what an executor reads of it, and what is known while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .. import _runtime
from ..runtime_env import expanded

if TYPE_CHECKING:
    from .executor import LocalExecutor

TASK, CREATION, CALL = 0, 1, 2


class Call:
    """Stands where an executor expects the engine's Task."""

    attempt = lease_id = 0
    caller = bytes(32)

    def __init__(self, engine: Any, kind: int, name: str, payload: Any, deps: Sequence[tuple[int, Any]], **more: Any) -> None:
        self._engine = engine
        self._payload = payload
        self._deps = list(deps)
        self._cancelled = False
        self.kind = kind
        self.name = name
        self.function_id: bytes = more.get("function_id", b"")
        self.method: str = more.get("method", "")
        self.actor_id: bytes = more.get("actor_id", b"")
        self.num_returns: int = more.get("num_returns", 1)
        self.max_retries: int = more.get("max_retries", 0)
        self.flags: int = more.get("flags", 0)
        self.group: str = more.get("group", "")
        self.extra: bytes = more.get("extra", b"")
        self.runtime_env: str = more.get("runtime_env", "")
        self.resources: dict[str, int] = more.get("resources") or {}
        self.job_id: bytes = _runtime.state.job_id
        self.depth = self.backpressure = 0
        self.task_id = os.urandom(16)

    def args(self) -> Any:
        # Through the engine, so that what arrives is what a worker would get: a copy, with read-only buffers.
        return None if self._payload is None else self._engine.get([self._engine.put(self._payload)])[0]

    def deps(self) -> list[tuple[int, Any]]:
        """Waits for those that an async actor still works on."""
        return [(position, self._engine.get([ref])[0]) for position, ref in self._deps]

    @property
    def waits(self) -> bool:
        return bool(self._deps)

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled


executor_here: ContextVar[LocalExecutor | None] = ContextVar("shoal_local_executor", default=None)
_scopes: dict[tuple[str, bytes], _runtime.Scope] = {}


def _scope(call: Call) -> _runtime.Scope:
    """The same one each time: remote functions tell scopes apart by identity."""
    key = (call.runtime_env, call.job_id)
    if key not in _scopes:
        _scopes.clear()
        _scopes[key] = _runtime.Scope(1, b"", False, *key)
    return _scopes[key]


@contextlib.contextmanager
def entered(executor: LocalExecutor, call: Call) -> Iterator[None]:
    """While the call runs: context, and the variables of its runtime_env."""
    here = executor_here.set(executor)
    now = _runtime.running.set(_runtime.Running(_scope(call), call, call.task_id, call.name, call.job_id))
    resources, executor.lease.resources = executor.lease.resources, call.resources or executor.lease.resources
    try:
        with _variables(call.runtime_env):
            yield
    finally:
        executor.lease.resources = resources
        _runtime.running.reset(now)
        executor_here.reset(here)


# Calls of async actors overlap in any order: each variable keeps what all of them want, the latest first, and what it was before.
_wanted: dict[str, list[tuple[object, str]]] = {}
_before: dict[str, str | None] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def _variables(runtime_env: str) -> Iterator[None]:
    given: dict[str, str] = json.loads(runtime_env).get("env_vars") or {} if runtime_env else {}
    wanted = {name: expanded(value) for name, value in given.items()}
    if not wanted:
        yield
        return
    token = object()
    with _lock:
        for name, value in wanted.items():
            if name not in _wanted:
                _before[name] = os.environ.get(name)
            _wanted.setdefault(name, []).append((token, value))
            os.environ[name] = value
    try:
        yield
    finally:
        with _lock:
            for name in wanted:
                _take_back(name, token)


def _take_back(name: str, token: object) -> None:
    left = [layer for layer in _wanted.pop(name) if layer[0] is not token]
    value = left[-1][1] if left else _before[name]
    if left:
        _wanted[name] = left
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
