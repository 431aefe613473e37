"""An actor's creation: what the control store is told, and what the executor needs to serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _functions, _options, _runtime, _scheduling
from ._actor_meta import ActorMeta
from ._arguments import holding, pack
from ._calls import store_full
from ._core.engine import ArenaFull
from .exceptions import ActorAlreadyExistsError, JobLimitExceeded
from .util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from .actor import ActorClass, ActorHandle

CREATE_TIMEOUT_S = 60.0
DEAD = 3

_state = _runtime.state
# Actors whose creation was sent but of which nothing was heard yet; the control thread looks after those whose CreateActor failed.
pending_creations: dict[bytes, None] = {}


def check_checkpoints(options: dict[str, Any], actor_class: ActorClass[Any]) -> None:
    """Raises ValueError where a checkpoint is asked for that could not be made."""
    if options.get("checkpoint_every") is None and options.get("checkpoint_every_s") is None:
        return
    cls, name = actor_class._cls, actor_class._class_name
    missing = [method for method in ("__shoal_save__", "__shoal_restore__") if not callable(getattr(cls, method, None))]
    if missing:
        raise ValueError(
            f"checkpoints of {name} need {' and '.join(missing)}: __shoal_save__(self) returns the state, "
            "and __shoal_restore__(self, state) takes it up after a restart"
        )
    if actor_class._is_async:
        raise ValueError(f"checkpoints need an actor that runs one call after the other, and {name} has async methods: calls would be half in a checkpoint")


def concurrency_of(options: dict[str, Any], is_async: bool) -> int:
    given = options.get("max_concurrency")
    return given if given is not None else (_options.DEFAULT_ASYNC_CONCURRENCY if is_async else 1)


def create(engine: Any, actor_class: ActorClass[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Registers the actor with the control store and returns the first handle."""
    from shoal_gcs.v1 import gcs_pb2

    from .actor import first_handle

    check_checkpoints(actor_class._options, actor_class)
    options = actor_class._options
    job_id, scope = _functions.job_and_scope()
    if _state.limits is not None:
        _state.limits.check_depth(scope.depth, f"actor {actor_class._class_name}")
    actor_id = engine.new_actor_id()
    detached = options.get("lifetime") == "detached"
    meta = _meta_of(actor_class, actor_id)
    exported = actor_class.export(engine, job_id, detached)
    payload, deps = pack(args, kwargs, actor_class._arity.name) if args or kwargs else (None, ())
    if exported.refs:
        payload = holding(payload, exported.refs)
    extra = _creation_extra(options, actor_class._is_async)
    try:
        task = engine.creation_task(actor_id, exported.function_id, actor_class._class_name, payload, deps, extra, bool(options.get("max_restarts")))
    except ArenaFull as error:
        raise store_full(error, f"an argument of {actor_class._class_name}") from None
    # A detached actor has no count of handles: only kill() or its own end takes it away.
    handle_ref = None if detached else engine.actor_handle_ref(actor_id)
    handle = first_handle(engine, meta, handle_ref)
    request = gcs_pb2.CreateActorRequest(
        actor=_record_of(actor_class, meta, job_id, detached),
        creation_task=task,
        placement=_placement_of(options, scope),
        get_if_exists=bool(options.get("get_if_exists")),
    )
    if not meta.name:
        pending_creations[actor_id] = None
        engine.call_async("gcs/CreateActor", request.SerializeToString())
        return handle
    return _create_named(engine, request, handle, meta)


def _create_named(engine: Any, request: Any, handle: ActorHandle, meta: ActorMeta) -> ActorHandle:
    from shoal_gcs.v1 import gcs_pb2

    from ._calls import ALREADY_EXISTS, RESOURCE_EXHAUSTED, call

    try:
        reply = gcs_pb2.Actor.FromString(call(engine, "gcs/CreateActor", request, CREATE_TIMEOUT_S))
    except Exception as error:
        _abandon(engine, meta.actor_id, str(error))
        if getattr(error, "code", None) == ALREADY_EXISTS:
            raise ActorAlreadyExistsError(
                f"The name {meta.name} (namespace={meta.namespace}) is already taken. Please use a different name or get the existing actor using get_actor()."
            ) from error
        if getattr(error, "code", None) == RESOURCE_EXHAUSTED:
            raise JobLimitExceeded(f"actor {meta.class_name} {meta.name!r} was not created: {error}") from error
        raise
    if reply.actor_id != meta.actor_id:
        from .actor import handle_from_record

        _abandon(engine, meta.actor_id, "another actor has its name")
        return handle_from_record(engine, reply)
    return handle


def _abandon(engine: Any, actor_id: bytes, why: str) -> None:
    """Lets go of what was held for an actor that never came to be."""
    from shoal_base.errors import Code

    engine.actor_update(actor_id, DEAD, bytes(16), bytes(16), "", 0, Code.ACTOR_DIED, why)


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


def _record_of(actor_class: ActorClass[Any], meta: ActorMeta, job_id: bytes, detached: bool) -> Any:
    from shoal_gcs.v1 import gcs_pb2

    options = actor_class._options
    record = gcs_pb2.Actor(
        actor_id=meta.actor_id, job_id=job_id, name=meta.name, namespace=meta.namespace, class_name=meta.class_name, detached=detached,
        max_restarts=options.get("max_restarts") or 0, owner_worker_id=_state.worker_id, owner_node_id=_state.node_id,
        handle=meta.pickled() if meta.name else b"",
    )  # fmt: skip
    for name, units in _options.resources_of(options, 0).items():
        record.resources[name] = units
    return record


def _placement_of(options: dict[str, Any], scope: _runtime.Scope) -> Any:
    from shoal_gcs.v1 import gcs_pb2

    # Where num_cpus is not given, an actor takes one CPU to be placed and none while it lives.
    resources = _options.resources_of(options, 1)
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
    return isinstance(strategy, PlacementGroupSchedulingStrategy) or options.get("placement_group") not in (None, "default")


def _creation_extra(options: dict[str, Any], is_async: bool) -> bytes:
    """What the executor must know to serve the actor: how many calls at once, in which groups."""
    from shoal_raylet.v1 import raylet_pb2

    extra = raylet_pb2.TaskExtra(max_concurrency=concurrency_of(options, is_async), actor_name=options.get("name") or "", asynchronous=is_async)
    extra.out_of_order = bool(options.get("allow_out_of_order_execution"))
    extra.unrecorded = options.get("enable_task_events") is False
    extra.keep_arguments = options.get("lifetime") == "detached" and bool(options.get("max_restarts"))
    extra.checkpoint_every = options.get("checkpoint_every") or 0
    extra.checkpoint_every_s = options.get("checkpoint_every_s") or 0.0
    extra.checkpoint_path = options.get("checkpoint_path") or ""
    for group, limit in (options.get("concurrency_groups") or {}).items():
        extra.concurrency_groups[group] = limit
    return bytes(extra.SerializeToString(deterministic=True))
