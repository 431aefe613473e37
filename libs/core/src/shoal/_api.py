"""The functions of `shoal` itself: put, get, wait, remote, cancel, kill."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from . import _options, _runtime
from ._calls import call, call_once_known, store_full
from ._core.engine import ArenaFull, ObjectRef
from ._serialization import load, serialize
from .exceptions import GetTimeoutError
from .object_ref_generator import ObjectRefGenerator

if TYPE_CHECKING:
    from .actor import ActorClass
    from .remote_function import RemoteFunction

T = TypeVar("T")
R = TypeVar("R")
W = TypeVar("W")  # a reference or a generator
P = ParamSpec("P")
_state = _runtime.state

# A generator in wait() has no reference to watch: it is looked at this often while the wait lasts.
_GENERATOR_LOOK_S = 0.005


# -- objects -----------------------------------------------------------------------------------------------------------


def put(value: T, *, _owner: Any = None, _tensor_transport: str | None = None) -> ObjectRef[T]:
    """Stores a value; returns a reference to it.

    Raises:
        TypeError: the value cannot be pickled (the message names the part), or is a reference itself.
        ObjectStoreFullError: no room.
    """
    engine = _state.engine
    if engine is None:
        engine = _runtime.ensure("put()")
    if type(value) is ObjectRef:
        raise TypeError(
            "Calling 'put' on an ObjectRef is not allowed. If you really want to do this, you can wrap the ObjectRef in a list and call 'put' on it."
        )
    if isinstance(value, ObjectRefGenerator):
        raise TypeError("Calling 'put' on an ObjectRefGenerator is not allowed: put the items that it yields.")
    if _tensor_transport is not None:
        _options._no_tensor_transport("_tensor_transport", _tensor_transport)
    if _owner is not None:
        raise ValueError("put(_owner=...) is not supported: the process that puts a value owns it")
    try:
        ref: ObjectRef[T] = engine.put(serialize(value))
    except ArenaFull as error:
        raise store_full(error, "put()") from None
    return ref


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None, _use_object_store: bool = False) -> T: ...
@overload
def get(object_refs: ObjectRefGenerator[T], *, timeout: float | None = None, _use_object_store: bool = False) -> ObjectRefGenerator[T]: ...
@overload
def get(object_refs: list[ObjectRef[T]], *, timeout: float | None = None, _use_object_store: bool = False) -> list[T]: ...
def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a reference, or of each in a list; waits for it. A generator is given back as it is, as in Ray.

    Args:
        timeout: seconds; None: no limit; 0: only what is there.

    Raises:
        GetTimeoutError: not there in time.
        RayTaskError: the task raised; also an instance of what it raised.
        ValueError: neither a reference nor a list (a tuple is refused, as in Ray). TypeError: something else in the list.
    """
    engine = _state.engine
    if type(object_refs) is ObjectRef:
        if engine is None:
            raise _runtime.why_not_connected("get()")
        try:
            return load(engine.get([object_refs], -1.0 if timeout is None else _checked_timeout(timeout))[0])
        except TimeoutError as error:
            raise _timed_out(error, [object_refs], timeout) from None
    if not isinstance(object_refs, list):
        if type(object_refs) is ObjectRefGenerator:
            return object_refs
        raise ValueError(
            f"Invalid type of object refs, {type(object_refs)}, is given. 'object_refs' must either be an ObjectRef or a list of ObjectRefs."
        )
    for ref in object_refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"Attempting to call `get` on the value {ref!r} of type {type(ref).__name__}, which is not an ObjectRef.")
    if engine is None:
        if object_refs:
            raise _runtime.why_not_connected("get()")
        _runtime.ensure("get()")
        return []
    try:
        values = engine.get(object_refs, -1.0 if timeout is None else _checked_timeout(timeout))
    except TimeoutError as error:
        raise _timed_out(error, object_refs, timeout) from None
    return [load(value) for value in values]


def _checked_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, got {timeout!r}")
    if timeout < 0 and timeout != -1:
        raise ValueError(f"timeout must not be negative, got {timeout}")
    return float(timeout)


def _timed_out(error: BaseException, refs: Any, timeout: float | None) -> BaseException:
    if isinstance(error, GetTimeoutError) or timeout is None:
        # A user's own TimeoutError that a task raised, not ours.
        return error
    from .exceptions import RayError

    if isinstance(error, RayError):
        return error
    engine = _state.engine
    waiting = [ref for ref in refs if engine is not None and not engine.ready(ref)]
    shown = ", ".join(ref.hex() for ref in waiting[:3])
    more = ", ..." if len(waiting) > 3 else ""
    how = "`shoal why ID` tells what one of them waits for"
    return GetTimeoutError(f"Get timed out: {len(waiting)} of {len(refs)} objects were not ready after {timeout:g} s: {shown}{more} ({how})")


def wait(ray_waitables: list[W], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True) -> tuple[list[W], list[W]]:
    """Waits until `num_returns` of the references are ready. Returns (ready, not ready), each in the given order.

    Args:
        ray_waitables: references and generators (ready when their next item is), without duplicates.
        timeout: seconds; None: no limit.
        fetch_local: whether ready means: on this node.

    Raises:
        TypeError: no list, or something else in it. ValueError: duplicates, a bad count, a negative timeout.
    """
    if isinstance(ray_waitables, ObjectRef | ObjectRefGenerator):
        raise TypeError(f"wait() expected a list of ObjectRef or ObjectRefGenerator, got a single {type(ray_waitables).__name__}")
    if not isinstance(ray_waitables, list):
        raise TypeError(f"wait() expected a list of ObjectRef or ObjectRefGenerator, got {type(ray_waitables)}")
    if timeout is not None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    engine = _state.engine
    if engine is None:
        if ray_waitables:
            _check_waitables(ray_waitables)
            raise _runtime.why_not_connected("wait()")
        engine = _runtime.ensure("wait()")
    if not ray_waitables:
        return [], []
    if num_returns <= 0:
        _check_waitables(ray_waitables)
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(ray_waitables):
        _check_waitables(ray_waitables)
        raise ValueError(f"num_returns cannot be greater than the number of objects provided to wait: {num_returns} > {len(ray_waitables)}.")
    parted: tuple[list[W], list[W]] | None = engine.split(ray_waitables, num_returns, -1.0 if timeout is None else float(timeout), fetch_local)
    if parted is not None:
        return parted
    _check_waitables(ray_waitables)
    flags = _wait_mixed(engine, ray_waitables, num_returns, timeout, fetch_local)
    return list(compress(ray_waitables, flags)), [item for item, ready in zip(ray_waitables, flags, strict=True) if not ready]


def _check_waitables(items: list[Any]) -> None:
    for item in items:
        if not isinstance(item, ObjectRef | ObjectRefGenerator):
            raise TypeError(f"wait() expected a list of ObjectRef or ObjectRefGenerator, got a list containing {type(item)}")
    if len(set(items)) != len(items):
        raise ValueError("Wait requires a list of unique object refs.")


def _wait_mixed(engine: Any, items: list[Any], num_returns: int, timeout: float | None, fetch_local: bool) -> list[bool]:
    import time

    refs = [item for item in items if type(item) is ObjectRef]
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        ready_refs = set(compress(refs, engine.wait(refs, len(refs), 0.0, fetch_local))) if refs else set()
        flags = [item in ready_refs if type(item) is ObjectRef else item.at_hand() for item in items]
        if sum(flags) >= num_returns or (deadline is not None and time.monotonic() >= deadline):
            seen = 0
            for i, ready in enumerate(flags):
                seen += ready
                if seen > num_returns:
                    flags[i] = False
            return flags
        pause = _GENERATOR_LOOK_S if deadline is None else max(0.0, min(_GENERATOR_LOOK_S, deadline - time.monotonic()))
        generators = [item for item in items if type(item) is not ObjectRef and not item.at_hand()]
        if generators:
            generators[0].wait_ready(pause)
        else:
            engine.wait([ref for ref in refs if ref not in ready_refs], 1, pause, fetch_local)


# -- tasks and actors --------------------------------------------------------------------------------------------------


class _Decorator(Protocol):
    """What `@remote(...)` with options is."""

    @overload
    def __call__(self, target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def remote(target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(*, num_returns: int | str, **options: Any) -> Callable[[Callable[..., Any]], Any]: ...  # how many references there will be, types cannot say
@overload
def remote(**options: Any) -> _Decorator: ...
def remote(*args: Any, **kwargs: Any) -> Any:
    """Makes a remote function of a function, an actor class of a class. With options: `@remote(num_cpus=2)`.

    Raises:
        ValueError, TypeError: naming a wrong option.

    Example::

        @shoal.remote
        def square(x):
            return x * x

        shoal.get(square.remote(3))
    """
    if len(args) == 1 and not kwargs and callable(args[0]):
        return make_remote(args[0], {})
    if args or not kwargs:
        raise TypeError(
            "The @remote decorator must be applied either with no arguments and no parentheses, for example '@remote', or it must be applied using only "
            "keyword arguments, for example '@remote(num_returns=2)'."
        )
    return lambda target: make_remote(target, kwargs)


def make_remote(target: Any, options: dict[str, Any]) -> Any:
    import inspect

    from .actor import ActorClass
    from .remote_function import RemoteFunction

    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is remote already; use .options(...) for other options")
    if inspect.isclass(target):
        return ActorClass(target, _options.check_actor(options))
    if inspect.isfunction(target) or callable(target):
        return RemoteFunction(target, _options.check_task(options))
    raise TypeError(f"The @remote decorator must be applied to either a function or a class, got {type(target)}")


def cancel(ray_waitable: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True) -> None:
    """Cancels the task that makes this result. What is queued never starts; what runs gets a KeyboardInterrupt; what has ended stays as it is.

    Args:
        force: end the worker instead. Not for actor calls.
        recursive: cancel the tasks that it started too.

    Raises:
        TypeError: no reference. ValueError: force for an actor's call.
    """
    if isinstance(ray_waitable, ObjectRefGenerator) or type(ray_waitable) is ObjectRef:
        task_id = ray_waitable.task_id()
    else:
        raise TypeError(f"cancel() only supported for object refs. For actors, try kill(). Got: {type(ray_waitable)}.")
    engine = _runtime.connected("cancel()")
    engine.cancel(task_id, force, recursive)


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """Ends an actor at once, without its atexit handlers.

    Args:
        no_restart: False: it starts anew if it may.
    """
    from shoal_gcs.v1 import gcs_pb2

    from .actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill() only supported for actors. For tasks, try cancel(). Got: {type(actor)}.")
    engine = _runtime.connected("kill()")
    request = gcs_pb2.KillActorRequest(actor_id=actor._core.meta.actor_id, no_restart=no_restart, force=True, reason="kill() was called on it")
    call_once_known(engine, "gcs/KillActor", request)


def get_actor(name: str, namespace: str | None = None) -> Any:
    """A handle to a named actor.

    Raises:
        ValueError: no living actor of that name in the namespace.
    """
    from shoal_gcs.v1 import gcs_pb2

    from ._calls import NOT_FOUND, CallFailed
    from .actor import handle_from_record

    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name)}")
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    _options._namespace("namespace", namespace)
    engine = _runtime.ensure("get_actor()")
    where = namespace or _state.namespace
    try:
        record = gcs_pb2.Actor.FromString(call(engine, "gcs/GetActor", gcs_pb2.ActorQuery(name=name, namespace=where)))
    except CallFailed as error:
        if error.code != NOT_FOUND:
            raise
        raise ValueError(f"Failed to look up actor with name '{name}' in namespace '{where}'. You are either trying to look up a named actor you didn't "
                         "create, the named actor died, or the actor hasn't been created because named actor creation is asynchronous.") from None  # fmt: skip
    if record.state == gcs_pb2.ACTOR_DEAD or not record.handle:
        raise ValueError(f"Failed to look up actor with name '{name}' in namespace '{where}': it died. {record.death_cause}".rstrip())
    return handle_from_record(engine, record)


def get_gpu_ids() -> list[int | str]:
    """The GPUs of the task or actor that calls this."""
    _runtime.ensure("get_gpu_ids()")
    from .runtime_context import RuntimeContext

    ids = RuntimeContext().get_accelerator_ids().get("GPU", [])
    return [int(i) if i.isdigit() else i for i in ids]


def get_runtime_context() -> Any:
    """What the caller can know of where it runs: `RuntimeContext`."""
    _runtime.ensure("get_runtime_context()")
    from .runtime_context import RuntimeContext

    return RuntimeContext()
