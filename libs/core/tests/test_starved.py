"""Tasks whose worker was ended because its node was short of memory: tried again later, at no charge. The protocol alone, driven by hand."""

from __future__ import annotations

import struct

import pytest
from shoal._core.driven import EVENT_KINDS, Driven
from shoal_base.errors import Code
from shoal_base.frames import Type

ME, NODE, RAYLET_CONNECTION = b"m" * 16, b"n" * 16, 1
SECOND = 1_000_000_000
HEADER = 32


def frame(type_: int, payload: bytes, sequence: int) -> bytes:
    return struct.pack("<IBBBBIIQQ", len(payload), type_, 0, 1, 0, 1, 65536, sequence, 0) + payload


class Submitter:
    """One process, its raylet (which grants what the test says), and workers that are only numbers."""

    def __init__(self, oom_retries: int = -1) -> None:
        self.driven = Driven(worker_id=ME, node_id=NODE, kind=0, job=1)
        self.now = 100 * SECOND
        self.driven.set_now(self.now)
        self.driven.limit_oom_retries(oom_retries)
        self.driven.join(RAYLET_CONNECTION)
        self.lease_class = self.driven.lease_class(b"class")
        self.workers = 0
        self.sequence = 0
        self.ends = 100

    def submit(self, max_retries: int = 3) -> bytes:
        return self.driven.submit(self.lease_class, b"x", max_retries=max_retries)[0]

    def grant(self) -> bytes:
        """A new worker, lent: what was ready has gone to it."""
        self.workers += 1
        self.sequence += 1
        worker = bytes([self.workers]) * 16
        payload = struct.pack("<IQ", self.lease_class, self.workers) + worker + NODE + struct.pack("<H", 0)
        assert self.driven.deliver(RAYLET_CONNECTION, frame(Type.LEASE_GRANT, payload, self.sequence))
        for token, _, _ in self.driven.connects():
            self.ends += 1
            assert self.driven.opened(token, self.ends)
        return worker

    def sent(self) -> list[tuple[bytes, int]]:
        """(task, attempt) of the tasks that were written since the last look."""
        found = []
        for _, data in self.driven.take_frames():
            at = 0
            while at < len(data):
                length, type_ = struct.unpack_from("<IB", data, at)
                if type_ == Type.TASK:
                    body = data[at + HEADER : at + HEADER + length]
                    found.append((body[:16], struct.unpack_from("<I", body, 20)[0]))
                at += HEADER + length
        return found

    def starve(self, worker: bytes, task: bytes, code: int = Code.OUT_OF_MEMORY) -> None:
        self.driven.worker_died(worker, NODE, code, "the node is short of memory", task)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.driven.set_now(self.now)
        self.driven.timer()

    def failure(self, ref: bytes) -> int | None:
        answer = self.driven.get(ref)
        return None if answer is None else answer[1]


def run_and_starve(process: Submitter, task: bytes, attempt: int) -> None:
    worker = process.grant()
    assert process.sent() == [(task, attempt)]
    process.starve(worker, task)


def test_it_is_tried_again_after_pauses_that_double_and_pays_nothing() -> None:
    process = Submitter()
    ref = process.submit(max_retries=1)
    task = ref[:16]
    worker = process.grant()
    for attempt, pause in enumerate((1, 2, 4, 8, 16, 32, 64, 64)):
        assert process.sent() == [(task, attempt)]
        process.starve(worker, task)
        process.wait(pause - 0.01)
        worker = process.grant()
        assert process.sent() == [], f"too early after attempt {attempt}"
        process.wait(0.02)
    process.starve(worker, task, Code.WORKER_CRASHED)
    assert process.failure(ref) is None, "its one retry is still there"


def test_whoever_waits_is_told_of_each_pause_and_why() -> None:
    process = Submitter()
    task = process.submit()[:16]
    for attempt in range(2):
        run_and_starve(process, task, attempt)
        process.wait(2.1)
    told = [event for event in process.driven.events() if EVENT_KINDS[event[0]] == "put_off"]
    assert [event[1:] for event in told] == [(pause, task, b"f", b"the node is short of memory") for pause in (1, 2)]


def test_what_may_not_be_retried_fails_at_once() -> None:
    process = Submitter()
    ref = process.submit(max_retries=0)
    run_and_starve(process, ref[:16], 0)
    assert process.failure(ref) == Code.OUT_OF_MEMORY


def test_the_number_of_such_retries_can_be_bounded() -> None:
    process = Submitter(oom_retries=1)
    ref = process.submit()
    run_and_starve(process, ref[:16], 0)
    process.wait(1.1)
    assert process.failure(ref) is None
    run_and_starve(process, ref[:16], 1)
    assert process.failure(ref) == Code.OUT_OF_MEMORY


def test_one_over_its_own_limit_pays_as_for_a_crash() -> None:
    process = Submitter()
    ref = process.submit(max_retries=1)
    for _ in range(2):
        worker = process.grant()
        assert len(process.sent()) == 1
        process.starve(worker, ref[:16], Code.MEMORY_LIMIT)
    assert process.failure(ref) == Code.MEMORY_LIMIT


def test_what_had_not_started_goes_elsewhere_at_once() -> None:
    process = Submitter()
    ref = process.submit()
    worker = process.grant()
    assert process.sent() == [(ref[:16], 0)]
    process.driven.worker_died(worker, NODE, Code.OUT_OF_MEMORY, "short")
    process.grant()
    assert process.sent() == [(ref[:16], 0)]


@pytest.mark.parametrize("force", [False, True])
def test_one_that_waits_for_its_next_try_can_be_cancelled(force: bool) -> None:
    process = Submitter()
    ref = process.submit()
    run_and_starve(process, ref[:16], 0)
    process.driven.cancel(ref[:16], force)
    assert process.failure(ref) == Code.CANCELLED
    process.wait(2)
    process.grant()
    assert process.sent() == [] and process.driven.counts()["tasks"] == 0
