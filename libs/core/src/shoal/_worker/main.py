"""A worker process, from its fork to its end."""

from __future__ import annotations

import atexit
import os
import random
import sys
import threading
from typing import Any

from .. import _runtime
from .._control import Control, error_factory
from .._core.engine import Engine
from .executor import Executor, _flush_and_end
from .output import mark_streams

CONNECT_TIMEOUT_S = 30.0


def run(worker_id: bytes, node_dir: str, start_token: str) -> None:
    """Never returns: ends the process when the worker is done."""
    status = 1
    try:
        executor, control = _join(worker_id, node_dir, start_token)
        _reseed()
        mark_streams(lambda: executor.actor_class_name or _running_name())
        executor.run()
        status = 0
        _end(executor, control)
    except BaseException as error:
        status = _report(error)
    _flush_and_end(status)


def _join(worker_id: bytes, node_dir: str, start_token: str) -> tuple[Executor, Control]:
    from shoal_raylet.v1 import raylet_pb2

    engine = Engine(worker_id=worker_id, node_dir=node_dir, kind=_runtime.WORKER)
    engine.set_error_factory(error_factory)
    register = raylet_pb2.RegisterWorker(
        worker_id=worker_id, pid=os.getpid(), driver=False, start_token=start_token, python="{}.{}.{}".format(*sys.version_info[:3])
    )
    registered = raylet_pb2.Registered.FromString(engine.connect(register.SerializeToString(), CONNECT_TIMEOUT_S))
    adopt(engine, registered, _runtime.WORKER, node_dir)
    executor = Executor(engine, bool(registered.node_resources.get("GPU")))
    control = Control(engine, node_dir, bytes(registered.node_id), on_exit=executor.on_exit, on_raylet_lost=_raylet_lost,
                      on_cancel=lambda task_id, force: executor.on_cancel(task_id, force))  # fmt: skip
    _runtime.state.control = control
    control.start()
    return executor, control


def adopt(engine: Any, registered: Any, kind: int, node_dir: str) -> None:
    """Makes a connection this process's one."""
    state = _runtime.state
    state.kind = kind
    state.node_id = bytes(registered.node_id)
    state.worker_id = engine.worker_id
    state.job_id = bytes(registered.job_id)
    state.namespace = registered.namespace
    state.node_dir = node_dir
    state.node_ip = registered.node_ip
    state.node_address = registered.node_address
    state.gcs_address = registered.gcs_address
    state.http_address = registered.http_address
    state.session = registered.session
    state.node_labels = dict(registered.node_labels)
    state.default_scope = _runtime.Scope(0, b"", False, state.runtime_env, state.job_id)
    state.lost = ""
    state.was_shut_down = False
    state.forked = False
    state.generation += 1
    state.engine = engine
    engine.limit_oom_retries(_oom_retries())


def _oom_retries() -> int:
    """Of tasks that this process submits."""
    for name in ("SHOAL_TASK_OOM_RETRIES", "RAY_task_oom_retries"):
        if text := os.environ.get(name):
            try:
                return max(-1, int(text))
            except ValueError as error:
                raise ValueError(f"{name}={text!r} is no number: -1 (always) or how often a task is tried again") from error
    return -1


def _running_name() -> str:
    now = _runtime.current()
    return "" if now is None else now.name


def _reseed() -> None:
    """Siblings forked from one zygote must not draw the same numbers."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")  # one that is imported later seeds itself
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _raylet_lost(why: str) -> None:
    # Nobody is left who could use what runs here, or who would end it.
    print(f"shoal worker {os.getpid()}: the raylet is gone ({why}), ending", file=sys.stderr, flush=True)
    os._exit(1)


def _end(executor: Executor, control: Control) -> None:
    # The interpreter's own end would wait for threads that the user left behind.
    atexit._run_exitfuncs()
    executor.engine.close()
    control.join()


def _report(error: BaseException) -> int:
    from .errors import format_error

    print(f"shoal worker {os.getpid()} ended by an error of its own, in thread {threading.current_thread().name}:\n{format_error(error)}", file=sys.stderr)
    return 1
