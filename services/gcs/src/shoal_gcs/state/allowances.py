"""Whether a job may hold more: decided from what its nodes tell, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Beyond what was asked for, this part of what is left: a process asks a few times and not each time, and the last ones still find something.
AHEAD = 4


class Share(NamedTuple):
    """What the processes of one node hold of a limit, and were given (what they hold, or may hold if that is more)."""

    node_id: bytes
    given: int
    held: int
    moving: int = 0  # of that: being written, or on its way to its owner
    pid: int = 0
    name: str = ""
    most: int = 0  # of the process `pid`, which holds most there


def grant(limit: int, shares: Sequence[Share], more: int) -> int:
    """How much the asker is given, at least `more`; 0: what was given leaves no room for it."""
    room = limit - sum(share.given for share in shares)
    return 0 if room < more else more + (room - more) // AHEAD


def refusal(job: str, unit: str, setting: str, shares: Sequence[Share], more: int) -> str:
    """Which limit, what is held, and by whom most."""
    held = sum(share.held for share in shares)
    text = f"{job} has {held} {unit}, {more} more are wanted, and its JobConfig({setting}) allows no more"
    most = max(shares, key=lambda share: share.most, default=None)
    if most is None or not most.most:
        return text
    return f"{text}; {most.most} of them are of {most.name or 'a worker'} (pid {most.pid} on node {most.node_id.hex()[:12]})"
