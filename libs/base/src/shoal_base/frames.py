"""Frames of the hot path, for the services that speak them from Python. The core has the same in Cython; a test holds the two together.

See "Frames" in ARCHITECTURE.md for the payloads.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

HEADER = struct.Struct("<IBBBBIIQQ")
HEADER_SIZE = HEADER.size  # 32
HELLO = struct.Struct("<16s16s4sIBBBBB")
VERSION = 1
# Limit: a peer that announces a larger frame is broken or hostile.
MAX_PAYLOAD = 256 << 20
# Limit: how much of a peer's data may be unacknowledged.
WINDOW_KIB = 64 << 10
# An ACK is sent after this much was received without an own frame to carry it.
ACK_EVERY_BYTES = 4 << 20


class Type(enum.IntEnum):
    HELLO = 1
    ACK = 2
    PING = 3
    PONG = 4
    BYE = 5
    TASK = 10
    REPLY = 11
    HANDBACK = 12
    CANCEL = 13
    ITEM = 14
    ITEM_ACK = 15
    GET = 20
    GOT = 21
    REF_DELTA = 22
    LOCATION = 23
    LOST = 24
    REGISTER = 40
    REGISTERED = 41
    LEASE_DEMAND = 42
    LEASE_GRANT = 43
    LEASE_REFUSED = 44
    LEASE_RETURN = 45
    LEASE_RECLAIM = 46
    LEASE_BEGIN = 47
    WORKER_DIED = 48
    NODE_DIED = 49
    ROUTED = 50
    ACTOR_CREATE = 51
    ACTOR_CREATED = 52
    EXIT = 53
    OWNS = 54
    NODE_DRAINS = 55
    CALL = 60
    RESULT = 61
    EVENT = 62
    EXTENT_REQUEST = 70
    EXTENT_GRANT = 71
    PULL = 72
    PULLED = 73
    FREE = 74
    FETCH = 75
    FETCHED = 76
    KEEP = 77
    SETTLED = 78
    FETCH_MANY = 79


class PeerKind(enum.IntEnum):
    DRIVER = 0
    WORKER = 1
    RAYLET = 2
    STORE = 3


class Header(NamedTuple):
    length: int
    type: int
    flags: int
    version: int
    reserved: int
    epoch: int
    credit: int
    sequence: int
    acknowledgement: int


class BadFrame(ValueError):
    """What came is no frame of ours."""


def pack_header(length: int, type_: int, *, flags: int = 0, epoch: int = 0, credit: int = WINDOW_KIB, sequence: int = 0, acknowledgement: int = 0) -> bytes:
    return HEADER.pack(length, type_, flags, VERSION, 0, epoch, credit, sequence, acknowledgement)


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Raises BadFrame for a wrong version or an impossible length."""
    header = Header._make(HEADER.unpack_from(data))
    if header.version != VERSION:
        raise BadFrame(f"wire version {header.version}, this side speaks {VERSION}")
    if header.length > MAX_PAYLOAD:
        raise BadFrame(f"a frame of {header.length} bytes; the limit is {MAX_PAYLOAD}")
    return header
