"""Tasks and calls of actors that run longer than their `timeout_s`: interrupted first, then ended with their worker.

Three steps, since each can be in vain: a KeyboardInterrupt in the thread that runs it, or an asyncio cancel (a long call of C code does not see it, other
code may go on regardless); after `GRACE_S` the answer is sent and the process ends (this needs the GIL once, which C code may hold as well); after another
`GRACE_S` the kernel kills the process.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .._core.engine import Task

_log = logging.getLogger(__name__)
# How long a task may take to end once it was interrupted.
GRACE_S = 2.0


class Step(enum.Enum):
    NOTHING = "nothing"
    INTERRUPT = "interrupt"
    END = "end"


class Countdown:
    """One task's. Decides what is due; each step is told once."""

    def __init__(self, limit_s: float, now: float, grace_s: float = GRACE_S) -> None:
        self.limit_s = limit_s
        self.kill_at = now + limit_s + 2 * grace_s
        self.interrupted = False
        self._grace_s = grace_s
        self._next: float | None = now + limit_s

    def due(self, now: float) -> Step:
        if self._next is None or now < self._next:
            return Step.NOTHING
        if self.interrupted:
            self._next = None
            return Step.END
        self.interrupted = True
        self._next += self._grace_s
        return Step.INTERRUPT

    def wait_s(self, now: float) -> float | None:
        """How long until something may be due; None: nothing is."""
        return None if self._next is None else max(0.0, self._next - now)


class Countdowns:
    """Those of all calls that run in this process. No clock and no thread: times come in seconds of any one clock."""

    def __init__(self) -> None:
        self._running: dict[bytes, Countdown] = {}

    def begin(self, task_id: bytes, limit_s: float, now: float) -> None:
        self._running[task_id] = Countdown(limit_s, now)

    def end(self, task_id: bytes) -> None:
        self._running.pop(task_id, None)

    def interrupted(self, task_id: bytes) -> float | None:
        """Its limit, if it has been interrupted."""
        found = self._running.get(task_id)
        return found.limit_s if found is not None and found.interrupted else None

    def due(self, now: float) -> list[tuple[bytes, Step]]:
        steps = [(task_id, one.due(now)) for task_id, one in self._running.items()]
        return [(task_id, step) for task_id, step in steps if step is not Step.NOTHING]

    def wait_s(self, now: float) -> float | None:
        return min((wait for one in self._running.values() if (wait := one.wait_s(now)) is not None), default=None)

    def first_to_kill(self) -> Countdown | None:
        return min(self._running.values(), key=lambda one: one.kill_at, default=None)


class Stopper(Protocol):
    """How the calls of one kind of worker are stopped. Called on the thread that watches the time."""

    def where(self, task: Task) -> str:
        """The stack of the task, as text."""

    def interrupt(self, task: Task) -> None:
        """Asks the task to end."""

    def end(self, task: Task) -> None:
        """Answers for the task, and ends the process."""


class TimeLimit:
    """Watches the calls that have a limit. One for each worker that runs one; its stopper changes when a worker of tasks becomes an actor's."""

    def __init__(self, stopper: Callable[[], Stopper], last_words: Callable[[str], None]) -> None:
        self._stopper = stopper
        self._last_words = last_words
        self._countdowns = Countdowns()
        self._tasks: dict[bytes, Task] = {}
        self._where: dict[bytes, str] = {}
        self._changed = threading.Condition()
        self._kernel = _KernelTimer()
        threading.Thread(target=self._run, name="shoal-time-limit", daemon=True).start()

    def begin(self, task: Task, limit_s: float) -> None:
        with self._changed:
            self._countdowns.begin(task.task_id, limit_s, time.monotonic())
            self._tasks[task.task_id] = task
            self._set_kernel_timer()
            self._changed.notify()

    def done(self, task: Task) -> None:
        with self._changed:
            self._countdowns.end(task.task_id)
            self._tasks.pop(task.task_id, None)
            self._where.pop(task.task_id, None)
            self._set_kernel_timer()

    def _set_kernel_timer(self) -> None:
        first = self._countdowns.first_to_kill()
        # Read by the raylet should the kernel's kill be what ends this process.
        self._last_words(f"it ran longer than its timeout_s={first.limit_s:g}" if first is not None else "")
        self._kernel.set(max(0.001, first.kill_at - time.monotonic()) if first is not None else 0)

    def exceeded(self, task: Task) -> tuple[float, str] | None:
        """(limit in seconds, where the task was then) when this task has been interrupted for its time."""
        with self._changed:
            limit_s = self._countdowns.interrupted(task.task_id)
            return None if limit_s is None else (limit_s, self._where.get(task.task_id, ""))

    def _run(self) -> None:
        while True:
            with self._changed:
                wait_s = self._countdowns.wait_s(time.monotonic())
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                steps = [(self._tasks[task_id], step) for task_id, step in self._countdowns.due(time.monotonic())]
                for task, step in steps:
                    if step is Step.INTERRUPT:
                        self._where[task.task_id] = self._stopper().where(task)
            for task, step in steps:
                stopper = self._stopper()
                (stopper.interrupt if step is Step.INTERRUPT else stopper.end)(task)


def stack_of(thread_id: int | None) -> str:
    """What a thread of this process does now, without our own frames."""
    frame = sys._current_frames().get(thread_id or 0)
    return text_of(traceback.extract_stack(frame)) if frame is not None else ""


def text_of(stack: traceback.StackSummary) -> str:
    from .errors import is_ours

    return "".join(traceback.format_list([frame for frame in stack if not is_ours(frame.filename)]))


class _SigEvent(ctypes.Structure):
    _fields_ = (("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval_s", ctypes.c_long), ("interval_ns", ctypes.c_long), ("value_s", ctypes.c_long), ("value_ns", ctypes.c_long))


class _KernelTimer:
    """A POSIX timer whose signal is SIGKILL: it strikes whatever this process does. SIGALRM stays the user's."""

    _MONOTONIC = 1
    _SIGKILL = 9

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _SigEvent(signo=self._SIGKILL, notify=0)
        self._there = hasattr(self._libc, "timer_create") and self._libc.timer_create(self._MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)) == 0
        if not self._there:
            _log.warning("no kernel timer (errno %d): a task whose C code keeps the interpreter's lock will outlive its timeout_s", ctypes.get_errno())

    def set(self, after_s: float) -> None:
        """0: never."""
        if self._there:
            spec = _TimerSpec(value_s=int(after_s), value_ns=int(after_s % 1 * 1e9))
            self._libc.timer_settime(self._timer, 0, ctypes.byref(spec), None)
