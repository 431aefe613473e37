"""Marks in a worker's output: a line of its own that says whose lines follow. Written by workers, taken out by whoever shows their files.

>>> mark("f")
b'\\x1eshoal:name:f\\n'
>>> marked_name(b"\\x1eshoal:name:f")
'f'
"""

from __future__ import annotations

MARK = b"\x1eshoal:name:"
# Limit: a longer name is cut.
MAX_NAME_CHARACTERS = 200


def mark(name: str) -> bytes:
    return MARK + name.replace("\n", " ")[:MAX_NAME_CHARACTERS].encode("utf-8", "replace") + b"\n"


def marked_name(line: bytes) -> str | None:
    """None: the line is output."""
    return line[len(MARK) :].decode("utf-8", "replace") if line.startswith(MARK) else None


class Unmarked:
    """Takes the marks out of a stream of bytes, however it is cut into pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data, self._held = self._held + data, b""
        first, *rest = data.split(MARK)
        out = [first]
        for at, part in enumerate(rest, 1):
            _name, newline, after = part.partition(b"\n")
            if newline:
                out.append(after)
            elif at == len(rest):
                self._held = MARK + part
        if not self._held:
            cut = _begun(out[-1])
            out[-1], self._held = out[-1][:cut], out[-1][cut:]
        return b"".join(out)

    def rest(self) -> bytes:
        """At the end: what was held back and is no mark."""
        held, self._held = self._held, b""
        return b"" if held.startswith(MARK) else held


def _begun(data: bytes) -> int:
    """Where a mark may begin whose rest has not come."""
    for length in range(min(len(MARK) - 1, len(data)), 0, -1):
        if data.endswith(MARK[:length]):
            return len(data) - length
    return len(data)
