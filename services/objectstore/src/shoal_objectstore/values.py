"""A value as it lies in the arena: self-contained, its large buffers aligned, readable where it lies.

u8 kind (0 pickle 5, 1 raw bytes), u8 0, u16 0, u32 n_buffers, u64 inband_len, n x (u64 offset, u64 length), the in-band bytes, the buffers at multiples of 64
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

from ._arena import buffer_end, lay

PICKLE, RAW = 0, 1
_HEAD = struct.Struct("<BxHIQ")
_SPAN = struct.Struct("<QQ")


class Packed:
    """A value that knows how many bytes it takes. Its buffers are copied once, by `write`."""

    def __init__(self, value: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        if isinstance(value, bytes | bytearray | memoryview):
            self._kind, self._inband = RAW, b""
            self._buffers = [memoryview(value).cast("B")]
        else:
            self._kind = PICKLE
            self._inband = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            self._buffers = [buffer.raw() for buffer in buffers]
        at = self._buffers_at = _HEAD.size + _SPAN.size * len(self._buffers) + len(self._inband)
        for buffer in self._buffers:
            at = buffer_end(at, buffer.nbytes)
        self.nbytes = at

    def write(self, to: memoryview) -> None:
        """`to` has room for `nbytes`."""
        at = self._buffers_at
        spans = b""
        for buffer in self._buffers:
            offset = lay(to, at, buffer)
            spans += _SPAN.pack(offset, buffer.nbytes)
            at = offset + buffer.nbytes
        to[: self._buffers_at] = _HEAD.pack(self._kind, 0, len(self._buffers), len(self._inband)) + spans + self._inband


def unpack(view: memoryview) -> Any:
    """The value; its buffers are read-only views of `view`. Raises ValueError for what is none."""
    kind, _, count, inband = _HEAD.unpack_from(view)
    at = _HEAD.size + _SPAN.size * count
    if at + inband > len(view):
        raise ValueError(f"a value of {len(view)} bytes whose in-band part reaches past its end")
    spans = [_SPAN.unpack_from(view, _HEAD.size + _SPAN.size * n) for n in range(count)]
    if any(offset + length > len(view) for offset, length in spans):
        raise ValueError(f"a value of {len(view)} bytes whose buffers reach past its end")
    buffers = [view[offset : offset + length] for offset, length in spans]
    return buffers[0] if kind == RAW else pickle.loads(view[at : at + inband], buffers=buffers)
