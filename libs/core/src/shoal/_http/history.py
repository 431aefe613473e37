"""Tasks that have ended, as the raylets' rings tell them: rows of the state API, and a trace that Chrome and Perfetto show."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.v1 import raylet_pb2 as raylet

from .records import Row, hex_or_none

_EVENT = struct.Struct("<16s16sQQIIIBB2x64s")
_KINDS = {0: "NORMAL_TASK", 1: "ACTOR_CREATION_TASK", 2: "ACTOR_TASK"}
# The status of a reply, and 100 for a worker that died.
_STATES = {0: ("FINISHED", None), 1: ("FAILED", "it raised"), 2: ("FAILED", "it was cancelled"), 5: ("FAILED", "it raised, and was worth a retry"),
           100: ("FAILED", "its worker died")}  # fmt: skip
_UNKNOWN = ("FAILED", "its worker did not take it")


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt of a task."""

    task_id: bytes
    actor_id: bytes
    started_us: int  # since the epoch
    ended_us: int
    job_id: bytes
    attempt: int
    depth: int
    kind: int
    status: int
    name: str
    worker_id: bytes
    pid: int
    node: gcs.Node


def ended(node: gcs.Node, reply: raylet.TaskHistoryReply) -> Iterator[Ended]:
    for ring in reply.rings:
        offset = ring.wall_offset_ns
        for task, actor, started, end, job, attempt, depth, kind, status, name in _EVENT.iter_unpack(ring.events):
            yield Ended(
                task, actor, (started + offset) // 1000, (end + offset) // 1000, job.to_bytes(4, "little"), attempt, depth, kind, status,
                name.split(b"\0", 1)[0].decode("utf-8", "replace"), ring.worker_id, ring.pid, node,
            )  # fmt: skip


def newest(tasks: Iterable[Ended], limit: int) -> list[Ended]:
    """The last ones to end, the newest first."""
    return heapq.nlargest(limit, tasks, key=lambda task: task.ended_us)


def row(task: Ended) -> Row:
    state, why = _STATES.get(task.status, _UNKNOWN)
    return {
        "task_id": task.task_id.hex(), "attempt_number": task.attempt, "name": task.name, "state": state, "job_id": hex_or_none(task.job_id),
        "actor_id": hex_or_none(task.actor_id), "type": _KINDS.get(task.kind, "NORMAL_TASK"), "node_id": task.node.node_id.hex(),
        "worker_id": hex_or_none(task.worker_id), "worker_pid": task.pid, "error_message": why, "start_time_ms": task.started_us // 1000,
        "end_time_ms": task.ended_us // 1000,
    }  # fmt: skip


def chrome_trace(tasks: Iterable[Ended]) -> list[dict[str, Any]]:
    """Complete events ("X", in microseconds): a process for each node and a row for each worker, with their names beside, since Perfetto takes numbers alone.

    Calls of one worker that overlap get rows of their own: one row can only nest them.
    """
    numbers = _Numbers()
    trace: list[dict[str, Any]] = []
    busy_until: dict[tuple[bytes, int], list[int]] = {}
    for task in sorted(tasks, key=lambda task: (task.started_us, -task.ended_us)):
        lane = _lane(busy_until.setdefault((task.worker_id, task.pid), []), task)
        state, why = _STATES.get(task.status, _UNKNOWN)
        process, thread = numbers.of(task, lane)
        trace.append({
            "cat": f"task::{task.name}", "name": task.name, "ph": "X", "ts": task.started_us, "dur": max(1, task.ended_us - task.started_us), "pid": process,
            "tid": thread, "cname": "thread_state_running" if state == "FINISHED" else "terrible",
            "args": {
                "task_id": task.task_id.hex(), "actor_id": hex_or_none(task.actor_id), "job_id": task.job_id.hex(), "attempt_number": task.attempt,
                "depth": task.depth, "type": _KINDS.get(task.kind, "NORMAL_TASK"), "state": state, "error": why, "node_id": task.node.node_id.hex(),
                "worker_id": task.worker_id.hex(), "worker_pid": task.pid,
            },
        })  # fmt: skip
    return trace + numbers.names


class _Numbers:
    """Numbers for nodes and rows, and the trace's events that name them."""

    def __init__(self) -> None:
        self.names: list[dict[str, Any]] = []
        self._nodes: dict[bytes, int] = {}
        self._rows: dict[tuple[bytes, int, int], int] = {}

    def of(self, task: Ended, lane: int) -> tuple[int, int]:
        node_id = task.node.node_id
        if node_id not in self._nodes:
            self._nodes[node_id] = len(self._nodes)
            host = task.node.address.rpartition(":")[0]
            self._name("process_name", f"Node {host} ({node_id.hex()[:8]})", self._nodes[node_id], 0)
        row = (task.worker_id, task.pid, lane)
        if row not in self._rows:
            self._rows[row] = len(self._rows)
            self._name("thread_name", f"worker:{task.pid}" + (f"/{lane}" if lane else ""), self._nodes[node_id], self._rows[row])
        return self._nodes[node_id], self._rows[row]

    def _name(self, kind: str, name: str, process: int, thread: int) -> None:
        self.names.append({"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})


def _lane(busy_until: list[int], task: Ended) -> int:
    """The first row whose last call has ended."""
    for lane, end in enumerate(busy_until):
        if end <= task.started_us:
            busy_until[lane] = task.ended_us
            return lane
    busy_until.append(task.ended_us)
    return len(busy_until) - 1
