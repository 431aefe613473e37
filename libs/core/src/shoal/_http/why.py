"""Why something waits: what the state API knows of one task, actor or placement group, in sentences."""

from __future__ import annotations

from typing import Any

from .records import Row

# Limits: of an answer's lines, and of what may be given to look for.
MAX_LINES = 50


def explain(wanted: str, tasks: list[Row], actors: list[Row], groups: list[Row]) -> dict[str, Any]:
    """{"found": whether anything has this id or name, "lines": what there is to say}.

    A task that waits is known by its name alone: its id stays with the process that submitted it until it starts.

    >>> explain("f", [{"task_id": None, "name": "f", "state": "PENDING_NODE_ASSIGNMENT", "error_message": "2 wait since 3.0 s: busy", "node_id": "ab"}], [], [])
    {'found': True, 'lines': ['task f on node ab: 2 wait since 3.0 s: busy']}
    """
    low = wanted.lower()
    lines = [_task(row) for row in tasks if wanted in (row["name"], row["name"].rpartition(".")[2]) or (row["task_id"] or "").startswith(low)]
    lines += [_actor(row) for row in actors if wanted in (row["name"], row["class_name"]) or row["actor_id"].startswith(low)]
    lines += [_group(row) for row in groups if row["name"] == wanted or row["placement_group_id"].startswith(low)]
    found = bool(lines)
    if not found:
        waiting = [_task(row) for row in tasks if row["task_id"] is None]
        lines = [f"{wanted} neither runs nor has ended, as far as is recorded: it waits for its arguments, or is one of these, or does not exist"]
        lines += waiting or ["nothing waits for a node"]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more"]
    return {"found": found, "lines": lines}


def _on(row: Row) -> str:
    return f" on node {row['node_id'][:12]}" if row.get("node_id") else ""


def _task(row: Row) -> str:
    if row["task_id"] is None:
        return f"task {row['name'] or '(no name)'}{_on(row)}: {row['error_message']}"
    what = f"task {row['name']} ({row['task_id']})"
    if row["state"] == "RUNNING":
        return f"{what} runs{_on(row)} in process {row['worker_pid']}: it does not wait for a node"
    return f"{what} has ended: {row['state']}" + (f": {row['error_message']}" if row["error_message"] else "")


def _actor(row: Row) -> str:
    what = f"actor {row['class_name']}{' ' + repr(row['name']) if row['name'] else ''} ({row['actor_id']}) is {row['state']}"
    reason = row["death_cause"] if row["state"] == "DEAD" else row["pending_reason"]
    return f"{what}{_on(row)}" + (f": {reason}" if reason else "")


def _group(row: Row) -> str:
    what = f"placement group {row['name'] or ''} ({row['placement_group_id']}) is {row['state']}".replace("  ", " ")
    return what + (f": {row['pending_reason']}" if row["pending_reason"] else "")
