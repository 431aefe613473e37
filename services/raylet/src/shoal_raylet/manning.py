"""Who works: idle workers, forks, ends. A placed unit gets a worker here."""

from __future__ import annotations

from collections import deque

from shoal_base.errors import Code

from . import effects as do
from . import events as on
from .core import Core
from .leases import Placed
from .v1 import raylet_pb2 as pb
from .workers import Phase, Worker

# Of ends that this node brings about: what ran there may be tried again, and an actor restarts, as after a crash.
_FAULTS = (Code.OUT_OF_MEMORY, Code.MEMORY_LIMIT)


def task_workers(core: Core) -> int:
    workers = core.workers
    return workers.idle_count + workers.leased_count + max(0, len(workers.starting) - core.unmanned_actors)


def can_man(core: Core, job: bytes, environment: str, *, actor: bool = False) -> bool:
    """Whether a worker is there, is coming unclaimed, or may be started. May end an idle worker of another kind to make room."""
    workers = core.workers
    if workers.find_idle(job, environment) is not None:
        return True
    if workers.starting_with(environment) > len(core.unmanned.get(environment, ())):
        return True
    processes = len(workers.by_id) + len(workers.starting)
    if processes < core.settings.process_limit and (actor or task_workers(core) < core.worker_limit):
        return True
    idle = workers.oldest_idle()
    if idle is None:
        return False
    end_worker(core, idle, Code.WORKER_EXITED, "the node's worker limit is reached, and another job or environment needs a worker", patient=True)
    return True


def man(core: Core, placed: Placed, now: float) -> None:
    """A worker at once, or the next one that comes."""
    worker = core.workers.find_idle(placed.spec.job, placed.spec.environment)
    if worker is not None:
        _assign(core, placed, worker, now)
        return
    core.unmanned.setdefault(placed.spec.environment, deque()).append(placed)
    if placed.wish is None:
        core.unmanned_actors += 1
    start_missing(core, placed.spec.environment, now)


def start_missing(core: Core, environment: str, now: float) -> None:
    for _ in range(len(core.unmanned.get(environment, ())) - core.workers.starting_with(environment)):
        fork(core, environment, now)


def fork(core: Core, environment: str, now: float) -> None:
    number = core.number("fork")
    core.workers.start(Worker(number, environment, now))
    core.emit(do.ForkWorker(number, environment))


def prestart(core: Core, now: float) -> None:
    """Keeps a few workers ready, so that the first task finds one."""
    if core.draining:
        return
    have = core.workers.idle_count + core.workers.leased_count + len(core.workers.starting)
    for _ in range(core.prestart - have):
        fork(core, "", now)


def worker_free(core: Core, worker: Worker, now: float) -> None:
    """It may take work: the first unit that waits for one like it, else it idles."""
    waiting = core.unmanned.get(worker.environment, ())
    for placed in waiting:
        if worker.job in (b"", placed.spec.job):
            waiting.remove(placed)  # type: ignore[union-attr]
            if not waiting:
                del core.unmanned[worker.environment]
            if placed.wish is None:
                core.unmanned_actors -= 1
            _assign(core, placed, worker, now)
            return
    core.workers.set_phase(worker, Phase.IDLE, now)
    core.freed()


def _assign(core: Core, placed: Placed, worker: Worker, now: float) -> None:
    if placed.actor is not None:
        _begin_actor(core, placed, worker, now)
        return
    wish = placed.wish
    assert wish is not None
    core.workers.set_phase(worker, Phase.LEASED)
    worker.job = placed.spec.job
    lease = core.add_lease(placed, worker, wish.client, wish.client_node, now)
    _begin(core, placed, worker, lease.id, wish.client, wish.client_node)
    wish.placed -= 1
    wish.want -= 1
    wish.since = now
    if wish.request:
        core.guests.pop(wish.request, None)
        core.emit(do.AnswerLease(wish.request, lease.id, worker.id, core.node_id))
    else:
        core.emit(do.GrantLease(wish.client, wish.class_id, lease.id, worker.id, core.node_id, spread_over=core.spread_over(wish)))


def _begin(core: Core, placed: Placed, worker: Worker, lease_id: int, owner: bytes, owner_node: bytes, incarnation: int = 0) -> None:
    resources, gpus = placed.allocation.resources, tuple(sorted(placed.allocation.gpus))
    core.emit(do.BeginLease(worker.id, lease_id, placed.spec, owner, owner_node, resources, gpus, incarnation))


def _begin_actor(core: Core, placed: Placed, worker: Worker, now: float) -> None:
    start = placed.actor
    assert start is not None
    core.workers.set_phase(worker, Phase.ACTOR)
    worker.job = placed.spec.job
    worker.actor = start
    start.worker = worker
    core.add_lease(placed, worker, b"", b"", now)
    # A creation's Task is made before anybody knows the lease, and names lease 0.
    _begin(core, placed, worker, 0, start.owner, start.owner_node, start.incarnation)
    core.emit(do.CreateActorOn(worker.id, start.actor_id, start.creation_task))


# -- ends -------------------------------------------------------------------------------------------


def end_worker(core: Core, worker: Worker, code: int, reason: str, *, force: bool = False, kill: bool = False, patient: bool = False) -> None:
    """Asks it to end, or kills it. Its lease lives on until it is dead: its resources are in use. `patient`: it may finish what it does."""
    if worker.phase is Phase.ENDING and not kill and not (worker.patient and not patient):
        return
    worker.patient = patient
    core.workers.set_phase(worker, Phase.ENDING)
    worker.ending_code, worker.ending_reason = int(code), reason
    core.emit(do.KillWorker(worker.id, reason) if kill else do.ExitWorker(worker.id, force, reason, patient))


def reap_idle(core: Core, now: float) -> None:
    if core.finished_jobs:
        _reap_finished(core, now)
    extra = core.workers.idle_count - max(core.cpus, core.prestart)
    if extra <= 0:
        return
    for worker in [worker for worker in core.workers.idle() if not worker.owns][:extra]:
        if now - worker.idle_since < core.settings.idle_grace_s:
            break
        # Patient: it may have come to own objects that others use, and then stays until they are gone.
        end_worker(core, worker, Code.WORKER_EXITED, f"idle for {now - worker.idle_since:.1f} s; the node keeps {core.cpus} idle workers", patient=True)


def _reap_finished(core: Core, now: float) -> None:
    """Workers that came free after their job's end: of a late lease, or of a detached actor that may want them again in a moment."""
    for worker in core.workers.idle():
        if worker.job in core.finished_jobs and now - worker.idle_since >= core.settings.finished_grace_s:
            end_worker(core, worker, Code.JOB_FINISHED, "its job has finished", force=True)


def retain(core: Core, worker: Worker, reason: str) -> None:
    """It works no more, and lives on without resources until nobody holds objects of it."""
    if worker.lease is not None:
        core.end_lease(worker.lease)
    end_worker(core, worker, Code.WORKER_EXITED, reason, patient=True)
    core.freed()


def on_ownership_changed(core: Core, event: on.OwnershipChanged, now: float) -> None:
    worker = core.workers.by_id.get(event.worker_id)
    if worker is None:
        return
    worker.owns, worker.leaving = event.objects, event.leaving
    if worker.leaving and worker.migrating:
        # It would stay for its objects, which go with the node anyway, while its actor waits to start elsewhere.
        end_worker(core, worker, Code.WORKER_EXITED, worker.ending_reason, kill=True)
        return
    if worker.leaving and worker.phase is Phase.IDLE:
        retain(core, worker, "it had ended its work, and owned objects that others held")


def on_registered(core: Core, event: on.WorkerRegistered, now: float) -> None:
    worker = core.workers.started(event.fork)
    if worker is None:  # given up meanwhile
        core.emit(do.KillWorker(event.worker_id, "it registered after it had been given up"))
        return
    core.fork_failures.pop(worker.environment, None)
    worker.id, worker.pid = event.worker_id, event.pid
    core.workers.by_id[worker.id] = worker
    worker_free(core, worker, now)


def on_fork_failed(core: Core, event: on.ForkFailed, now: float) -> None:
    worker = core.workers.started(event.fork)
    if worker is None:
        return
    environment = worker.environment
    failures = core.fork_failures.get(environment, 0) + 1
    core.fork_failures[environment] = failures
    waiting = core.unmanned.get(environment)
    if failures >= core.settings.fork_tries and waiting:
        core.fork_failures[environment] = 0
        _give_up(core, waiting[0], f"{failures} workers in a row ended before they could take work: {event.why}", now)
    start_missing(core, environment, now)
    core.freed()


def _give_up(core: Core, placed: Placed, why: str, now: float) -> None:
    if placed.wish is not None:
        core.refuse(placed.wish, Code.ENVIRONMENT_FAILED, why, now)
        return
    start = placed.actor
    assert start is not None
    core.drop_placed(lambda other: other.actor is start)
    core.actors.pop(start.actor_id, None)
    for request in start.requests:
        core.emit(do.AnswerActor(request, pb.ENVIRONMENT_FAILED, reason=why, code=Code.ENVIRONMENT_FAILED))


def on_memory_exceeded(core: Core, event: on.MemoryExceeded, now: float) -> None:
    worker = core.workers.by_id.get(event.worker_id)
    if worker is not None and worker.phase is not Phase.ENDING:
        end_worker(core, worker, event.code, event.cause, kill=True)


def on_died(core: Core, event: on.WorkerDied, now: float) -> None:
    worker = core.workers.by_id.get(event.worker_id)
    if worker is None:
        return
    code, cause, intended = event.code, event.cause, False
    if worker.phase is Phase.ENDING:
        code, cause = worker.ending_code, worker.ending_reason
        intended = code not in _FAULTS
    core.workers.remove(worker)
    if worker.lease is not None:
        core.end_lease(worker.lease)
    actors = _end_actor(core, worker, code, cause)
    core.emit(do.TellWorkerDied(worker.id, worker.pid, event.started_task, code, cause, actors, intended, worker.migrating))
    core.freed()


def _end_actor(core: Core, worker: Worker, code: int, cause: str) -> list[bytes]:
    start, worker.actor = worker.actor, None
    if start is None or core.actors.get(start.actor_id) is not start:
        return []
    del core.actors[start.actor_id]
    if start.alive:
        return [start.actor_id]
    # A creation that never answered is told by its own reply alone: the GCS would count the death twice.
    for request in start.requests:
        core.emit(do.AnswerActor(request, pb.WORKER_DIED, worker.id, worker.pid, reason=cause, code=code))
    return []


def on_blocked(core: Core, event: on.WorkerBlocked, now: float) -> None:
    worker = core.workers.by_id.get(event.worker_id)
    if worker is None or worker.lease is None or worker.blocked:
        return
    worker.blocked = True
    core.blocked.add(worker)
    if worker.lease.allocation.lend_cpu():
        core.freed()


def on_unblocked(core: Core, event: on.WorkerUnblocked, now: float) -> None:
    worker = core.workers.by_id.get(event.worker_id)
    if worker is None or not worker.blocked:
        return
    worker.blocked = False
    core.blocked.discard(worker)
    if worker.lease is not None:
        worker.lease.allocation.resume_cpu()
