"""The questions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ... import _runtime
from ..._head import Head, HeadError, find_head, head_of_node
from .records import RayStateApiException, Record

_log = logging.getLogger("shoal")
DEFAULT_LIMIT = 100
DEFAULT_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16

Filter = tuple[str, str, Any]


def head(address: str | None) -> Head:
    """Of the connected cluster, unless another is named. Raises RayStateApiException."""
    state = _runtime.state
    try:
        if address in (None, "auto") and state.node_dir and state.engine is not None:
            return head_of_node(state.node_dir, state.http_address)
        return find_head(address)
    except (HeadError, OSError) as error:
        raise RayStateApiException(str(error)) from error


def ask(path: str, address: str | None, timeout_s: float, **query: Any) -> Any:
    """Raises RayStateApiException."""
    try:
        return head(address).get(path, timeout_s, **query)
    except HeadError as error:
        raise RayStateApiException(str(error)) from error


def _texts(filters: Sequence[Filter] | None) -> list[str]:
    found = []
    for given in filters or ():
        if len(given) != 3 or given[1] not in ("=", "!="):
            raise ValueError(f"filter {given!r}: (field, '=' or '!=', value) is wanted")
        found.append(f"{given[0]}{given[1]}{'' if given[2] is None else given[2]}")
    return found


def _missing(warnings: list[str], raise_on_missing_output: bool) -> None:
    if warnings and raise_on_missing_output:
        raise RayStateApiException(f"the answer is not whole: {'; '.join(warnings)}. raise_on_missing_output=False takes what is there")
    for warning in warnings:
        _log.warning("%s", warning)


def _list(
    resource: str, kind: str, address: str | None, filters: Sequence[Filter] | None, limit: int, timeout: float, raise_on_missing_output: bool
) -> list[Record]:
    answer = ask(f"/api/v0/{resource}", address, timeout, limit=limit, filter=_texts(filters))
    _missing(answer["warnings"], raise_on_missing_output)
    return [Record(kind, row) for row in answer["result"]]


def _get(resource: str, kind: str, id: str, address: str | None, timeout: float) -> Record | None:
    answer = ask(f"/api/v0/{resource}", address, timeout, limit=2, filter=[f"{_ID_FIELDS[resource]}={id}"])
    return Record(kind, answer["result"][0]) if answer["result"] else None


_ID_FIELDS = {"nodes": "node_id", "actors": "actor_id", "jobs": "job_id", "placement_groups": "placement_group_id", "workers": "worker_id", "tasks": "task_id",
              "objects": "object_id"}  # fmt: skip


def list_nodes(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """Nodes, living and dead.

    This and the functions below share their arguments.

    Args:
        address: the head's, as `shoal list` takes it; None: of the cluster that this process is connected to, else this host's.
        filters: (field, "=" or "!=", value); all must hold.
        limit: how many records at most.
        timeout: seconds.
        detail: every record has all its fields anyway.
        raise_on_missing_output: whether a node that does not answer is an error, or a warning in the log.

    Raises:
        RayStateApiException: the head cannot be asked, or refuses, or a node did not answer.
        ValueError: a filter.
    """
    return _list("nodes", "NodeState", address, filters, limit, timeout, raise_on_missing_output)


def list_actors(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """Actors of all jobs and namespaces. See `list_nodes`."""
    return _list("actors", "ActorState", address, filters, limit, timeout, raise_on_missing_output)


def list_tasks(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """Tasks and calls of actors: those that wait (one record for each kind, with the reason), that run, and the last ones that ended. See `list_nodes`.

    The history is bounded: 2,048 for each living worker, 20,000 of dead workers for each node, and it ends with its node.
    """
    return _list("tasks", "TaskState", address, filters, limit, timeout, raise_on_missing_output)


def list_jobs(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """Jobs: one for each driver. See `list_nodes`."""
    return _list("jobs", "JobState", address, filters, limit, timeout, raise_on_missing_output)


def list_workers(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """Living workers and drivers. See `list_nodes`."""
    return _list("workers", "WorkerState", address, filters, limit, timeout, raise_on_missing_output)


def list_placement_groups(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """See `list_nodes`."""
    return _list("placement_groups", "PlacementGroupState", address, filters, limit, timeout, raise_on_missing_output)


def list_objects(
    address: str | None = None, filters: Sequence[Filter] | None = None, limit: int = DEFAULT_LIMIT, timeout: float = DEFAULT_TIMEOUT_S, detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Record]:  # fmt: skip
    """What lies in the nodes' shared memory. See `list_nodes`."""
    return _list("objects", "ObjectState", address, filters, limit, timeout, raise_on_missing_output)


def get_node(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | None:
    """The node of this id (hex), or None. Raises RayStateApiException, as the functions below."""
    return _get("nodes", "NodeState", id, address, timeout)


def get_actor(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | None:
    return _get("actors", "ActorState", id, address, timeout)


def get_task(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | list[Record] | None:
    """A list when the task was tried several times. A task that has not started yet has no record of its own: see `shoal why`."""
    found = list_tasks(address, [("task_id", "=", id)], timeout=timeout)
    return found if len(found) > 1 else found[0] if found else None


def get_job(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | None:
    return _get("jobs", "JobState", id, address, timeout)


def get_worker(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | None:
    return _get("workers", "WorkerState", id, address, timeout)


def get_placement_group(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Record | None:
    return _get("placement_groups", "PlacementGroupState", id, address, timeout)


def get_objects(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> list[Record]:
    return list_objects(address, [("object_id", "=", id)], timeout=timeout)


def _summary(resource: str, address: str | None, timeout: float, raise_on_missing_output: bool) -> dict[str, Any]:
    answer: dict[str, Any] = ask(f"/api/v0/summary/{resource}", address, timeout)
    _missing(answer.pop("warnings"), raise_on_missing_output)
    return answer


def summarize_tasks(address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True) -> dict[str, Any]:
    """{"summary": name to state to count, "total": their number}. Raises RayStateApiException, as the functions below."""
    return _summary("tasks", address, timeout, raise_on_missing_output)


def summarize_actors(address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True) -> dict[str, Any]:
    """By class."""
    return _summary("actors", address, timeout, raise_on_missing_output)


def summarize_objects(address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True) -> dict[str, Any]:
    """By node, with "total_size_bytes"."""
    return _summary("objects", address, timeout, raise_on_missing_output)


def list_logs(
    address: str | None = None, node_id: str | None = None, node_ip: str | None = None, glob_filter: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
) -> dict[str, list[str]]:
    """Names of log files, by kind: "worker_out", "worker_err", "raylet" and so on.

    Args:
        node_id, node_ip: of one node; None: of all.
    """
    answer = ask("/api/v0/logs", address, timeout, glob=glob_filter or "*", node_id=_node(address, node_id, node_ip, timeout) or "")
    _missing(answer["warnings"], False)
    found: dict[str, list[str]] = {}
    for file in answer["files"]:
        stem, _, suffix = file["name"].rpartition(".")
        kind = f"worker_{suffix}" if stem.startswith("worker-") else stem.partition("-")[0] or file["name"]
        found.setdefault(kind, []).append(file["name"])
    return found


def _node(address: str | None, node_id: str | None, node_ip: str | None, timeout: float) -> str | None:
    if node_id or not node_ip:
        return node_id
    found = list_nodes(address, [("node_ip", "=", node_ip), ("state", "=", "ALIVE")], timeout=timeout)
    if len(found) != 1:
        raise RayStateApiException(f"{len(found)} living nodes have the address {node_ip}: give the node_id")
    return str(found[0].node_id)


def get_log(
    address: str | None = None, node_id: str | None = None, node_ip: str | None = None, filename: str | None = None, actor_id: str | None = None,
    task_id: str | None = None, pid: int | None = None, follow: bool = False, tail: int = -1, timeout: float = DEFAULT_TIMEOUT_S, suffix: str = "out",
    encoding: str | None = "utf-8", errors: str = "strict",
) -> Iterator[str]:  # fmt: skip
    """A log file's text, in pieces.

    Args:
        filename: with node_id or node_ip unless there is one node.
        actor_id, task_id, pid: instead of a file's name, a worker's output: `suffix` "out" or "err".
        follow: go on as the file grows.
        tail: lines from the end; -1: all.

    Raises:
        ValueError: not exactly one of filename, actor_id, task_id, pid. RayStateApiException: no such file or worker.
    """
    named = {"filename": filename, "actor_id": actor_id, "task_id": task_id, "pid": pid}
    given = {name: value for name, value in named.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(named)} is wanted, got {given}")
    if suffix not in ("out", "err"):
        raise ValueError(f"suffix={suffix!r}: out or err is wanted")
    node = _node(address, node_id, node_ip, timeout)
    if filename is None:
        ((what, value),) = given.items()
        node, filename = _worker_log(what, value, node, address, timeout, suffix)
    return _pieces(head(address), filename, node or "", follow, tail, timeout, encoding or "utf-8", errors)


def _worker_log(what: str, value: Any, node: str | None, address: str | None, timeout: float, suffix: str) -> tuple[str, str]:
    records = {"actor_id": list_actors, "task_id": list_tasks, "pid": list_workers}[what]
    filters: list[Filter] = [(what, "=", value)] + ([("node_id", "=", node)] if node else [])
    found = [record for record in records(address, filters, timeout=timeout) if record.worker_id]
    if not found:
        raise RayStateApiException(f"no worker with {what}={value} is known")
    return str(found[0].node_id), f"worker-{found[0].worker_id}.{suffix}"


def _pieces(at: Head, name: str, node: str, follow: bool, tail: int, timeout: float, encoding: str, errors: str) -> Iterator[str]:
    import codecs

    decoder = codecs.getincrementaldecoder(encoding)(errors)
    try:
        with at.stream("/api/v0/logs/file", None if follow else timeout, name=name, node_id=node, tail=tail, follow=int(follow)) as response:
            while data := response.read1(_CHUNK_BYTES):
                yield decoder.decode(data)
    except HeadError as error:
        raise RayStateApiException(str(error)) from error
    yield decoder.decode(b"", final=True)
