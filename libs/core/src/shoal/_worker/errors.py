"""What a task raised, as the value that its caller gets."""

from __future__ import annotations

import os
import traceback
from types import TracebackType
from typing import Any

from .. import _runtime
from .._calls import store_full
from .._core.engine import ArenaFull, Payload
from .._serialization import serialize_error
from ..exceptions import ActorDiedError, JobStoreLimitExceeded, RayError, RayTaskError, TaskCancelledError, TaskTimeoutError, UnserializableException

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_COMPILED = os.path.join("src", "shoal", "_core", "")  # as compiled code names its files
# Errors of the runtime that reach the caller as they are, because they say what became of the task itself.
_AS_THEY_ARE = (TaskCancelledError, TaskTimeoutError)


def is_ours(filename: str) -> bool:
    """Whether a frame's file is the runtime's own."""
    return filename.startswith((_OURS, _COMPILED))


def user_frames(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not the runtime's own."""
    while tb is not None and is_ours(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return tb


def format_error(error: BaseException) -> str:
    """The traceback as text, cut to the user's frames; causes included."""
    try:
        return "".join(_Cut(type(error), error, user_frames(error.__traceback__), compact=True).format())
    except Exception:
        # A user's __str__ or __notes__ may raise.
        return "".join(traceback.format_tb(user_frames(error.__traceback__))) + f"{type(error).__qualname__} (its text cannot be made)\n"


class _Cut(traceback.TracebackException):
    """Drops the runtime's frames of the causes too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kept = [frame for frame in self.stack if not is_ours(frame.filename)]
        if kept:
            self.stack[:] = kept


def task_error(error: BaseException, name: str, actor: Any = None, actor_id: bytes = b"") -> RayTaskError:
    """A RayTaskError with what the caller needs to know: the user's traceback, task, node, process."""
    if isinstance(error, ArenaFull):
        error = store_full(error, f"a result of {name}")
    elif isinstance(error, JobStoreLimitExceeded) and user_frames(error.__traceback__) is None:
        error = JobStoreLimitExceeded(f"a result of {name}: {error}")
    text = format_error(error)
    cause: BaseException | None = error
    while isinstance(cause, RayTaskError):
        # A get() in this task raised the error of another task, and nobody caught it: its cause is ours.
        cause = cause.cause
    state = _runtime.state
    made = RayTaskError(
        name, text, cause, pid=os.getpid(), ip=state.node_ip or None, actor_repr=_actor_repr(actor), actor_id=actor_id.hex() if any(actor_id) else None,
        node_id=state.node_id.hex()[:12] or None,
    )  # fmt: skip
    made.cause = _transportable(cause, text)
    return made


def _transportable(cause: BaseException | None, text: str) -> BaseException | None:
    from ..exceptions import _pickled_cause

    if cause is None or _pickled_cause(cause) is not None:
        return cause
    return UnserializableException(text)


def _actor_repr(actor: Any) -> str | None:
    if actor is None or getattr(type(actor), "__repr__", None) is object.__repr__:
        return None
    try:
        return repr(actor)[:200]
    except Exception as error:
        return f"<repr failed: {type(error).__name__}>"


def payload_of(error: BaseException, name: str, actor: Any = None, actor_id: bytes = b"") -> Payload:
    if isinstance(error, _AS_THEY_ARE):
        return serialize_error(error)
    return serialize_error(task_error(error, name, actor, actor_id))


def cancelled_payload(task_id: bytes, name: str) -> Payload:
    return serialize_error(TaskCancelledError(task_id.hex(), f"Task {name} ({task_id.hex()}) was cancelled."))


def timed_out(task_id: bytes, name: str, limit_s: float, where: str) -> TaskTimeoutError:
    return TaskTimeoutError(name, limit_s, task_id.hex(), where)


def init_failed_payload(error: BaseException, name: str, actor_id: bytes) -> Payload:
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return serialize_error(error)
    return serialize_error(ActorDiedError(task_error(error, f"{name}.__init__", None, actor_id), actor_id.hex(), True))


def left_payload(actor_id: bytes, why: str) -> Payload:
    return serialize_error(ActorDiedError(f"The actor {actor_id.hex()} is dead: {why}", actor_id.hex()))
