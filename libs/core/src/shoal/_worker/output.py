"""What a worker prints, with marks that say whose it is.

A mark is written only when somebody else printed last, so that tasks that print nothing pay nothing.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from shoal_base.output_marks import mark


class MarkedFile(io.FileIO):
    """A descriptor that is written to; `owner` is whose the bytes are that come."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self.owner = ""
        self._marked = ""
        self._line_open = False

    def write(self, data: Any) -> int:
        if self.owner != self._marked:
            self._mark(self.owner)
        view = memoryview(data).cast("B")
        written = super().write(view) or 0
        if written:
            self._line_open = view[written - 1] != 10
        return written

    def _mark(self, name: str) -> None:
        self._marked = name
        # A mark is a line of its own, and what others left unfinished stays theirs.
        line = b"\n" + mark(name) if self._line_open else mark(name)
        while line:
            line = line[super().write(line) or 0 :]


class MarkedText(io.TextIOWrapper):
    """`whose` names who writes now; an empty name is whoever wrote last (a thread that was left behind)."""

    def __init__(self, raw: MarkedFile, whose: Callable[[], str], encoding: str, errors: str) -> None:
        super().__init__(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
        self._raw = raw
        self._whose = whose

    def write(self, text: str) -> int:
        name = self._whose()
        if name and name != self._raw.owner:
            self.flush()  # what the last one left in the buffer is still its own
            self._raw.owner = name
        return super().write(text)


def mark_streams(whose: Callable[[], str]) -> None:
    """From here on, stdout and stderr of this process carry marks."""
    for stream_name in ("stdout", "stderr"):
        old = getattr(sys, stream_name)
        old.flush()
        raw = MarkedFile(old.fileno())
        raw.name = f"<{stream_name}>"  # type: ignore[assignment,unused-ignore]
        setattr(sys, stream_name, MarkedText(raw, whose, old.encoding, old.errors))
