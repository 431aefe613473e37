"""Typed ids: fixed-size bytes that do not mix."""

from __future__ import annotations

import os
from typing import ClassVar, Self


class Id:
    """Base of all ids: immutable, hashable, equal only to the same type with the same bytes."""

    SIZE: ClassVar[int]
    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        if len(value) != self.SIZE:
            raise ValueError(f"{type(self).__name__} takes {self.SIZE} bytes, got {len(value)}")
        self._bytes = bytes(value)

    @classmethod
    def random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def nil(cls) -> Self:
        return cls(bytes(cls.SIZE))

    @classmethod
    def from_hex(cls, hex_id: str) -> Self:
        try:
            return cls(bytes.fromhex(hex_id))
        except ValueError as error:
            raise ValueError(f"{hex_id!r} is no {cls.__name__}: {error}") from error

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return not any(self._bytes)

    def __bytes__(self) -> bytes:
        return self._bytes

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._bytes == other._bytes

    def __lt__(self, other: Self) -> bool:
        return self._bytes < other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self._bytes,)


class JobID(Id):
    SIZE = 4
    __slots__ = ()


class NodeID(Id):
    SIZE = 16
    __slots__ = ()


class WorkerID(Id):
    SIZE = 16
    __slots__ = ()


class ActorID(Id):
    SIZE = 16
    __slots__ = ()


class TaskID(Id):
    SIZE = 16
    __slots__ = ()


class ObjectID(Id):
    """A TaskID and a u32 index: 0 for a put, from 1 for a task's results."""

    SIZE = 20
    __slots__ = ()


class PlacementGroupID(Id):
    SIZE = 16
    __slots__ = ()


class FunctionID(Id):
    """blake2b-128 of the pickled function or class."""

    SIZE = 16
    __slots__ = ()
