"""How much of the arena's free space keeps its pages: the warm reserve. Events in, figures out: no I/O, no clock.

The first touch of a page costs many times the copy of what goes there, so the store touches pages ahead of need. They are in nobody's page tables, so they
count as no process's memory (no PSS has them), but the machine has that much less: hence the limits, by the arena, by what is available, and by how long
nobody has asked for any.
"""

from __future__ import annotations

# Of the capacity, at most; and in bytes: 256 MiB and a little, so that an object of that size finds room for its header, too.
SHARE, MOST_BYTES = 4, (256 << 20) + (4 << 20)
# Of what the machine has available.
AVAILABLE_SHARE = 8
# What was in use and is free again stays warm for so long after space was last asked for;
KEEP_S = 60.0
# at most so much of what the machine has available.
KEPT_SHARE = 2
# Nobody has asked for space for so long: the reserve is a part of what it was.
QUIET_S, QUIET_SHARE = 600.0, 8
# Whoever asks after so long without anybody has just got what there was, and copies into it now: making pages meanwhile would take memory's speed from that
# copy, half of it on a machine of two cores. Another who asks while the reserve is low has begun a stream, which pages made ahead do help.
ALONE_S, PAUSE_S = 1.0, 0.25


class Reserve:
    """
    >>> reserve = Reserve(1 << 30, -1, at=0.0)
    >>> reserve.wanted(4 << 30, 0.0) >> 20
    256
    >>> reserve.wanted(800 << 20, 0.0) >> 20
    100
    >>> reserve.wanted(4 << 30, 601.0) >> 20
    32
    """

    def __init__(self, capacity_bytes: int, bytes_wanted: int, at: float) -> None:
        """`bytes_wanted`: a setting that replaces what is chosen here; -1: none."""
        self._fixed = bytes_wanted >= 0
        self._base = bytes_wanted if self._fixed else min(capacity_bytes // SHARE, MOST_BYTES)
        self._asked_at = self._refill_at = at

    def asked(self, at: float) -> None:
        """Somebody wanted space."""
        self._refill_at = at + PAUSE_S if at - self._asked_at >= ALONE_S else at
        self._asked_at = at

    def pause_s(self, at: float) -> float:
        """The reserve is not to be filled for so long; 0.0: now.

        >>> reserve = Reserve(1 << 30, -1, at=0.0)
        >>> reserve.asked(60.0); reserve.pause_s(60.0)
        0.25
        >>> reserve.asked(60.1); reserve.pause_s(60.1)
        0.0
        """
        return max(0.0, self._refill_at - at)

    def wanted(self, available_bytes: int, at: float) -> int:
        """So many bytes are to be warm. `available_bytes`: what the machine has left, warm pages included."""
        if self._fixed:
            return self._base
        base = self._base if at - self._asked_at < QUIET_S else self._base // QUIET_SHARE
        return min(base, available_bytes // AVAILABLE_SHARE)

    def kept(self, available_bytes: int, warm_bytes: int, at: float) -> int:
        """So many of the bytes that are warm stay so; the others go back to the system."""
        wanted = self.wanted(available_bytes, at)
        if at - self._asked_at > KEEP_S:
            return wanted
        return max(wanted, warm_bytes if self._fixed else min(warm_bytes, available_bytes // KEPT_SHARE))
