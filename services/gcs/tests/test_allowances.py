"""Whether a job may hold more, over nodes that answer, hoard, are silent, or die."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from shoal_gcs.allowances import Allowances
from shoal_gcs.state import Refusal, Refused
from shoal_gcs.state.allowances import Share, grant, refusal
from shoal_gcs.v1 import gcs_pb2 as pb

JOB = b"\1\0\0\0"
ONE, TWO = bytes([1]) * 16, bytes([2]) * 16


def test_what_is_given_leaves_room_for_the_next_and_never_passes_the_limit() -> None:
    given, answers = 0, []
    while more := grant(1000, [Share(ONE, given, 0)], 10):
        given += more
        answers.append(more)
    assert answers[0] > 200, "the first ones need not ask each time"
    assert answers[-1] < 15, "the last ones get little more than they need"
    assert 990 < given <= 1000


def test_a_refusal_says_which_limit_what_is_held_and_who_holds_most() -> None:
    text = refusal("job 01", "bytes of objects", "max_object_bytes=100", [Share(ONE, 40, 30, 0, 7, "few", 30), Share(TWO, 60, 60, 0, 8, "hoard", 55)], 20)
    assert text == (
        "job 01 has 90 bytes of objects, 20 more are wanted, and its JobConfig(max_object_bytes=100) allows no more; "
        f"55 of them are of hoard (pid 8 on node {TWO.hex()[:12]})"
    )
    assert refusal("job 01", "tasks", "x=1", [], 2) == "job 01 has 0 tasks, 2 more are wanted, and its JobConfig(x=1) allows no more"


class Node:
    """A raylet with one process of the job."""

    def __init__(self, held: int = 0, given: int = 0) -> None:
        self.held, self.given, self.moving, self.silent = held, max(held, given), 0, False

    async def allowance(self, request: dict[str, Any], timeout_s: float) -> Any:
        await asyncio.sleep(0)
        if self.silent:
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
        if request.get("take_back"):
            self.given = self.held
        self.given += request.get("more", 0)
        moving, self.moving = self.moving, 0  # it arrives before the next question
        self.held -= moving
        return SimpleNamespace(given=self.given, held=self.held + moving, moving=moving, pid=1, name="f", most=self.held)


class Cluster:
    def __init__(self, limit: int, **nodes: Node) -> None:
        self.nodes = {ONE: nodes["one"], TWO: nodes["two"]}
        self.jobs = {JOB: pb.Job(max_object_bytes=limit)}
        self.allowances = Allowances(lambda: self.nodes, self.nodes.get, self.jobs.get)

    def ask(self, more: int, node: bytes = ONE, kind: int = pb.OBJECT_BYTES, job: bytes = JOB) -> str:
        query = pb.AllowanceQuery(job_id=job, node_id=node, worker_id=bytes(16), kind=kind, more=more)
        return asyncio.run(self.allowances.ask(query)).refusal


def test_what_other_nodes_were_given_and_do_not_use_is_taken_back_before_anybody_is_refused() -> None:
    cluster = Cluster(100, one=Node(), two=Node(held=20, given=90))
    assert cluster.ask(50) == ""
    assert cluster.nodes[TWO].given == 20
    assert 50 <= cluster.nodes[ONE].given <= 80
    assert "has 20 bytes of objects, 90 more are wanted" in cluster.ask(90)


def test_many_who_ask_at_once_are_not_given_more_than_there_is() -> None:
    cluster = Cluster(100, one=Node(), two=Node())

    async def all_at_once() -> list[str]:
        query = [pb.AllowanceQuery(job_id=JOB, node_id=node, worker_id=bytes(16), kind=pb.OBJECT_BYTES, more=30) for node in (ONE, TWO) * 4]
        return [answer.refusal for answer in await asyncio.gather(*map(cluster.allowances.ask, query))]

    asyncio.run(all_at_once())
    assert cluster.nodes[ONE].given + cluster.nodes[TWO].given <= 100


def test_nobody_is_refused_for_what_is_counted_twice_while_it_moves() -> None:
    cluster = Cluster(100, one=Node(), two=Node(held=90))
    cluster.nodes[TWO].moving = 45
    assert cluster.ask(50) == ""
    assert cluster.nodes[TWO].given == 45


def test_a_silent_node_counts_as_it_was_until_it_is_dead() -> None:
    cluster = Cluster(100, one=Node(), two=Node(held=80))
    assert cluster.ask(15) == ""
    cluster.nodes[TWO].silent = True
    assert "allows no more" in cluster.ask(30)
    del cluster.nodes[TWO]
    assert cluster.ask(30) == ""


def test_without_a_limit_all_is_given_and_an_unknown_job_is_refused_by_name() -> None:
    cluster = Cluster(0, one=Node(), two=Node(held=10**12))
    assert cluster.ask(10**12) == ""
    with pytest.raises(Refused, match="no job 02000000") as refused:
        cluster.ask(1, job=b"\2\0\0\0")
    assert refused.value.kind is Refusal.NOT_FOUND


def test_jobs_that_are_gone_leave_nothing() -> None:
    cluster = Cluster(100, one=Node(), two=Node())
    cluster.ask(1)
    later = b"\2\0\0\0"
    del cluster.jobs[JOB]
    cluster.jobs[later] = pb.Job(max_object_bytes=5)
    cluster.ask(1, job=later)
    assert set(cluster.allowances._asking) == {later}
    assert {job for job, _ in cluster.allowances._told} == {later}
