"""What the raylet says of itself: state, pending reasons, metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shoal_base.metrics import Registry
from shoal_base.resources import from_units

from .leases import Wish
from .usage import anonymous_bytes
from .v1 import raylet_pb2 as pb
from .workers import Phase, Worker

if TYPE_CHECKING:
    from .server import Raylet
    from .sessions import Session


def pending_reason(raylet: Raylet, wish: Wish) -> pb.PendingReason:
    return pb.PendingReason(
        class_id=wish.class_id, name=wish.spec.name, count=max(0, wish.open), reason=raylet.scheduler.explain(wish), infeasible=wish.infeasible_since >= 0,
        waited_s=max(0.0, raylet.loop.time() - wish.since), client_worker_id=wish.client, resources=wish.spec.resources, placement_group_id=wish.spec.group,
        starting=wish.placed,
    )  # fmt: skip


def pending_reasons(raylet: Raylet, client: bytes) -> list[pb.PendingReason]:
    """Of one client, or of all when it is empty."""
    return [pending_reason(raylet, wish) for wish in raylet.scheduler.pending() if not client or wish.client == client]


def state_reply(raylet: Raylet) -> pb.StateReply:
    scheduler = raylet.scheduler
    reply = pb.StateReply(
        resources=raylet.config.resources, available=scheduler.available(), pending=pending_reasons(raylet, b""), draining=bool(scheduler.draining),
        memory_kills=sum(raylet.memory.kills.values()), gcs_silent_ms=int(raylet.heartbeat.silent_s() * 1000) if raylet.heartbeat else 0,
    )  # fmt: skip
    usage = raylet.memory.usage()
    if usage is not None:
        reply.memory_used_bytes, reply.memory_total_bytes = usage.used, usage.total
    now_ns = time.monotonic_ns()
    for worker in scheduler.workers():
        reply.workers.append(_worker(raylet, worker, now_ns))
    for session in raylet.sessions.values():
        if session.is_driver:
            reply.workers.append(_driver(raylet, session, now_ns))
    return reply


def _worker(raylet: Raylet, worker: Worker, now_ns: int) -> pb.WorkerInfo:
    info = pb.WorkerInfo(
        worker_id=worker.id, pid=worker.pid, job_id=worker.job, state=worker.phase.value, memory_bytes=raylet.memory.held(worker.id, worker.pid),
        memory_limit_bytes=raylet.memory.limit_of(worker.id),
    )  # fmt: skip
    if worker.actor is not None:
        info.actor_id = worker.actor.actor_id
    if worker.lease is not None:
        info.lease_id = worker.lease.id
        for name, units in worker.lease.allocation.resources.items():
            info.resources[name] = units
    session = raylet.sessions.get(worker.id)
    if session is not None:
        _from_record(raylet, session, info, now_ns)
    return info


def _driver(raylet: Raylet, session: Session, now_ns: int) -> pb.WorkerInfo:
    info = pb.WorkerInfo(
        worker_id=session.worker_id, pid=session.pid, job_id=session.job, driver=True, state="DRIVER", memory_bytes=anonymous_bytes(session.pid)
    )
    _from_record(raylet, session, info, now_ns)
    return info


def _from_record(raylet: Raylet, session: Session, info: pb.WorkerInfo, now_ns: int) -> None:
    record = raylet.control.read(session.record)
    info.started = record.started
    if any(record.task_id):
        info.task_id, info.task_name = record.task_id, record.task_name
    if record.blocked_since_ns:
        info.blocked_s = max(0.0, (now_ns - record.blocked_since_ns) / 1e9)


def metrics_text(raylet: Raylet) -> str:
    """Read when asked, so that nothing is counted on the hot path."""
    registry = Registry()
    core = raylet.scheduler.core
    node = raylet.node_id.hex()
    workers = registry.gauge("shoal_raylet_workers", "Worker processes, by phase", ["node", "phase"])
    for phase in Phase:
        count = len(core.workers.starting) if phase is Phase.STARTING else sum(worker.phase is phase for worker in core.workers)
        workers.set(count, node=node, phase=phase.value)
    for name, doc, amounts in (
        ("shoal_node_resources_total", "What the node has", core.pool.total),
        ("shoal_node_resources_available", "What of it is free", core.available()),
    ):
        gauge = registry.gauge(name, doc, ["node", "resource"])
        for resource, units in amounts.items():
            gauge.set(from_units(units), node=node, resource=resource)
    kills = registry.gauge("shoal_raylet_memory_kills_total", "Workers ended for want of memory, by reason", ["node", "reason"])
    for reason, count in raylet.memory.kills.items():
        kills.set(count, node=node, reason=reason)
    usage = raylet.memory.usage()
    held = sum(raylet.memory.held(worker.id, worker.pid) for worker in core.workers)
    for name, doc, value in (
        ("shoal_node_memory_used_bytes", "In use on the machine, or in the control group that binds first", usage.used if usage else 0),
        ("shoal_node_memory_total_bytes", "What that has", usage.total if usage else 0),
        ("shoal_raylet_workers_memory_bytes", "Held by workers, without the shared arena", held),
        ("shoal_raylet_leases", "Leases that live, actors included", len(core.leases)),
        ("shoal_raylet_leases_granted_total", "Leases granted since the start", core.count("lease")),
        ("shoal_raylet_forks_total", "Workers started", core.count("fork")),
        ("shoal_raylet_remote_requests_total", "Leases asked of other nodes", core.count("request")),
        ("shoal_raylet_pending", "Workers wished and not granted", raylet.scheduler.queued_leases()),
        ("shoal_raylet_blocked_workers", "Workers that lend their CPUs", len(core.blocked)),
        ("shoal_raylet_clients", "Connected workers and drivers", len(raylet.sessions)),
        ("shoal_raylet_zygote_restarts_total", "Zygotes that ended", raylet.pool.restarts),
        ("shoal_raylet_gcs_silent_seconds", "Since the control store answered", raylet.heartbeat.silent_s() if raylet.heartbeat else 0.0),
    ):
        registry.gauge(name, doc, ["node"]).set(value, node=node)
    return registry.render()
