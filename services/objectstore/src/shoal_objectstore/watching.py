"""Looks for what clients sealed and freed in the arena, while somebody subscribed to that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._arena import Store
    from .events import Subscriptions
    from .journal import Location

# Nobody wants to know: asked again so often.
IDLE_S = 0.1
# Slots that are looked at before others have their turn on the loop.
LOOK_SLOTS = 16_384


async def watch(store: Store, subscriptions: Subscriptions) -> None:
    """Until cancelled."""
    while True:
        interval_s = subscriptions.interval_s
        if interval_s is None:
            await asyncio.sleep(IDLE_S)
            continue
        subscriptions.begin_to_look()
        found: dict[Location, int] = {}
        for first in range(0, store.max_slots, LOOK_SLOTS):
            found |= store.sealed_between(first, first + LOOK_SLOTS)
            await asyncio.sleep(0)
        subscriptions.look(found)
        await asyncio.sleep(interval_s)
