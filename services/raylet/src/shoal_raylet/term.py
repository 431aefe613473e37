"""Until when what this node's workers do counts, as far as their raylet knows. They read it themselves, and so find out when the raylet stops.

No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable

# Part of the lease after which silence that was judged to be the control store's own lets work go on.
GO_ON_AFTER = 0.6
# For so large a part of the lease at a time: whoever stops right then is found out no later than it was declared dead.
GO_ON_FOR = 0.4


class Term:
    """`write` puts it where the workers read it, in nanoseconds of the monotonic clock. From any thread: a later end replaces an earlier one."""

    def __init__(self, write: Callable[[int], None]) -> None:
        self._write = write
        self._until_s = 0.0

    def answered(self, asked_s: float, lease_s: float) -> None:
        """The control store knows this node. Counted from before it was asked, so that the term is over here before it is over there."""
        self._extend(asked_s + lease_s)

    def goes_on(self, now_s: float, silent_s: float, lease_s: float) -> None:
        """Others have not heard of the control store either: it is down, and declares nobody dead."""
        if silent_s >= lease_s * GO_ON_AFTER:
            self._extend(now_s + lease_s * GO_ON_FOR)

    def _extend(self, until_s: float) -> None:
        if until_s > self._until_s:
            self._until_s = until_s
            self._write(int(until_s * 1e9))
