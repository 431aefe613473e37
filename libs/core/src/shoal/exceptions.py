"""Everything that Shoal raises, under Ray's names.

::

    RayError (also named ShoalError)
    ├── RayTaskError                     a task raised; also an instance of what it raised, see `as_instanceof_cause`
    ├── TaskCancelledError               the task was cancelled
    ├── TaskTimeoutError                 the task ran longer than its timeout_s; also a TimeoutError
    ├── TaskPlacementGroupRemoved        the task's placement group is gone
    ├── TaskUnschedulableError           no node can ever run the task
    ├── RayActorError
    │   ├── ActorDiedError               the actor is dead for good
    │   │   └── ActorOutOfMemoryError    also an OutOfMemoryError
    │   ├── ActorUnavailableError        the actor cannot be reached now, the call may or may not have run
    │   └── ActorCheckpointError         its state could not be kept or taken up, or an answer went with a former life
    ├── ActorUnschedulableError          no node can ever run the actor
    ├── ActorPlacementGroupRemoved
    ├── ActorAlreadyExistsError          also a ValueError
    ├── ActorHandleNotFoundError         also a ValueError
    ├── AsyncioActorExit
    ├── PendingCallsLimitExceeded
    ├── JobLimitExceeded                 a limit of the job's JobConfig
    │   └── JobStoreLimitExceeded        its max_object_bytes; also an ObjectStoreFullError
    ├── WorkerCrashedError               the process that ran the task ended
    ├── NodeDiedError
    ├── LocalRayletDiedError
    ├── OutOfMemoryError                 more than its memory=, or more than its node has
    ├── OutOfDiskError
    ├── RuntimeEnvSetupError
    ├── AuthenticationError
    ├── GetTimeoutError                  also a TimeoutError
    ├── ObjectLostError
    │   ├── ObjectFetchTimedOutError
    │   ├── ObjectFreedError
    │   ├── OwnerDiedError
    │   ├── ObjectReconstructionFailedError
    │   └── ReferenceCountingAssertionError  also an AssertionError
    ├── ObjectStoreFullError
    ├── ObjectRefStreamEndOfStreamError
    ├── StreamingGeneratorReplayInconsistentError
    ├── OufOfBandObjectRefSerializationException
    ├── PlasmaObjectNotAvailable
    ├── RaySystemError
    │   ├── ForkedProcessError           the driver was forked; this copy has no runtime
    │   ├── NotConnectedError            before init() or after shutdown()
    │   ├── RayChannelError
    │   │   └── RayChannelTimeoutError   also a TimeoutError
    │   ├── RayCgraphCapacityExceeded
    │   └── RayDirectTransportError
    ├── RpcError
    ├── CrossLanguageError
    ├── UnserializableException
    └── UserCodeException
"""

from __future__ import annotations

import types
import weakref
from typing import Any, ClassVar

from shoal_base.errors import Code

PYTHON = 0
# Limit: how much of a name or a remote message goes into one error's text.
_MAX_TEXT = 64 << 10


class RayError(Exception):
    """Base of all errors of the runtime."""

    def to_bytes(self) -> bytes:
        """This error, pickled."""
        import cloudpickle

        return bytes(cloudpickle.dumps(self, protocol=5))

    @staticmethod
    def from_bytes(b: bytes) -> Exception:
        """The error that `to_bytes` made. Only for bytes from an authenticated peer."""
        import pickle

        error = pickle.loads(b)
        if not isinstance(error, Exception):
            raise TypeError(f"these bytes hold {type(error).__name__}, no exception")
        return error

    from_ray_exception = from_bytes


ShoalError = RayError


class CrossLanguageError(RayError):
    """An error that came from another language."""

    def __init__(self, ray_exception: Any) -> None:
        super().__init__(f"an exception raised from another language: {ray_exception}")


class TaskCancelledError(RayError):
    """The task was cancelled before or while it ran."""

    def __init__(self, task_id: Any = None, error_message: str | None = None) -> None:
        self.task_id = task_id
        self.error_message = error_message
        super().__init__(task_id, error_message)

    def __str__(self) -> str:
        if self.error_message:
            return self.error_message
        if self.task_id is None:
            return "This task or its dependency was cancelled."
        shown = self.task_id.hex() if hasattr(self.task_id, "hex") else self.task_id
        return f"Task {shown} was cancelled."


class TaskTimeoutError(RayError, TimeoutError):
    """The task ran longer than the `timeout_s` of its options, and was stopped.

    Attributes:
        task_name, task_id: of the task; the id as hex.
        timeout_s: the limit.
        where: the user's frames that ran when the time was over.
    """

    def __init__(self, task_name: str = "", timeout_s: float = 0.0, task_id: str = "", where: str = "") -> None:
        super().__init__(task_name, timeout_s, task_id, where)
        self.task_name = task_name
        self.timeout_s = timeout_s
        self.task_id = task_id
        self.where = where[-_MAX_TEXT:]

    def __str__(self) -> str:
        at = f" It was here:\n{self.where}".rstrip() if self.where else ""
        return f"Task {self.task_name} ({self.task_id}) ran longer than its timeout_s={self.timeout_s:g} and was stopped.{at}"


class RayTaskError(RayError):
    """A task raised. Raised at the caller as an instance of the user's own class too.

    Attributes:
        function_name: the task's name.
        traceback_str: the remote traceback, cut to the user's frames.
        cause: the exception that the task raised, when it could travel.
        pid, ip, node_id: where it ran.
    """

    def __init__(self, function_name: str, traceback_str: str, cause: BaseException | None, proctitle: str | None = None, pid: int | None = None,
                 ip: str | None = None, actor_repr: str | None = None, actor_id: str | None = None, node_id: str | None = None) -> None:  # fmt: skip
        self.args = ()
        self.function_name = function_name
        self.traceback_str = traceback_str[-_MAX_TEXT:]
        self.cause = cause
        self.proctitle = proctitle or f"shoal::{function_name}"
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self._actor_id = actor_id
        self.node_id = node_id

    def __str__(self) -> str:
        return f"{self.header()}\n{self.traceback_str}".rstrip()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.function_name!r}, cause={self.cause!r})"

    def header(self) -> str:
        """Which task, in which process."""
        where = ", ".join(f"{k}={v}" for k, v in (("pid", self.pid), ("ip", self.ip), ("node", self.node_id), ("actor_id", self._actor_id)) if v)
        who = f", repr={self.actor_repr}" if self.actor_repr else ""
        return f"{self.proctitle}() ({where}{who})"

    def _fields(self) -> dict[str, Any]:
        return {name: self.__dict__.get(name) for name in ("function_name", "traceback_str", "proctitle", "pid", "ip", "actor_repr", "_actor_id", "node_id")}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_task_error, (self._fields(), _pickled_cause(self.cause), False)

    def as_instanceof_cause(self) -> RayTaskError:
        """An error that is an instance of both this class and of the user's exception's class."""
        cause = self.cause
        if cause is None or _ends_its_thread(cause) or isinstance(self, type(cause)):
            return self
        return self.make_dual_exception_instance()

    def make_dual_exception_instance(self) -> RayTaskError:
        """See `as_instanceof_cause`; falls back to this very error for a class that allows no subclass."""
        cause = self.cause
        assert cause is not None
        dual_type = _dual_type(type(cause))
        if dual_type is None:
            return self
        try:
            dual: RayTaskError = dual_type.__new__(dual_type, *cause.args)
        except Exception:
            # A user's __new__ may want anything; the plain layout always works for a class without one of its own in C.
            try:
                dual = BaseException.__new__(dual_type)
            except TypeError:
                return self
        _copy_state(cause, dual)
        dual.__dict__.update(self.__dict__)
        dual.args = cause.args
        return dual


def _ends_its_thread(cause: BaseException) -> bool:
    """What an interpreter or an event loop would take for its own in the process that gets the error."""
    if isinstance(cause, Exception):
        return False
    return isinstance(cause, KeyboardInterrupt | SystemExit | GeneratorExit) or any(c.__module__ == "asyncio.exceptions" for c in type(cause).__mro__)


_dual_types: weakref.WeakKeyDictionary[type, type | None] = weakref.WeakKeyDictionary()


def _dual_type(cause_type: type) -> type | None:
    try:
        return _dual_types[cause_type]
    except KeyError:
        pass
    made: type | None
    try:
        made = type(f"RayTaskError({cause_type.__name__})", (RayTaskError, cause_type), {
            "__init__": _dual_init, "__str__": RayTaskError.__str__, "__repr__": RayTaskError.__repr__, "__reduce__": _dual_reduce,
            "__module__": cause_type.__module__, "__doc__": cause_type.__doc__,
        })  # fmt: skip
    except TypeError:
        made = None
    _dual_types[cause_type] = made
    return made


def _dual_init(self: Any, *args: Any, **kwargs: Any) -> None:
    """The state is copied, not made: a user's __init__ may want any arguments."""


def _dual_reduce(self: RayTaskError) -> tuple[Any, ...]:
    return _rebuild_task_error, (self._fields(), _pickled_cause(self.cause), True)


def _copy_state(source: BaseException, target: BaseException) -> None:
    # OSError.errno, UnicodeError.start, a user's __slots__ ... live in descriptors and not in __dict__.
    for klass in type(source).__mro__:
        if klass is BaseException or klass is object:
            continue
        for name, member in vars(klass).items():
            if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) and not name.startswith("__"):
                try:
                    setattr(target, name, getattr(source, name))
                except (AttributeError, TypeError):
                    continue
    target.__dict__.update(getattr(source, "__dict__", {}))


def _pickled_cause(cause: BaseException | None) -> bytes | None:
    """The cause apart, so that one which cannot be read back does not take the whole error with it."""
    if cause is None:
        return None
    import pickle

    import cloudpickle

    for wanted in (cause, _Parts(cause)):
        try:
            data = bytes(cloudpickle.dumps(wanted, protocol=5))
            pickle.loads(data)
        except Exception:
            continue
        return data
    return None


class _Parts:
    """Pickles an exception without its `__init__`, whose arguments are often others than `args`: `super().__init__(f"{a}: {b}")`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_parts, (type(self.error), self.error.args, dict(self.error.__dict__))


def _from_parts(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    made = kind.__new__(kind)
    made.args = args
    made.__dict__.update(state)
    return made


def _rebuild_task_error(fields: dict[str, Any], cause: bytes | None, dual: bool) -> RayTaskError:
    import pickle

    error = RayTaskError(fields["function_name"] or "", fields["traceback_str"] or "", None)
    error.__dict__.update(fields)
    if cause is None:
        error.cause = UnserializableException(error.traceback_str)
    else:
        try:
            error.cause = pickle.loads(cause)
        except Exception as failure:
            error.cause = UnserializableException(f"{error.traceback_str}\n(the exception itself cannot be read here: {failure})")
    return error.as_instanceof_cause() if dual else error


class LocalRayletDiedError(RayError):
    """The raylet of this process's node ended."""

    def __init__(self, message: str = "The raylet of this node ended.") -> None:
        super().__init__(message)


class WorkerCrashedError(RayError):
    """The process that ran the task ended before it could answer."""

    def __init__(self, message: str = "The worker died unexpectedly while executing this task.") -> None:
        super().__init__(message)


class RayActorError(RayError):
    """An actor did not answer a call: base of `ActorDiedError` and `ActorUnavailableError`."""

    BASE_ERROR_MSG = "The actor experienced an error before finishing this task."

    def __init__(self, actor_id: str | None = None, error_msg: str = BASE_ERROR_MSG, actor_init_failed: bool = False, preempted: bool = False) -> None:
        super().__init__(actor_id, error_msg, actor_init_failed, preempted)
        self.actor_id = actor_id
        self.error_msg = error_msg
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    def __str__(self) -> str:
        return self.error_msg

    @property
    def actor_init_failed(self) -> bool:
        return self._actor_init_failed

    @property
    def preempted(self) -> bool:
        return self._preempted


class ActorDiedError(RayActorError):
    """The actor is dead and will not come back."""

    BASE_ERROR_MSG = "The actor died unexpectedly before finishing this task."

    def __init__(self, cause: Any = None, actor_id: str | None = None, actor_init_failed: bool = False, preempted: bool = False) -> None:
        self.cause = cause
        if isinstance(cause, RayTaskError):
            message = f"The actor died because of an error raised in its creation task, {cause}"
            actor_id, actor_init_failed = actor_id or cause._actor_id, True
        elif cause is None:
            message = self.BASE_ERROR_MSG
        else:
            message = str(cause)
        super().__init__(actor_id, message, actor_init_failed, preempted)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, self.actor_id, self._actor_init_failed, self._preempted)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        """For an actor whose `__init__` raised."""
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached for now. The call may have run or not."""

    BASE_ERROR_MSG = "The actor is temporarily unavailable: "

    def __init__(self, error_message: str, actor_id: Any = None) -> None:
        shown = actor_id.hex() if isinstance(actor_id, bytes) else actor_id
        actor = f"The actor {shown}" if shown else "The actor"
        super().__init__(shown, f"{actor} is unavailable: {error_message} The task may or may not have been executed on the actor.")
        self._message = error_message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._message, self.actor_id)


class ActorCheckpointError(RayActorError):
    """An actor with checkpoints could not keep its state, or could not take it up at a restart; or a call that is in a checkpoint has lost its answer."""

    def __init__(self, message: str, actor_id: str | None = None) -> None:
        super().__init__(actor_id, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.error_msg, self.actor_id)


class RaySystemError(RayError):
    """The runtime itself failed."""

    def __init__(self, client_exc: Any, traceback_str: str | None = None) -> None:
        super().__init__(client_exc, traceback_str)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        return f"{self.client_exc}\n{self.traceback_str}" if self.traceback_str else str(self.client_exc)


class NotConnectedError(RaySystemError):
    """`init()` was not called, or `shutdown()` was."""


class ForkedProcessError(RaySystemError):
    """This process was forked from one that uses Shoal; it has no runtime of its own."""


class UserCodeException(RayError):
    """User code failed in a place where no task could carry its error."""


class ObjectStoreFullError(RayError):
    """The node's shared memory has no room left."""

    def __str__(self) -> str:
        return super().__str__() or "The object store of this node is full. Drop references, or give it more with object_store_memory."


class OutOfDiskError(RayError):
    """The disk is full."""


class OutOfMemoryError(RayError):
    """The task or actor was ended because it used more than its `memory=`, or because its node ran out of memory. Says who held how much."""

    def __init__(self, message: str = "", *_: Any) -> None:
        super().__init__(message)


class ActorOutOfMemoryError(ActorDiedError, OutOfMemoryError):
    """The actor was ended so, and may not restart (any more)."""


class NodeDiedError(RayError):
    """The node ended."""

    def __init__(self, message: str = "The node died.") -> None:
        super().__init__(message)


class AuthenticationError(RayError):
    """The secret was not accepted."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class ObjectLostError(RayError):
    """No copy of the object is left."""

    def __init__(self, object_ref_hex: str = "", owner_address: Any = None, call_site: str = "") -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site

    def _what(self) -> str:
        return "all copies of it are lost, because a node or its object store ended"

    def __str__(self) -> str:
        return f"Failed to retrieve object {self.object_ref_hex}: {(self.call_site or self._what()).rstrip('.')}."


class ObjectFetchTimedOutError(ObjectLostError):
    """The object could not be brought here in time."""

    def _what(self) -> str:
        return "fetching it timed out"


class ObjectFreedError(ObjectLostError):
    """The object was freed while something still referred to it."""

    def _what(self) -> str:
        return "it was freed before"


class OwnerDiedError(ObjectLostError):
    """The process that made the reference ended."""

    def _what(self) -> str:
        return "its owner, the process that made the reference, has ended"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted while references were left."""

    def _what(self) -> str:
        return "it was deleted although references were left"


class ObjectReconstructionFailedError(ObjectLostError):
    """Every copy of the object is lost, and its task cannot run again.

    Attributes:
        reason: a key of `REASON_MESSAGES`.
        reason_message: what happened, who made the object, and why it does not come back.
    """

    REASON_MESSAGES: ClassVar[dict[Any, str]] = {
        Code.OBJECT_WAS_PUT: "it was made by put(), so that no task can make it again",
        Code.RETRIES_EXHAUSTED: "its task has used all of its max_retries",
        Code.RETRIES_DISABLED: "its task was called with max_retries=0",
        Code.LINEAGE_EVICTED: "the arguments of its task were let go to bound memory: give SHOAL_MAX_LINEAGE_BYTES more",
        Code.LINEAGE_BROKEN: "an argument of its task, or its actor, is gone too",
    }

    def __init__(self, object_ref_hex: str = "", reason: Any = None, reason_message: str | None = None, owner_address: Any = None,
                 call_site: str = "") -> None:  # fmt: skip
        super().__init__(object_ref_hex, owner_address, call_site)
        self.reason = reason
        self.reason_message = reason_message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.object_ref_hex, self.reason, self.reason_message, self.owner_address, self.call_site)

    def _what(self) -> str:
        return self.reason_message or self.REASON_MESSAGES.get(self.reason) or "the task that made it could not be run again"


class GetTimeoutError(RayError, TimeoutError):
    """`get` did not end in time."""


class PlasmaObjectNotAvailable(RayError):
    """The object is not on this node."""


class AsyncioActorExit(RayError):
    """Raised by `exit_actor` inside an async actor."""


class RuntimeEnvSetupError(RayError):
    """A runtime environment could not be made."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"Failed to set up runtime environment.\n{self.error_message or ''}".rstrip()


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task is gone."""

    def __str__(self) -> str:
        return super().__str__() or "The placement group corresponding to this task has been removed."


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor is gone."""

    def __str__(self) -> str:
        return super().__str__() or "The placement group corresponding to this Actor has been removed."


class PendingCallsLimitExceeded(RayError):
    """More calls wait than the actor handle's max_pending_calls, or than one process may have."""


class JobLimitExceeded(RayError):
    """The job has reached a limit of its JobConfig, which the message names."""


class JobStoreLimitExceeded(JobLimitExceeded, ObjectStoreFullError):
    """The job holds as many bytes in object stores as its JobConfig(max_object_bytes=...) allows. The message says who holds most."""


class TaskUnschedulableError(RayError):
    """No node can run the task."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The task is not schedulable: {self.error_message}"


class ActorUnschedulableError(RayError):
    """No node can run the actor."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The actor is not schedulable: {self.error_message}"


class ActorAlreadyExistsError(ValueError, RayError):
    """A living actor has this name already."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle belongs to no actor of this cluster."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ObjectRefStreamEndOfStreamError(RayError):
    """The stream has no further item."""


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator that was run again yielded something else than before."""


class OufOfBandObjectRefSerializationException(RayError):
    """A reference was pickled outside of the runtime, where that is forbidden."""


class RayChannelError(RaySystemError):
    """A channel of a compiled graph failed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel of a compiled graph did not answer in time."""


class RayCgraphCapacityExceeded(RaySystemError):
    """A compiled graph holds as many executions as it may."""


class RayDirectTransportError(RaySystemError):
    """A tensor could not be moved directly."""


class UnserializableException(RayError):
    """Stands for an exception that cannot be pickled."""

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self.original_stack_trace = original_stack_trace

    def __str__(self) -> str:
        return f"The original exception cannot be carried between processes, here is its text:\n{self.original_stack_trace}"


class RpcError(RayError):
    """A call between services failed."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message, rpc_code)
        self.message = message
        self.rpc_code = rpc_code

    def __str__(self) -> str:
        return self.message


RAY_EXCEPTION_TYPES = [
    PlasmaObjectNotAvailable, RayError, RayTaskError, WorkerCrashedError, RayActorError, ObjectStoreFullError, ObjectLostError, ObjectFetchTimedOutError,
    ReferenceCountingAssertionError, ObjectReconstructionFailedError, OwnerDiedError, GetTimeoutError, AsyncioActorExit, RuntimeEnvSetupError,
    TaskPlacementGroupRemoved, ActorPlacementGroupRemoved, LocalRayletDiedError, OutOfMemoryError, OutOfDiskError, NodeDiedError, TaskUnschedulableError,
    ActorDiedError, ActorUnschedulableError, ActorUnavailableError, RayChannelError, RayChannelTimeoutError, RayCgraphCapacityExceeded,
    ObjectRefStreamEndOfStreamError, OufOfBandObjectRefSerializationException, UnserializableException,
]  # fmt: skip
