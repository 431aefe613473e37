"""Ended tasks as rows and as a trace."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("aiohttp")

from shoal._http import history
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.v1 import raylet_pb2 as raylet

_EVENT = struct.Struct("<16s16sQQIIIBB2x64s")
NODE = gcs.Node(node_id=b"n" * 16, address="10.0.0.1:7")
OFFSET_NS = 1_000_000_000


def event(n: int, start_us: int, end_us: int, kind: int = 0, status: int = 0, name: bytes = b"f") -> bytes:
    return _EVENT.pack(bytes([n]) * 16, bytes(16) if kind == 0 else b"a" * 16, start_us * 1000, end_us * 1000, 1, 0, 0, kind, status, name)


def ended(*events: bytes, pid: int = 9) -> list[history.Ended]:
    ring = raylet.TaskRing(worker_id=b"w" * 16, pid=pid, wall_offset_ns=OFFSET_NS, events=b"".join(events))
    return list(history.ended(NODE, raylet.TaskHistoryReply(rings=[ring])))


@pytest.mark.parametrize(("status", "state", "why"), [(0, "FINISHED", None), (1, "FAILED", "it raised"), (2, "FAILED", "cancelled"), (100, "FAILED", "died")])
def test_a_row_tells_its_state_place_and_wall_time(status: int, state: str, why: str | None):
    (task,) = ended(event(1, 5_000, 9_000, status=status))
    row = history.row(task)
    assert (row["task_id"], row["name"], row["state"], row["type"], row["worker_pid"]) == ("01" * 16, "f", state, "NORMAL_TASK", 9)
    assert (row["start_time_ms"], row["end_time_ms"], row["job_id"], row["actor_id"]) == (1005, 1009, "01000000", None)
    assert (why or "") in (row["error_message"] or "")


def test_the_newest_come_first_whichever_worker_ran_them():
    tasks = [*ended(event(1, 0, 10), event(2, 0, 30)), *ended(event(3, 0, 20), pid=10)]
    assert [task.task_id[0] for task in history.newest(tasks, 2)] == [2, 3]


def test_calls_that_overlap_on_one_worker_have_rows_of_their_own_and_others_share_one():
    trace = history.chrome_trace(ended(event(1, 0, 100, kind=2), event(2, 50, 60, kind=2), event(3, 70, 90, kind=2), event(4, 100, 120, kind=2)))
    calls = [e for e in trace if e["ph"] == "X"]
    assert [(e["args"]["task_id"][:2], e["pid"], e["tid"]) for e in calls] == [("01", 0, 0), ("02", 0, 1), ("03", 0, 1), ("04", 0, 0)]
    assert all(e["cat"] == "task::f" and e["dur"] >= 1 for e in calls)
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in trace if e["ph"] == "M"}
    assert names == {("process_name", 0, 0): "Node 10.0.0.1 (6e6e6e6e)", ("thread_name", 0, 0): "worker:9", ("thread_name", 0, 1): "worker:9/1"}


def test_a_name_that_was_cut_in_the_middle_of_a_letter_is_still_text():
    (task,) = ended(event(1, 0, 1, name="é".encode()[:1]))
    assert task.name
