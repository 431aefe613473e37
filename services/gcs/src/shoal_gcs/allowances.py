"""What jobs with limits may hold, over all nodes. Nothing is kept here that matters: each answer is made of what the nodes tell at that moment.

So a process that died holds nothing at the next question, and a control store that was started again knows all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import grpc.aio

from .state import Refusal, Refused
from .state.allowances import Share, grant, refusal
from .v1 import gcs_pb2 as pb

ANSWER_TIMEOUT_S = 2.0
# Nobody is refused for what moves, which may be counted twice for a moment: so long at most.
SETTLE_S = 1.0
SETTLE_PAUSE_S = 0.005
_UNIT = {pb.UNFINISHED_TASKS: "tasks that have not ended", pb.OBJECT_BYTES: "bytes of objects"}
_SETTING = {pb.UNFINISHED_TASKS: "max_pending_tasks", pb.OBJECT_BYTES: "max_object_bytes"}


class Node(Protocol):
    async def allowance(self, request: dict[str, Any], timeout_s: float) -> Any: ...


class Allowances:
    """One question of a job at a time. `node`: how one is called; None where it is gone."""

    def __init__(self, nodes: Callable[[], Iterable[bytes]], node: Callable[[bytes], Node | None], job: Callable[[bytes], pb.Job | None]) -> None:
        self._nodes = nodes
        self._node = node
        self._job = job
        self._asking: dict[bytes, asyncio.Lock] = {}
        # What a node told last: it counts while the node does not answer, and is not declared dead. Of jobs that somebody asks for.
        self._told: dict[tuple[bytes, int], dict[bytes, Share]] = {}

    async def ask(self, query: pb.AllowanceQuery) -> pb.AllowanceAnswer:
        """Raises Refused where job or node are gone, and AioRpcError where the node does not answer."""
        job = self._job(query.job_id)
        if job is None:
            raise Refused(Refusal.NOT_FOUND, f"no job {query.job_id.hex()}")
        self._forget()
        limit: int = job.max_pending_tasks if query.kind == pb.UNFINISHED_TASKS else job.max_object_bytes
        async with self._asking.setdefault(query.job_id, asyncio.Lock()):
            return pb.AllowanceAnswer(refusal=await self._answer(query, limit))

    def _forget(self) -> None:
        """Jobs that are not on record any more."""
        for job_id in [job_id for job_id in self._asking if self._job(job_id) is None]:
            del self._asking[job_id]
            for kind in _UNIT:
                self._told.pop((job_id, kind), None)

    async def _answer(self, query: pb.AllowanceQuery, limit: int) -> str:
        given = 2**62 if not limit else 0
        until = asyncio.get_running_loop().time() + SETTLE_S
        take_back = False
        while not given:
            shares = await self._shares(query, take_back)
            given = grant(limit, shares, query.more)
            if take_back and not given:
                if not any(share.moving for share in shares) or asyncio.get_running_loop().time() > until:
                    break
                await asyncio.sleep(SETTLE_PAUSE_S)
            take_back = True
        if not given:
            return refusal(f"job {query.job_id.hex()}", _UNIT[query.kind], f"{_SETTING[query.kind]}={limit}", shares, query.more)
        node = self._node(query.node_id)
        if node is None:
            raise Refused(Refusal.NOT_FOUND, f"node {query.node_id.hex()} is gone")
        await self._call(node, query, worker_id=query.worker_id, more=given)
        return ""

    async def _shares(self, query: pb.AllowanceQuery, take_back: bool) -> list[Share]:
        told = self._told.setdefault((query.job_id, query.kind), {})
        living = list(self._nodes())
        for node_id in told.keys() - set(living):
            del told[node_id]
        await asyncio.gather(*(self._hear(told, node_id, query, take_back) for node_id in living))
        return list(told.values())

    async def _hear(self, told: dict[bytes, Share], node_id: bytes, query: pb.AllowanceQuery, take_back: bool) -> None:
        node = self._node(node_id)
        if node is None:
            return
        try:
            reply = await self._call(node, query, take_back=take_back)
        except grpc.aio.AioRpcError:
            return
        told[node_id] = Share(node_id, reply.given, reply.held, reply.moving, reply.pid, reply.name, reply.most)

    async def _call(self, node: Node, query: pb.AllowanceQuery, **fields: Any) -> Any:
        return await node.allowance({"job_id": query.job_id, "kind": query.kind, **fields}, ANSWER_TIMEOUT_S)
