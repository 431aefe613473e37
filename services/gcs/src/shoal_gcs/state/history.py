"""How much of what has ended is remembered: bounded by count and by age, so that the size of the state follows from what lives, not from what has lived."""

from __future__ import annotations

import msgspec

DAY_MS = 86_400_000


class History(msgspec.Struct, frozen=True):
    """Whatever is beyond its count goes, the oldest first; and whatever ended longer ago than `age_ms`. What still lives is never counted."""

    dead_actors: int = 20_000
    dead_nodes: int = 1_000
    finished_jobs: int = 1_000
    age_ms: int = 7 * DAY_MS
