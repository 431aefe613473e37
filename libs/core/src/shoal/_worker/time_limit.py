"""Tasks that run longer than their `timeout_s`: interrupted first, then ended with their worker.

Three steps, since each can be in vain: a KeyboardInterrupt in the main thread (a long call of C code does not see it); after `GRACE_S` the
answer is sent and the process ends (this needs the GIL once, which C code may hold as well); after another `GRACE_S` the kernel kills the process.
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

_log = logging.getLogger(__name__)
# How long a task may take to end once it was interrupted.
GRACE_S = 2.0


class Step(enum.Enum):
    NOTHING = "nothing"
    INTERRUPT = "interrupt"
    END = "end"


class Countdown:
    """Decides what is due. No clock and no thread: times come in seconds of any one clock. Plain workers run one task at a time."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.task_id: bytes | None = None
        self.limit_s = 0.0
        self._grace_s = grace_s
        self._next: float | None = None
        self._interrupted = False

    def begin(self, task_id: bytes, limit_s: float, now: float) -> None:
        self.task_id, self.limit_s, self._next, self._interrupted = task_id, limit_s, now + limit_s, False

    def end(self) -> None:
        self.task_id = self._next = None

    def interrupted(self, task_id: bytes) -> bool:
        return self._interrupted and self.task_id == task_id

    def due(self, now: float) -> Step:
        """What to do now; each step is told once."""
        if self._next is None or now < self._next:
            return Step.NOTHING
        if self._interrupted:
            self._next = None
            return Step.END
        self._interrupted = True
        self._next += self._grace_s
        return Step.INTERRUPT

    def wait_s(self, now: float) -> float | None:
        """How long until something may be due; None: nothing runs."""
        return None if self._next is None else max(0.0, self._next - now)


class TimeLimit:
    """Watches the main thread's task. One for each worker that runs a task with a limit."""

    def __init__(self, interrupt: Callable[[bytes], None], end: Callable[[bytes], None], last_words: Callable[[str], None]) -> None:
        self._interrupt = interrupt
        self._end = end
        self._last_words = last_words
        self._countdown = Countdown()
        self._changed = threading.Condition()
        self._main = threading.main_thread().ident
        self._where = ""
        self._kernel = _KernelTimer()
        threading.Thread(target=self._run, name="shoal-time-limit", daemon=True).start()

    def begin(self, task_id: bytes, limit_s: float) -> None:
        with self._changed:
            self._countdown.begin(task_id, limit_s, time.monotonic())
            self._where = ""
            self._changed.notify()
        # Read by the raylet should the kernel's kill be what ends this process.
        self._last_words(f"it ran longer than its timeout_s={limit_s:g}")
        self._kernel.set(limit_s + 2 * GRACE_S)

    def done(self) -> None:
        self._kernel.set(0)
        with self._changed:
            self._countdown.end()
        self._last_words("")

    def exceeded(self, task_id: bytes) -> tuple[float, str] | None:
        """(limit in seconds, where the task was then) when this task has been interrupted for its time."""
        with self._changed:
            return (self._countdown.limit_s, self._where) if self._countdown.interrupted(task_id) else None

    def _run(self) -> None:
        while True:
            with self._changed:
                wait_s = self._countdown.wait_s(time.monotonic())
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                task_id, step = self._countdown.task_id, self._countdown.due(time.monotonic())
                if step is Step.INTERRUPT:
                    self._where = self._stack()
            if task_id is None:
                continue
            if step is Step.INTERRUPT:
                self._interrupt(task_id)
            elif step is Step.END:
                self._end(task_id)

    def _stack(self) -> str:
        from .errors import is_ours

        frame = sys._current_frames().get(self._main or 0)
        return "".join(traceback.format_list([f for f in traceback.extract_stack(frame) if not is_ours(f.filename)])) if frame is not None else ""


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
