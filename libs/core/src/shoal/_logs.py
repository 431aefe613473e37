"""What workers print, at the driver: prefixed with who printed it, and the same line from many processes once."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ._control import Control

# A line like one seen within this time, from another process, is counted instead of printed.
WINDOW_S = 5.0
# Limit: patterns remembered at a time.
MAX_PATTERNS = 1000
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")
_CYAN, _DIM, _RESET = "\033[36m", "\033[2m", "\033[0m"


def dedup_wanted() -> bool:
    return all(os.environ.get(name, "1") != "0" for name in ("SHOAL_DEDUP_LOGS", "RAY_DEDUP_LOGS"))


class _Pattern:
    """Lines that differ in their numbers only."""

    __slots__ = ("count", "first", "last_batch", "last_line", "since")

    def __init__(self, first: tuple[bytes, int], now: float) -> None:
        self.first = first
        self.since = now
        self.count = 0
        self.last_line = ""
        self.last_batch: Any = None


class Deduplicator:
    """Lines in, lines to print out. Time is an argument.

    A process's own repetitions are its own business and are printed; what another process says again within WINDOW_S is counted, and the count is told at the
    end of the window.
    """

    def __init__(self) -> None:
        self._patterns: dict[str, _Pattern] = {}

    def add(self, batch: Any, now: float) -> list[str]:
        """The lines of this batch to print now."""
        who = (batch.node_id, batch.pid)
        out = []
        for line in batch.lines:
            key = _NUMBERS.sub("#", line)
            seen = self._patterns.get(key)
            if not line.strip() or seen is None:
                if line.strip() and len(self._patterns) < MAX_PATTERNS:
                    self._patterns[key] = _Pattern(who, now)
                out.append(line)
            elif seen.first == who:
                seen.since = now if not seen.count else seen.since
                out.append(line)
            else:
                seen.count += 1
                seen.last_line, seen.last_batch = line, batch
        return out

    def due(self, now: float) -> list[tuple[Any, str]]:
        """(batch, line) of each count whose window has ended."""
        ended = [key for key, seen in self._patterns.items() if now - seen.since >= WINDOW_S]
        out = []
        for key in ended:
            seen = self._patterns.pop(key)
            if seen.count == 1:
                out.append((seen.last_batch, seen.last_line))
            elif seen.count > 1:
                out.append((seen.last_batch, f"{seen.last_line} [repeated {seen.count}x across cluster] (set SHOAL_DEDUP_LOGS=0 to see every line)"))
        return out

    def flush(self) -> list[tuple[Any, str]]:
        return self.due(float("inf"))

    def next_due(self) -> float | None:
        """When `due` has something to tell; None: nothing is counted."""
        return min((seen.since + WINDOW_S for seen in self._patterns.values() if seen.count), default=None)


def prefix(batch: Any, own_ip: str, colour: bool) -> str:
    """`(name pid=123, ip=10.0.0.5)`; the address only for other hosts."""
    place = f", ip={batch.node_ip}" if batch.node_ip and batch.node_ip != own_ip else ""
    text = f"({batch.name + ' ' if batch.name else ''}pid={batch.pid}{place})"
    return f"{_CYAN}{text}{_RESET}" if colour else text


class LogPrinter:
    """Writes batches of the channel `logs:<job>` to this process's stdout and stderr."""

    def __init__(self, own_ip: str = "", *, dedup: bool | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._own_ip = own_ip
        self._dedup = Deduplicator() if (dedup_wanted() if dedup is None else dedup) else None
        self._now = now
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def on_event(self, _channel: str, payload: bytes) -> None:
        from shoal_raylet.v1 import raylet_pb2

        self.on_batch(raylet_pb2.LogBatch.FromString(payload))

    def on_batch(self, batch: Any) -> None:
        with self._lock:
            if self._closed:
                return
            if self._dedup is None:
                self._write(batch, list(batch.lines))
                return
            now = self._now()
            self._tell(self._dedup.due(now))
            self._write(batch, self._dedup.add(batch, now))
            self._plan(now)

    def _plan(self, now: float) -> None:
        due = self._dedup.next_due() if self._dedup is not None else None
        if due is not None and self._timer is None:
            self._timer = threading.Timer(max(0.0, due - now), self._window_ended)
            self._timer.daemon = True
            self._timer.start()

    def _window_ended(self) -> None:
        with self._lock:
            self._timer = None
            if self._dedup is not None and not self._closed:
                now = self._now()
                self._tell(self._dedup.due(now))
                self._plan(now)

    def _tell(self, counted: list[tuple[Any, str]]) -> None:
        for batch, line in counted:
            self._write(batch, [line])

    def _write(self, batch: Any, lines: list[str]) -> None:
        if not lines:
            return
        stream: TextIO | None = sys.stderr if batch.is_err else sys.stdout
        if stream is None:
            return
        head = prefix(batch, self._own_ip, colour=_is_terminal(stream))
        # A closed pipe at the driver must not end the thread that serves the cluster's events.
        with contextlib.suppress(OSError, ValueError):
            stream.write("".join(f"{head} {line}\n" for line in lines))
            stream.flush()

    def close(self) -> None:
        """Prints what is still counted; nothing afterwards."""
        with self._lock:
            if self._closed:
                return
            if self._dedup is not None:
                self._tell(self._dedup.flush())
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and "NO_COLOR" not in os.environ
    except ValueError:  # closed
        return False


def print_logs(control: Control, job_id: bytes) -> LogPrinter:
    """From now on until the disconnect, what this job's tasks print appears here."""
    from ._runtime import state

    printer = LogPrinter(state.node_ip)
    control.listen(f"logs:{job_id.hex()}", printer.on_event)
    state.at_disconnect.append(printer.close)
    return printer
