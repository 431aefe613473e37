"""The cluster's records as JSON, with the field names of Ray's state API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_base.resources import from_units
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_objectstore.v1 import objectstore_pb2 as store
from shoal_raylet.v1 import raylet_pb2 as raylet

Row = dict[str, Any]
_ACTOR_STATES = {gcs.ACTOR_PENDING: "PENDING_CREATION", gcs.ACTOR_ALIVE: "ALIVE", gcs.ACTOR_RESTARTING: "RESTARTING", gcs.ACTOR_DEAD: "DEAD"}
_GROUP_STATES = {gcs.PG_PENDING: "PENDING", gcs.PG_CREATED: "CREATED", gcs.PG_REMOVED: "REMOVED", gcs.PG_RESCHEDULING: "RESCHEDULING"}


def hex_or_none(value: bytes) -> str | None:
    return value.hex() if any(value) else None


def amounts(units: Mapping[str, int]) -> dict[str, float]:
    return {name: from_units(count) for name, count in sorted(units.items())}


def node(record: gcs.Node) -> Row:
    return {
        "node_id": record.node_id.hex(), "node_ip": record.address.rpartition(":")[0].strip("[]"), "node_address": record.address, "node_name": record.name,
        "hostname": record.hostname, "is_head_node": record.is_head, "state": "ALIVE" if record.alive else "DEAD",
        "state_message": record.death_cause or ("draining" if record.draining else None), "draining": record.draining,
        "resources_total": amounts(record.resources), "resources_available": amounts(record.available), "labels": dict(record.labels),
        "start_time_ms": record.start_ms, "end_time_ms": record.end_ms or None, "pid": record.pid, "queued_leases": record.queued_leases,
        "version": record.version,
    }  # fmt: skip


def actor(record: gcs.Actor) -> Row:
    return {
        "actor_id": record.actor_id.hex(), "class_name": record.class_name, "state": _ACTOR_STATES.get(record.state, str(record.state)),
        "job_id": hex_or_none(record.job_id), "name": record.name or None, "ray_namespace": record.namespace, "node_id": hex_or_none(record.node_id),
        "worker_id": hex_or_none(record.worker_id), "pid": record.pid or None, "is_detached": record.detached, "num_restarts": record.restarts,
        "max_restarts": record.max_restarts, "required_resources": amounts(record.resources), "death_cause": record.death_cause or None,
        "pending_reason": record.pending_reason or None, "start_time_ms": record.start_ms or None, "end_time_ms": record.end_ms or None,
    }  # fmt: skip


def job(record: gcs.Job) -> Row:
    return {
        "job_id": record.job_id.hex(), "type": "DRIVER", "status": "SUCCEEDED" if record.finished else "RUNNING", "entrypoint": record.entrypoint,
        "namespace": record.namespace, "start_time": record.start_ms, "end_time": record.end_ms or None,
        "driver_info": {"id": hex_or_none(record.driver_worker_id), "node_id": hex_or_none(record.driver_node_id), "pid": record.driver_pid},
    }  # fmt: skip


def running_task(worker_info: raylet.WorkerInfo, on: gcs.Node) -> Row:
    """From the control page: what has not been reported, because it has not ended."""
    return {
        "task_id": worker_info.task_id.hex(), "attempt_number": 0, "name": worker_info.task_name, "state": "RUNNING", "job_id": hex_or_none(worker_info.job_id),
        "actor_id": hex_or_none(worker_info.actor_id), "type": "ACTOR_TASK" if any(worker_info.actor_id) else "NORMAL_TASK", "node_id": on.node_id.hex(),
        "worker_id": worker_info.worker_id.hex(), "worker_pid": worker_info.pid, "error_message": None, "start_time_ms": None, "end_time_ms": None,
    }  # fmt: skip


def pending_task(reason: raylet.PendingReason, on: gcs.Node) -> Row:
    """One row for each scheduling class that waits: how many, and why."""
    return {
        "task_id": None, "attempt_number": 0, "name": reason.name, "state": "PENDING_NODE_ASSIGNMENT", "job_id": None, "actor_id": None,
        "type": "NORMAL_TASK", "node_id": on.node_id.hex(), "worker_id": hex_or_none(reason.client_worker_id), "worker_pid": None,
        "error_message": f"{reason.count} wait since {reason.waited_s:.1f} s: {reason.reason}", "start_time_ms": None, "end_time_ms": None,
    }  # fmt: skip


_STAGES = {raylet.TASK_SILENT: "SILENT", raylet.TASK_WAITS_FOR_ARGUMENTS: "PENDING_ARGS_AVAIL", raylet.TASK_QUEUED: "PENDING_NODE_ASSIGNMENT",
           raylet.TASK_PUT_OFF: "PUT_OFF", raylet.TASK_SENT: "SUBMITTED_TO_WORKER"}  # fmt: skip


def waiting_task(told: raylet.TaskWaitsReply, task_id: bytes, on: gcs.Node) -> Row:
    """One task, as the process tells that has submitted it. `wish`: of what it waits for at its node, when it waits for a worker."""
    wish = told.wish
    return {
        "task_id": task_id.hex(), "name": told.name, "stage": _STAGES[told.stage], "attempt_number": told.attempt, "node_id": on.node_id.hex(),
        "submitter_id": told.submitter_id.hex(), "submitter_pid": told.submitter_pid, "driver": told.driver, "missing": told.missing,
        "arguments": [
            {"object_id": a.object_id.hex(), "owner_id": a.owner_worker_id.hex(), "owner_node_id": a.owner_node_id.hex()} for a in told.arguments
        ],
        "ahead": told.ahead, "leases": told.leases, "due_s": told.due_s, "to_worker_id": hex_or_none(told.worker_id), "to_node_id": hex_or_none(told.node_id),
        "actor_id": hex_or_none(told.actor_id),
        "wish": {
            "count": wish.count, "reason": wish.reason, "resources": amounts(wish.resources), "placement_group_id": hex_or_none(wish.placement_group_id),
            "starting": wish.starting, "asked_node_ids": [node_id.hex() for node_id in wish.asked_node_ids], "runtime_env": wish.runtime_env,
        } if told.HasField("wish") else None,
    }  # fmt: skip


def worker(record: raylet.WorkerInfo, on: gcs.Node) -> Row:
    return {
        "worker_id": record.worker_id.hex(), "worker_type": "DRIVER" if record.driver else "WORKER", "is_alive": True, "state": record.state,
        "node_id": on.node_id.hex(), "ip": on.address.rpartition(":")[0], "pid": record.pid, "job_id": hex_or_none(record.job_id),
        "actor_id": hex_or_none(record.actor_id),
        "task_id": hex_or_none(record.task_id), "task_name": record.task_name or None, "tasks_started": record.started, "blocked_s": round(record.blocked_s, 3),
        "resources": amounts(record.resources), "memory_bytes": record.memory_bytes, "memory_limit_bytes": record.memory_limit_bytes or None,
    }  # fmt: skip


def group(record: gcs.PlacementGroup) -> Row:
    return {
        "placement_group_id": record.placement_group_id.hex(), "name": record.name or None, "state": _GROUP_STATES.get(record.state, str(record.state)),
        "strategy": record.strategy, "creator_job_id": hex_or_none(record.job_id), "is_detached": record.detached,
        "pending_reason": record.pending_reason or None,
        "bundles": [{"bundle_index": b.index, "node_id": hex_or_none(b.node_id), "resources": amounts(b.resources)} for b in record.bundles],
    }  # fmt: skip


def stored_object(record: store.ObjectRecord, on: gcs.Node) -> Row:
    return {
        "object_id": f"{on.node_id.hex()[:12]}:{record.slot}:{record.generation}", "node_id": on.node_id.hex(), "slot": record.slot,
        "generation": record.generation, "object_size": record.size_bytes, "state": record.state, "pins": record.pins, "creator": record.creator,
    }  # fmt: skip


def node_memory(record: raylet.StateReply, on: gcs.Node) -> Row:
    workers = [worker for worker in record.workers if not worker.driver]
    return {
        "node_id": on.node_id.hex(), "node_name": on.name, "node_address": on.address, "used_bytes": record.memory_used_bytes,
        "total_bytes": record.memory_total_bytes, "workers": len(workers), "workers_bytes": sum(worker.memory_bytes for worker in workers),
        "kills": record.memory_kills,
    }  # fmt: skip


def store_stats(record: store.StatsReply, on: gcs.Node) -> Row:
    row = {"node_id": on.node_id.hex(), "node_name": on.name, "node_address": on.address}
    row.update({field.name: getattr(record, field.name) for field in record.DESCRIPTOR.fields})
    return row
