"""The functions of `shoal` itself: connect, put, get, wait, cancel, and what the cluster holds."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, TypeVar, overload

from . import _options, _runtime
from ._calls import ask, call
from ._core.engine import ArenaFull, ObjectRef
from ._serialization import load, serialize
from .exceptions import GetTimeoutError, ObjectStoreFullError
from .object_ref_generator import ObjectRefGenerator

T = TypeVar("T")
_state = _runtime.state
_log = logging.getLogger("shoal")

CONNECT_TIMEOUT_S = 30.0
# A generator in wait() has no reference to watch: it is looked at this often while the wait lasts.
_GENERATOR_LOOK_S = 0.005
# kill(), remove_placement_group() ... of something whose creation is still on its way find it within this.
_CREATION_GRACE_S = 5.0


# -- init and shutdown -------------------------------------------------------------------------------------------------


@dataclass
class InitOptions:
    """What `init` was asked for, checked. `shoal._bootstrap.connect` takes it."""

    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    resources: dict[str, float] | None = None
    labels: dict[str, str] | None = None
    object_store_memory: int | None = None
    include_dashboard: bool | None = None
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int | None = None
    namespace: str | None = None
    runtime_env: dict[str, Any] | None = None
    log_to_driver: bool = True
    logging_level: str = "INFO"
    node_ip_address: str | None = None
    temp_dir: str | None = None
    system_config: dict[str, Any] = field(default_factory=dict)


class Context(Mapping[str, Any]):
    """What `init` returns: the addresses, by name; also a context manager that shuts down at its end."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        from . import __version__

        self.address_info = address_info
        self.dashboard_url: str | None = address_info.get("webui_url") or address_info.get("http_address")
        self.python_version = "{}.{}.{}".format(*sys.version_info[:3])
        self.ray_version = __version__
        self.shoal_version = __version__

    def __getitem__(self, key: str) -> Any:
        return self.dashboard_url if key == "webui_url" else self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"Context(dashboard_url={self.dashboard_url!r}, address_info={self.address_info!r})"


_on_shutdown: Callable[[], None] | None = None
_context: Context | None = None
_KNOWN_PRIVATE = {"_system_config": "system_config", "_temp_dir": "temp_dir", "_node_ip_address": "node_ip_address", "_memory": "memory"}
# Options of Ray that have no meaning here; accepted, because programs pass them.
_WITHOUT_EFFECT = {"_redis_username", "_redis_password", "_enable_object_reconstruction", "_metrics_export_port", "_tracing_startup_hook", "_plasma_directory",
                   "_object_spilling_directory", "_driver_object_store_memory"}  # fmt: skip


def init(
    address: str | None = None, *, num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None,
    resources: dict[str, float] | None = None, labels: dict[str, str] | None = None, object_store_memory: int | None = None, local_mode: bool = False,
    ignore_reinit_error: bool = False, include_dashboard: bool | None = None, dashboard_host: str = "127.0.0.1", dashboard_port: int | None = None,
    job_config: Any = None, configure_logging: bool = True, logging_level: int | str = "info", logging_format: str | None = None,
    logging_config: Any = None, log_to_driver: bool | None = None, namespace: str | None = None, runtime_env: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Context:  # fmt: skip
    """Connects this process to a cluster; starts a private one when there is none.

    Where it goes: `address` ("local", "auto", "host:port"); SHOAL_ADDRESS; this user's running `shoal start` on this host; else a private
    cluster, which ends with this process.

    Args:
        num_cpus, num_gpus, memory, resources, labels, object_store_memory: what a private cluster has; refused when connecting to a running one.
        namespace: of named actors; a new one for each job if not given.
        runtime_env: environment of all tasks and actors: env_vars, working_dir, py_modules.
        log_to_driver: whether what tasks print appears here.
        ignore_reinit_error: a second call returns the first one's context instead of raising.

    Raises:
        RuntimeError: called twice.
        ValueError, TypeError: an option that is unknown or wrong, named.
        ConnectionError: no cluster at the address, or it refused.
    """
    with _state.lock:
        if _state.engine is not None:
            if ignore_reinit_error and _context is not None:
                _log.info("Calling init() again after it has already been called.")
                return _context
            raise RuntimeError(
                "Maybe you called init twice by accident? This error can be suppressed by passing in 'ignore_reinit_error=True' or by calling 'shutdown()' "
                "prior to 'init()'."
            )
        options = _check_init(locals() | {"kwargs": kwargs})
        return _connect(options)


def _check_init(given: dict[str, Any]) -> InitOptions:
    from .runtime_env import check_runtime_env

    if given["local_mode"]:
        raise ValueError("init(local_mode=True) is not supported: run with num_cpus=1 for one task at a time")
    extra = dict(given["kwargs"])
    options = InitOptions()
    for name in _WITHOUT_EFFECT:
        extra.pop(name, None)
    for name, attribute in _KNOWN_PRIVATE.items():
        if name in extra:
            setattr(options, attribute, extra.pop(name))
    for name in ("enable_resource_isolation", "cgroup_path", "system_reserved_cpu", "system_reserved_memory", "proxy_server_url"):
        if extra.pop(name, None):
            raise ValueError(f"init({name}=...) is not supported")
    if extra:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(sorted(extra))}")
    for name in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
        _options._amount(name, given[name])
    _options._resources("resources", given["resources"])
    for name in ("address", "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard", "dashboard_host", "dashboard_port"):
        setattr(options, name, given[name])
    if given["memory"] is not None:
        options.memory = given["memory"]
    _options._namespace("namespace", given["namespace"])
    options.namespace = given["namespace"]
    job_config = given["job_config"]
    env = given["runtime_env"] or getattr(job_config, "runtime_env", None)
    options.runtime_env = check_runtime_env(env) if env else None
    options.namespace = options.namespace or getattr(job_config, "ray_namespace", None)
    options.log_to_driver = given["log_to_driver"] is not False
    options.logging_level = _level(given["logging_level"])
    if given["configure_logging"]:
        _log.setLevel(options.logging_level)
    return options


def _level(level: int | str) -> str:
    if isinstance(level, int):
        return logging.getLevelName(level) if isinstance(logging.getLevelName(level), str) else "INFO"
    name = level.upper()
    if not isinstance(logging.getLevelName(name), int):
        raise ValueError(f"logging_level={level!r}: debug, info, warning, error or critical is wanted")
    return name


def _connect(options: InitOptions) -> Context:
    global _on_shutdown, _context
    from shoal_raylet.v1 import raylet_pb2

    from ._bootstrap import connect
    from ._control import Control, error_factory
    from ._core.engine import Engine
    from ._worker.main import adopt

    booted = connect(options)
    engine: Any = None
    try:
        engine = Engine(worker_id=os.urandom(16), node_dir=str(booted.node_dir), kind=_runtime.DRIVER)
        engine.set_error_factory(error_factory)
        registered = raylet_pb2.Registered.FromString(engine.connect(_register(engine, options).SerializeToString(), CONNECT_TIMEOUT_S))
        if registered.error:
            raise ConnectionError(registered.error)
        adopt(engine, registered, _runtime.DRIVER, str(booted.node_dir))
        control = Control(engine, str(booted.node_dir), bytes(registered.node_id), on_raylet_lost=_raylet_lost)
        _state.control = control
        control.start()
        _enter_runtime_env(options)
        if options.log_to_driver:
            from ._logs import print_logs

            print_logs(control, _state.job_id)
    except BaseException:
        _disconnect(engine)
        booted.on_shutdown()
        raise
    _on_shutdown = booted.on_shutdown
    _context = Context({
        **booted.address_info, "node_id": _state.node_id.hex(), "node_ip_address": _state.node_ip, "gcs_address": _state.gcs_address,
        "address": _state.gcs_address, "session_dir": _state.node_dir, "http_address": _state.http_address,
    })  # fmt: skip
    return _context


def _register(engine: Any, options: InitOptions) -> Any:
    from shoal_raylet.v1 import raylet_pb2

    from . import __version__

    here = os.getcwd()
    config = raylet_pb2.JobConfig(
        sys_path=[os.path.abspath(p) if p else here for p in sys.path], namespace=options.namespace or "", log_level=options.logging_level, working_dir=here
    )
    return raylet_pb2.RegisterWorker(
        worker_id=engine.worker_id, pid=os.getpid(), driver=True, namespace=options.namespace or "", entrypoint=" ".join(sys.argv)[:1000] or sys.executable,
        job_config=config, version=__version__, python="{}.{}.{}".format(*sys.version_info[:3]), log_to_driver=options.log_to_driver,
    )  # fmt: skip


def _enter_runtime_env(options: InitOptions) -> None:
    if not options.runtime_env:
        return
    from ._packages import upload
    from .runtime_env import canonical

    _state.runtime_env = canonical(upload(options.runtime_env))
    _state.default_scope = _runtime.Scope(0, b"", False, _state.runtime_env, _state.job_id)
    _state.generation += 1


def _raylet_lost(why: str) -> None:
    """The driver's node is gone: what waits gets an error from the engine, what comes later one that says so."""
    engine = _state.engine
    if engine is not None:
        _state.lost = why or "no reason given"
        _state.engine = None
        _state.generation += 1
        engine.close()


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """Disconnects; ends the cluster if `init` had started it. Does nothing when not connected."""
    global _on_shutdown, _context
    with _state.lock:
        if _state.forked:
            return
        engine, ending = _state.engine, _on_shutdown
        if engine is None and ending is None:
            return
        _on_shutdown = _context = None
        if _state.kind != _runtime.DRIVER:
            return
        _state.was_shut_down = True
        _disconnect(engine)
        if ending is not None:
            ending()


def _disconnect(engine: Any) -> None:
    from . import _functions, _serialization, actor

    hooks, _state.at_disconnect = _state.at_disconnect, []
    for hook in hooks:
        hook()
    control, _state.control = _state.control, None
    _state.engine = None
    _state.generation += 1
    _state.runtime_env = ""
    _state.lost = ""
    _state.default_scope = _runtime.Scope()
    _serialization.forget_out_of_band()
    _functions.forget()
    actor._pending_creations.clear()
    if engine is not None:
        engine.close()
    if control is not None:
        control.join()


@atexit.register
def _at_exit() -> None:
    shutdown(_exiting_interpreter=True)


def is_initialized() -> bool:
    """Whether this process is connected to a cluster."""
    return _state.engine is not None


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
    if _owner is not None:
        raise ValueError("put(_owner=...) is not supported: the process that puts a value owns it")
    try:
        return engine.put(serialize(value))
    except ArenaFull as error:
        raise ObjectStoreFullError(str(error)) from error


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None, _use_object_store: bool = False) -> T: ...
@overload
def get(object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None, _use_object_store: bool = False) -> list[T]: ...
def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a reference, or of each in a list; waits for it.

    Args:
        timeout: seconds; None: no limit; 0: only what is there.

    Raises:
        GetTimeoutError: not there in time.
        RayTaskError: the task raised; also an instance of what it raised.
        ValueError, TypeError: not a reference.
    """
    engine = _state.engine
    if type(object_refs) is ObjectRef:
        if engine is None:
            raise _runtime.why_not_connected("get()")
        try:
            return load(engine.get([object_refs], -1.0 if timeout is None else _checked_timeout(timeout))[0])
        except TimeoutError as error:
            raise _timed_out(error, [object_refs], timeout) from None
    if not isinstance(object_refs, list | tuple):
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
    return GetTimeoutError(f"Get timed out: {len(waiting)} of {len(refs)} objects were not ready after {timeout:g} s: {shown}{more}")


def wait(ray_waitables: list[Any], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True) -> tuple[list[Any], list[Any]]:
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
    kinds = set(map(type, ray_waitables))
    generators = bool(kinds - {ObjectRef})
    if generators:
        for item in ray_waitables:
            if not isinstance(item, ObjectRef | ObjectRefGenerator):
                raise TypeError(f"wait() expected a list of ObjectRef or ObjectRefGenerator, got a list containing {type(item)}")
    if engine is None:
        if ray_waitables:
            raise _runtime.why_not_connected("wait()")
        engine = _runtime.ensure("wait()")
    if not ray_waitables:
        return [], []
    if len(set(ray_waitables)) != len(ray_waitables):
        raise ValueError("Wait requires a list of unique object refs.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(ray_waitables):
        raise ValueError(f"num_returns cannot be greater than the number of objects provided to wait: {num_returns} > {len(ray_waitables)}.")
    if generators:
        flags = _wait_mixed(engine, ray_waitables, num_returns, timeout, fetch_local)
    else:
        flags = engine.wait(ray_waitables, num_returns, -1.0 if timeout is None else float(timeout), fetch_local)
    if num_returns == 1:
        try:
            at = flags.index(True)
        except ValueError:
            return [], list(ray_waitables)
        return [ray_waitables[at]], ray_waitables[:at] + ray_waitables[at + 1 :]
    return list(compress(ray_waitables, flags)), [item for item, ready in zip(ray_waitables, flags, strict=True) if not ready]


def _wait_mixed(engine: Any, items: list[Any], num_returns: int, timeout: float | None, fetch_local: bool) -> list[bool]:
    import time

    refs = [item for item in items if type(item) is ObjectRef]
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        ready_refs = set(compress(refs, engine.wait(refs, len(refs), 0.0, fetch_local))) if refs else set()
        flags = [item in ready_refs if type(item) is ObjectRef else item.next_ready() for item in items]
        if sum(flags) >= num_returns or (deadline is not None and time.monotonic() >= deadline):
            seen = 0
            for i, ready in enumerate(flags):
                seen += ready
                if seen > num_returns:
                    flags[i] = False
            return flags
        pause = _GENERATOR_LOOK_S if deadline is None else max(0.0, min(_GENERATOR_LOOK_S, deadline - time.monotonic()))
        generators = [item for item in items if type(item) is not ObjectRef and not item.next_ready()]
        if generators:
            generators[0].wait_ready(pause)
        else:
            engine.wait([ref for ref in refs if ref not in ready_refs], 1, pause, fetch_local)


# -- tasks and actors --------------------------------------------------------------------------------------------------


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
        return _make_remote(args[0], {})
    if args or not kwargs:
        raise TypeError(
            "The @remote decorator must be applied either with no arguments and no parentheses, for example '@remote', or it must be applied using only "
            "keyword arguments, for example '@remote(num_returns=2)'."
        )
    return lambda target: _make_remote(target, kwargs)


def _make_remote(target: Any, options: dict[str, Any]) -> Any:
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
    _call_once_known(engine, "gcs/KillActor", request)


def _call_once_known(engine: Any, method: str, request: Any, timeout: float = 30.0) -> bytes:
    """A call about something whose creation this process may have sent just before: the two can pass each other on the way."""
    import time

    from ._calls import NOT_FOUND, CallFailed

    deadline = time.monotonic() + _CREATION_GRACE_S
    pause = 0.002
    while True:
        try:
            return call(engine, method, request, timeout)
        except CallFailed as error:
            if error.code != NOT_FOUND or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


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


# -- the cluster -------------------------------------------------------------------------------------------------------


def nodes() -> list[dict[str, Any]]:
    """Every node, living and dead.

    Raises:
        NotConnectedError: init() was not called.
    """
    from shoal_base.resources import from_units
    from shoal_gcs.v1 import gcs_pb2

    found = []
    for node in gcs_pb2.NodeList.FromString(ask("nodes()", "gcs/ListNodes")).nodes:
        host, _, port = node.address.rpartition(":")
        found.append({
            "NodeID": node.node_id.hex(), "Alive": node.alive, "alive": node.alive, "NodeManagerAddress": host, "NodeManagerHostname": node.hostname,
            "NodeManagerPort": int(port or 0), "ObjectManagerPort": int(port or 0), "NodeName": node.name or host, "DeathReasonMessage": node.death_cause,
            "Resources": {name: from_units(units) for name, units in node.resources.items()} if node.alive else {}, "Labels": dict(node.labels),
            "IsHead": node.is_head, "Draining": node.draining,
        })  # fmt: skip
    return found


def cluster_resources() -> dict[str, float]:
    """The sum of all living nodes' resources."""
    return _sum_resources("cluster_resources()", "resources")


def available_resources() -> dict[str, float]:
    """What of them is free now."""
    return _sum_resources("available_resources()", "available")


def _sum_resources(what: str, which: str) -> dict[str, float]:
    from shoal_base.resources import add, from_units
    from shoal_gcs.v1 import gcs_pb2

    total: dict[str, int] = {}
    for node in gcs_pb2.NodeList.FromString(ask(what, "gcs/ListNodes")).nodes:
        if node.alive:
            add(total, getattr(node, which))
    return {name: from_units(units) for name, units in total.items() if units > 0 or which == "resources"}


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


