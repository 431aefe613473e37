"""The rings of ended tasks: what a reader may believe of one that is being written, and what is kept of the dead."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from shoal_raylet import history
from shoal_raylet.history import EVENT, EVENT_BYTES, EVENTS, HEADER_BYTES, MAGIC, RING_BYTES, TaskHistory, valid_events
from shoal_raylet.memory import Record


def event(n: int) -> bytes:
    return EVENT.pack(n.to_bytes(16, "little"), bytes(16), n, n + 1, 1, 0, 0, 0, 0, b"task")


def numbers(events: bytes) -> list[int]:
    return [int.from_bytes(found[0], "little") for found in EVENT.iter_unpack(events)]


def ring(written: int) -> bytes:
    """As its worker leaves it after so many events."""
    slots = [bytes(EVENT_BYTES)] * EVENTS
    for n in range(max(0, written - EVENTS), written):
        slots[n % EVENTS] = event(n)
    return bytes(HEADER_BYTES) + b"".join(slots)


@pytest.mark.parametrize("written", [0, 1, 5, EVENTS - 1, EVENTS, EVENTS + 1, 3 * EVENTS + 7])
def test_events_come_in_order_and_the_slot_that_may_be_half_written_is_left_out(written: int):
    found = numbers(valid_events(ring(written), written, written))
    assert found == [*range(max(0, written - EVENTS + 1), written)]


def test_what_was_overwritten_while_it_was_copied_is_left_out():
    before, after = EVENTS + 10, EVENTS + 500
    assert numbers(valid_events(ring(before), before, after)) == [*range(after - EVENTS + 1, before)]
    assert valid_events(ring(before), before, before + 2 * EVENTS) == b""


@pytest.fixture
def kept() -> Iterator[TaskHistory]:
    made = TaskHistory()
    yield made
    made.close()


def write(kept: TaskHistory, index: int, first: int, count: int, pid: int = 7) -> None:
    header = struct.pack("<IIQq16s", MAGIC, pid, count, 1000, bytes([index]) * 16)
    os.pwrite(kept.fd, header, index * RING_BYTES)
    os.pwrite(kept.fd, b"".join(map(event, range(first, first + count))), index * RING_BYTES + HEADER_BYTES)


def record(task: bytes) -> Record:
    return Record(7, 1, task, 0, 5, bytes(16), "late", "")


def test_a_dead_workers_events_are_kept_with_the_task_that_died_with_it_and_its_pages_go_back(kept: TaskHistory):
    write(kept, 3, 0, 2)
    pages = os.fstat(kept.fd).st_blocks
    kept.retire(3, record(b"t" * 16), b"\1\0\0\0")
    assert kept.read(3) is None
    assert os.fstat(kept.fd).st_blocks < pages
    (found,) = kept.reply([3], 0).rings
    assert (found.worker_id, found.pid, found.wall_offset_ns) == (b"\3" * 16, 7, 1000)
    assert numbers(found.events[: 2 * EVENT_BYTES]) == [0, 1]
    last = EVENT.unpack(found.events[2 * EVENT_BYTES :])
    assert (last[0], last[2], last[4], last[8], last[9].rstrip(b"\0")) == (b"t" * 16, 5, 1, history.DIED, b"late")


def test_the_history_of_the_dead_is_bounded_and_counts_what_it_dropped(kept: TaskHistory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(history, "MAX_KEPT", 5)
    for index in range(3):
        write(kept, index, index * 10, 3)
        kept.retire(index, record(bytes(16)), b"")
    reply = kept.reply([], 0)
    assert [numbers(found.events) for found in reply.rings] == [[11, 12], [20, 21, 22]]
    assert reply.dropped == 4


def test_living_rings_are_read_with_a_limit_and_those_that_nobody_wrote_are_none(kept: TaskHistory):
    write(kept, 0, 0, 6)
    (found,) = kept.reply([0, 1], 2).rings
    assert numbers(found.events) == [4, 5]
