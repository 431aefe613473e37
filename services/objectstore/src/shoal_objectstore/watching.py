"""Looks for what clients sealed and freed in the arena, while somebody subscribed to that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._arena import Store
    from .events import Subscriptions
    from .journal import Location

# Slots that are looked at before others have their turn on the loop.
LOOK_SLOTS = 16_384


async def watch(store: Store, subscriptions: Subscriptions, subscribed: asyncio.Event) -> None:
    """Until cancelled. `subscribed` is set when somebody new wants to know."""
    while True:
        interval_s = subscriptions.interval_s
        if interval_s is None:
            subscribed.clear()
            await subscribed.wait()
            continue
        subscriptions.begin_to_look()
        found: dict[Location, int] = {}
        for first in range(0, store.max_slots, LOOK_SLOTS):
            found |= store.sealed_between(first, first + LOOK_SLOTS)
            await asyncio.sleep(0)
        subscriptions.look(found)
        await asyncio.sleep(interval_s)
