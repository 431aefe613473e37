"""What a task waits for: asked of the process that has submitted it, which alone knows, and told with what this node knows of its wish."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal_base.wire import Event

from .leases import Wish
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet
    from .sessions import Session

CHANNEL = "waits"
# A process answers on a thread of its own; one that is stopped, or in C code with the interpreter's lock, does not.
ANSWER_TIMEOUT_S = 2.0
# Limit: questions that are not answered yet.
MAX_QUESTIONS = 1000


def is_of(task_id: bytes, worker_id: bytes) -> bool:
    """Whether that process has submitted the task: the first half of a task's id follows from its submitter's."""
    low, high = int.from_bytes(worker_id[:8], "little"), int.from_bytes(worker_id[8:], "little")
    return len(task_id) == 16 and int.from_bytes(task_id[:8], "little") == low ^ high


class Waits:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._number = 0
        self._questions: dict[int, tuple[bytes, asyncio.Future[pb.TaskWaitsReply]]] = {}

    async def of(self, task_id: bytes) -> pb.TaskWaitsReply:
        session = next((session for session in self._raylet.sessions.values() if is_of(task_id, session.worker_id)), None)
        if session is None:
            return pb.TaskWaitsReply()
        told = await self._ask(session, task_id)
        told.submitter_id, told.submitter_pid, told.driver = session.worker_id, session.pid, session.is_driver
        wish = self._raylet.scheduler.core.wishes.get(session.worker_id, {}).get(told.class_id)
        if told.stage == pb.TASK_QUEUED and not any(told.actor_id) and wish is not None:
            told.wish.CopyFrom(self._wish(wish))
        return told

    async def _ask(self, session: Session, task_id: bytes) -> pb.TaskWaitsReply:
        if len(self._questions) >= MAX_QUESTIONS:
            return pb.TaskWaitsReply(stage=pb.TASK_SILENT)
        self._number += 1
        number, future = self._number, self._raylet.loop.create_future()
        self._questions[number] = session.worker_id, future
        session.send_event(Event(CHANNEL, pb.TaskQuery(task_id=task_id, number=number).SerializeToString()).pack())
        try:
            return await asyncio.wait_for(future, ANSWER_TIMEOUT_S)
        except TimeoutError:
            return pb.TaskWaitsReply(stage=pb.TASK_SILENT)
        finally:
            del self._questions[number]

    def told(self, session: Session, told: pb.TaskWaitsReply) -> None:
        """An answer that comes too late is nobody's any more."""
        worker_id, future = self._questions.get(told.number, (b"", None))
        if future is not None and worker_id == session.worker_id and not future.done():
            future.set_result(told)

    def _wish(self, wish: Wish) -> pb.PendingReason:
        reason = self._raylet.pending_reason(wish)
        reason.runtime_env = wish.spec.runtime_env
        reason.asked_node_ids.extend({asked.node_id for asked in self._raylet.scheduler.core.asked.values() if asked.wish is wish})
        return reason
