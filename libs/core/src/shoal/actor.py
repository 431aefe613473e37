"""Actors: classes whose instances live in a process of their own and answer calls."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from . import _functions, _options, _runtime, _scheduling
from ._arguments import Arity, pack
from ._core.engine import TASK_RETRY_EXCEPTIONS, TASK_STREAMING, ObjectRef
from .exceptions import ActorAlreadyExistsError, AsyncioActorExit
from .object_ref_generator import ObjectRefGenerator
from .remote_function import MANY, SINGLE, STREAM, is_generator_function, result_shape

__all__ = [
    "DEFAULT_MAX_CONCURRENCY_ASYNC",
    "ActorAlreadyExistsError",
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "AsyncioActorExit",
    "ObjectRefGenerator",
    "exit_actor",
    "method",
]  # fmt: skip

T = TypeVar("T")
DEFAULT_MAX_CONCURRENCY_ASYNC = _options.DEFAULT_ASYNC_CONCURRENCY
_METHOD_OPTIONS = "__shoal_method_options__"
# Every actor answers these beside its class's methods: the runtime's own, under Ray's names and ours.
TERMINATE = "__ray_terminate__"
_OWN_METHODS = {"__ray_terminate__": 0, "__shoal_terminate__": 0, "__ray_ready__": 0, "__shoal_ready__": 0, "__ray_call__": 1, "__shoal_call__": 1}
_CREATE_TIMEOUT_S = 60.0

_state = _runtime.state


class ActorClassInheritanceException(TypeError):
    """A class inherits from an actor class."""


def method(*args: Any, **kwargs: Any) -> Any:
    """Options of one method of an actor class.

    Args:
        num_returns, concurrency_group, max_task_retries, retry_exceptions, enable_task_events, tensor_transport: see `ActorMethod.options`.

    Example::

        @shoal.remote
        class Pair:
            @shoal.method(num_returns=2)
            def both(self):
                return 1, 2
    """
    if args or not kwargs:
        raise ValueError("The @method decorator takes keyword arguments, for example @method(num_returns=2)")
    checked = _options.check_method(kwargs)

    def annotate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _METHOD_OPTIONS, checked)
        return function

    return annotate


def exit_actor() -> None:
    """Ends the actor that this is called in. Its caller gets an ActorDiedError; the actor does not restart.

    Raises:
        TypeError: outside of an actor.
    """
    from ._worker.executor import leave_actor

    leave_actor()


# -- what a handle knows -----------------------------------------------------------------------------------------------


class MethodMeta:
    """What the caller must know of a method. Travels in handles."""

    __slots__ = ("arity", "group", "is_generator", "max_task_retries", "name", "num_returns", "retry_exceptions")

    def __init__(self, name: str, arity: Arity, options: dict[str, Any], is_generator: bool) -> None:
        self.name = name
        self.arity = arity
        self.num_returns = options.get("num_returns")
        self.group = options.get("concurrency_group") or ""
        self.max_task_retries = options.get("max_task_retries")
        self.retry_exceptions = bool(options.get("retry_exceptions"))
        self.is_generator = is_generator

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_method_meta, (self.name, self.arity, self.num_returns, self.group, self.max_task_retries, self.retry_exceptions, self.is_generator)


def _rebuild_method_meta(name: str, arity: Arity, num_returns: Any, group: str, retries: int | None, retry: bool, is_generator: bool) -> MethodMeta:
    options = {"num_returns": num_returns, "concurrency_group": group, "max_task_retries": retries, "retry_exceptions": retry}
    return MethodMeta(name, arity, options, is_generator)


class ActorMeta:
    """What the caller must know of an actor's class and options. Travels in handles."""

    __slots__ = ("actor_id", "backpressure", "class_name", "groups", "max_pending_calls", "max_task_retries", "methods", "name", "namespace", "ordered")

    def __init__(self, actor_id: bytes, class_name: str, methods: dict[str, MethodMeta], ordered: bool, max_task_retries: int, max_pending_calls: int,
                 backpressure: int, name: str, namespace: str, groups: tuple[str, ...]) -> None:  # fmt: skip
        self.actor_id = actor_id
        self.class_name = class_name
        self.methods = methods
        self.ordered = ordered
        self.max_task_retries = max_task_retries
        self.max_pending_calls = max_pending_calls
        self.backpressure = backpressure
        self.name = name
        self.namespace = namespace
        self.groups = groups

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorMeta, tuple(getattr(self, slot) for slot in (
            "actor_id", "class_name", "methods", "ordered", "max_task_retries", "max_pending_calls", "backpressure", "name", "namespace",
            "groups"))  # fmt: skip


class ActorCore:
    """What handle and methods share. Methods keep this and never the handle: a cycle would keep the actor alive until the collector runs."""

    __slots__ = ("__weakref__", "engine", "handle_ref", "meta")

    def __init__(self, engine: Any, meta: ActorMeta, handle_ref: ObjectRef[Any] | None) -> None:
        self.engine = engine
        self.meta = meta
        self.handle_ref = handle_ref
        engine.attach_actor(meta.actor_id, meta.ordered, meta.max_pending_calls)


class ActorMethod:
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
        self._flags = (TASK_STREAMING if self._shape == STREAM else 0) | (TASK_RETRY_EXCEPTIONS if retry else 0)
        self._group = given.get("concurrency_group") or meta.group
        if self._group and self._group not in actor.groups:
            raise ValueError(f"{self._name}: actor {actor.class_name} has no concurrency group {self._group!r}; it has {list(actor.groups)}")
        backpressure = given.get("_generator_backpressure_num_objects")
        self._backpressure = max(0, actor.backpressure if backpressure is None else backpressure)
        self._extra = _scheduling.task_extra(given)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Sends the call. Answers at once, like `RemoteFunction.remote`."""
        if kwargs or not self._low <= len(args) <= self._high:
            self._arity.check(args, kwargs)
        engine = self._core.engine
        if engine is not _state.engine:
            raise _stale(self._core)
        if args or kwargs:
            payload, deps = pack(args, kwargs, self._name)
            refs = engine.submit_actor(
                self._actor_id, self._method, self._name, payload, deps, self._num_returns, self._max_retries, self._flags, self._group,
                self._backpressure, self._extra,
            )  # fmt: skip
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

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options: num_returns, concurrency_group, max_task_retries, retry_exceptions, name."""
        return ActorMethod(self._core, self._meta, _options.check_method(options))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph that makes this call when executed."""
        from .dag import ActorMethodNode

        return ActorMethodNode(self, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"Actor methods cannot be called directly. Instead of running 'object.{self._method}()', try 'object.{self._method}.remote()'.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_method, (ActorHandle(self._core), self._method)

    def __repr__(self) -> str:
        return f"ActorMethod({self._name})"


def _rebuild_method(handle: ActorHandle, name: str) -> Any:
    return getattr(handle, name)


def _stale(core: ActorCore) -> Exception:
    if _state.engine is None:
        return _runtime.why_not_connected(f"a method of {core.meta.class_name}")
    from .exceptions import ActorHandleNotFoundError

    return ActorHandleNotFoundError(
        f"the handle of actor {core.meta.class_name} ({core.meta.actor_id.hex()}) was made before shutdown(); handles end with their cluster"
    )


class ActorHandle:
    """Refers to an actor. Can be passed to tasks and other actors; the actor ends when the last handle is gone."""

    def __init__(self, core: ActorCore) -> None:
        self.__dict__["_core"] = core

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not in __dict__ yet: the method is kept there.
        core: ActorCore = self.__dict__["_core"]
        meta = core.meta.methods.get(name)
        if meta is None:
            if name in _OWN_METHODS:
                meta = MethodMeta(name, _ANY_ARITY, {}, False)
            else:
                raise AttributeError(f"actor {core.meta.class_name!r} has no method {name!r}; its methods are {', '.join(sorted(core.meta.methods)) or 'none'}")
        made = ActorMethod(core, meta)
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
        return rebuild_handle, (self._core.meta, self._core.handle_ref)


_known: weakref.WeakValueDictionary[bytes, ActorCore] = weakref.WeakValueDictionary()


def rebuild_handle(meta: ActorMeta, handle_ref: ObjectRef[Any] | None) -> ActorHandle:
    """The other end of a pickled handle; handles to one actor share one core in a process."""
    engine = _runtime.ensure("unpickling an actor handle")
    core = _known.get(meta.actor_id)
    if core is None or core.engine is not engine or (core.handle_ref is None and handle_ref is not None):
        core = ActorCore(engine, meta, handle_ref)
        _known[meta.actor_id] = core
    return ActorHandle(core)


# -- classes -----------------------------------------------------------------------------------------------------------


def _describe_methods(cls: type) -> dict[str, MethodMeta]:
    found: dict[str, MethodMeta] = {}
    for name in dir(cls):
        if name in ("__class__", "__new__", "__init_subclass__", "__subclasshook__") or (name in vars(object) and getattr(cls, name) is getattr(object, name)):
            continue
        static = inspect.getattr_static(cls, name)
        function = static.__func__ if isinstance(static, staticmethod | classmethod) else static
        if not inspect.isroutine(function) or (name.startswith("__") and name.endswith("__") and inspect.isbuiltin(getattr(cls, name))):
            continue
        options = getattr(function, _METHOD_OPTIONS, {})
        arity = Arity(function, name, skip_first=not isinstance(static, staticmethod))
        found[name] = MethodMeta(name, arity, options, is_generator_function(function))
    return found


def _has_async_methods(cls: type) -> bool:
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (inspect.getattr_static(cls, name, None) for name in dir(cls)) if callable(f)
    )


def _any_arity() -> Arity:
    arity = Arity.__new__(Arity)
    arity.name, arity.low, arity.high, arity.signature = "method", 0, 1 << 30, None
    return arity


_ANY_ARITY = _any_arity()


class ActorClass(Generic[T]):
    """A class whose instances are actors. Make one with `.remote(...)`, which answers at once with a handle."""

    def __init__(self, cls: type[T], options: dict[str, Any]) -> None:
        self._cls = cls
        self._options = options
        self._class_name = cls.__qualname__.rpartition(".<locals>.")[2]
        self._is_async = _has_async_methods(cls)
        self._methods = _describe_methods(cls)
        self._arity = self._methods["__init__"].arity if "__init__" in self._methods else _no_arguments(self._class_name)
        self._arity.name = f"{self._class_name}.__init__"
        self._exported: tuple[int, bytes, _functions.Exported] | None = None
        self._stored: tuple[bytes, bytes] | None = None
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

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Makes an actor. Answers at once; an error in `__init__` comes with the first call's result.

        Raises:
            ValueError: the name is taken by a living actor (ActorAlreadyExistsError).
        """
        engine = _runtime.ensure(f"{self._class_name}.remote()")
        self._arity.check(args, kwargs)
        _check_groups(self._methods, self._options.get("concurrency_groups") or {}, self._class_name)
        return create(engine, self, args, kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph that makes this actor when executed."""
        from .dag import ClassNode

        return ClassNode(self, args, kwargs)

    def export(self, engine: Any, job_id: bytes) -> _functions.Exported:
        if self._through is not None:
            return self._through.export(engine, job_id)
        generation = _state.generation
        done = self._exported
        if done is None or done[:2] != (generation, job_id):
            if self._stored is not None and self._stored[0] == job_id:
                made = _functions.Exported(self._stored[1], 0, [])
            else:
                made = _functions.export(engine, job_id, self._cls, f"{self.__module__}.{self.__qualname__}")
            done = (generation, job_id, made)
            self._exported = done
        return done[2]

    def __reduce__(self) -> tuple[Any, ...]:
        done = self._exported
        stored = (done[1], done[2].function_id) if done is not None and done[0] == _state.generation else self._stored
        return _rebuild_actor_class, (self._cls, self._options, stored)

    def __repr__(self) -> str:
        return f"ActorClass({self._class_name})"


def _rebuild_actor_class(cls: type, options: dict[str, Any], stored: tuple[bytes, bytes] | None) -> ActorClass[Any]:
    made: ActorClass[Any] = ActorClass(cls, options)
    made._stored = stored
    return made


def _no_arguments(class_name: str) -> Arity:
    arity = Arity.__new__(Arity)
    arity.name, arity.low, arity.high, arity.signature = class_name, 0, 0, inspect.Signature()
    return arity


def _check_groups(methods: dict[str, MethodMeta], groups: dict[str, int], class_name: str) -> None:
    for meta in methods.values():
        if meta.group and meta.group not in groups:
            raise ValueError(f"{class_name}.{meta.name} belongs to concurrency group {meta.group!r}, which concurrency_groups={groups} does not define")


# -- creation ----------------------------------------------------------------------------------------------------------


def concurrency_of(options: dict[str, Any], is_async: bool) -> int:
    given = options.get("max_concurrency")
    return given if given is not None else (_options.DEFAULT_ASYNC_CONCURRENCY if is_async else 1)


def create(engine: Any, actor_class: ActorClass[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Registers the actor with the control store and returns the first handle."""
    from shoal_gcs.v1 import gcs_pb2

    options = actor_class._options
    job_id, scope = _functions.job_and_scope()
    actor_id = engine.new_actor_id()
    detached = options.get("lifetime") == "detached"
    meta = _meta_of(actor_class, actor_id)
    exported = actor_class.export(engine, job_id)
    payload, deps = pack(args, kwargs, actor_class._arity.name) if args or kwargs else (None, ())
    task = engine.creation_task(actor_id, exported.function_id, actor_class._class_name, payload, deps, _creation_extra(options, actor_class._is_async))
    # A detached actor has no count of handles: only kill() or its own end takes it away.
    handle_ref = None if detached else engine.actor_handle_ref(actor_id)
    core = ActorCore(engine, meta, handle_ref)
    _known[actor_id] = core
    handle = ActorHandle(core)
    request = gcs_pb2.CreateActorRequest(
        actor=_record_of(actor_class, meta, job_id, detached, handle),
        creation_task=task,
        placement=_placement_of(options, scope),
        get_if_exists=bool(options.get("get_if_exists")),
    )
    if not meta.name:
        _pending_creations[actor_id] = None
        engine.call_async("gcs/CreateActor", request.SerializeToString())
        return handle
    return _create_named(engine, request, handle, meta)


# Actors whose creation was sent but of which nothing was heard yet; the control thread looks after those whose CreateActor failed.
_pending_creations: dict[bytes, None] = {}


def _create_named(engine: Any, request: Any, handle: ActorHandle, meta: ActorMeta) -> ActorHandle:
    from shoal_gcs.v1 import gcs_pb2

    from ._calls import ALREADY_EXISTS, call

    try:
        reply = gcs_pb2.Actor.FromString(call(engine, "gcs/CreateActor", request, _CREATE_TIMEOUT_S))
    except Exception as error:
        _abandon(engine, meta.actor_id, str(error))
        if getattr(error, "code", None) == ALREADY_EXISTS:
            raise ActorAlreadyExistsError(
                f"The name {meta.name} (namespace={meta.namespace}) is already taken. Please use a different name or get the existing actor using get_actor()."
            ) from error
        raise
    if reply.actor_id != meta.actor_id:
        _abandon(engine, meta.actor_id, "another actor has its name")
        return handle_from_record(engine, reply)
    return handle


_DEAD = 3


def _abandon(engine: Any, actor_id: bytes, why: str) -> None:
    """Lets go of what was held for an actor that never came to be."""
    from shoal_base.errors import Code

    engine.actor_update(actor_id, _DEAD, bytes(16), bytes(16), "", 0, Code.ACTOR_DIED, why)


def handle_from_record(engine: Any, record: Any) -> ActorHandle:
    """A handle to a named actor. It does not count: the actor lives as long as its creator's handles, or is detached."""
    import pickle

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
        meta = ActorMeta(actor_id, executor.actor_class_name, _describe_methods(cls), ordered, 0, -1, 0, executor.actor_name, _state.namespace,
                         tuple(extra.concurrency_groups))  # fmt: skip
        core = _known[actor_id] = ActorCore(executor.engine, meta, None)
        _own.append(core)
    return ActorHandle(core)


_own: list[ActorCore] = []


def _meta_of(actor_class: ActorClass[Any], actor_id: bytes) -> ActorMeta:
    options = actor_class._options
    groups = options.get("concurrency_groups")
    ordered = not (actor_class._is_async or groups or concurrency_of(options, False) > 1 or options.get("allow_out_of_order_execution"))
    retries = options.get("max_task_retries")
    pending = options.get("max_pending_calls")
    return ActorMeta(
        actor_id, actor_class._class_name, actor_class._methods, ordered, 0 if retries is None else retries, -1 if pending is None else pending,
        options.get("_generator_backpressure_num_objects") or 0, options.get("name") or "", options.get("namespace") or _state.namespace,
        tuple(groups or ()),
    )  # fmt: skip


def _record_of(actor_class: ActorClass[Any], meta: ActorMeta, job_id: bytes, detached: bool, handle: ActorHandle) -> Any:
    from shoal_gcs.v1 import gcs_pb2

    from ._serialization import pickle_value

    options = actor_class._options
    described, _, _ = pickle_value(meta) if meta.name else (b"", [], [])
    record = gcs_pb2.Actor(
        actor_id=meta.actor_id, job_id=job_id, name=meta.name, namespace=meta.namespace, class_name=meta.class_name, detached=detached,
        max_restarts=options.get("max_restarts") or 0, owner_worker_id=_state.worker_id, owner_node_id=_state.node_id, handle=described,
    )  # fmt: skip
    for name, units in _options.resources_of(options, 0).items():
        record.resources[name] = units
    return record


def _placement_of(options: dict[str, Any], scope: _runtime.Scope) -> Any:
    from shoal_gcs.v1 import gcs_pb2

    # Where num_cpus is not given, an actor takes one CPU to be placed and none while it lives.
    resources = _options.resources_of(options, 1)
    if options.get("num_cpus") is None and any(options.get(k) for k in ("num_gpus", "memory", "resources", "accelerator_type", "object_store_memory")):
        resources = _options.resources_of(options, 0) | {"CPU": _options.resources_of({}, 1)["CPU"]}
    group = _scheduling.inherited_group(scope)
    if _in_group(options) or group:
        # A bundle holds what it was asked for; one more CPU only to be placed would not fit there.
        resources = _options.resources_of(options, 0)
    place = _options.placement_of(options, resources, group)
    message = place.fill(gcs_pb2.Placement())
    message.runtime_env = _scheduling.runtime_env_text(options, scope)
    return message


def _in_group(options: dict[str, Any]) -> bool:
    strategy = options.get("scheduling_strategy")
    return isinstance(strategy, _options.PlacementGroupSchedulingStrategy) or options.get("placement_group") not in (None, "default")


def _creation_extra(options: dict[str, Any], is_async: bool) -> bytes:
    """What the executor must know to serve the actor: how many calls at once, in which groups."""
    from shoal_raylet.v1 import raylet_pb2

    extra = raylet_pb2.TaskExtra(max_concurrency=concurrency_of(options, is_async), actor_name=options.get("name") or "", asynchronous=is_async)
    for group, limit in (options.get("concurrency_groups") or {}).items():
        extra.concurrency_groups[group] = limit
    return bytes(extra.SerializeToString(deterministic=True))
