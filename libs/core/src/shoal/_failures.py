"""Failures that the runtime itself finds, as the exceptions that users see."""

from __future__ import annotations

from shoal_base.errors import Code

from . import exceptions as ex

_OF_WORKERS = frozenset({Code.WORKER_CRASHED, Code.WORKER_EXITED, Code.KILLED_BY_USER, Code.OUT_OF_SCOPE, Code.OWNER_DIED, Code.JOB_FINISHED, Code.ACTOR_DIED,
                         Code.INIT_RAISED, Code.NODE_DIED, Code.UNREACHABLE, Code.FENCED, Code.SHUTTING_DOWN})  # fmt: skip

_OF_MEMORY = frozenset({Code.OUT_OF_MEMORY, Code.MEMORY_LIMIT})

# Set in the code of a failed call of an actor.
OF_ACTOR = 0x8000


def failure(code: int, message: str, object_id: bytes, task_name: str, actor_id: bytes) -> Exception:
    """The exception for a code. `object_id`: of a result, or of its task alone; both ids may be zero, or empty."""
    task_id = object_id[:16]
    actor = actor_id.hex() if any(actor_id) else ("" if code & OF_ACTOR else None)
    code &= ~OF_ACTOR
    what = f"task {task_name} ({task_id.hex()})" if task_name else f"task {task_id.hex()}"
    if code == Code.CANCELLED:
        return ex.TaskCancelledError(task_id.hex(), f"{what} was cancelled{': ' + message if message else ''}")
    if code == Code.PENDING_CALLS_LIMIT:
        return ex.PendingCallsLimitExceeded(message)
    if actor is not None:
        made = _of_actor(code, message, actor, task_name)
        if made is not None:
            return made
    return _of_task(code, message, what, object_id.hex())


def _of_actor(code: int, message: str, actor: str, task_name: str) -> Exception | None:
    if code == Code.ACTOR_UNAVAILABLE:
        return ex.ActorUnavailableError(message or "its worker cannot be reached.", actor or None)
    if code == Code.UNSCHEDULABLE or code == Code.NODE_AFFINITY_FAILED:
        return ex.ActorUnschedulableError(message)
    if code == Code.PLACEMENT_GROUP_REMOVED:
        return ex.ActorPlacementGroupRemoved(message)
    if code in _OF_MEMORY:
        return ex.ActorOutOfMemoryError(_actor_died(actor, message or "for want of memory", task_name), actor or None)
    if code == Code.LIMIT_REACHED:
        return ex.JobLimitExceeded(f"the actor was not created: {message}")
    if code == Code.ENVIRONMENT_FAILED:
        return ex.RuntimeEnvSetupError(message)
    if code in _OF_WORKERS:
        return ex.ActorDiedError(_actor_died(actor, message or Code(code).name.lower().replace("_", " "), task_name), actor or None)
    return None


def _actor_died(actor: str, cause: str, task_name: str) -> str:
    called = f" The call was {task_name}." if task_name else ""
    return f"{f'The actor {actor}' if actor else 'The actor'} died: {cause}.{called}"


def _of_task(code: int, message: str, what: str, object_hex: str) -> Exception:
    if code in _OF_MEMORY:
        return ex.OutOfMemoryError(f"The worker that ran {what} was ended: {message or 'for want of memory'}")
    if code == Code.ACTOR_DIED or code == Code.INIT_RAISED:
        return ex.ActorDiedError(f"The actor died: {message or 'no cause is known'}. The call was {what}.")
    if code == Code.ACTOR_UNAVAILABLE:
        return ex.ActorUnavailableError(message or "its worker cannot be reached.")
    if code in (Code.WORKER_CRASHED, Code.WORKER_EXITED, Code.KILLED_BY_USER, Code.JOB_FINISHED, Code.UNREACHABLE, Code.FENCED, Code.SHUTTING_DOWN,
                Code.OUT_OF_SCOPE):  # fmt: skip
        return ex.WorkerCrashedError(f"The worker that ran {what} died: {message or 'no cause is known'}")
    simple = _BY_MESSAGE.get(code)
    if simple is not None:
        return simple(message)
    lost = _LOST.get(code)
    if lost is not None:
        return lost(object_hex, None, message)
    if code in ex.ObjectReconstructionFailedError.REASON_MESSAGES:
        return ex.ObjectReconstructionFailedError(object_hex, Code(code), message)
    return ex.RaySystemError(f"{what} failed with code {code}: {message}")


_BY_MESSAGE: dict[int, type[ex.RayError]] = {
    Code.NODE_DIED: ex.NodeDiedError,
    Code.UNSCHEDULABLE: ex.TaskUnschedulableError,
    Code.NODE_AFFINITY_FAILED: ex.TaskUnschedulableError,
    Code.ENVIRONMENT_FAILED: ex.RuntimeEnvSetupError,
    Code.PLACEMENT_GROUP_REMOVED: ex.TaskPlacementGroupRemoved,
    Code.LIMIT_REACHED: ex.TaskUnschedulableError,
    Code.ARENA_FULL: ex.ObjectStoreFullError,
    Code.OUT_OF_DISK: ex.OutOfDiskError,
    Code.UNAUTHENTICATED: ex.AuthenticationError,
    Code.WIRE_MISMATCH: ex.RaySystemError,
    Code.PYTHON_MISMATCH: ex.RaySystemError,
}
_LOST: dict[int, type[ex.ObjectLostError]] = {
    Code.OBJECT_LOST: ex.ObjectLostError,
    Code.OBJECT_FREED: ex.ObjectFreedError,
    Code.OWNER_DIED: ex.OwnerDiedError,
    Code.FETCH_TIMED_OUT: ex.ObjectFetchTimedOutError,
}
