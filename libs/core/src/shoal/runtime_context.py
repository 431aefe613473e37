"""Where a piece of code runs: ids, names, resources."""

from __future__ import annotations

from typing import Any

from . import _functions, _runtime
from ._ids import ActorID, JobID, NodeID, PlacementGroupID, TaskID, WorkerID
from ._runtime import WORKER, state


def _executor() -> Any:
    if state.local_executor is not None:
        return state.local_executor()
    if state.kind != WORKER:
        return None
    from ._worker.executor import Executor

    return Executor.current


class RuntimeContext:
    """What the caller can know of where it runs. Get one with `get_runtime_context()`."""

    def __init__(self, worker: Any = None) -> None:
        _runtime.connected("the runtime context")

    def get(self) -> dict[str, Any]:
        """The ids as a dict."""
        found: dict[str, Any] = {"job_id": self.get_job_id(), "node_id": self.get_node_id(), "namespace": self.namespace}
        if state.kind == WORKER or _runtime.current() is not None:
            found |= {"task_id": self.get_task_id(), "actor_id": self.get_actor_id()}
        return found

    @property
    def job_id(self) -> JobID:
        return JobID(bytes.fromhex(self.get_job_id()))

    @property
    def node_id(self) -> NodeID:
        return NodeID(state.node_id)

    @property
    def worker_id(self) -> WorkerID:
        return WorkerID(state.worker_id)

    @property
    def task_id(self) -> TaskID:
        """Raises RuntimeError in a driver, where no task runs."""
        now = _runtime.current()
        if now is None:
            raise RuntimeError("RuntimeContext.task_id is only available in a task or an actor's method; get_task_id() is None in a driver")
        return TaskID(now.task_id)

    @property
    def actor_id(self) -> ActorID:
        """Raises RuntimeError outside of an actor."""
        found = self.get_actor_id()
        if found is None:
            raise RuntimeError("RuntimeContext.actor_id is only available in an actor; get_actor_id() is None elsewhere")
        return ActorID.from_hex(found)

    @property
    def current_placement_group_id(self) -> PlacementGroupID | None:
        found = self.get_placement_group_id()
        return None if found is None else PlacementGroupID.from_hex(found)

    def get_job_id(self) -> str:
        now = _runtime.current()
        return (now.job_id if now is not None else state.job_id).hex()

    def get_node_id(self) -> str:
        return state.node_id.hex()

    def get_worker_id(self) -> str:
        return state.worker_id.hex()

    def get_task_id(self) -> str | None:
        """None in a driver."""
        now = _runtime.current()
        return now.task_id.hex() if now is not None else None

    def get_task_name(self) -> str | None:
        now = _runtime.current()
        return now.name if now is not None else None

    def get_task_function_name(self) -> str | None:
        """The function as it is imported: "module.function", "module.Class.method"; whatever `name=` says. None in a driver."""
        now = _runtime.current()
        if now is None:
            return None
        executor = _executor()
        if executor is not None and executor.actor_id:
            return f"{type(executor.actor).__module__}.{executor.actor_class_name}.{now.task.method or '__init__'}"
        return _functions.name_of(now.task.function_id) or str(now.task.name)

    def get_actor_id(self) -> str | None:
        """None outside of an actor."""
        executor = _executor()
        return executor.actor_id.hex() if executor is not None and executor.actor_id else None

    def get_actor_name(self) -> str | None:
        """None outside of an actor; empty for one without a name."""
        executor = _executor()
        return executor.actor_name if executor is not None and executor.actor_id else None

    @property
    def namespace(self) -> str:
        return state.namespace

    @property
    def was_current_actor_reconstructed(self) -> bool:
        executor = _executor()
        if executor is None or not executor.actor_id:
            raise RuntimeError("This method is only available in an actor.")
        from shoal_gcs.v1 import gcs_pb2

        from ._calls import ask

        query = gcs_pb2.ActorQuery(actor_id=executor.actor_id)
        return bool(gcs_pb2.Actor.FromString(ask("was_current_actor_reconstructed", "gcs/GetActor", query)).restarts)

    @property
    def current_actor(self) -> Any:
        """A handle to the actor that calls this; it does not keep the actor alive.

        Raises:
            RuntimeError: outside of an actor.
        """
        executor = _executor()
        if executor is None or not executor.actor_id:
            raise RuntimeError("This method is only available in an actor.")
        from .actor import own_handle

        return own_handle(executor)

    def get_placement_group_id(self) -> str | None:
        now = _runtime.current()
        group = now.scope.placement_group if now is not None else b""
        return group.hex() if group else None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        now = _runtime.current()
        return bool(now is not None and now.scope.capture)

    def get_assigned_resources(self) -> dict[str, float]:
        """What the caller's task or actor holds."""
        from shoal_base.resources import from_units

        executor = _executor()
        return {name: from_units(units) for name, units in executor.lease.resources.items()} if executor is not None else {}

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Ray's older name of `get_accelerator_ids`."""
        return self.get_accelerator_ids()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Kind of accelerator to the ids that the caller may use."""
        executor = _executor()
        ids: dict[str, list[str]] = {"GPU": []}
        if executor is not None:
            ids |= {kind: list(held) for kind, held in executor.lease.accelerators.items()}
        return ids

    def get_runtime_env_string(self) -> str:
        now = _runtime.current()
        return (now.scope.runtime_env if now is not None else state.runtime_env) or "{}"

    @property
    def runtime_env(self) -> Any:
        from .runtime_env import RuntimeEnv

        return RuntimeEnv.deserialize(self.get_runtime_env_string())

    def get_node_labels(self) -> dict[str, str]:
        return dict(state.node_labels)

    @property
    def gcs_address(self) -> str:
        return state.gcs_address

    def get_session_name(self) -> str:
        return state.session

    def get_temp_dir(self) -> str:
        """The directory that holds the nodes' own directories."""
        import os

        return os.path.dirname(state.node_dir)

    def is_canceled(self) -> bool:
        """Whether somebody cancelled the task that calls this; for actors whose calls cannot be interrupted."""
        now = _runtime.current()
        if now is None:
            raise RuntimeError("is_canceled() is only available in a task or an actor's method")
        return bool(now.task.cancelled())

    is_cancelled = is_canceled


def get_runtime_context() -> RuntimeContext:
    from ._api import get_runtime_context as get

    context: RuntimeContext = get()
    return context
