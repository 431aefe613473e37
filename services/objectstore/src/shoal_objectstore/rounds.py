"""When what is done again and again is done."""

from __future__ import annotations

import asyncio


async def next_round(period_s: float) -> None:
    """Rounds of the same period begin at the same moment: an idle store wakes once for all of them."""
    await asyncio.sleep(period_s - asyncio.get_running_loop().time() % period_s)
