"""The arena's keeper: carries out what `space` decides, keeps pages warm, sweeps, and takes back what the dead held.

On the event loop; slow calls in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
from shoal_base.errors import Code

from . import space
from ._arena import Arena, ArenaError, NeedExtent, Store, Writable
from .reserve import Reserve
from .rounds import next_round
from .space import UNIT_BYTES, ClientLeft, Effect, ExtentReserved, ExtentWanted, MakeRoom, Refuse, RoomLacked, RoomMade, Source, Space, Ticked

if TYPE_CHECKING:
    from ._arena import Stats

_log = logging.getLogger(__name__)

# While somebody waits for space: frees come through shared memory, without a message.
WAITING_TICK_S = 0.05
SWEEP_S = 1.0
# Lent extents that are empty and unused for so many sweeps come back.
IDLE_SWEEPS = 10
# Threads that fill one large extent, each a part of at least so many bytes; and those that keep the reserve full, by the turn a few units of 2 MiB, so that an
# end is not kept waiting.
FILLERS, PART_BYTES = min(4, os.cpu_count() or 1), 16 << 20
WARMERS, WARM_UNITS = min(2, os.cpu_count() or 1), 8
# The reserve is touched every so many sweeps: on a virtual machine that idles, memory that nobody touched for a minute, on occasion for ten seconds, was seen
# to be slow. A touch of 260 MiB takes 3 ms of CPU where all of it is huge pages; where some are small, it may take so long and goes on the next time.
TOUCH_SWEEPS, TOUCH_S = 10, 0.01
# The warmers give way to everybody else's work by so many steps.
NICE_STEPS = 10
# Of the capacity, so much is made free at once when objects have to go: making room costs more by the turn than by the object.
ROOM_SHARE = 32
# Frees of many clients in one sentence of an error.
_BIGGEST = 3


class Full(Exception):
    """No space within the time allowed, or none on disk for what would have to go there."""

    def __init__(self, text: str, code: Code = Code.ARENA_FULL) -> None:
        super().__init__(text)
        self.code = code


Refused = Callable[[Code, str], None]
Spill = Callable[[int, int], Awaitable[str]]


class _Asked(msgspec.Struct):
    client: int
    granted: Callable[[int], None]
    refused: Refused
    left: bool = False


class Keeper:
    def __init__(
        self, fd: int, *, warm_bytes: int = -1, full_wait_s: float = 30.0,
        drop_copies: Callable[[int], int] = lambda missing: 0, after_sweep: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.store = Store(fd)
        self.own: Arena = self.store.arena()
        self.space = Space(self.store.capacity_bytes, self.store.extent_bytes, full_wait_s, Source.COPIES)
        self.stats: Stats = self.store.sweep(IDLE_SWEEPS)
        self.reserve = Reserve(self.store.capacity_bytes, warm_bytes, time.monotonic())
        self.reclaimed = 0
        self._asked: dict[Hashable, _Asked] = {}
        self._tokens = itertools.count(1)
        self._drop_copies = drop_copies
        self._after_sweep = after_sweep
        self._spill: Spill | None = None
        self._slow: Callable[[], str] = lambda: ""
        self._work = ThreadPoolExecutor(2 + FILLERS, thread_name_prefix="shoal-keeper")
        self._warmer = ThreadPoolExecutor(WARMERS, thread_name_prefix="shoal-warm", initializer=_step_back)
        self._cooled = asyncio.Event()  # the reserve may lack something
        self._cooled.set()
        self._filling = self._fills = 0  # extents whose pages somebody waits for; how many there have been
        self._filled = asyncio.Event()  # there are none
        self._filled.set()
        self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._closed = False
        self._reclaiming = asyncio.Lock()

    def spill_with(self, spill: Spill, slow: Callable[[], str] = lambda: "") -> None:
        """What makes room when copies were dropped; it says why it could not, if it could not, and meanwhile what it waits for."""
        self._spill, self._slow = spill, slow
        self.space.last = Source.DISK

    # -- space ------------------------------------------------------------------------------------

    def ask(self, client: int, size_bytes: int, granted: Callable[[int], None], refused: Refused) -> None:
        """Calls one of the two, with an extent that is lent to the client or why there is none."""
        token = next(self._tokens)
        self._asked[token] = _Asked(client, granted, refused)
        self._handle(ExtentWanted(token, client, size_bytes, self.store.lent_to(client), time.monotonic()))

    def leave(self, client: int) -> None:
        for token, asked in list(self._asked.items()):
            if asked.client == client:
                asked.left = True
                del self._asked[token]
        self._handle(ClientLeft(client))

    async def create(self, size_bytes: int) -> Writable:
        """Room for an object of the store's own. Raises Full."""
        while True:
            try:
                return self.own.create(size_bytes)
            except NeedExtent:
                pass
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            def granted(extent: int, future: asyncio.Future[int] = future) -> None:
                if not future.done():
                    future.set_result(extent)

            def refused(code: Code, text: str, future: asyncio.Future[int] = future) -> None:
                if not future.done():
                    future.set_exception(Full(text, code))

            self.ask(0, size_bytes, granted, refused)
            extent = await future
            # The sweep may have been faster and taken the idle extent back: once more.
            with contextlib.suppress(ArenaError):
                self.own.add_extent(extent)

    def _handle(self, event: Any) -> None:
        for effect in self.space.handle(event):
            self._perform(effect)
        if self.space.waiting and self._ticking is None and not self._closed:
            self._ticking = asyncio.get_running_loop().call_later(WAITING_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self._handle(Ticked(time.monotonic()))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case space.Reserve():
                self._reserve(effect)
            case MakeRoom(source, missing):
                self._spawn(self._make_room(source, missing))
            case Refuse():
                asked = self._asked.pop(effect.token, None)
                if asked is not None:
                    asked.refused(Code.OUT_OF_DISK if effect.failed else Code.ARENA_FULL, self.full_text(effect))

    def _reserve(self, effect: space.Reserve) -> None:
        asked = self._asked.get(effect.token)
        if asked is None:
            self._later(ExtentReserved(effect.token))  # its client has left
            return
        try:
            extent = self.store.reserve(effect.size_bytes, int(effect.kind), False)
        except NeedExtent as error:
            # Not from inside handle(): its effects are still being carried out.
            self._later(RoomLacked(effect.token, error.args[1]))
            return
        self.reserve.asked(time.monotonic())
        self._cooled.set()
        self._later(ExtentReserved(effect.token))
        cold = self.store.cold_bytes(extent)
        if cold:
            self._spawn(self._fill_and_lend(extent, cold, effect, asked))
        else:
            self._lend(extent, effect, asked)

    def _later(self, event: Any) -> None:
        asyncio.get_running_loop().call_soon(self._handle, event)

    async def _fill_and_lend(self, extent: int, cold: int, effect: space.Reserve, asked: _Asked) -> None:
        parts = max(1, min(FILLERS, cold // PART_BYTES))
        loop = asyncio.get_running_loop()
        filling = asyncio.gather(*(loop.run_in_executor(self._work, self.store.fill_part, extent, part, parts) for part in range(parts)))
        self._filling += 1
        self._fills += 1
        self._filled.clear()
        try:
            filled = all(await asyncio.shield(filling))
        except asyncio.CancelledError:
            # The threads are not to be left alone with it; the process ends, and its successor takes the extent back.
            self._asked.pop(effect.token, None)
            raise
        finally:
            self._filling -= 1
            if not self._filling:
                self._filled.set()
        if not filled:
            self.store.abandon(extent)
            self._asked.pop(effect.token, None)
            _log.error("the system has no memory for an extent of %d bytes", effect.size_bytes)
            asked.refused(Code.ARENA_FULL, f"the system has no memory for {effect.size_bytes:,} more bytes of the object store")
            return
        self._lend(extent, effect, asked)

    def _lend(self, extent: int, effect: space.Reserve, asked: _Asked) -> None:
        self._asked.pop(effect.token, None)
        if asked.left or self._closed:
            self.store.give_back(extent)
            return
        self.store.lend_extent(extent, effect.client)
        asked.granted(extent)

    async def _make_room(self, source: Source, missing: int) -> None:
        loop = asyncio.get_running_loop()
        failed = ""
        more = max(missing, self.store.capacity_bytes // ROOM_SHARE)
        try:
            if source is Source.DISK:
                assert self._spill is not None
                failed = await self._spill(missing, more)
                self.stats = await loop.run_in_executor(self._work, self.store.sweep, 0, True)
            elif source is Source.COPIES:
                if self._drop_copies(more):
                    self.stats = await loop.run_in_executor(self._work, self.store.sweep, 0, False)
            else:
                self.stats = await loop.run_in_executor(self._work, self.store.sweep, 0, source is Source.HALF_EMPTY_EXTENTS)
        finally:
            if not self._closed:
                self._handle(RoomMade(source, failed))

    def full_text(self, refused: Refuse) -> str:
        """What fills the arena, for the one who is refused."""
        s = self.stats
        head = f"no room for an object of {refused.size_bytes:,} bytes"
        if refused.never:
            return f"{head}: the object store of this node has {self.store.capacity_bytes:,} bytes in all; start the node with a larger object_store_memory"
        if refused.failed:
            return f"{head}, and {refused.failed}. Free space there, name another directory with --spill-dir, or drop references that are not needed"
        if not refused.waited_s:
            return f"{head}: {self.space.waiting} requests for space wait already"
        return (
            f"{head} within {refused.waited_s:.0f} s: of {s['capacity_bytes']:,} bytes {s['sealed_bytes']:,} are in {s['sealed']:,} objects "
            f"that references keep{self._biggest()}, {s['doomed_bytes']:,} in {s['doomed']:,} freed objects that a reader still maps, "
            f"{s['created_bytes']:,} in {s['created']:,} being written, "
            f"{s['lent_free_bytes']:,} free in extents lent to {s['clients'] - 1} processes; {self.space.waiting} more requests wait{self._slow()}. "
            "Drop references that are not needed (also copies in variables and closures), or start the node with a larger object_store_memory"
        )

    def _biggest(self) -> str:
        objects, _ = self.store.objects(100_000)
        by_creator: dict[int, int] = {}
        for _slot, _generation, size, state, creator, _pins in objects:
            if state == "sealed":
                by_creator[creator] = by_creator.get(creator, 0) + size
        pids = {number: row[0] for number, row in self.store.clients().items()}
        first = sorted(by_creator.items(), key=lambda item: -item[1])[:_BIGGEST]
        names = {0: "the store, from other nodes or disk"} | {c: f"pid {pid}" for c, pid in pids.items() if c}
        named = [f"{size:,} put by {names.get(c, 'ended processes')}" for c, size in first]
        return f" ({', '.join(named)})" if named else ""

    # -- the dead -----------------------------------------------------------------------------------

    async def reclaim(self, client: int, pid: int, started: int) -> None:
        """Takes back what a dead client held; idempotent. Only while the place is that process's (see `identity`)."""
        # One at a time: a second one must not still run when the raylet, told of the first one's end, has given the place to another process.
        async with self._reclaiming:
            # A notice that came twice may run late: by then its second one may have been answered, and the place be a living process's.
            if self.store.identity(client) != (pid, started):
                return
            self.leave(client)  # what is being filled for it is not lent after its extents were taken
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._work, self.store.reclaim_client, client, pid, started))
        self.reclaimed += 1
        self.leave(client)
        if self.space.waiting:
            self._handle(Ticked(time.monotonic()))

    # -- rounds -------------------------------------------------------------------------------------

    async def rounds(self) -> None:
        """Sweeps and cools until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            clock = self.store.tick()
            # One hand-over to a thread, not several: this is all that an idle store does.
            self.stats, dead = await loop.run_in_executor(self._work, self._swept, clock % TOUCH_SWEEPS == 0)
            self._after_sweep()
            for client, pid, started in dead:
                _log.info("process %d, client %d, is gone and nobody said so: its things are taken back", pid, client)
                await self.reclaim(client, pid, started)
            await self._look_after_reserve()
            await next_round(SWEEP_S)

    def _swept(self, touch: bool) -> tuple[Stats, list[tuple[int, int, int]]]:
        if touch:
            self.store.touch(self._wanted_bytes(), TOUCH_S)
        return self.store.sweep(IDLE_SWEEPS, False), self.store.dead_clients()

    async def _look_after_reserve(self) -> None:
        warm, now = self.store.free_warm_bytes, time.monotonic()
        available = self._available_bytes() + warm
        if warm > (kept := self.reserve.kept(available, warm, now)):
            await asyncio.get_running_loop().run_in_executor(self._work, self.store.trim, kept)
        elif warm + UNIT_BYTES <= self.reserve.wanted(available, now) and self.store.resident_bytes + UNIT_BYTES <= self.store.capacity_bytes:
            self._cooled.set()

    async def warming(self) -> None:
        """Fills the reserve of warm pages, whenever it lacks some and nobody waits for pages, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._cooled.wait()
            await self._filled.wait()
            if pause_s := self.reserve.pause_s(time.monotonic()):
                await asyncio.sleep(pause_s)
                continue
            fills = self._fills
            wanted = self._wanted_bytes()
            warming = asyncio.gather(*(loop.run_in_executor(self._warmer, self.store.warm, wanted, WARM_UNITS) for _ in range(WARMERS)))
            filled = await asyncio.shield(warming)
            if max(filled) <= 0 and fills == self._fills:  # full, or the system has no memory: the next round looks again
                self._cooled.clear()

    def _wanted_bytes(self) -> int:
        return self.reserve.wanted(self._available_bytes() + self.store.free_warm_bytes, time.monotonic())

    def _available_bytes(self) -> int:
        """What the machine has left without taking it from anybody."""
        for line in os.pread(self._meminfo, 4096, 0).splitlines():
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) << 10
        return self.store.capacity_bytes

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("the arena's keeper failed", exc_info=task.exception())

    async def close(self) -> None:
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for asked in self._asked.values():
            asked.refused(Code.UNREACHABLE, "the object store ends")
        self._asked.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in (self._work, self._warmer):
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
        os.close(self._meminfo)


def _step_back() -> None:
    # Of this thread only: Linux knows priorities by thread. Not SCHED_IDLE: whoever waits for a lock of the kernel that such a thread holds would wait long.
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICE_STEPS, 19))
