"""Until when the control store cannot have taken this node for dead. Workers read it themselves, and so find out when their raylet stops, too.

A node is declared dead one lease after it was heard of last; a control store that is started again, or takes over, first gives every node a whole lease.
No I/O, no clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# Part of the lease by which it is over early: clocks of two machines do not run alike, and what begins at its end takes a moment.
MARGIN = 0.1


class Term:
    """`write` puts it where the workers read it, in nanoseconds of the monotonic clock. From any thread: a later end replaces an earlier one."""

    def __init__(self, write: Callable[[int], None]) -> None:
        self._write = write
        self._until_s = 0.0  # none yet
        self._lock = threading.Lock()

    def answered(self, asked_s: float, lease_s: float) -> None:
        """The control store knows this node. Counted from before it was asked, so that the term is over here before it is over there."""
        with self._lock:
            self._extend(asked_s + lease_s * (1 - MARGIN))

    def refused(self, asked_s: float, now_s: float, lease_s: float) -> None:
        """Since then the hosts of all heads have said that no control store runs there: whichever leads next has begun later, and waits for us.

        Once it is over this renews nothing: one that has declared us dead may have gone since.
        """
        with self._lock:
            if not self.is_over(now_s):
                self._extend(asked_s + lease_s * (1 - MARGIN))

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._until_s > 0

    def _extend(self, until_s: float) -> None:
        if until_s > self._until_s:
            self._until_s = until_s
            self._write(int(until_s * 1e9))
