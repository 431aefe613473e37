"""Sending requests from a driver: calls are made and waited for on the user's own threads, and one thread in the background looks after the rest.

A call that somebody waits for in `result()` needs no other thread: it is fetched, and its end noted, right there. The watcher sends what waits in a queue, and
notes the end of calls that nobody waits for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import shoal

from .context import CONTROLLER_NAME, NAMESPACE, new_request_id
from .exceptions import DeploymentUnavailableError, RequestCancelledError
from .journal import new_number
from .router import BUSY, LEAVING, STREAM, Slot, Table, is_death

LISTEN_S = 30.0
LISTEN_SLACK_S = 5.0
RETRY_S = 0.2
QUEUE_REPORT_S = 1.0
# How often calls that nobody waits for are looked at; while something waits for them it is at once.
LOOK_S = 0.05
FAILED_LOOK_S = 1.0
_NOTHING = object()

_log = logging.getLogger("shoal.serve")


class ThreadCall:
    """A request on its way, with its answer at the end. Guarded by its router's lock."""

    __slots__ = ("_callbacks", "args", "error", "final_ref", "held", "kwargs", "meta", "model_id", "number", "ref", "router", "slot", "value", "wake")

    def __init__(self, router: ThreadRouter, meta: Any, args: tuple[Any, ...], kwargs: dict[str, Any], model_id: str) -> None:
        self.router = router
        self.meta, self.args, self.kwargs, self.model_id = meta, args, kwargs, model_id
        self.number = 0
        self.slot: Slot | None = None
        self.ref: Any = None  # of the attempt under way
        self.final_ref: Any = None
        self.value: Any = _NOTHING
        self.error: BaseException | None = None
        self.held: Slot | None = None  # a stream that goes on
        self.wake: threading.Event | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self.value is not _NOTHING or self.error is not None

    def wait(self, timeout_s: float | None) -> Any:
        """(status, value). Raises TimeoutError, or what the request raised."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.done:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the request to {self.router.table.key[1]!r} was not answered within {timeout_s:g} s; {self._state()}")
            ref = self.ref
            if ref is None:
                self._wait_for_turn(left)
            else:
                self.router.fetch(self, ref, left)
        if self.error is not None:
            raise self.error
        return self.value

    def _state(self) -> str:
        return "it waits for a replica" if self.ref is None else f"replica {self.slot.replica_id if self.slot else '?'} has it"

    def _wait_for_turn(self, left: float | None) -> None:
        with self.router.lock:
            if self.ref is not None or self.done:
                return
            wake = self.wake = self.wake or threading.Event()
            wake.clear()
        watcher.stir()
        wake.wait(left)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Calls it once this is done, on any thread, without the lock."""
        with self.router.lock:
            if not self.done:
                self._callbacks.append(callback)
                watcher.stir()
                return
        callback()

    def finish(self, value: Any = _NOTHING, error: BaseException | None = None) -> list[Callable[[], None]]:
        """Under the lock; the callbacks are for after it."""
        if self.done:
            return []
        self.value, self.error = value, error
        if self.wake is not None:
            self.wake.set()
        callbacks, self._callbacks = self._callbacks, []
        return callbacks

    @property
    def awaited(self) -> bool:
        return bool(self._callbacks)


class ThreadRouter:
    """One for each deployment that this process sends to."""

    def __init__(self, key: tuple[str, str]) -> None:
        self.lock = threading.RLock()
        self.table: Table[ThreadCall] = Table(key)
        self.calls: set[ThreadCall] = set()  # sent, and not answered yet
        self.name = new_request_id()
        self.reported = 0.0
        self._seen = ("", 0)
        self._listener = threading.Thread(target=self._listen, name=f"serve-listen-{key[1]}", daemon=True)
        self._listener.start()

    def submit(self, call: ThreadCall) -> None:
        """Sends it, or puts it into the queue. Raises BackPressureError, DeploymentUnavailableError."""
        with self.lock:
            table = self.table
            slot = None if table.queue else table.choose(call.model_id)
            if slot is None and self.calls:
                self._look()
                slot = None if table.queue else table.choose(call.model_id)
            if slot is not None:
                self._send(call, slot)
            else:
                table.enqueue(call)
        watcher.begin(stir=slot is None)

    def _send(self, call: ThreadCall, slot: Slot) -> None:
        slot.ongoing += 1
        call.slot = slot
        call.number = new_number()
        call.ref = slot.call.remote(call.number, call.meta, *call.args, **call.kwargs)
        self.calls.add(call)
        if call.wake is not None:
            call.wake.set()

    def fetch(self, call: ThreadCall, ref: Any, timeout_s: float | None) -> None:
        """Waits for this attempt and notes its end."""
        reply: Any = None
        error: BaseException | None = None
        try:
            reply = shoal.get(ref, timeout=timeout_s)
        except shoal.exceptions.GetTimeoutError as timeout:
            if not isinstance(timeout, shoal.exceptions.RayTaskError):
                return
            error = timeout
        except Exception as caught:
            error = caught
        self.settle(call, ref, reply, error)

    def settle(self, call: ThreadCall, ref: Any, reply: Any, error: BaseException | None) -> None:
        callbacks: list[Callable[[], None]] = []
        with self.lock:
            if call.ref is not ref:
                return  # somebody else was first
            slot, call.ref = call.slot, None
            assert slot is not None
            self.calls.discard(call)
            if error is not None or reply[0] != STREAM or reply[2][-1]:
                slot.ongoing -= 1
            else:
                call.held = slot
            callbacks = self._settled(call, slot, ref, reply, error)
            self.dispatch()
        for callback in callbacks:
            callback()

    def _settled(self, call: ThreadCall, slot: Slot, ref: Any, reply: Any, error: BaseException | None) -> list[Callable[[], None]]:
        if error is not None:
            if is_death(error):
                self.table.lost(slot)
                if not slot.journal.may_have_started(call.number):
                    return self._again(call)
            if isinstance(error, shoal.exceptions.TaskCancelledError) and not isinstance(error, shoal.exceptions.RayTaskError):
                error = RequestCancelledError(call.meta[0])
            return call.finish(error=error)
        if reply[0] in (BUSY, LEAVING):
            if reply[0] == LEAVING:
                self.table.lost(slot)
            else:
                watcher.later(self.table.refused(slot), self, slot)
            return self._again(call)
        slot.refusals = 0
        call.final_ref = ref
        return call.finish((reply[0], reply[2]))

    def _again(self, call: ThreadCall) -> list[Callable[[], None]]:
        try:
            self.table.enqueue(call, again=True)
        except DeploymentUnavailableError as gone:
            return call.finish(error=gone)
        return []

    def dispatch(self) -> None:
        """Sends what waits, as far as there is room. Under the lock."""
        table = self.table
        while table.queue:
            slot = table.choose(table.queue[0].model_id)
            if slot is None:
                return
            self._send(table.queue.popleft(), slot)

    def rested(self, slot: Slot) -> None:
        with self.lock:
            self.table.rested(slot)
            self.dispatch()

    def release(self, slot: Slot) -> None:
        """A stream has ended."""
        with self.lock:
            slot.ongoing -= 1
            self.dispatch()

    def cancel(self, call: ThreadCall) -> None:
        callbacks: list[Callable[[], None]] = []
        with self.lock:
            if call.done:
                return
            if call.ref is not None:
                shoal.cancel(call.ref)
            else:
                if call in self.table.queue:
                    self.table.queue.remove(call)
                callbacks = call.finish(error=RequestCancelledError(call.meta[0]))
        for callback in callbacks:
            callback()

    def _look(self) -> None:
        """Notes the calls that have ended meanwhile."""
        by_ref = {call.ref: call for call in self.calls}
        ready, _ = shoal.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        for ref in ready:
            self.fetch(by_ref[ref], ref, 0)

    # -- the controller's news
    def refresh(self) -> None:
        """Learns at once how things are now."""
        controller = shoal.get_actor(CONTROLLER_NAME, NAMESPACE)
        self.update(*shoal.get(controller.listen.remote(self.table.key, "", 0.0), timeout=LISTEN_S))

    def update(self, version: str, payload: Any) -> None:
        callbacks: list[Callable[[], None]] = []
        boot, _, number = version.rpartition("-")
        with self.lock:
            if boot == self._seen[0] and int(number) < self._seen[1]:
                return  # two questions were under way, and this is the answer to the earlier one
            self._seen = (boot, int(number))
            self.table.update(*payload)
            if self.table.gone:
                while self.table.queue:
                    callbacks += self.table.queue.popleft().finish(error=DeploymentUnavailableError(self.table.gone))
            self.dispatch()
        for callback in callbacks:
            callback()

    def _listen(self) -> None:
        version, token = "", _token()
        while token and token == _token():
            try:
                controller = shoal.get_actor(CONTROLLER_NAME, NAMESPACE)
                version, payload = shoal.get(controller.listen.remote(self.table.key, version, LISTEN_S), timeout=LISTEN_S + LISTEN_SLACK_S)
            except Exception as error:  # the controller is being started again, or this program is leaving the cluster
                _log.debug("%s hears nothing of the controller, and asks again in %g s: %s", self.table.key, RETRY_S, error)
                time.sleep(RETRY_S)
                continue
            if payload is not None:
                self.update(version, payload)

    def report(self, now: float) -> None:
        """Tells the controller how many wait, as long as some do."""
        queued = len(self.table.queue)
        if self.table.autoscaled and (queued or self.reported) and now - self.reported >= QUEUE_REPORT_S:
            self.reported = now if queued else 0.0
            try:
                shoal.get_actor(CONTROLLER_NAME, NAMESPACE).report_queue.remote(self.table.key, self.name, queued)
            except Exception:
                self.reported = now  # without a controller for the moment: the next report comes in time


class _Watcher:
    """The thread in the background, one for all routers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stirred = False
        self._parked = False
        self._rests: list[tuple[float, ThreadRouter, Slot]] = []

    def begin(self, stir: bool) -> None:
        """There is a call to look after."""
        if self._thread is None or not self._thread.is_alive():
            with self._condition:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="serve-calls", daemon=True)
                    self._thread.start()
        if stir or self._parked:
            self.stir()

    def stir(self) -> None:
        with self._condition:
            self._stirred = True
            self._condition.notify()

    def later(self, pause_s: float, router: ThreadRouter, slot: Slot) -> None:
        with self._condition:
            self._rests.append((time.monotonic() + pause_s, router, slot))
            self._stirred = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            try:
                self._step()
            except Exception:
                if not shoal.is_initialized():
                    return  # with it ends what there was to look after
                _log.exception("a look at the calls under way failed; the next one is in %g s", FAILED_LOOK_S)
                time.sleep(FAILED_LOOK_S)

    def _step(self) -> None:
        routers = list(_routers.values())
        now = time.monotonic()
        with self._condition:
            due = [(router, slot) for when, router, slot in self._rests if when <= now]
            self._rests = [rest for rest in self._rests if rest[0] > now]
            pause = min([LOOK_S, *(when - now for when, _, _ in self._rests)])
        for router, slot in due:
            router.rested(slot)
        calls: dict[Any, ThreadCall] = {}
        hot = bool(self._rests)
        for router in routers:
            with router.lock:
                hot = hot or bool(router.table.queue) or any(call.awaited for call in router.calls)
                calls.update({call.ref: call for call in router.calls})
            router.report(now)
        if calls and hot:
            shoal.wait(list(calls), num_returns=1, timeout=pause)
        else:
            self._pause(bool(calls) or hot, pause)
        if calls:
            ready, _ = shoal.wait(list(calls), num_returns=len(calls), timeout=0)
            for ref in ready:
                calls[ref].router.fetch(calls[ref], ref, 0)

    def _pause(self, something: bool, pause_s: float) -> None:
        with self._condition:
            if not self._stirred:
                self._parked = not something
                self._condition.wait(pause_s if something else None)
                self._parked = False
            self._stirred = False


watcher = _Watcher()
_routers: dict[tuple[str, str], ThreadRouter] = {}
_routers_of = ""
_routers_lock = threading.Lock()


def _token() -> str:
    """Which connection to which cluster this process has; empty: none."""
    if not shoal.is_initialized():
        return ""
    try:
        return str(shoal.get_runtime_context().get_worker_id())
    except Exception:
        return ""  # it ended between the two


def thread_router(key: tuple[str, str]) -> ThreadRouter:
    """This process's router to a deployment."""
    global _routers_of
    token = _token()
    with _routers_lock:
        if token != _routers_of:
            _routers.clear()
            _routers_of = token
        router = _routers.get(key)
        if router is None:
            router = _routers[key] = ThreadRouter(key)
        return router
