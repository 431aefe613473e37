"""Begins and ends local mode."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from .. import _runtime
from .._control import Control
from .._supervisor.resources import node_labels, node_resources
from ..runtime_env import canonical
from .calls import executor_here
from .engine import LocalEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._init_options import InitOptions

JOB_ID = b"\1\0\0\0"
_STORE_BYTES = 1 << 30


def begin(options: InitOptions) -> tuple[dict[str, Any], Callable[[], None]]:
    """(address info, what ends it)."""
    # Not below the clusters' folder: nothing here is a node. Short, for a socket's name.
    node_dir = tempfile.mkdtemp(prefix="shoal-local-")
    os.mkdir(os.path.join(node_dir, "w"))
    memory = None if options.memory is None else int(options.memory)
    resources = node_resources(
        num_cpus=options.num_cpus, num_gpus=options.num_gpus or 0, memory=memory, object_store_bytes=_STORE_BYTES, custom=options.resources,
        host="127.0.0.1", head=True,
    )  # fmt: skip
    labels = node_labels(options.labels, "", "")
    engine = LocalEngine(node_dir, resources, labels)
    state = _runtime.state
    state.kind = _runtime.DRIVER
    state.node_id, state.worker_id, state.job_id = os.urandom(16), engine.worker_id, JOB_ID
    state.namespace = options.namespace or os.urandom(8).hex()
    state.node_dir, state.node_ip, state.node_address = node_dir, "127.0.0.1", ""
    state.gcs_address, state.http_address, state.session = "local", "", os.path.basename(node_dir)
    state.node_labels = labels
    state.runtime_env = canonical(options.runtime_env)
    state.default_scope = _runtime.Scope(0, b"", False, state.runtime_env, JOB_ID)
    state.lost, state.was_shut_down, state.forked = "", False, False
    state.local_executor = executor_here.get
    state.generation += 1
    state.engine = engine
    state.control = Control(engine, node_dir, state.node_id)
    state.control.start()

    def end() -> None:
        state.local_executor = None
        shutil.rmtree(node_dir, ignore_errors=True)

    return {"node_id": state.node_id.hex(), "node_ip_address": "127.0.0.1", "gcs_address": "local", "address": "local", "session_dir": node_dir,
            "http_address": ""}, end  # fmt: skip
