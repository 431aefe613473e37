"""The payloads of the frames that Python sides speak, one struct for each frame of the table in ARCHITECTURE.md.

>>> LeaseReturn.unpack(LeaseReturn(7, bytes(16), discard=True).pack())
LeaseReturn(lease_id=7, node_id=b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00', discard=True)
"""

from __future__ import annotations

import struct
from typing import ClassVar, Self

from msgspec import Struct, field
from msgspec.structs import replace

from . import frames
from .frames import BadFrame

_U8 = struct.Struct("<B")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
_SLOT = struct.Struct("<II")
# The part of a Task that a raylet reads: task id, kind, flags, num_returns, attempt, lease, job, function, actor.
_TASK_HEAD = struct.Struct("<16sBBHIQ4s16s16s")


class Reader:
    """Takes fields off the front of a payload. What is cut short raises BadFrame; text that is no UTF-8 is shown, not refused."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes | memoryview, what: str = "payload") -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what

    def raw(self, n: int) -> bytes:
        end = self._at + n
        if end > len(self._data):
            raise BadFrame(f"{self._what}: {n} bytes wanted at offset {self._at}, the payload has {len(self._data)}")
        out = self._data[self._at : end].tobytes()
        self._at = end
        return out

    def u8(self) -> int:
        return self.raw(1)[0]

    def u16(self) -> int:
        return int(_U16.unpack(self.raw(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.raw(4))[0])

    def i32(self) -> int:
        return int(_I32.unpack(self.raw(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.raw(8))[0])

    def id16(self) -> bytes:
        return self.raw(16)

    def short_text(self) -> str:
        """A u16 length and UTF-8."""
        return self.raw(self.u16()).decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self.raw(len(self._data) - self._at)

    def rest_text(self) -> str:
        return self.rest().decode("utf-8", "replace")

    def left(self) -> int:
        return len(self._data) - self._at

    def many(self, count: int, size: int) -> int:
        """Checks that `count` records of at least `size` bytes can still come, before anything is made for them."""
        if count * size > self.left():
            raise BadFrame(f"{self._what}: {count} records of {size} bytes announced, {self.left()} bytes left")
        return count


def id16(value: bytes) -> bytes:
    if len(value) != 16:
        raise ValueError(f"an id of 16 bytes is wanted, got {len(value)}")
    return value


def _sized(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size:
        raise ValueError(f"{what} takes {size} bytes, got {len(value)}")
    return value


def short_text(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) > 0xFFFF:
        raise ValueError(f"a text of {len(data)} bytes; the limit is 65535")
    return _U16.pack(len(data)) + data


class Hello(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.HELLO
    worker_id: bytes
    node_id: bytes
    job_id: bytes
    pid: int
    wire_min: int
    wire_max: int
    py_major: int
    py_minor: int
    kind: int

    def pack(self) -> bytes:
        return frames.HELLO.pack(
            id16(self.worker_id), id16(self.node_id), _sized(self.job_id, 4, "job_id"), self.pid,
            self.wire_min, self.wire_max, self.py_major, self.py_minor, self.kind,
        )  # fmt: skip

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        if len(payload) < frames.HELLO.size:
            raise BadFrame(f"HELLO of {len(payload)} bytes; {frames.HELLO.size} wanted")
        return cls(*frames.HELLO.unpack_from(payload))


class Bye(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.BYE
    code: int
    text: str

    def pack(self) -> bytes:
        return _U16.pack(self.code) + self.text.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "BYE")
        return cls(r.u16(), r.rest_text())


class LeaseDemand(Struct, frozen=True):
    """`want` is absolute. `lease_class` (protobuf `LeaseClass`) is empty when this class_id was sent before."""

    TYPE: ClassVar[int] = frames.Type.LEASE_DEMAND
    class_id: int
    want: int
    lease_class: bytes = b""

    def pack(self) -> bytes:
        return _SLOT.pack(self.class_id, self.want) + self.lease_class

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_DEMAND")
        return cls(r.u32(), r.u32(), r.rest())


class LeaseGrant(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.LEASE_GRANT
    class_id: int
    lease_id: int
    worker_id: bytes
    node_id: bytes
    address: str = ""  # empty: on the same node
    spread_over: int = 0  # nodes that can lend to this class now; 0: it is not to spread

    def pack(self) -> bytes:
        spread = _U32.pack(self.spread_over) if self.spread_over else b""
        return b"".join((_U32.pack(self.class_id), _U64.pack(self.lease_id), id16(self.worker_id), id16(self.node_id), short_text(self.address), spread))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_GRANT")
        return cls(r.u32(), r.u64(), r.id16(), r.id16(), r.short_text(), r.u32() if r.left() else 0)


class LeaseRefused(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.LEASE_REFUSED
    class_id: int
    code: int
    text: str

    def pack(self) -> bytes:
        return _U32.pack(self.class_id) + _U16.pack(self.code) + self.text.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_REFUSED")
        return cls(r.u32(), r.u16(), r.rest_text())


class LeaseReturn(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.LEASE_RETURN
    lease_id: int
    node_id: bytes
    discard: bool = False  # the worker must not be used again

    def pack(self) -> bytes:
        return _U64.pack(self.lease_id) + id16(self.node_id) + _U8.pack(1 if self.discard else 0)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_RETURN")
        return cls(r.u64(), r.id16(), bool(r.u8() & 1))


class LeaseReclaim(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.LEASE_RECLAIM
    lease_id: int
    node_id: bytes

    def pack(self) -> bytes:
        return _U64.pack(self.lease_id) + id16(self.node_id)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_RECLAIM")
        return cls(r.u64(), r.id16())


class LeaseBegin(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.LEASE_BEGIN
    lease_id: int
    context: bytes = b""  # protobuf LeaseContext

    def pack(self) -> bytes:
        return _U64.pack(self.lease_id) + self.context

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "LEASE_BEGIN")
        return cls(r.u64(), r.rest())


class WorkerDied(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.WORKER_DIED
    worker_id: bytes
    node_id: bytes
    task_id: bytes  # the started one; zero: none
    code: int
    cause: str

    def pack(self) -> bytes:
        return b"".join((id16(self.worker_id), id16(self.node_id), id16(self.task_id), _U16.pack(self.code), self.cause.encode("utf-8", "replace")))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "WORKER_DIED")
        return cls(r.id16(), r.id16(), r.id16(), r.u16(), r.rest_text())


class NodeDrains(Struct, frozen=True):
    """It is to go: owners move what lies there."""

    TYPE: ClassVar[int] = frames.Type.NODE_DRAINS
    node_id: bytes

    def pack(self) -> bytes:
        return id16(self.node_id)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(Reader(payload, "NODE_DRAINS").id16())


class NodeDied(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.NODE_DIED
    node_id: bytes
    cause: str

    def pack(self) -> bytes:
        return id16(self.node_id) + self.cause.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "NODE_DIED")
        return cls(r.id16(), r.rest_text())


class ActorCreated(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.ACTOR_CREATED
    actor_id: bytes
    ok: bool
    error: bytes = b""  # a value of kind 3 when not ok

    def pack(self) -> bytes:
        return id16(self.actor_id) + _U8.pack(1 if self.ok else 0) + self.error

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "ACTOR_CREATED")
        return cls(r.id16(), bool(r.u8()), r.rest())


class Owns(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.OWNS
    objects: bool  # others hold references to objects of the sender
    leaving: bool  # it takes no more tasks, and ends when nobody holds its objects

    def pack(self) -> bytes:
        return _U8.pack((1 if self.objects else 0) | (2 if self.leaving else 0))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        flags = Reader(payload, "OWNS").u8()
        return cls(bool(flags & 1), bool(flags & 2))


class Exit(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.EXIT
    force: bool
    reason: str

    def pack(self) -> bytes:
        return _U8.pack(1 if self.force else 0) + self.reason.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "EXIT")
        return cls(bool(r.u8()), r.rest_text())


class Call(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.CALL
    id: int
    timeout_ms: int
    method: str
    payload: bytes = b""

    def pack(self) -> bytes:
        return b"".join((_U64.pack(self.id), _U32.pack(self.timeout_ms), short_text(self.method), self.payload))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "CALL")
        return cls(r.u64(), r.u32(), r.short_text(), r.rest())


class Result(Struct, frozen=True):
    """`code` is a gRPC status code; 0: `payload` is the answer, else the text of the error."""

    TYPE: ClassVar[int] = frames.Type.RESULT
    id: int
    code: int
    payload: bytes = b""

    @property
    def text(self) -> str:
        return self.payload.decode("utf-8", "replace")

    def pack(self) -> bytes:
        return _U64.pack(self.id) + _U16.pack(self.code) + self.payload

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "RESULT")
        return cls(r.u64(), r.u16(), r.rest())


class Event(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.EVENT
    channel: str
    payload: bytes = b""

    def pack(self) -> bytes:
        return short_text(self.channel) + self.payload

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "EVENT")
        return cls(r.short_text(), r.rest())


class ExtentRequest(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.EXTENT_REQUEST
    id: int
    size: int

    def pack(self) -> bytes:
        return _U64.pack(self.id) + _U64.pack(self.size)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "EXTENT_REQUEST")
        return cls(r.u64(), r.u64())


class ExtentGrant(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.EXTENT_GRANT
    id: int
    code: int
    extent: int
    text: str = ""

    def pack(self) -> bytes:
        return _U64.pack(self.id) + _U16.pack(self.code) + _U32.pack(self.extent) + self.text.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "EXTENT_GRANT")
        return cls(r.u64(), r.u16(), r.u32(), r.rest_text())


class Pull(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.PULL
    id: int
    object_id: bytes
    size: int
    node_id: bytes
    slot: int
    generation: int
    address: str
    priority: int = 0  # 0: somebody waits in get, 1: in wait, 2: arguments of tasks
    others: tuple[tuple[bytes, int, int, str], ...] = ()  # (node_id, slot, generation, address) of further copies
    owner: bytes = b""  # 32 bytes, worker and node: the copy is freed with it

    def pack(self) -> bytes:
        return b"".join((
            _U64.pack(self.id), _sized(self.object_id, 20, "object_id"), _U64.pack(self.size), id16(self.node_id),
            _SLOT.pack(self.slot, self.generation), short_text(self.address), _U8.pack(self.priority), _U16.pack(len(self.others)),
            *(id16(node) + _SLOT.pack(slot, generation) + short_text(address) for node, slot, generation, address in self.others),
            _sized(self.owner, 32, "owner") if self.owner else b"",
        ))  # fmt: skip

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "PULL")
        one = cls(r.u64(), r.raw(20), r.u64(), r.id16(), r.u32(), r.u32(), r.short_text())
        if not r.left():
            return one
        priority, count = r.u8(), r.many(r.u16(), 26)
        others = tuple((r.id16(), r.u32(), r.u32(), r.short_text()) for _ in range(count))
        return replace(one, priority=priority, others=others, owner=r.raw(32) if r.left() else b"")


class Pulled(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.PULLED
    id: int
    code: int
    slot: int = 0
    generation: int = 0
    text: str = ""

    def pack(self) -> bytes:
        return _U64.pack(self.id) + _U16.pack(self.code) + _SLOT.pack(self.slot, self.generation) + self.text.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "PULLED")
        return cls(r.u64(), r.u16(), r.u32(), r.u32(), r.rest_text())


class Free(Struct, frozen=True):
    """Between stores `number` is 0, and ACK answers."""

    TYPE: ClassVar[int] = frames.Type.FREE
    node_id: bytes
    slots: tuple[tuple[int, int], ...]  # (slot, generation)
    address: str = ""  # empty: here
    number: int = 0  # SETTLED answers with it once that store has done it; 0: nobody waits for that

    def pack(self) -> bytes:
        places = (_SLOT.pack(*slot) for slot in self.slots)
        return b"".join((id16(self.node_id), _U32.pack(len(self.slots)), *places, short_text(self.address), _U64.pack(self.number)))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, frames.Type(cls.TYPE).name)
        node_id = r.id16()
        count = r.many(r.u32(), _SLOT.size)
        return cls(node_id, tuple((r.u32(), r.u32()) for _ in range(count)), r.short_text(), r.u64() if r.left() else 0)


class Keep(Free, frozen=True):
    """These copies have become primary ones: what lay where they came from is lost."""

    TYPE: ClassVar[int] = frames.Type.KEEP


class Settled(Struct, frozen=True):
    """The FREE or KEEP of that number was carried out, or its node is no more."""

    TYPE: ClassVar[int] = frames.Type.SETTLED
    number: int

    def pack(self) -> bytes:
        return _U64.pack(self.number)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(Reader(payload, "SETTLED").u64())


class Fetch(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.FETCH
    object_id: bytes
    slot: int
    generation: int
    offset: int = 0
    length: int = 0  # 0: all of it
    node_id: bytes = b""  # on whose node slot and generation are meant: an address may be another node's by now, or that of one with a copy
    address: str = ""  # where the asker would serve others, once it has it

    def pack(self) -> bytes:
        place = _sized(self.object_id, 20, "object_id") + _SLOT.pack(self.slot, self.generation)
        return place + _U64.pack(self.offset) + _U64.pack(self.length) + (id16(self.node_id) + short_text(self.address) if self.node_id else b"")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "FETCH")
        whole = cls(r.raw(20), r.u32(), r.u32())
        if not r.left():
            return whole
        part = replace(whole, offset=r.u64(), length=r.u64())
        return replace(part, node_id=r.id16(), address=r.short_text()) if r.left() else part


class FetchMany(Struct, frozen=True):
    """Whole objects, answered one after the other."""

    TYPE: ClassVar[int] = frames.Type.FETCH_MANY
    node_id: bytes  # as in Fetch
    objects: tuple[tuple[bytes, int, int], ...]  # object_id, slot, generation

    def pack(self) -> bytes:
        places = [_sized(object_id, 20, "object_id") + _SLOT.pack(slot, generation) for object_id, slot, generation in self.objects]
        return b"".join([id16(self.node_id), _U32.pack(len(places)), *places])

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "FETCH_MANY")
        node_id = r.id16()
        count = r.many(r.u32(), 20 + _SLOT.size)
        return cls(node_id, tuple((r.raw(20), r.u32(), r.u32()) for _ in range(count)))


class Fetched(Struct, frozen=True):
    """The object's size. After it come the bytes that were asked for, outside any frame, when the code is 0; otherwise the text says why not."""

    TYPE: ClassVar[int] = frames.Type.FETCHED
    code: int
    size: int
    text: str = ""

    def pack(self) -> bytes:
        return _U16.pack(self.code) + _U64.pack(self.size) + self.text.encode("utf-8", "replace")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "FETCHED")
        return cls(r.u16(), r.u64(), r.rest_text())


class RefDelta(Struct, frozen=True):
    TYPE: ClassVar[int] = frames.Type.REF_DELTA
    deltas: tuple[tuple[bytes, bytes, int], ...] = field(default=())  # (object_id, worker_id, delta); the nodes behind them are the engine's own

    def pack(self) -> bytes:
        parts = (_sized(oid, 20, "object_id") + id16(worker) + _I32.pack(delta) for oid, worker, delta in self.deltas)
        return b"".join((_U32.pack(len(self.deltas)), *parts))

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        r = Reader(payload, "REF_DELTA")
        count = r.many(r.u32(), 40)
        return cls(tuple((r.raw(20), r.id16(), r.i32()) for _ in range(count)))


class TaskHead(Struct, frozen=True):
    """The first fields of TASK and ACTOR_CREATE: what a raylet may read of a task without knowing the rest."""

    task_id: bytes
    kind: int
    flags: int
    num_returns: int
    attempt: int
    lease_id: int
    job_id: bytes
    function_id: bytes
    actor_id: bytes

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        if len(payload) < _TASK_HEAD.size:
            raise BadFrame(f"TASK of {len(payload)} bytes; at least {_TASK_HEAD.size} wanted")
        return cls(*_TASK_HEAD.unpack_from(payload))
