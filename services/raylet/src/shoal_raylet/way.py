"""Whether the way to another node is worth it.

A lease from there costs two calls and a few milliseconds of both nodes; where leases come back at once, many of this node serve meanwhile. How long a class
will use one is not known before. But one that was lent from afar tells: while it was asked for, used and given back, each lease of this node came back twice.
That class then stays here, while leases come back here, but for one now and then to see whether that has changed. Where nothing comes free here it goes as
before, and so do tasks that are to spread. On a busy machine all of it takes longer, which is why leases are counted, and not seconds.
"""

from __future__ import annotations

from .core import Core
from .leases import Borrowed, Wish

_PAUSE_S = 0.02
# Of each lease of this node, meanwhile.
_ROUNDS = 2


def came_back(core: Core, borrowed: Borrowed, now: float) -> None:
    wish = borrowed.wish
    if borrowed.asked_at < wish.learnt_at:  # of many that were asked for at once one tells all
        return
    wish.learnt_at = now
    rounds = (core.came_back - borrowed.came_back) / max(1, core.workers.leased_count)
    if rounds < _ROUNDS or now - borrowed.asked_at >= core.settings.way_s:
        wish.pause_s = wish.pause_s / 4 if wish.pause_s > _PAUSE_S else 0.0
    else:
        wish.pause_s = min(max(_PAUSE_S, 2 * wish.pause_s), core.settings.pause_most_s)
        wish.near_until = now + wish.pause_s


def is_worth_it(core: Core, wish: Wish, now: float) -> bool:
    if not wish.pause_s or now - core.came_back_at >= core.settings.near_s:
        return True
    if now < wish.near_until:
        return False
    if any(row.wish is wish and now - row.asked_at >= core.settings.way_s for row in core.borrowed.values()):
        wish.pause_s = 0.0
    return True


def went(wish: Wish, now: float) -> None:
    """It was asked far for."""
    if wish.pause_s:
        wish.near_until = now + wish.pause_s
