"""Leases of a class that is to spread: which of them gets the next task. The protocol alone, driven by hand."""

from __future__ import annotations

import struct
from collections import Counter

from shoal._core.driven import Driven
from shoal_base.frames import Type
from shoal_base.wire import LeaseGrant

ME = b"m" * 16
RAYLET_CONNECTION = 1
SECOND = 1_000_000_000
HEADER = 32


def node(n: int) -> bytes:
    return bytes([100 + n]) * 16


class Submitter:
    """One process, its raylet (which grants what the test says), and workers that answer when the test says."""

    def __init__(self) -> None:
        self.driven = Driven(worker_id=ME, node_id=node(0), kind=0, job=1)
        self.now = 100 * SECOND
        self.driven.set_now(self.now)
        self.driven.join(RAYLET_CONNECTION)
        self.lease_class = self.driven.lease_class(b"class")
        self.sequence: Counter[int] = Counter()
        self.ends: dict[int, int] = {}  # connection -> node
        self.leases = 0
        self.returned = 0

    def submit(self, count: int) -> None:
        for _ in range(count):
            self.driven.submit(self.lease_class, b"x")

    def hear(self, connection: int, type_: int, payload: bytes) -> None:
        self.sequence[connection] += 1
        header = struct.pack("<IBBBBIIQQ", len(payload), type_, 0, 1, 0, 1, 65536, self.sequence[connection], 0)
        assert self.driven.deliver(connection, header + payload)

    def grant(self, n: int, over: int) -> None:
        """A worker of node `n` is lent, of `over` that should have room."""
        self.leases += 1
        grant = LeaseGrant(self.lease_class, self.leases, bytes([self.leases]) * 16, node(n), f"10.0.0.{n}:7" if n else "", over)
        self.hear(RAYLET_CONNECTION, Type.LEASE_GRANT, grant.pack())
        for token, _, _ in self.driven.connects():
            end = 1000 + self.leases
            self.ends[end] = n
            assert self.driven.opened(token, end)

    def sent(self) -> list[tuple[int, bytes]]:
        """(connection, task) of the tasks that were written since the last look."""
        found = []
        for connection, data in self.driven.take_frames():
            at = 0
            while at < len(data):
                length, type_ = struct.unpack_from("<IB", data, at)
                if type_ == Type.TASK:
                    found.append((connection, bytes(data[at + HEADER : at + HEADER + 16])))
                elif type_ == Type.LEASE_RETURN:
                    self.returned += 1
                at += HEADER + length
        return found

    def answer(self, connection: int, task: bytes, duration_us: int = 10) -> None:
        value = struct.pack("<BBHIQ", 1, 0, 0, 0, 1) + b"y"
        body = struct.pack("<BI", 0, len(value)) + value + struct.pack("<I", 0)
        self.hear(connection, Type.REPLY, task + struct.pack("<IBII", 0, 0, duration_us, 1) + body + struct.pack("<II", 0, 0))

    def where(self) -> Counter[int]:
        return Counter(self.ends[connection] for connection, _ in self.sent())


def test_the_first_lease_does_not_take_everything_before_the_others_are_there():
    process = Submitter()
    process.submit(90)
    process.grant(0, over=3)
    (first,) = process.sent()
    process.answer(*first)
    assert process.sent() == [], "two nodes that have room are still missing"
    process.grant(1, over=3)
    (second,) = process.sent()
    process.answer(*second)
    assert process.sent() == []
    process.grant(2, over=3)
    (third,) = process.sent()
    process.answer(*third)
    ran: Counter[int] = Counter({0: 1, 1: 1, 2: 1})
    while sent := process.sent():
        for connection, task in sent:
            ran[process.ends[connection]] += 1
            process.answer(connection, task)
    assert ran.total() == 90
    assert max(ran.values()) - min(ran.values()) <= 3, ran


def test_where_tasks_are_long_nobody_waits_for_another_nodes_first_answer():
    process = Submitter()
    process.submit(10)
    process.grant(0, over=2)
    process.grant(1, over=2)
    first, _second = process.sent()
    process.answer(*first, duration_us=50_000)
    assert len(process.sent()) == 1


def test_a_node_that_never_lends_is_waited_for_a_moment_only():
    process = Submitter()
    process.submit(10)
    process.grant(0, over=2)
    (first,) = process.sent()
    process.now += SECOND // 10
    process.driven.set_now(process.now)
    process.answer(*first)
    assert process.sent() == []
    process.now += SECOND
    process.driven.set_now(process.now)
    process.grant(0, over=2)
    assert len(process.sent()) == 9, "both leases take what there is"


def test_the_idle_lease_goes_back_while_others_are_waited_for():
    process = Submitter()
    process.submit(3)
    process.grant(0, over=2)
    (first,) = process.sent()
    process.answer(*first)
    process.now += SECOND // 10
    process.driven.set_now(process.now)
    process.driven.timer()
    process.sent()
    assert process.returned == 1
    assert process.driven.counts()["ready"] == 2


def test_a_class_that_is_not_to_spread_fills_its_first_lease():
    process = Submitter()
    process.submit(10)
    process.grant(0, over=0)
    (first,) = process.sent()
    process.answer(*first)
    assert len(process.sent()) == 9


def test_a_node_that_comes_late_gets_its_share_and_not_all_that_the_others_had():
    process = Submitter()
    process.submit(200)
    process.grant(0, over=1)
    done = 0
    while done < 100:
        for connection, task in process.sent():
            process.answer(connection, task, duration_us=1000)
            done += 1
    process.grant(1, over=2)
    ran = Counter[int]()
    while sent := process.sent():
        for connection, task in sent:
            ran[process.ends[connection]] += 1
            process.answer(connection, task, duration_us=1000)
    assert abs(ran[0] - ran[1]) <= 20, ran


def test_a_lease_that_is_lost_leaves_the_count_right():
    process = Submitter()
    process.submit(5)
    process.grant(0, over=2)
    process.grant(1, over=2)
    process.sent()
    process.driven.worker_died(bytes([2]) * 16, node(1), 1, "signal 9", None)
    process.grant(1, over=2)
    assert process.driven.counts()["leases"] == 2
