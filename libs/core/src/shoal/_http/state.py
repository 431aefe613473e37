"""The state API: lists with filters, one record, summaries, the cluster's status."""

from __future__ import annotations

import asyncio
import fnmatch
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from shoal_base import __version__
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_objectstore.v1 import objectstore_pb2 as store
from shoal_raylet.v1 import raylet_pb2 as raylet

from . import history, records
from .cluster import RAYLET, STORE, ClusterClient
from .records import Row
from .why import MAX_CHAIN, Known, explain, task_of

# Limits: of one answer, and of what is asked of the services for it.
DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_TIMELINE = 100_000

Listed = tuple[list[Row], list[str]]


class BadRequest(ValueError):
    """A question that cannot be answered as it was put."""


async def nodes(cluster: ClusterClient) -> Listed:
    return [records.node(record) for record in await cluster.nodes()], []


async def actors(cluster: ClusterClient) -> Listed:
    reply = await cluster.ask_gcs("ListActors", gcs.ListActorsRequest(all_namespaces=True, limit=MAX_LIMIT), gcs.ActorList)
    return [records.actor(record) for record in reply.actors], []


async def jobs(cluster: ClusterClient) -> Listed:
    return [records.job(record) for record in (await cluster.ask_gcs("ListJobs", gcs.Empty(), gcs.JobList)).jobs], []


async def placement_groups(cluster: ClusterClient) -> Listed:
    reply = await cluster.ask_gcs("ListPlacementGroups", gcs.Empty(), gcs.PlacementGroupList)
    return [records.group(record) for record in reply.groups], []


async def workers(cluster: ClusterClient) -> Listed:
    answers, warnings = await cluster.ask_all(RAYLET + "State", raylet.Empty(), raylet.StateReply)
    return [records.worker(info, node) for node, reply in answers for info in reply.workers], warnings


async def tasks(cluster: ClusterClient) -> Listed:
    """What waits (by class, with the reason), what runs, what has ended (as far as it was kept)."""
    answers, warnings = await cluster.ask_all(RAYLET + "State", raylet.Empty(), raylet.StateReply)
    rows = [records.pending_task(reason, node) for node, reply in answers for reason in reply.pending]
    running = [records.running_task(info, node) for node, reply in answers for info in reply.workers if any(info.task_id)]
    ended, more = await task_history(cluster, MAX_LIMIT)
    return rows + running + [history.row(task) for task in ended], warnings + more


async def task_history(cluster: ClusterClient, limit: int) -> tuple[list[history.Ended], list[str]]:
    """The last tasks that have ended on living nodes, the newest first."""
    answers, warnings = await cluster.ask_all(RAYLET + "TaskHistory", raylet.TaskHistoryRequest(limit=limit), raylet.TaskHistoryReply)
    return history.newest((task for node, reply in answers for task in history.ended(node, reply)), limit), warnings


async def timeline(cluster: ClusterClient) -> dict[str, Any]:
    """What `shoal timeline` writes."""
    ended, warnings = await task_history(cluster, MAX_TIMELINE)
    return {"result": history.chrome_trace(ended), "warnings": warnings}


async def objects(cluster: ClusterClient) -> Listed:
    answers, warnings = await cluster.ask_all(STORE + "List", store.ListRequest(limit=MAX_LIMIT), store.ObjectList)
    return [records.stored_object(record, node) for node, reply in answers for record in reply.objects], warnings


RESOURCES: dict[str, Callable[[ClusterClient], Awaitable[Listed]]] = {
    "nodes": nodes, "actors": actors, "jobs": jobs, "placement_groups": placement_groups, "workers": workers, "tasks": tasks, "objects": objects,
}  # fmt: skip
_ID_FIELDS = {"nodes": "node_id", "actors": "actor_id", "jobs": "job_id", "placement_groups": "placement_group_id", "workers": "worker_id", "tasks": "task_id",
              "objects": "object_id"}  # fmt: skip


def canonical(resource: str) -> str:
    """Raises BadRequest. "placement-groups", "actor" and "actors" all have a meaning."""
    name = resource.replace("-", "_")
    for candidate in (name, f"{name}s"):
        if candidate in RESOURCES:
            return candidate
    raise BadRequest(f"{resource!r} cannot be listed; there are: {', '.join(sorted(RESOURCES))}")


def parse_filter(text: str) -> tuple[str, bool, str]:
    """(field, equal, value).

    >>> parse_filter("state=ALIVE"), parse_filter("pid!=7")
    (('state', True, 'ALIVE'), ('pid', False, '7'))
    """
    for operator, equal in (("!=", False), ("=", True)):
        field, found, value = text.partition(operator)
        if found and field.strip():
            return field.strip(), equal, value.strip()
    raise BadRequest(f"filter {text!r}: field=value or field!=value is wanted")


def matches(row: Row, filters: list[tuple[str, bool, str]]) -> bool:
    for field, equal, value in filters:
        if field not in row:
            raise BadRequest(f"filter on {field!r}: the fields are {', '.join(sorted(row))}")
        shown = row[field]
        same = str(shown).lower() == value.lower() or (shown is None and value == "")
        if same is not equal:
            return False
    return True


async def listed(cluster: ClusterClient, resource: str, filters: list[str], limit: int) -> dict[str, Any]:
    if not 0 < limit <= MAX_LIMIT:
        raise BadRequest(f"limit={limit}: 1 to {MAX_LIMIT}")
    conditions = [parse_filter(text) for text in filters]
    rows, warnings = await RESOURCES[canonical(resource)](cluster)
    found = [row for row in rows if matches(row, conditions)]
    return {"result": found[:limit], "total": len(rows), "num_filtered": len(found), "truncated": len(found) > limit, "warnings": warnings}


async def one(cluster: ClusterClient, resource: str, wanted: str) -> Row | None:
    """The record whose id begins so. Raises BadRequest when several do."""
    name = canonical(resource)
    rows, _ = await RESOURCES[name](cluster)
    field = _ID_FIELDS[name]
    found = [row for row in rows if row[field] and row[field].startswith(wanted.lower())]
    exact = [row for row in found if row[field] == wanted.lower()]
    if len(exact or found) > 1:
        raise BadRequest(f"{len(found)} {name} have an id that begins with {wanted!r}: give more of it")
    chosen = exact or found
    return chosen[0] if chosen else None


async def summary(cluster: ClusterClient, resource: str) -> dict[str, Any]:
    """Counts by name and state."""
    name = canonical(resource)
    label = {"tasks": "name", "actors": "class_name", "objects": "node_id"}.get(name)
    if label is None:
        raise BadRequest(f"no summary of {name}; there are: tasks, actors, objects")
    rows, warnings = await RESOURCES[name](cluster)
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault(str(row[label]), Counter())[row["state"]] += 1
    counted = {key: dict(sorted(counts.items())) for key, counts in sorted(groups.items())}
    result: dict[str, Any] = {"summary": counted, "total": len(rows), "warnings": warnings}
    if name == "objects":
        result["total_size_bytes"] = sum(row["object_size"] for row in rows)
    return result


async def why(cluster: ClusterClient, wanted: str) -> dict[str, Any]:
    """What `shoal why` shows."""
    everyone = await cluster.nodes()
    (task_rows, warnings), (actor_rows, _), (group_rows, _), waiting = await asyncio.gather(
        tasks(cluster), actors(cluster), placement_groups(cluster), waiting_tasks(cluster, wanted, everyone)
    )
    known = Known(task_rows, actor_rows, group_rows, [records.node(node) for node in everyone])
    return {**explain(wanted, known, waiting), "warnings": warnings}


async def waiting_tasks(cluster: ClusterClient, wanted: str, everyone: list[gcs.Node]) -> list[Row]:
    """The task that has this id, or makes the object that has it, if it waits; then what it waits for, and so on."""
    found: list[Row] = []
    task_id = task_of(wanted)
    while task_id and len(found) < MAX_CHAIN:
        answers, _ = await cluster.ask_all(RAYLET + "TaskWaits", raylet.TaskQuery(task_id=task_id), raylet.TaskWaitsReply, everyone)
        rows = [records.waiting_task(told, task_id, node) for node, told in answers if told.stage != raylet.TASK_UNKNOWN]
        if not rows:
            break
        found.append(rows[0])
        task_id = task_of(rows[0]["arguments"][0]["object_id"]) if rows[0]["arguments"] else b""
    return found


async def memory(cluster: ClusterClient) -> dict[str, Any]:
    """What `shoal memory` shows."""
    everyone = await cluster.nodes()
    (stats, warnings), (states, more) = await asyncio.gather(
        cluster.store_stats(everyone), cluster.ask_all(RAYLET + "State", raylet.Empty(), raylet.StateReply, everyone)
    )
    return {
        "stores": [records.store_stats(reply, node) for node, reply in stats], "nodes": [records.node_memory(reply, node) for node, reply in states],
        "processes": [records.worker(info, node) for node, reply in states for info in reply.workers],
        "warnings": list(dict.fromkeys(warnings + more)),
    }  # fmt: skip


async def status(cluster: ClusterClient) -> dict[str, Any]:
    """What `shoal status` shows."""
    info = await cluster.ask_gcs("Info", gcs.Empty(), gcs.InfoReply)
    everyone = await cluster.nodes()
    answers, warnings = await cluster.ask_all(RAYLET + "State", raylet.Empty(), raylet.StateReply, everyone)
    total: Counter[str] = Counter()
    available: Counter[str] = Counter()
    pending = []
    for _, reply in answers:
        total.update(dict(reply.resources))
        available.update(dict(reply.available))
        pending += [{"name": p.name, "count": p.count, "reason": p.reason, "infeasible": p.infeasible, "waited_s": round(p.waited_s, 1)} for p in reply.pending]
    return {
        "cluster_id": info.cluster_id.hex(), "gcs_epoch": info.gcs_epoch, "standby_heads": list(info.standbys),
        "version": info.version, "start_time_ms": info.start_ms, "storage": info.storage,
        "nodes": [records.node(record) for record in everyone], "resources_total": records.amounts(total), "resources_available": records.amounts(available),
        "pending": pending, "warnings": warnings,
    }  # fmt: skip


async def logs(cluster: ClusterClient, pattern: str, node_id: str) -> dict[str, Any]:
    """The log files of every node, or of those whose id begins with `node_id`."""
    chosen = [node for node in await cluster.nodes() if node.node_id.hex().startswith(node_id)]
    answers, warnings = await cluster.ask_all(RAYLET + "ListLogs", raylet.Empty(), raylet.LogList, chosen)
    files = [
        {"node_id": node.node_id.hex(), "node_address": node.address, "name": file.name, "size_bytes": file.size_bytes}
        for node, reply in answers
        for file in reply.files
        if fnmatch.fnmatch(file.name, pattern)
    ]
    return {"files": files, "warnings": warnings}


def version() -> dict[str, Any]:
    return {"version": __version__, "shoal_version": __version__, "api_version": "v0"}
