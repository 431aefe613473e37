"""The tasks that this node's workers have ended: a ring for each living worker, which it writes itself, and what is left of the dead ones' rings."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections import deque

import msgspec

from .memory import RECORDS, Record
from .v1 import raylet_pb2 as pb

EVENTS = 2048
EVENT_BYTES = 128
HEADER_BYTES = 4096
RING_BYTES = HEADER_BYTES + EVENTS * EVENT_BYTES
MAGIC = 0x54534948
# Limit: events of dead workers that are kept; the oldest go first, and are counted.
MAX_KEPT = 20_000
_HEADER = struct.Struct("<IIQq16s")
EVENT = struct.Struct("<16s16sQQIIIBB2x64s")
# What a reply's status cannot say: the worker died while the task ran.
DIED = 100
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2


class Ring(msgspec.Struct):
    """Events of one worker, in the order of their ends."""

    worker_id: bytes
    pid: int
    wall_offset_ns: int
    events: bytes

    def __len__(self) -> int:
        return len(self.events) // EVENT_BYTES

    def message(self, limit: int) -> pb.TaskRing:
        events = self.events[-limit * EVENT_BYTES :] if limit else self.events
        return pb.TaskRing(worker_id=self.worker_id, pid=self.pid, wall_offset_ns=self.wall_offset_ns, events=events)


def valid_events(ring: bytes, written_before: int, written_after: int) -> bytes:
    """The events of a ring's copy that nobody wrote while it was copied, the oldest first.

    The writer fills slot n % EVENTS and then counts to n + 1, so the slot of `written_after` may be half new.
    """
    first = max(0, written_after - EVENTS + 1)
    if first >= written_before:
        return b""
    slots = [n % EVENTS for n in (first, written_before)]
    start, end = (HEADER_BYTES + slot * EVENT_BYTES for slot in slots)
    return ring[start:end] if start < end else ring[start:] + ring[HEADER_BYTES:end]


class TaskHistory:
    """Indexed like the control pages."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("shoal-history", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, RECORDS * RING_BYTES)  # sparse: what nobody wrote takes no memory
        self._kept: deque[Ring] = deque()
        self._kept_events = 0
        self.dropped = 0

    def read(self, index: int) -> Ring | None:
        """None: no worker has mapped this ring."""
        at = index * RING_BYTES
        magic, pid, before, offset, worker_id = _HEADER.unpack(os.pread(self.fd, _HEADER.size, at))
        if magic != MAGIC:
            return None
        copy = os.pread(self.fd, RING_BYTES, at)
        _, _, after, _, _ = _HEADER.unpack(os.pread(self.fd, _HEADER.size, at))
        return Ring(worker_id, pid, offset, valid_events(copy, before, after))

    def retire(self, index: int, last: Record | None, job_id: bytes) -> None:
        """Its worker has ended: keeps what is in the ring, and the task that it was running, and frees the ring for the next one."""
        ring = self.read(index)
        if ring is None:
            return
        if last is not None and any(last.task_id):
            kind = 2 if any(last.actor_id) else 0
            job = int.from_bytes(job_id[:4], "little")
            ring.events += EVENT.pack(
                last.task_id, last.actor_id, last.started_at_ns, time.monotonic_ns(), job, 0, 0, kind, DIED, last.task_name.encode()[:63]
            )  # fmt: skip
        if ring.events:
            self._keep(ring)
        _punch(self.fd, index * RING_BYTES, RING_BYTES)

    def _keep(self, ring: Ring) -> None:
        self._kept.append(ring)
        self._kept_events += len(ring)
        while self._kept_events > MAX_KEPT:
            oldest = self._kept[0]
            gone = min(self._kept_events - MAX_KEPT, len(oldest))
            oldest.events = oldest.events[gone * EVENT_BYTES :]
            self._kept_events -= gone
            self.dropped += gone
            if not oldest.events:
                self._kept.popleft()

    def reply(self, living: list[int], limit: int) -> pb.TaskHistoryReply:
        """At most `limit` events of each ring, the newest; 0: all."""
        rings = [*self._kept, *filter(None, map(self.read, living))]
        return pb.TaskHistoryReply(rings=[ring.message(limit) for ring in rings if ring.events], dropped=self.dropped)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


_libc = ctypes.CDLL(None, use_errno=True)


def _punch(fd: int, at: int, size: int) -> None:
    """Gives the pages back; they read as zeros."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(size)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
