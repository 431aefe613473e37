"""Ids as users meet them: Ray's names and methods on the types of `shoal_base.ids`."""

from __future__ import annotations

import os
from typing import Self

from shoal_base import ids as base


class UniqueID(base.Id):
    """Base of the ids that users see."""

    SIZE = 16
    __slots__ = ()

    @classmethod
    def size(cls) -> int:
        return cls.SIZE

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))


class JobID(UniqueID):
    SIZE = 4
    __slots__ = ()

    @classmethod
    def from_int(cls, value: int) -> JobID:
        return cls(value.to_bytes(cls.SIZE, "little"))

    def int(self) -> int:
        return int.from_bytes(self._bytes, "little")


class NodeID(UniqueID):
    __slots__ = ()


class WorkerID(UniqueID):
    __slots__ = ()


class ActorID(UniqueID):
    __slots__ = ()


class ActorClassID(UniqueID):
    __slots__ = ()


class FunctionID(UniqueID):
    __slots__ = ()


class TaskID(UniqueID):
    __slots__ = ()


class PlacementGroupID(UniqueID):
    __slots__ = ()
