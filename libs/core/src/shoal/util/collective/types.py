"""Words of collective calls."""

from __future__ import annotations

from enum import Enum


class Backend(str):
    """ "nccl" between GPUs, "gloo" between CPUs; case does not matter.

    >>> Backend("Gloo")
    'gloo'
    """

    NCCL = "nccl"
    GLOO = "gloo"

    def __new__(cls, name: str = "nccl") -> Backend:
        lowered = str(name).lower()
        if lowered not in (cls.NCCL, cls.GLOO):
            raise ValueError(f"backend {name!r}: nccl or gloo is wanted")
        return super().__new__(cls, lowered)


class ReduceOp(Enum):
    SUM = 0
    PRODUCT = 1
    MIN = 2
    MAX = 3
