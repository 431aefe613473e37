"""What clients want, give back, and leave behind when they go."""

from __future__ import annotations

from shoal_base.errors import Code

from . import effects as do
from . import events as on
from . import manning, placing, way
from .actors import cancel_actor
from .core import Core
from .leases import Asked, Borrowed, Lease, Wish
from .workers import Phase

# Limit: scheduling classes that one client may name in its life.
MAX_CLASSES = 65_536
# Limit: finished jobs that are remembered, to end workers that come free late.
MAX_FINISHED_JOBS = 1000


def on_demanded(core: Core, event: on.LeaseDemanded, now: float) -> None:
    wishes = core.wishes.setdefault(event.client, {})
    wish = wishes.get(event.class_id)
    if wish is None:
        if event.spec is None:
            core.emit(do.RefuseLease(event.client, event.class_id, Code.BAD_FRAME, f"scheduling class {event.class_id} was never described"))
            return
        if len(wishes) >= MAX_CLASSES:
            why = f"this process has named {MAX_CLASSES} different scheduling classes, which is the limit: reuse .options(...) values"
            core.emit(do.RefuseLease(event.client, event.class_id, Code.LIMIT_REACHED, why))
            return
        wish = wishes[event.class_id] = Wish(event.client, event.class_id, event.spec)
    if event.want > 0 and _refused_at_once(core, wish):
        return
    wish.want = event.want
    if wish.open < 0 and wish.placed:
        core.drop_placed(lambda placed: placed.wish is wish, limit=-wish.open)
    core.enqueue(wish, now)


def _refused_at_once(core: Core, wish: Wish) -> bool:
    spec = wish.spec
    group = core.view.groups.get(spec.group) if spec.group else None
    if group is not None and group.removed:
        core.refuse(wish, Code.PLACEMENT_GROUP_REMOVED, f"{spec.wish()}: the placement group was removed", 0.0)
        return True
    if spec.affinity and not spec.soft and spec.affinity in core.view.dead:
        why = f"{spec.wish()}: that node is dead ({core.view.dead[spec.affinity]})"
        core.refuse(wish, Code.NODE_AFFINITY_FAILED, why, 0.0)
        return True
    return False


def on_returned(core: Core, event: on.LeaseReturned, now: float) -> None:
    if event.node_id and event.node_id != core.node_id:
        _forget_borrowed(core, event.node_id, event.lease_id, now)
        # Also what is not on record here: whoever had asked through this node did not wait for the grant. A return that is not due is ignored there.
        core.emit(do.ReturnRemoteLease(event.node_id, event.lease_id, event.discard, event.client_gone))
        return
    lease = core.leases.get(event.lease_id)
    if lease is not None and lease.wish is not None:
        give_back(core, lease, now, discard=event.discard, kill=event.client_gone and event.running)


def on_idle(core: Core, event: on.LeaseIdle, now: float) -> None:
    """One that was asked back is taken from a client that does not answer. Of one lent to another node the grant, or the return, may have been lost with
    a connection: that node is asked, and returns what it does not know of. It is asked again until something comes, or it is dead.
    """
    lease = core.leases.get(event.lease_id)
    if lease is None or lease.wish is None:
        return
    if lease.reclaimed or lease.client_node in core.view.dead:
        give_back(core, lease, now)
    elif lease.client_node not in (b"", core.node_id):
        core.emit(do.ReclaimLease(lease.client, lease.client_node, lease.id, core.node_id))


def give_back(core: Core, lease: Lease, now: float, *, discard: bool = False, kill: bool = False) -> None:
    worker = lease.worker
    if worker.phase is Phase.ENDING:
        return  # its lease ends with it
    if kill:
        manning.end_worker(core, worker, Code.OWNER_DIED, "the process that had submitted its task is gone", kill=True)
    elif worker.leaving or (discard and worker.owns):
        manning.retain(core, worker, "it was not to be used again (max_calls, or a broken connection), and owned objects that others held")
    elif discard:
        manning.end_worker(core, worker, Code.WORKER_EXITED, "its caller asked that it not be used again (max_calls, or a broken connection)")
    else:
        core.end_lease(lease)
        manning.worker_free(core, worker, now)


def _forget_borrowed(core: Core, node_id: bytes, lease_id: int, now: float) -> None:
    row = core.borrowed.pop((node_id, lease_id), None)
    if row is not None:
        row.wish.held -= 1
        way.came_back(core, row, now)


def on_client_gone(core: Core, event: on.ClientGone, now: float) -> None:
    for wish in core.wishes.pop(event.client, {}).values():
        withdraw(core, wish, now)
    _give_back_all(core, event.client, event.running, now)
    for node_id, lease_id in core.overtaken.pop(event.client, ()):
        core.emit(do.ReturnRemoteLease(node_id, lease_id, client_gone=True))
    for (node_id, lease_id), borrowed in list(core.borrowed.items()):
        if borrowed.wish.client == event.client:
            del core.borrowed[node_id, lease_id]
            core.emit(do.ReturnRemoteLease(node_id, lease_id, client_gone=True))


def _give_back_all(core: Core, client: bytes, running: frozenset[bytes], now: float) -> None:
    for lease_id in list(core.by_client.get(client, ())):
        lease = core.leases[lease_id]
        give_back(core, lease, now, kill=lease.worker.id in running)


def withdraw(core: Core, wish: Wish, now: float) -> None:
    wish.want = 0
    core.drop_placed(lambda placed: placed.wish is wish)
    core.enqueue(wish, now)


# -- other raylets ------------------------------------------------------------------------------------


def on_remote_requested(core: Core, event: on.RemoteLeaseRequested, now: float) -> None:
    wish = Wish(
        event.client, 0, event.spec, client_node=event.client_node, request=event.request, hops=event.hops, deadline=now + event.wait_s, want=1,
    )  # fmt: skip
    if core.draining:
        core.emit(do.AnswerLease(event.request, reason=f"the node is draining: {core.draining}"))
        return
    if event.client_node in core.view.dead:  # it was on its way when that was told, and nobody would end what begins now
        core.emit(do.AnswerLease(event.request, reason="the node of whoever asks is dead"))
        return
    core.guests[event.request] = wish
    core.enqueue(wish, now)


def end_guests(core: Core, now: float) -> None:
    """Answers those whose time is over; a node that asked goes on to the next one."""
    for wish in [wish for wish in core.guests.values() if wish.queued and wish.deadline <= now]:
        core.refuse(wish, 0, placing.explain(core, wish), now)


def on_remote_answered(core: Core, event: on.RemoteLeaseAnswered, now: float) -> None:
    asked = core.asked.pop(event.request, None)
    if asked is None:
        return
    wish, node_id = asked.wish, asked.node_id
    wish.asked -= 1
    core.view.answered(event.request)
    if event.free is not None:
        core.view.said(node_id, event.free, now + core.settings.word_s)
    if event.granted and (event.node_id, event.lease_id) in core.overtaken.get(wish.client, ()):
        core.overtaken[wish.client].remove((event.node_id, event.lease_id))
        core.emit(do.ReturnRemoteLease(event.node_id, event.lease_id))
        wish.refused_by[node_id] = now + core.settings.refused_pause_s
        core.dirty = True
    elif event.granted:
        _take_remote(core, asked, event, now)
    else:
        wish.refused_by[node_id] = now + core.settings.refused_pause_s
        wish.reason = event.reason or wish.reason
        wish.tried_view = -1
        core.dirty = True
    core.enqueue(wish, now)
    if wish.client in core.overtaken and not _asks_elsewhere(core, wish.client):
        for lender, lease_id in core.overtaken.pop(wish.client):  # their grants were lost
            core.emit(do.ReturnRemoteLease(lender, lease_id))


def _asks_elsewhere(core: Core, client: bytes) -> bool:
    return any(asked.wish.client == client for asked in core.asked.values())


def _take_remote(core: Core, asked: Asked, event: on.RemoteLeaseAnswered, now: float) -> None:
    wish = asked.wish
    wish.refused_by.pop(event.node_id, None)
    wish.seen = -1
    if wish.want <= 0:  # withdrawn meanwhile, or its client is gone
        core.emit(do.ReturnRemoteLease(event.node_id, event.lease_id))
        return
    wish.want -= 1
    wish.since = now
    if wish.request:
        core.guests.pop(wish.request, None)
        core.emit(do.AnswerLease(wish.request, event.lease_id, event.worker_id, event.node_id, event.address))
        return
    wish.held += 1
    core.borrowed[event.node_id, event.lease_id] = Borrowed(wish, event.worker_id, asked.at, asked.came_back)
    core.emit(do.GrantLease(wish.client, wish.class_id, event.lease_id, event.worker_id, event.node_id, event.address, core.spread_over(wish)))


def on_node_spoke(core: Core, event: on.NodeSpoke, now: float) -> None:
    core.view.said(event.node_id, event.free, now + core.settings.word_s)
    core.dirty = core.dirty or bool(core.queue)


def on_reclaim_passed_on(core: Core, event: on.ReclaimPassedOn, now: float) -> None:
    """Of one that is not on record the grant may still be on its way, from that node or passed on by a third. Returned now, its worker would be lent to another
    client while this one's task runs there; so it is returned when it comes, or when nothing can come any more.
    """
    if (event.node_id, event.lease_id) in core.borrowed:
        core.emit(do.ReclaimLease(event.client, b"", event.lease_id, event.node_id))
    elif _asks_elsewhere(core, event.client):
        core.overtaken.setdefault(event.client, set()).add((event.node_id, event.lease_id))
    else:
        core.emit(do.ReturnRemoteLease(event.node_id, event.lease_id))


def on_worker_died_elsewhere(core: Core, event: on.WorkerDiedElsewhere, now: float) -> None:
    """As a worker that was borrowed, and as a client: its own node gives back what it had, unless that word is lost on the way."""
    for key, borrowed in list(core.borrowed.items()):
        if borrowed.worker_id == event.worker_id:
            del core.borrowed[key]
            borrowed.wish.held -= 1
    for wish in [wish for wish in core.guests.values() if wish.client == event.worker_id]:
        core.refuse(wish, 0, "whoever asks has ended", now)
    _give_back_all(core, event.worker_id, event.running, now)


# -- jobs -----------------------------------------------------------------------------------------------


def on_job_finished(core: Core, event: on.JobFinished, now: float) -> None:
    """Everything of the job ends here, but detached actors."""
    core.finished_jobs[event.job] = None
    if len(core.finished_jobs) > MAX_FINISHED_JOBS:
        core.finished_jobs.popitem(last=False)
    for wishes in core.wishes.values():
        for wish in wishes.values():
            if wish.spec.job == event.job:
                withdraw(core, wish, now)
    for wish in [wish for wish in core.guests.values() if wish.spec.job == event.job]:
        core.refuse(wish, Code.JOB_FINISHED, "its job has finished", now)
    for start in [start for start in core.actors.values() if start.spec.job == event.job and not start.detached]:
        cancel_actor(core, start.actor_id, Code.JOB_FINISHED, "its job has finished", force=True)
    for worker in core.workers.of_job(event.job):
        if worker.actor is None or not worker.actor.detached:
            manning.end_worker(core, worker, Code.JOB_FINISHED, "its job has finished", force=True)
