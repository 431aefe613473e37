"""This process's one connection to a cluster, and what runs in it now. Everything else of the API reads it from here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._control import Control
    from ._core.engine import Engine
    from .job_config import Limits

ADDRESS_VARIABLE = "SHOAL_ADDRESS"
DRIVER = 0
WORKER = 1


class Scope:
    """What a task passes on to the tasks that it starts. Interned, so that a remote function can compare it by identity."""

    __slots__ = ("capture", "depth", "job_id", "placement_group", "runtime_env")

    def __init__(self, depth: int = 0, placement_group: bytes = b"", capture: bool = False, runtime_env: str = "", job_id: bytes = b"") -> None:
        self.depth = depth  # of the tasks started here
        self.placement_group = placement_group
        self.capture = capture
        self.runtime_env = runtime_env
        self.job_id = job_id


class Running:
    """A task that runs in this process."""

    __slots__ = ("actor", "cancelled", "job_id", "name", "scope", "task", "task_id")

    def __init__(self, scope: Scope, task: Any, task_id: bytes, name: str, job_id: bytes) -> None:
        self.scope = scope
        self.task = task
        self.task_id = task_id
        self.name = name
        self.job_id = job_id


class State:
    """The connection. `generation` changes with every connect and disconnect: what is cached about the cluster is stale then."""

    def __init__(self) -> None:
        self.engine: Any = None  # an Engine; None while not connected
        self.control: Control | None = None
        self.generation = 0
        self.kind = DRIVER
        self.job_id = b""
        self.node_id = b""
        self.worker_id = b""
        self.namespace = ""
        self.node_dir = ""
        self.node_ip = ""
        self.node_address = ""
        self.gcs_address = ""
        self.http_address = ""
        self.session = ""
        self.node_labels: dict[str, str] = {}
        self.runtime_env = ""
        self.default_scope = Scope()
        self.limits: Limits | None = None  # of the job; None: none
        self.process_running: Running | None = None  # the main thread's task: what a thread that the user started belongs to
        self.forked = False
        self.was_shut_down = False
        self.lost = ""
        self.lock = threading.RLock()
        self.at_disconnect: list[Callable[[], None]] = []
        self.local_executor: Callable[[], Any] | None = None  # in local mode: who runs what the caller belongs to


state = State()
running: ContextVar[Running | None] = ContextVar("shoal_running", default=None)


def current() -> Running | None:
    """The task that the caller belongs to; None in a driver."""
    return running.get() or state.process_running


def current_scope() -> Scope:
    now = running.get() or state.process_running
    return state.default_scope if now is None else now.scope


def why_not_connected(what: str) -> Exception:
    """The error for a call that needs a connection and finds none."""
    from .exceptions import ForkedProcessError, LocalRayletDiedError, NotConnectedError

    if state.forked:
        return ForkedProcessError(
            f"{what} was called in process {os.getpid()}, which was forked from a process that uses Shoal. A fork has no runtime of its own: "
            "use spawn instead of fork, or call Shoal from the parent only."
        )
    if state.lost:
        return LocalRayletDiedError(f"{what}: the connection to this node's raylet has ended ({state.lost}). Call shutdown(), then init() again.")
    if state.was_shut_down:
        return NotConnectedError(f"{what} was called after shutdown(). References and handles end with their cluster: call init() and make new ones.")
    return NotConnectedError(f"{what} needs a connection: call init() first.")


def connected(what: str) -> Engine:
    """The engine; raises when there is none."""
    engine: Engine | None = state.engine
    if engine is None:
        raise why_not_connected(what)
    return engine


def ensure(what: str) -> Engine:
    """The engine; connects first when nobody did (what Ray calls auto-init)."""
    engine: Engine | None = state.engine
    if engine is not None:
        return engine
    if state.forked or state.lost:
        raise why_not_connected(what)
    from ._init import init

    init()
    return connected(what)


def _after_fork_in_child() -> None:
    engine = state.engine
    if engine is not None:
        # The parent's sockets and threads are not ours. The engine stays referenced by whatever refers to it; its releases do nothing here.
        engine.fork_child()
        state.engine = None
        state.control = None
        state.forked = True
        state.generation += 1
        state.process_running = None
    state.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
