"""Actors that the GCS placed here: started once for each incarnation, whoever asks twice."""

from __future__ import annotations

from shoal_base.errors import Code
from shoal_base.resources import show

from . import effects as do
from . import events as on
from . import manning
from .core import Core
from .leases import ActorStart
from .v1 import raylet_pb2 as pb


def on_requested(core: Core, event: on.ActorRequested, now: float) -> None:
    known = core.actors.get(event.actor_id)
    if known is not None and known.incarnation == event.incarnation:
        _join(core, known, event.request)
        return
    if known is not None and known.incarnation > event.incarnation:
        why = f"incarnation {known.incarnation} of this actor runs here already"
        core.emit(do.AnswerActor(event.request, pb.WORKER_DIED, reason=why, code=Code.FENCED))
        return
    if known is not None:
        cancel_actor(core, event.actor_id, Code.FENCED, "a later incarnation of the actor was started", force=True)
    why = _impossible(core, event)
    if why:
        core.emit(do.AnswerActor(event.request, pb.NO_RESOURCES, reason=why))
        return
    start = ActorStart(
        event.actor_id, event.incarnation, event.creation_task, event.spec, event.held, event.owner, event.owner_node, event.detached, event.name,
        now, [event.request],
    )  # fmt: skip
    core.actors[event.actor_id] = start
    core.waiting_actors.append(start)
    core.dirty = True


def _join(core: Core, start: ActorStart, request: int) -> None:
    if start.alive and start.worker is not None:
        core.emit(do.AnswerActor(request, pb.STARTED, start.worker.id, start.worker.pid))
    else:
        start.requests.append(request)


def _impossible(core: Core, event: on.ActorRequested) -> str:
    spec = event.spec
    if core.draining:
        return f"the node is draining: {core.draining}"
    if spec.group:
        pools = core.bundles.pools(spec.group, spec.bundle_index)
        return "" if pools else f"no committed bundle {spec.bundle_index} of placement group {spec.group.hex()[:12]} is here"
    if not core.pool.could(spec.resources) or not core.pool.could(event.held):
        return f"it needs {show({**spec.resources, **event.held})}; this node has {show(core.pool.total)}"
    return ""


def end_waits(core: Core, now: float) -> None:
    """What found no room in time is told so: the GCS may know a better node."""
    for start in list(core.waiting_actors):
        if now - start.since >= core.settings.actor_wait_s:
            core.waiting_actors.remove(start)
            core.actors.pop(start.actor_id, None)
            why = f"busy: it needs {show(start.held)}; this node has {show(core.available())} free of {show(core.pool.total)}"
            for request in start.requests:
                core.emit(do.AnswerActor(request, pb.NO_RESOURCES, reason=why))


def on_created(core: Core, event: on.ActorCreated, now: float) -> None:
    start = core.actors.get(event.actor_id)
    if start is None or start.worker is None or start.worker.id != event.worker_id or start.alive:
        return
    worker, requests = start.worker, start.requests
    start.requests = []
    if event.ok:
        start.alive = True
        start.creation_task = b""  # a restart brings its own
        for request in requests:
            core.emit(do.AnswerActor(request, pb.STARTED, worker.id, worker.pid))
        return
    del core.actors[event.actor_id]
    for request in requests:
        core.emit(do.AnswerActor(request, pb.INIT_RAISED, worker.id, worker.pid, error=event.error, code=Code.INIT_RAISED, reason="its __init__ raised"))
    manning.end_worker(core, worker, Code.INIT_RAISED, "the actor's __init__ raised", force=True)


def on_kill_requested(core: Core, event: on.KillRequested, now: float) -> None:
    code = Code.KILLED_BY_USER if event.force else Code.WORKER_EXITED
    start = core.actors.get(event.actor_id)
    if event.migrate and start is not None and start.worker is not None:
        start.worker.migrating = True
    if event.actor_id and (cancel_actor(core, event.actor_id, code, event.reason, force=event.force) or not event.worker_id):
        return
    worker = core.workers.by_id.get(event.worker_id)
    if worker is not None:
        manning.end_worker(core, worker, code, event.reason, kill=event.force, patient=not event.force)


def cancel_actor(core: Core, actor_id: bytes, code: int, reason: str, *, force: bool) -> bool:
    """Ends it wherever it stands. False: it is not here."""
    start = core.actors.get(actor_id)
    if start is None:
        return False
    if start.worker is not None:
        manning.end_worker(core, start.worker, code, reason, kill=force, patient=not force)
        return True
    del core.actors[actor_id]
    if start in core.waiting_actors:
        core.waiting_actors.remove(start)
    core.drop_placed(lambda placed: placed.actor is start)
    for request in start.requests:
        core.emit(do.AnswerActor(request, pb.WORKER_DIED, reason=reason, code=code))
    return True
