"""Connecting to a cluster and leaving it."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _options, _runtime, _spilling

if TYPE_CHECKING:
    from ._init_options import InitOptions
    from ._supervisor.spawn import Spawned

_state = _runtime.state
_log = logging.getLogger("shoal")

CONNECT_TIMEOUT_S = 30.0


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
                   "_driver_object_store_memory"}  # fmt: skip


def init(
    address: str | None = None, *, num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None,
    resources: dict[str, float] | None = None, labels: dict[str, str] | None = None, object_store_memory: int | None = None, local_mode: bool = False,
    ignore_reinit_error: bool = False, include_dashboard: bool | None = None, dashboard_host: str = "127.0.0.1", dashboard_port: int | None = None,
    job_config: Any = None, configure_logging: bool = True, logging_level: int | str = "info", logging_format: str | None = None,
    logging_config: Any = None, log_to_driver: bool | None = None, namespace: str | None = None, runtime_env: Mapping[str, Any] | None = None,
    preload: Sequence[str] | None = None, **kwargs: Any,
) -> Context:  # fmt: skip
    """Connects this process to a cluster; starts a private one when there is none.

    Where it goes: `address` ("local", "auto", "host:port"); SHOAL_ADDRESS; this user's running `shoal start` on this host; else a private
    cluster, which ends with this process.

    Args:
        num_cpus, num_gpus, memory, resources, labels, object_store_memory: what a private cluster has; refused when connecting to a running one.
        namespace: of named actors; a new one for each job if not given.
        runtime_env: environment of all tasks and actors: env_vars, working_dir, py_modules.
        job_config: limits of the job: see `shoal.job_config.JobConfig`.
        log_to_driver: whether what tasks print appears here.
        local_mode: no cluster. Tasks and actors' calls run in this process, in the thread that starts them and before `.remote()` returns, so that a debugger
            sees them; generators run as they are consumed; each async actor has a thread for its loop. Values are copied, errors wrapped, names, references
            and lifetimes kept as on a cluster. Resources are told, not enforced; of a runtime_env only `env_vars` have a meaning.
        preload: modules that a private cluster imports once, before its workers are forked from that process: each has them from its start, in shared
            memory. One that starts threads when it is imported is left to the workers, and named in the node's log.
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
        given = locals() | {"kwargs": kwargs}
        # First: an interpreter starts while this one imports what it needs to say what is wanted of it.
        spawned = None if local_mode else _spawn_early(address, kwargs.get("_temp_dir"))
        try:
            options = _check_init(given)
            return _connect_locally(options) if options.local_mode else _connect(options, spawned)
        finally:
            if spawned is not None and not spawned.taken:
                spawned.give_up()  # an option was wrong, or a cluster was found


def _spawn_early(address: str | None, temp_dir: str | None) -> Spawned | None:
    """The supervisor's process, where `_bootstrap.connect` is about to start a cluster: asked for, or no node of this user is on this host."""
    if address is None and not os.environ.get(_runtime.ADDRESS_VARIABLE):
        base = temp_dir or os.environ.get("SHOAL_TMPDIR") or f"/tmp/shoal-{os.geteuid()}"
        with contextlib.suppress(OSError):
            if any(name.startswith("n-") for name in os.listdir(base)):
                return None
    elif address != "local":
        return None
    from ._supervisor.spawn import Spawned

    return Spawned(own=True)


def _check_init(given: dict[str, Any]) -> InitOptions:
    from ._init_options import InitOptions
    from .job_config import JobConfig
    from .runtime_env import check_runtime_env

    if given["local_mode"] and given["address"] not in (None, "local"):
        raise ValueError(f"init(local_mode=True, address={given['address']!r}): local mode uses no cluster; leave one of the two away")
    extra = dict(given["kwargs"])
    options = InitOptions(local_mode=bool(given["local_mode"]))
    for name in _WITHOUT_EFFECT:
        extra.pop(name, None)
    for name, attribute in _KNOWN_PRIVATE.items():
        if name in extra:
            setattr(options, attribute, extra.pop(name))
    # Ray has had both names.
    places = [extra.pop(name, None) for name in ("object_spilling_directory", "_object_spilling_directory")]
    place = places[0] or places[1]
    if place or options.system_config:
        options.system_config = _spilling.with_places(options.system_config, [place] if place else [])
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
    options.job_config = JobConfig.of(given["job_config"])
    env = given["runtime_env"] or options.job_config.runtime_env
    options.runtime_env = check_runtime_env(env) if env else None
    options.preload = _modules(given["preload"])
    options.namespace = options.namespace or options.job_config.ray_namespace
    options.log_to_driver = given["log_to_driver"] is not False
    options.logging_level = _level(given["logging_level"])
    config = given["logging_config"]
    if config is not None:
        options.logging_config = config.to_dict()
        options.logging_level = config.log_level.upper()
    if given["configure_logging"]:
        _configure_logging(options, given["logging_format"])
    return options


def _modules(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"preload={names!r}: a list of module names is wanted")
    wrong = [name for name in names if not all(part.isidentifier() for part in name.split("."))]
    if wrong:
        raise ValueError(f"preload: {wrong[0]!r} is no module's name")
    return list(names)


def _configure_logging(options: InitOptions, text_format: str | None) -> None:
    from ._logging_config import LoggingConfig, configure

    _log.setLevel(options.logging_level)
    if options.logging_config is not None:
        configure(LoggingConfig(**options.logging_config))
    elif text_format:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(text_format))
        _log.handlers[:] = [handler]
        _log.propagate = False


def _level(level: int | str) -> str:
    if isinstance(level, int):
        return logging.getLevelName(level) if isinstance(logging.getLevelName(level), str) else "INFO"
    name = level.upper()
    if not isinstance(logging.getLevelName(name), int):
        raise ValueError(f"logging_level={level!r}: debug, info, warning, error or critical is wanted")
    return name


def _connect(options: InitOptions, spawned: Spawned | None) -> Context:
    global _on_shutdown, _context
    from ._bootstrap import connect

    # First: what is imported below is imported while the services start.
    booted = connect(options, spawned)
    from shoal_raylet.v1 import raylet_pb2

    from ._control import Control, error_factory
    from ._core.engine import Engine
    from ._worker.main import adopt
    from .job_config import Limits

    engine: Any = None
    try:
        engine = Engine(worker_id=os.urandom(16), node_dir=str(booted.node_dir), kind=_runtime.DRIVER)
        engine.set_error_factory(error_factory)
        register = _register(engine, options)
        registered = raylet_pb2.Registered.FromString(engine.connect(register.SerializeToString(), CONNECT_TIMEOUT_S))
        if registered.error:
            raise ConnectionError(registered.error)
        adopt(engine, registered, _runtime.DRIVER, str(booted.node_dir))
        control = Control(engine, str(booted.node_dir), bytes(registered.node_id), on_raylet_lost=_raylet_lost)
        _state.control = control
        control.start()
        _enter_runtime_env(options)
        _state.limits = Limits(register.job_config)
        _state.limits.apply(engine)
        if options.log_to_driver:
            from ._logs import print_logs

            print_logs(control, _state.job_id)
        from ._pending import watch

        watch(engine)
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


def _connect_locally(options: InitOptions) -> Context:
    global _on_shutdown, _context
    from ._local.start import begin

    address_info, _on_shutdown = begin(options)
    _context = Context(address_info)
    return _context


def _register(engine: Any, options: InitOptions) -> Any:
    from shoal_raylet.v1 import raylet_pb2

    from . import __version__
    from ._logging_config import LOGGING_CONFIG

    here = os.getcwd()
    config = raylet_pb2.JobConfig(
        sys_path=[os.path.abspath(p) if p else here for p in sys.path], namespace=options.namespace or "", log_level=options.logging_level, working_dir=here
    )
    limits = options.job_config
    config.max_pending_tasks, config.max_actors = limits.max_pending_tasks or 0, limits.max_actors or 0
    config.max_nesting_depth, config.max_object_bytes = limits.max_nesting_depth or 0, limits.max_object_bytes or 0
    if options.logging_config is not None:
        config.metadata[LOGGING_CONFIG] = json.dumps(options.logging_config)
    compat = sys.modules.get("shoal.compat.ray.alias")
    if compat is not None and compat.is_installed():
        config.metadata[compat.JOB_METADATA] = "1"
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
    from . import _actor_creation, _functions, _serialization

    hooks, _state.at_disconnect = _state.at_disconnect, []
    for hook in hooks:
        hook()
    control, _state.control = _state.control, None
    _state.engine = None
    _state.generation += 1
    _state.runtime_env = ""
    _state.lost = ""
    _state.default_scope = _runtime.Scope()
    _state.limits = None
    _serialization.forget_out_of_band()
    _functions.forget()
    _actor_creation.pending_creations.clear()
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
