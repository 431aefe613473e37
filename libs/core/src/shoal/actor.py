"""Actors: classes whose instances live in a process of their own and answer calls."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from . import _functions, _options, _runtime, _scheduling
from ._actor_meta import ANY_ARITY, METHOD_OPTIONS, ActorMeta, MethodMeta, check_groups, describe_methods, has_async_methods, no_arguments
from ._arguments import pack
from ._calls import store_full
from ._core.engine import TASK_RETRY_EXCEPTIONS, TASK_STREAMING, TASK_TIMED, TASK_UNRECORDED, ArenaFull, ObjectRef
from .exceptions import ActorAlreadyExistsError, AsyncioActorExit
from .object_ref_generator import ObjectRefGenerator
from .remote_function import MANY, SINGLE, STREAM, result_shape

__all__ = [
    "DEFAULT_MAX_CONCURRENCY_ASYNC",
    "ActorAlreadyExistsError",
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "ActorProxy",
    "AsyncioActorExit",
    "ObjectRefGenerator",
    "TypedActor",
    "exit_actor",
    "method",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
DEFAULT_MAX_CONCURRENCY_ASYNC = _options.DEFAULT_ASYNC_CONCURRENCY
# Every actor answers these beside its class's methods: the runtime's own, under Ray's names and ours.
_OWN_METHODS = frozenset({"__ray_terminate__", "__shoal_terminate__", "__ray_ready__", "__shoal_ready__", "__ray_call__", "__shoal_call__"})

_state = _runtime.state


class ActorClassInheritanceException(TypeError):
    """A class inherits from an actor class."""


class TypedActor:
    """Base of actor classes whose handles type checkers know without a plugin.

    Makes nothing of itself. What type checkers then take a handle for is the class, in which each method that others call is decorated with `@method`:
    it has `.remote(...)`, which takes what the method takes.

    Example::

        class Counter(shoal.actor.TypedActor):
            @shoal.method
            def add(self, n: int) -> int:
                return n

        counter = shoal.remote(Counter).remote()
        total: int = shoal.get(counter.add.remote(2))     # and counter.add.remote("2") is an error
    """

    __slots__ = ()


if TYPE_CHECKING:
    A_co = TypeVar("A_co", covariant=True, bound=TypedActor)
    A = TypeVar("A", bound=TypedActor)

    class _MethodDecorator(Protocol):
        """What `@method(...)` with options is."""

        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> TypedMethod[P, R]: ...


@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> TypedMethod[P, R]: ...
@overload
def method(*, num_returns: int | str, **kwargs: Any) -> Callable[[Callable[..., Any]], Any]: ...  # how many references there will be, types cannot say
@overload
def method(**kwargs: Any) -> _MethodDecorator: ...
def method(*args: Any, **kwargs: Any) -> Any:
    """Options of one method of an actor class. Without any it is for type checkers: see `TypedActor`.

    Args:
        num_returns, concurrency_group, max_task_retries, retry_exceptions, enable_task_events, tensor_transport: see `ActorMethod.options`.
        timeout_s: how long a call may run, in seconds; None: for ever. One that runs longer is interrupted (a coroutine cancelled) and raises
            TaskTimeoutError. When it has not ended 2 s later its actor's process does, with all that runs there, and starts anew if `max_restarts` allows.

    Example::

        @shoal.remote
        class Pair:
            @shoal.method(num_returns=2)
            def both(self):
                return 1, 2
    """
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0]
    if args:
        raise ValueError("The @method decorator takes a method, or keyword arguments, for example @method(num_returns=2)")
    checked = _options.check_method(kwargs)

    def annotate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, METHOD_OPTIONS, checked)
        return function

    return annotate


def exit_actor() -> None:
    """Ends the actor that this is called in. Its caller gets an ActorDiedError; the actor does not restart.

    Raises:
        TypeError: outside of an actor.
    """
    from ._worker.executor import LeaveActor, leave_actor

    if _state.local_executor is not None and (here := _state.local_executor()) is not None and here.actor_id:
        raise LeaveActor
    leave_actor()


# -- handles --------------------------------------------------------------------------------------------------------------


class ActorCore:
    """What handle and methods share. Methods keep this and never the handle: a cycle would keep the actor alive until the collector runs."""

    __slots__ = ("__weakref__", "engine", "handle_ref", "meta")

    def __init__(self, engine: Any, meta: ActorMeta, handle_ref: ObjectRef[Any] | None) -> None:
        self.engine = engine
        self.meta = meta
        self.handle_ref = handle_ref
        engine.attach_actor(meta.actor_id, meta.ordered, meta.max_pending_calls)


class ActorMethod(Generic[P, T_co]):
    """One method of one actor: `handle.name.remote(...)`."""

    __slots__ = ("_actor_id", "_arity", "_backpressure", "_core", "_extra", "_flags", "_group", "_high", "_low", "_max_retries", "_meta", "_method", "_name",
                 "_num_returns", "_shape")  # fmt: skip

    def __init__(self, core: ActorCore, meta: MethodMeta, options: dict[str, Any] | None = None) -> None:
        given = options or {}
        actor = core.meta
        self._core = core
        self._meta = meta
        self._actor_id = actor.actor_id
        self._method = meta.name
        self._name = given.get("name") or f"{actor.class_name}.{meta.name}"
        self._arity = meta.arity
        self._low = meta.arity.low
        self._high = meta.arity.high
        num_returns = given["num_returns"] if given.get("num_returns") is not None else meta.num_returns
        self._shape, self._num_returns = result_shape(num_returns, meta.is_generator)
        retries = given.get("max_task_retries")
        if retries is None:
            retries = meta.max_task_retries
        self._max_retries = actor.max_task_retries if retries is None else retries
        retry = given.get("retry_exceptions")
        retry = meta.retry_exceptions if retry is None else bool(retry)
        recorded = given.get("enable_task_events")
        recorded = meta.recorded if recorded is None else recorded
        timeout_s = meta.timeout_s if given.get("timeout_s") is None else given["timeout_s"]
        self._flags = (
            (TASK_STREAMING if self._shape == STREAM else 0) | (TASK_RETRY_EXCEPTIONS if retry else 0) | (0 if recorded else TASK_UNRECORDED)
            | (0 if timeout_s is None else TASK_TIMED)
        )  # fmt: skip
        self._group = given.get("concurrency_group") or meta.group
        if self._group and self._group not in actor.groups:
            raise ValueError(f"{self._name}: actor {actor.class_name} has no concurrency group {self._group!r}; it has {list(actor.groups)}")
        backpressure = given.get("_generator_backpressure_num_objects")
        self._backpressure = max(0, actor.backpressure if backpressure is None else backpressure)
        self._extra = _scheduling.task_extra({**given, "timeout_s": timeout_s})

    # As of RemoteFunction. Which method it is, only a plugin of the type checker can tell (shoal.mypy_plugin), or `TypedActor`.
    @overload
    def remote(self: ActorMethod[P, Iterator[T]], *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorMethod[P, AsyncIterator[T]], *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorMethod[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> ObjectRef[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorMethod[P, Iterator[T]], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorMethod[P, AsyncIterator[T]], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorMethod[P, Coroutine[Any, Any, T]], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[T_co]: ...
    @overload
    def remote(self, a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[T_co]: ...
    @overload
    def remote(self, a: Any, b: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[T_co]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Sends the call. Answers at once, like `RemoteFunction.remote`."""
        if kwargs or not self._low <= len(args) <= self._high:
            self._arity.check(args, kwargs)
        engine: Any = self._core.engine
        if engine is not _state.engine:
            raise _stale(self._core)
        if args or kwargs:
            payload, deps = pack(args, kwargs, self._name)
            try:
                refs = engine.submit_actor(
                    self._actor_id, self._method, self._name, payload, deps, self._num_returns, self._max_retries, self._flags, self._group,
                    self._backpressure, self._extra,
                )  # fmt: skip
            except ArenaFull as error:
                raise store_full(error, f"an argument of {self._name}") from None
        else:
            refs = engine.submit_actor(
                self._actor_id, self._method, self._name, None, (), self._num_returns, self._max_retries, self._flags, self._group, self._backpressure,
                self._extra,
            )  # fmt: skip
        shape = self._shape
        if shape == SINGLE:
            return refs[0]
        if shape == MANY:
            return refs
        return ObjectRefGenerator(refs[0], engine) if shape == STREAM else None

    @overload
    def options(self, *, num_returns: int | str, **options: Any) -> Any: ...
    @overload
    def options(self, **options: Any) -> ActorMethod[P, T_co]: ...
    def options(self, **options: Any) -> Any:
        """The same method with other options: num_returns, concurrency_group, max_task_retries, retry_exceptions, timeout_s, name."""
        return ActorMethod(self._core, self._meta, _options.check_method(options))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph that makes this call when executed."""
        from .dag.calls import bind_method

        return bind_method(self, self._method, self._num_returns if self._shape == MANY else 1, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"Actor methods cannot be called directly. Instead of running 'object.{self._method}()', try 'object.{self._method}.remote()'.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_method, (ActorHandle(self._core), self._method)

    def __repr__(self) -> str:
        return f"ActorMethod({self._name})"


if TYPE_CHECKING:

    class BoundMethod(ActorMethod[P, T_co]):
        """A method with `@method`, in its class: to call, and through a handle that is typed as its class, to send."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    class TypedMethod(Generic[P, T_co]):
        """What type checkers take a function with `@method` for. When a program runs it is the function."""

        @overload
        def __get__(self, instance: None, owner: type) -> Callable[Concatenate[Any, P], T_co]: ...
        @overload
        def __get__(self, instance: object, owner: type) -> BoundMethod[P, T_co]: ...
        def __get__(self, instance: object, owner: type) -> Any: ...


def _rebuild_method(handle: ActorHandle, name: str) -> Any:
    return getattr(handle, name)


def _stale(core: ActorCore) -> Exception:
    if _state.engine is None:
        return _runtime.why_not_connected(f"a method of {core.meta.class_name}")
    from .exceptions import ActorHandleNotFoundError

    return ActorHandleNotFoundError(
        f"the handle of actor {core.meta.class_name} ({core.meta.actor_id.hex()}) was made before shutdown(); handles end with their cluster"
    )


class ActorHandle(Generic[T]):
    """Refers to an actor. Can be passed to tasks and other actors; the actor ends when the last handle is gone."""

    _typed_method: ActorMethod[..., Any]  # what shoal.mypy_plugin takes methods for; there is no such attribute

    def __init__(self, core: ActorCore) -> None:
        self.__dict__["_core"] = core

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not in __dict__ yet: the method is kept there.
        core: ActorCore = self.__dict__["_core"]
        meta = core.meta.methods.get(name)
        if meta is None:
            if name in _OWN_METHODS:
                meta = MethodMeta(name, ANY_ARITY, {}, False)
            else:
                raise AttributeError(f"actor {core.meta.class_name!r} has no method {name!r}; its methods are {', '.join(sorted(core.meta.methods)) or 'none'}")
        made: ActorMethod[..., Any] = ActorMethod(core, meta)
        self.__dict__[name] = made
        return made

    def __dir__(self) -> list[str]:
        return [*self._core.meta.methods, "_actor_id", "_ray_actor_id"]

    @property
    def _actor_id(self) -> Any:
        from shoal_base.ids import ActorID

        return ActorID(self._core.meta.actor_id)

    _ray_actor_id = _actor_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._core.meta.actor_id == other._core.meta.actor_id

    def __hash__(self) -> int:
        return hash(self._core.meta.actor_id)

    def __repr__(self) -> str:
        meta = self._core.meta
        return f"Actor({meta.class_name}, {meta.actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        meta = self._core.meta
        return rebuild_handle, (meta.actor_id, meta.pickled(), self._core.handle_ref)


# A handle, as a parameter of a function: also that of a TypedActor, which type checkers take for the class itself.
ActorProxy: TypeAlias = ActorHandle[T] | T
_known: weakref.WeakValueDictionary[bytes, ActorCore] = weakref.WeakValueDictionary()


def rebuild_handle(actor_id: bytes, pickled_meta: bytes, handle_ref: ObjectRef[Any] | None) -> ActorHandle:
    """The other end of a pickled handle; handles to one actor share one core in a process."""
    engine = _runtime.ensure("unpickling an actor handle")
    core = _known.get(actor_id)
    if core is None or core.engine is not engine or (core.handle_ref is None and handle_ref is not None):
        core = _known[actor_id] = ActorCore(engine, pickle.loads(pickled_meta), handle_ref)
    return ActorHandle(core)


def first_handle(engine: Any, meta: ActorMeta, handle_ref: ObjectRef[Any] | None) -> ActorHandle:
    """The creator's."""
    core = _known[meta.actor_id] = ActorCore(engine, meta, handle_ref)
    return ActorHandle(core)


def handle_from_record(engine: Any, record: Any) -> ActorHandle:
    """A handle to a named actor. It does not count: the actor lives as long as its creator's handles, or is detached."""
    meta = pickle.loads(record.handle)
    core = _known.get(meta.actor_id)
    if core is None or core.engine is not engine:
        core = ActorCore(engine, meta, None)
        _known[meta.actor_id] = core
    return ActorHandle(core)


def own_handle(executor: Any) -> ActorHandle:
    """A handle to the actor of this very process; it does not count."""
    actor_id = executor.actor_id
    core = _known.get(actor_id)
    if core is None or core.engine is not executor.engine:
        cls = type(executor.actor)
        extra = executor.extra
        ordered = not (extra.asynchronous or extra.max_concurrency > 1 or extra.concurrency_groups)
        meta = ActorMeta(actor_id, executor.actor_class_name, describe_methods(cls), ordered, 0, -1, 0, executor.actor_name, _state.namespace,
                         tuple(extra.concurrency_groups))  # fmt: skip
        core = _known[actor_id] = ActorCore(executor.engine, meta, None)
        _own.append(core)
    return ActorHandle(core)


_own: list[ActorCore] = []


# -- classes -----------------------------------------------------------------------------------------------------------


if TYPE_CHECKING:

    class _Makes(Protocol[P, T_co]):
        """An actor class, by what its constructor takes."""

        @property
        def _cls(self) -> Callable[P, T_co]: ...

    class _MakesTyped(Protocol[P, A_co]):
        @property
        def _cls(self) -> Callable[P, A_co]: ...
        @property
        def _own_type(self) -> type[TypedActor]: ...

    class _Nothing:
        """No constructor takes it: what a class matches that is called with it is a type checker (mypy) that does not look at constructors."""

    class _Unchecked(Protocol[T_co]):
        @property
        def _cls(self) -> Callable[[_Nothing], T_co]: ...

    class _UncheckedTyped(Protocol[A_co]):
        @property
        def _cls(self) -> Callable[[_Nothing], A_co]: ...
        @property
        def _own_type(self) -> type[TypedActor]: ...


class ActorClass(Generic[T]):
    """A class whose instances are actors. Make one with `.remote(...)`, which answers at once with a handle."""

    _own_type: type[T]  # for type checkers alone: _cls, in another role

    def __init__(self, cls: type[T], options: dict[str, Any]) -> None:
        self._cls = cls
        self._options = options
        self._class_name = cls.__qualname__.rpartition(".<locals>.")[2]
        self._is_async = has_async_methods(cls)
        self._methods = describe_methods(cls)
        self._arity = self._methods["__init__"].arity if "__init__" in self._methods else no_arguments(self._class_name)
        self._arity.name = f"{self._class_name}.__init__"
        self._exported: tuple[int, bytes, _functions.Exported] | None = None
        self._stored: tuple[bytes, bytes, list[ObjectRef[Any]]] | None = None
        self._through: ActorClass[T] | None = None
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__
        self.__wrapped__ = cls

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise ActorClassInheritanceException(
            f"Attempted to define a subclass of the actor class {self._class_name}. Inheriting from actor classes is not supported: "
            "inherit from the plain class and decorate the subclass with @remote."
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"Actors cannot be instantiated directly. Instead of '{self._class_name}()', use '{self._class_name}.remote()'.")

    def __getattr__(self, name: str) -> Any:
        # Class attributes and static methods stay reachable on the decorated name.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._cls, name)

    def options(self, **actor_options: Any) -> ActorClass[T]:
        """The same class with other options.

        Raises:
            ValueError, TypeError: naming the option.
        """
        changed = _options.check_actor({**self._options, **_options.check(actor_options, _options.ACTOR, "actors")})
        made: ActorClass[T] = ActorClass.__new__(ActorClass)
        made.__dict__.update(self.__dict__)
        made._options = changed
        made._through = self._through or self
        return made

    # The constructor's parameters come from its class. A reference may stand for each of the first three.
    @overload
    def remote(self: _MakesTyped[P, A], *args: P.args, **kwargs: P.kwargs) -> A: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: _Makes[P, T], *args: P.args, **kwargs: P.kwargs) -> ActorHandle[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: ActorClass[A], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> A: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ActorHandle[T]: ...
    @overload
    def remote(self: ActorClass[A], a: Any, b: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> A: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, a: Any, b: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ActorHandle[T]: ...
    @overload
    def remote(self: ActorClass[A], a: Any, b: Any, c: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> A: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, a: Any, b: Any, c: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ActorHandle[T]: ...
    @overload
    def remote(self: _UncheckedTyped[A], *args: Any, **kwargs: Any) -> A: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: _Unchecked[T], *args: Any, **kwargs: Any) -> ActorHandle[T]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Makes an actor. Answers at once; an error in `__init__` comes with the first call's result.

        Raises:
            ValueError: the name is taken by a living actor (ActorAlreadyExistsError).
        """
        engine = _runtime.ensure(f"{self._class_name}.remote()")
        self._arity.check(args, kwargs)
        check_groups(self._methods, self._options.get("concurrency_groups") or {}, self._class_name)
        from ._actor_creation import create

        return create(engine, self, args, kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph that makes this actor when executed."""
        from .dag import ClassNode

        return ClassNode(self, args, kwargs, self._options)

    def export(self, engine: Any, job_id: bytes, detached: bool) -> _functions.Exported:
        """Stores the class for this job's workers; for a detached actor under no job, so that it is there for a restart after the job's end."""
        if detached:
            return _functions.export(engine, job_id, self._cls, f"{self.__module__}.{self.__qualname__}", outlives_job=True)
        if self._through is not None:
            return self._through.export(engine, job_id, detached)
        generation = _state.generation
        done = self._exported
        if done is None or done[:2] != (generation, job_id):
            if self._stored is not None and self._stored[0] == job_id:
                made = _functions.Exported(self._stored[1], 0, self._stored[2])
            else:
                made = _functions.export(engine, job_id, self._cls, f"{self.__module__}.{self.__qualname__}")
            done = (generation, job_id, made)
            self._exported = done
        return done[2]

    def __reduce__(self) -> tuple[Any, ...]:
        done = self._exported
        stored = (done[1], done[2].function_id, done[2].refs) if done is not None and done[0] == _state.generation else self._stored
        return _rebuild_actor_class, (self._cls, self._options, stored)

    def __repr__(self) -> str:
        return f"ActorClass({self._class_name})"


def _rebuild_actor_class(cls: type, options: dict[str, Any], stored: tuple[bytes, bytes, list[ObjectRef[Any]]] | None) -> ActorClass[Any]:
    made: ActorClass[Any] = ActorClass(cls, options)
    made._stored = stored
    return made
