"""A node that no longer hears the control store: is that down, or is this node cut off? No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence

# Part of the lease after which a raylet that hears nothing of the GCS asks others whether they do.
DOUBT = 0.5
# Part of it after which silence all around counts.
_LAST = 0.8
# By so large a part of the lease another must have heard it later than we did: heartbeats are not in step, so that the last one before a crash differs.
_AHEAD = 0.3
# Rounds in a row in which most did not answer, before that counts as being cut off.
_SILENT_ROUNDS = 3
# Rounds in a row in which another had heard it later. In one alone it may be a new head, which tells the nodes one after the other.
_AHEAD_ROUNDS = 2
# Limit: nodes asked in one round.
ASKED = 32


class Doubt:
    """One for a raylet. All without a GCS: it is down, and work goes on. Others hear it, or most do not answer: we are cut off, and must end before the
    term is over. Most, and not all: nodes that are cut off together hear each other.
    """

    def __init__(self) -> None:
        self._silent_rounds = 0
        self._ahead_rounds = 0

    def over(self) -> None:
        """The GCS was heard, or a new one has told us that it leads: what others said before is void."""
        self._silent_rounds = self._ahead_rounds = 0

    def judge(self, silent_s: float, answers: Sequence[float | None], lease_s: float) -> str:
        """Why this node must end; empty: it may go on. `answers`: for how long each node that was asked has not heard the GCS; None: it did not answer."""
        if not answers or silent_s <= lease_s * DOUBT:
            return ""
        heard = [answer for answer in answers if answer is not None]
        with_us = len(heard) + 1
        most = 2 * with_us > len(answers) + 1
        self._silent_rounds = 0 if most else self._silent_rounds + 1
        ahead = any(silent_s - other > lease_s * _AHEAD for other in heard)
        self._ahead_rounds = self._ahead_rounds + 1 if ahead else 0
        if self._ahead_rounds >= _AHEAD_ROUNDS:
            return f"no answer from the control store for {silent_s:.1f} s, while other nodes have one: this node is cut off"
        if self._silent_rounds >= _SILENT_ROUNDS and silent_s > lease_s * _LAST:
            mute = f"{len(answers) - len(heard)} of {len(answers)} other nodes"
            return f"no answer from the control store for {silent_s:.1f} s, nor from {mute}: this node is cut off"
        return ""
