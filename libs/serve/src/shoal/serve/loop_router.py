"""Sending requests from a process with an event loop of Serve's own: a proxy or a replica. Everything here runs on that loop."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any, NamedTuple

import shoal

from .context import CONTROLLER_NAME, NAMESPACE, new_request_id, process
from .exceptions import DeploymentUnavailableError
from .journal import new_number
from .router import BUSY, LEAVING, OK, STREAM, Slot, Table, is_death

_log = logging.getLogger("shoal.serve")

LISTEN_S = 30.0
# Beyond the time that the controller holds a question: then it is asked again.
LISTEN_SLACK_S = 5.0
RETRY_S = 0.2
QUEUE_REPORT_S = 1.0
# How often a loop without traffic looks whether what it waits for has ended.
LOOK_S = 0.5
STARTED_UNKNOWN = "it ended while it had this request"


class Waiting(NamedTuple):
    """A call in the queue: its turn comes as the result of the future."""

    turn: asyncio.Future[Slot]
    model_id: str


class Answer(NamedTuple):
    """`slot` is set while the answer is a stream that goes on: the request still counts there."""

    status: int
    value: Any
    slot: Slot | None
    ref: Any


class LoopRouter:
    """One for each deployment that this process sends to."""

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.table: Table[Waiting] = Table(key)
        self._loop = asyncio.get_running_loop()
        self._name = new_request_id()
        self._listener = self._loop.create_task(listen(key, self.update))
        self._reporter: asyncio.Task[None] | None = None

    def update(self, payload: Any) -> None:
        self.table.update(*payload)
        if self.table.gone:
            while self.table.queue:
                turn = self.table.queue.popleft().turn
                if not turn.done():
                    turn.set_exception(DeploymentUnavailableError(self.table.gone))
        self.next()

    async def request(self, http: bool, meta: Any, args: tuple[Any, ...], kwargs: dict[str, Any], model_id: str = "") -> Answer:
        """The answer of some replica. Raises what its code raised, BackPressureError, DeploymentUnavailableError, ActorDiedError."""
        table = self.table
        slot = None if table.queue else table.choose(model_id)
        if slot is None:
            slot = await self._turn(model_id)
        else:
            slot.ongoing += 1
        while True:
            number = new_number()
            ref = (slot.http if http else slot.call).remote(number, meta, *args, **kwargs)
            held = False
            try:
                reply = await ref
                # Proxies and replicas pickle for themselves what the runtime would look through piece by piece.
                status, _, value = pickle.loads(reply) if http else reply
                held = status == STREAM and not value[-1]
            except asyncio.CancelledError:
                shoal.cancel(ref)
                raise
            except Exception as error:
                if not is_death(error):
                    raise
                table.lost(slot)
                if slot.journal.may_have_started(number):
                    raise
                status = LEAVING
            finally:
                if not held:
                    slot.ongoing -= 1
                    if table.queue:
                        self.next()
            if status in (OK, STREAM):
                slot.refusals = 0
                return Answer(status, value, slot if held else None, ref)
            if status == LEAVING:
                table.lost(slot)
            elif status == BUSY:
                self._loop.call_later(table.refused(slot), self._rested, slot)
            slot = await self._turn(model_id, again=True)

    async def _turn(self, model_id: str, again: bool = False) -> Slot:
        table = self.table
        if again and (slot := table.choose(model_id)) is not None:
            slot.ongoing += 1
            return slot
        waiting = Waiting(self._loop.create_future(), model_id)
        table.enqueue(waiting, again)
        if table.autoscaled and self._reporter is None:
            self._reporter = self._loop.create_task(self._report())
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self.release(waiting.turn.result())
            elif waiting in table.queue:
                table.queue.remove(waiting)
            raise

    def next(self) -> None:
        """Gives those who wait their turns."""
        table = self.table
        while table.queue:
            waiting = table.queue[0]
            if waiting.turn.done():
                table.queue.popleft()
                continue
            slot = table.choose(waiting.model_id)
            if slot is None:
                return
            table.queue.popleft()
            slot.ongoing += 1
            waiting.turn.set_result(slot)

    def release(self, slot: Slot) -> None:
        slot.ongoing -= 1
        self.next()

    def _rested(self, slot: Slot) -> None:
        self.table.rested(slot)
        self.next()

    async def _report(self) -> None:
        """Tells the controller how many wait, as long as some do: that is what scales up from zero."""
        try:
            while True:
                queued = len(self.table.queue)
                try:
                    await shoal.get_actor(CONTROLLER_NAME, NAMESPACE).report_queue.remote(self.key, self._name, queued)
                except Exception as error:
                    _log.debug("the queue of %s was not reported: %s", self.key, error)
                if not queued:
                    return
                await asyncio.sleep(QUEUE_REPORT_S)
        finally:
            self._reporter = None


async def listen(key: tuple[str, str] | None, update: Any) -> None:
    """Calls `update` with what the controller knows of the key, now and after every change; goes on through its restarts."""
    version = ""
    while True:
        try:
            controller = shoal.get_actor(CONTROLLER_NAME, NAMESPACE)
            ref = controller.listen.remote(key, version, LISTEN_S)
            version, payload = await _awake(ref, LISTEN_S + LISTEN_SLACK_S)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _log.debug("the controller does not answer about %s: %s", key, error)
            await asyncio.sleep(RETRY_S)
            continue
        if payload is not None:
            update(payload)


async def _awake(ref: Any, timeout_s: float) -> Any:
    """The value of a reference, looked at from time to time: the end of the actor that should answer brings no traffic, and so would wake nobody here."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    future = ref.as_future()
    while not future.done():
        await asyncio.wait([future], timeout=LOOK_S)
        if not future.done():
            if shoal.wait([ref], timeout=0)[0]:
                return await ref
            if loop.time() > deadline:
                future.cancel()
                raise TimeoutError(f"no answer within {timeout_s:g} s")
    return future.result()


_routers: dict[tuple[str, str], LoopRouter] = {}


def loop_router(key: tuple[str, str]) -> LoopRouter:
    """This process's router to a deployment. On the loop only."""
    router = _routers.get(key)
    if router is None:
        assert process.loop is asyncio.get_running_loop()
        router = _routers[key] = LoopRouter(key)
    return router
