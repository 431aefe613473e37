"""Why something waits: what the state API knows of one task, actor or placement group, in sentences."""

from __future__ import annotations

from typing import Any, NamedTuple

from .records import Row

# Limits: of an answer's lines, and of the tasks that wait for one another.
MAX_LINES = 50
MAX_CHAIN = 8
_MAX_NODES = 16
_MAX_ENV = 200
_TASK_ID_DIGITS = 32
_OBJECT_ID_DIGITS = 40


class Known(NamedTuple):
    """Of the whole cluster."""

    tasks: list[Row]
    actors: list[Row]
    groups: list[Row]
    nodes: list[Row]


def task_of(wanted: str) -> bytes:
    """The id of the task that is meant, or whose result is; empty: it is no whole id of either.

    >>> task_of("ab" * 20) == task_of("AB" * 16), task_of("abab"), task_of("f" * 31 + "?")
    (True, b'', b'')
    """
    try:
        return bytes.fromhex(wanted)[:16] if len(wanted) in (_TASK_ID_DIGITS, _OBJECT_ID_DIGITS) else b""
    except ValueError:
        return b""


def explain(wanted: str, known: Known, waiting: list[Row]) -> dict[str, Any]:
    """{"found": whether anything has this id or name, "lines": what there is to say}.

    `waiting`: the task of that id, if it waits, and behind it what it waits for. By its name alone, what waits is known as a kind: how many there are, and why.

    >>> explain("f", Known([{"task_id": None, "name": "f", "state": "PENDING_NODE_ASSIGNMENT", "error_message": "2 wait since 3.0 s: busy", "node_id": "ab"}],
    ...                    [], [], []), [])
    {'found': True, 'lines': ['task f on node ab: 2 wait since 3.0 s: busy']}
    """
    low = wanted.lower()
    as_task = task_of(wanted).hex() or low
    lines = [_task(row) for row in known.tasks if wanted in (row["name"], row["name"].rpartition(".")[2]) or (row["task_id"] or "").startswith(as_task)]
    if not any(row["task_id"] == as_task and row["state"] == "RUNNING" for row in known.tasks):
        for row in waiting:
            lines += _waiting(row, known)
    lines += [_actor(row) for row in known.actors if wanted in (row["name"], row["class_name"]) or row["actor_id"].startswith(low)]
    lines += [_group(row) for row in known.groups if row["name"] == wanted or row["placement_group_id"].startswith(low)]
    found = bool(lines)
    if not found and task_of(wanted):
        lines = [f"{wanted} neither waits nor runs, and no record of its end is left: the process that submitted it has ended, or it does not exist"]
    elif not found:
        lines = [f"nothing that runs, waits or has ended is called {wanted}; a task that waits is found by its whole id (ref.task_id().hex()) or its name"]
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


# -- one task that waits ----------------------------------------------------------------------------


def _waiting(row: Row, known: Known) -> list[str]:
    what = f"task {row['name'] or '(no name)'} ({row['task_id']})"
    by = f"{'the driver' if row['driver'] else 'a worker'} (pid {row['submitter_pid']}{_on(row)})"
    if row["stage"] == "SILENT":
        return [f"task {row['task_id']} is of {by}, which did not answer: it is stopped, or runs C code that keeps the interpreter's lock"]
    what += f", submitted by {by},"
    if row["attempt_number"]:
        what += f" attempt {row['attempt_number'] + 1},"
    if row["stage"] == "PENDING_ARGS_AVAIL":
        return [f"{what} waits for {_count(row['missing'], 'argument')}:", *_arguments(row, known)]
    if row["stage"] == "PUT_OFF":
        return [f"{what} is tried again in {row['due_s']:.0f} s: its node was short of memory"]
    if row["actor_id"] is not None:
        return _of_actor(what, row, known)
    if row["stage"] == "SUBMITTED_TO_WORKER":
        return [f"{what} was sent to {_process(row['to_worker_id'], row['to_node_id'], known)}{_behind(row)}"]
    return _queued(what, row, known)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _behind(row: Row) -> str:
    return f"; {_count(row['ahead'], 'task')} of that process {'is' if row['ahead'] == 1 else 'are'} before it" if row["ahead"] else ""


def _arguments(row: Row, known: Known) -> list[str]:
    running = {task["task_id"]: task for task in known.tasks if task["task_id"]}
    lines = []
    for argument in row["arguments"]:
        maker = running.get(argument["object_id"][:_TASK_ID_DIGITS])
        who = f"of process {argument['owner_id'][:12]} on node {argument['owner_node_id'][:12]}"
        made = f"the result of {_task(maker)}" if maker is not None else f"the result of task {argument['object_id'][:_TASK_ID_DIGITS]}, {who}"
        lines.append(f"  object {argument['object_id']}, {made}")
    more = row["missing"] - len(lines)
    return [*lines, f"  ... and {more} more"] if more > 0 else lines


def _process(worker_id: str | None, node_id: str | None, known: Known) -> str:
    on = f"on node {(node_id or '')[:12]}"
    runs = next((task for task in known.tasks if task["state"] == "RUNNING" and task.get("worker_id") == worker_id), None)
    if runs is None:
        return f"worker {(worker_id or '')[:12]} {on}, which is about to begin it"
    return f"process {runs['worker_pid']} {on}, which runs {runs['name']} ({runs['task_id']})"


def _of_actor(what: str, row: Row, known: Known) -> list[str]:
    actor = next((actor for actor in known.actors if actor["actor_id"] == row["actor_id"]), None)
    before = f"; {_count(row['ahead'], 'call')} of that process {'is' if row['ahead'] == 1 else 'are'} before it" if row["ahead"] else ""
    if row["stage"] == "SUBMITTED_TO_WORKER":
        return [f"{what} was sent to its actor: {_process(row['to_worker_id'], row['to_node_id'], known)}{before}"]
    told = _actor(actor) if actor is not None else f"actor {row['actor_id']}, of which the control store has no record"
    return [f"{what} waits for its actor: {told}{before}"]


def _queued(what: str, row: Row, known: Known) -> list[str]:
    wish = row["wish"]
    line = f"{what} waits for a worker"
    if row["ahead"]:
        line += f"; {_count(row['ahead'], 'task')} like it {'is' if row['ahead'] == 1 else 'are'} before it"
    if row["leases"]:
        line += f"; {_count(row['leases'], 'worker')} of that process {'does' if row['leases'] == 1 else 'do'} such tasks, one after the other"
    if wish is None:
        return [line]
    lines = [line]
    if wish["starting"]:
        env = f", in which its runtime_env is set up: {wish['runtime_env'][:_MAX_ENV]}" if wish["runtime_env"] not in ("", "{}") else ""
        lines.append(f"  its resources are kept for it on node {row['node_id'][:12]}, and a worker process starts{env}")
    if wish["count"]:
        lines.append(f"  {wish['reason']}")
    lines += [f"  asked of node {node_id[:12]}{_reason_there(row, node_id, known)}" for node_id in wish["asked_node_ids"][:_MAX_NODES]]
    group = wish["placement_group_id"]
    if group is not None:
        return [*lines, *(f"  {_group(known_group)}" for known_group in known.groups if known_group["placement_group_id"] == group)]
    return [*lines, *_rooms(wish["resources"], known.nodes)] if wish["count"] or wish["asked_node_ids"] else lines


def _reason_there(row: Row, node_id: str, known: Known) -> str:
    """What that node says of this node's request, which waits there."""
    there = (task for task in known.tasks if task["task_id"] is None and task["node_id"] == node_id)
    reason = next((task["error_message"] for task in there if task["name"] == row["name"] and task["worker_id"] == row["submitter_id"]), "")
    return f": {reason}" if reason else ""


def _rooms(wanted: dict[str, float], nodes: list[Row]) -> list[str]:
    """What each node lacks of it."""
    living = [node for node in nodes if node["state"] == "ALIVE"]
    lines = [f"  node {node['node_id'][:12]}: {_room(wanted, node)}" for node in living[:_MAX_NODES]]
    return [*lines, f"  ... and {len(living) - _MAX_NODES} more nodes"] if len(living) > _MAX_NODES else lines


def _room(wanted: dict[str, float], node: Row) -> str:
    if node["draining"]:
        return "drains, and takes nothing new"
    total, free = node["resources_total"], node["resources_available"]
    scarce = {name: amount for name, amount in wanted.items() if free.get(name, 0) < amount}
    lacking = [f"{name} {amount:g} wanted, {free.get(name, 0):g} free of {total.get(name, 0):g}" for name, amount in scarce.items()]
    return "; ".join(lacking) or "has room for its resources"
