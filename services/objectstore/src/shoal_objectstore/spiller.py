"""Cold objects go to disk and come back: which, when, and what is told of them. On the event loop; reading and writing in threads.

An object passes from the arena to the disk in two steps. Written, it is *clean*: its bytes are in both, and its space can be had at once. Evicted, it is on
disk alone: its slot is gone for every client, and whoever asks for it gets a copy in another slot, which is as droppable as a copy of another node's object.
The file stays until the owner frees the object, so that what is only read is written once.

From `threshold` of the capacity on, the coldest objects are written while nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ._arena import Arena, ArenaError, Buffer, Store, Writable, words
from .disk import Disk
from .events import Kind
from .journal import Location, Record, Source, SpillFailed
from .rounds import next_round

_log = logging.getLogger(__name__)

# Objects share a file until it has so many bytes; in a small arena, until an eighth of it.
PACK_BYTES, PACK_SHARE = 100_000_000, 8
# Limit: objects of one file; a record of each is in the journal.
PACK_OBJECTS = 4096
# Files that are written at once, and objects read; far away each takes longer, and more of them fit.
WRITERS, READERS = 2, 4
FAR_WRITERS, FAR_READERS = 4, 8
# Nothing is written ahead of need for so long after no directory took anything.
PAUSE_S = 5.0
ROUND_S = 1.0


NO_SPILLING = dict.fromkeys(
    ("clean", "clean_bytes", "on_disk", "on_disk_bytes", "disk_file_bytes", "disk_files", "spilled", "spilled_bytes", "restored", "restored_bytes",
     "spill_failures", "remote_files", "remote_file_bytes", "remote_failures", "remote_unwanted", "remote_moved_bytes"), 0,
)  # fmt: skip


def packs(objects: Sequence[tuple[int, int, int]], pack_bytes: int, pack_objects: int = PACK_OBJECTS) -> Iterator[list[tuple[int, int, int]]]:
    """Objects (slot, generation, size) that go into one file each.

    >>> list(packs([(1, 1, 60), (2, 1, 60), (3, 1, 10)], 100))
    [[(1, 1, 60)], [(2, 1, 60), (3, 1, 10)]]
    """
    pack: list[tuple[int, int, int]] = []
    total = 0
    for item in objects:
        if pack and (total + item[2] > pack_bytes or len(pack) == pack_objects):
            yield pack
            pack, total = [], 0
        pack.append(item)
        total += item[2]
    if pack:
        yield pack


def recover(disk: Disk, arena_fd: int) -> list[Record]:
    """What a predecessor spilled, as the arena's words tell it. To be called before the arena is opened: that takes its pins back. Raises OSError.

    It dropped its pins on what it evicted only after the journal knew of it. So a record without EVICTED was not evicted unless the word says so still; and
    what only the word says is journalled here, since opening the arena ends the word.
    """
    records = disk.recover()
    living: list[Record] = []
    dead: list[Record] = []
    told_by_word: list[Record] = []
    for record, (generation, state, evicted) in zip(records, words(arena_fd, [r.slot for r in records]), strict=True):
        here = generation == record.generation
        if not record.evicted and here and evicted:
            record.evicted = True
            told_by_word.append(record)
        (living if record.evicted or (here and state == "sealed") else dead).append(record)
    disk.evicted(told_by_word)
    disk.drop(dead)
    return living


class Spiller:
    def __init__(
        self, store: Store, own: Arena, disk: Disk, threshold: float, resident: Callable[[], int], publish: Callable[[Kind, Location, int, str], None]
    ) -> None:
        """`resident` says how many bytes of the arena are in objects that are no copies; `publish` is told what happens to objects."""
        self._publish = publish
        self._store = store
        self._own = own
        self.disk = disk
        self._resident = resident
        self._limit_bytes = int(threshold * store.capacity_bytes)
        self._pack_bytes = min(PACK_BYTES, store.capacity_bytes // PACK_SHARE)
        self._evicted: dict[Location, Record] = {}
        self._clean: dict[Location, Record] = {}
        self._writing: dict[Location, bool] = {}  # whether its owner freed it meanwhile
        self._held: list[tuple[list[Record], list[Buffer]]] = []  # evicted, and the journal would not take it yet
        self._tasks: set[asyncio.Task[str]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._kick = asyncio.Event()
        self._paused_until = 0.0
        self._writing_bytes = 0
        self._write_pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="shoal-spill")
        self._read_pool = ThreadPoolExecutor(READERS, thread_name_prefix="shoal-restore")
        # Pools of their own: what is far away may be silent for a minute, and the journals and the local disks are not to wait for it.
        self._far_write_pool = ThreadPoolExecutor(FAR_WRITERS, thread_name_prefix="shoal-spill-far")
        self._far_read_pool = ThreadPoolExecutor(FAR_READERS, thread_name_prefix="shoal-restore-far")
        self._tidy_pool = ThreadPoolExecutor(1, thread_name_prefix="shoal-tidy-far")
        self._writers = WRITERS if disk.directories else FAR_WRITERS
        self._far_bytes = 0
        self.clean_bytes = self.evicted_bytes = 0
        self.spilled = self.spilled_bytes = self.restored = self.restored_bytes = self.failed = 0

    def adopt(self, records: Sequence[Record]) -> None:
        """What `recover` found."""
        for record in records:
            if record.evicted:
                self._evicted[record.location] = record
                self.evicted_bytes += record.size
            else:
                self._clean[record.location] = record
                self.clean_bytes += record.size
                self._store.keep(*record.location)

    # -- questions --------------------------------------------------------------------------------------

    def evicted(self, location: Location) -> Record | None:
        """Where it lies, if the disk alone has it."""
        return self._evicted.get(location)

    @property
    def objects(self) -> int:
        return len(self._evicted)

    def listing(self, limit: int) -> list[tuple[Record, str]]:
        """What the disk alone has, and in which file."""
        some = itertools.islice(self._evicted.values(), max(0, limit))
        return [(r, self.disk.file_path(r)) for r in some]

    # -- making room ------------------------------------------------------------------------------------

    async def make_room(self, missing: int, more: int) -> str:
        """Evicts until `missing` bytes are free, or nothing is left that could be; up to `more` of what is clean. Returns why the disk took nothing, if it
        did not."""
        self._kick.set()
        await self._retry_held()
        freed = await self._evict(more)
        while freed < missing:
            if not self._tasks and not self._start(max(missing - freed, self._pack_bytes)):
                return ""
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            freed += await self._evict(more - freed)
            why = next((w for task in done if not task.cancelled() and (w := task.result())), "")
            if why and freed < missing:
                return why
        return ""

    async def write_ahead(self) -> None:
        """Keeps what could be needed at once clean, until cancelled."""
        while True:
            excess = self._resident() - self.clean_bytes - self._writing_bytes - self._limit_bytes
            if excess > 0 and len(self._tasks) < self._writers and time.monotonic() >= self._paused_until and self._start(min(excess, self._pack_bytes)):
                await asyncio.sleep(0)
                continue
            self._kick.clear()
            # Not wait_for(), which until Python 3.12 may lose a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S):
                    await self._kick.wait()

    def _start(self, wanted: int) -> bool:
        """Begins to write the coldest objects. Whether there are any."""
        coldest = self._store.coldest(wanted)
        for pack in packs(coldest, self._pack_bytes) if self.disk.packs else ([item] for item in coldest):
            task = asyncio.get_running_loop().create_task(self._write(pack))
            self._tasks.add(task)
            task.add_done_callback(self._written)
            self._writing_bytes += sum(size for _, _, size in pack)
            for slot, generation, _ in pack:
                self._store.keep(slot, generation)
                self._writing[slot, generation] = False
        return bool(coldest)

    def _written(self, task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        self._kick.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("writing to disk failed", exc_info=task.exception())

    async def _write(self, pack: list[tuple[int, int, int]]) -> str:
        """Returns why it did not succeed."""
        sources, pins, records, why = [], [], [], ""
        try:
            for slot, generation, _ in pack:
                with contextlib.suppress(ArenaError):  # freed a moment ago
                    pin = self._own.get(slot, generation)
                    pins.append(pin)
                    sources.append(Source(slot, generation, memoryview(pin), pin.address, self._store.owner(slot, generation)))
            if sources:
                records = await self._put_away(sources)
        except SpillFailed as error:
            why = str(error)
            if time.monotonic() >= self._paused_until:
                _log.error("%s", why)
            self._paused_until = time.monotonic() + PAUSE_S
            self.failed += 1
        finally:
            freed = {(slot, generation) for slot, generation, _ in pack if self._writing.pop((slot, generation))}
            self._writing_bytes -= sum(size for _, _, size in pack)
            for slot, generation, _ in pack if not records else ():
                self._store.keep_no_more(slot, generation)
        self.spilled += len(records)
        self.spilled_bytes += sum(r.size for r in records)
        self._drop([r for r in records if r.location in freed])
        for record in records:
            if record.location not in freed:
                self._clean[record.location] = record
                self.clean_bytes += record.size
        return why

    async def _put_away(self, sources: list[Source]) -> list[Record]:
        """To a local disk if one takes it. Raises SpillFailed."""
        loop = asyncio.get_running_loop()
        why: list[str] = []
        if self.disk.directories:
            try:
                return await loop.run_in_executor(self._write_pool, self.disk.write, sources)
            except SpillFailed as error:
                if not self.disk.remotes:
                    raise
                why = error.why
        nbytes = sum(len(s.view) for s in sources)
        self._far_bytes += nbytes
        try:
            return await loop.run_in_executor(self._far_write_pool, self.disk.send, sources, why)
        finally:
            self._far_bytes -= nbytes

    def slow(self) -> str:
        """What whoever waits for room waits for, if that is far away."""
        if not self._far_bytes:
            return ""
        return f"; {self._far_bytes:,} bytes are on their way to {' and '.join(remote.shown for remote in self.disk.remotes)}"

    async def _evict(self, wanted: int) -> int:
        """Takes clean objects out of the arena, those that were written first first. Returns their bytes."""
        records: list[Record] = []
        pins: list[Buffer] = []
        gone: list[Record] = []
        freed = 0
        for location, record in self._clean.items():
            if freed >= wanted:
                break
            try:
                pin = self._own.get(*location)
            except ArenaError:
                gone.append(record)
                continue
            if self._store.evict(pin):
                records.append(record)
                pins.append(pin)
                freed += record.size
        for record in records:
            del self._clean[record.location]
            record.evicted = True
            self._evicted[record.location] = record
            self.clean_bytes -= record.size
            self.evicted_bytes += record.size
            self._publish(Kind.SPILLED, record.location, record.size, self.disk.file_path(record))
        self._forget_clean(gone)
        if records:
            await self._journal(records, pins)
        return freed

    async def _journal(self, records: list[Record], pins: list[Buffer]) -> None:
        # Invariant: the pins go only after the journal knows; `recover` depends on it.
        try:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._write_pool, self.disk.evicted, records))
        except OSError as error:
            _log.error("the journal of spilled objects takes nothing: %s; %d objects stay in memory", error, len(records))
            self._held.append((records, pins))
        except asyncio.CancelledError:
            self._held.append((records, pins))
            raise

    async def _retry_held(self) -> None:
        held, self._held = self._held, []
        for records, pins in held:
            await self._journal(records, pins)

    # -- freeing ----------------------------------------------------------------------------------------

    def freed(self, locations: Sequence[Location]) -> tuple[list[Location], asyncio.Task[None] | None]:
        """Their owners want them no more. Those that the disk alone had, and what ends once a successor would know that they are gone."""
        records = []
        for location in locations:
            if location in self._writing:
                self._writing[location] = True
            record = self._evicted.pop(location, None)
            if record is not None:
                self.evicted_bytes -= record.size
                records.append(record)
                self._publish(Kind.FREED, location, record.size, "")
            elif location in self._clean:
                self._forget_clean([self._clean[location]])
        return [r.location for r in records], self._drop(records)

    def owned(self, workers: Set[bytes], nodes: Set[bytes]) -> list[Location]:
        """What the disk alone has of these owners."""
        return [r.location for r in self._evicted.values() if r.owner[:16] in workers or r.owner[16:] in nodes]

    def _forget_clean(self, records: Sequence[Record]) -> None:
        for record in records:
            del self._clean[record.location]
            self.clean_bytes -= record.size
            self._store.keep_no_more(*record.location)
        self._drop(records)

    def _drop(self, records: Sequence[Record]) -> asyncio.Task[None] | None:
        if not records:
            return None
        task = asyncio.get_running_loop().create_task(self._drop_now(records))
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    async def _drop_now(self, records: Sequence[Record]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._write_pool, self.disk.drop, records)
        except OSError as error:
            _log.error("space of %d spilled objects could not be given back: %s", len(records), error)

    def look_round(self) -> None:
        """Clean objects that their owners freed without a message lose their bytes on disk, too."""
        clean = list(self._clean)
        self._forget_clean([self._clean[at] for at in itertools.compress(clean, (not s for s in self._store.sealed(clean)))])

    # -- reading ----------------------------------------------------------------------------------------

    async def restore(self, record: Record, into: Writable) -> None:
        """Fills `into`. Raises Damaged, OutOfReach."""
        view = memoryview(into)
        pool = self._far_read_pool if self.disk.is_remote(record) else self._read_pool
        reading = asyncio.get_running_loop().run_in_executor(pool, self.disk.read, record, view, into.address)
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread writes into the object until it is done; the process ends, and its successor takes the object back.
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        view.release()
        self.restored += 1
        self.restored_bytes += record.size

    def figures(self) -> dict[str, int]:
        return {
            "clean": len(self._clean), "clean_bytes": self.clean_bytes, "on_disk": len(self._evicted), "on_disk_bytes": self.evicted_bytes,
            "disk_file_bytes": self.disk.disk_bytes, "disk_files": self.disk.files,
            "spilled": self.spilled, "spilled_bytes": self.spilled_bytes, "restored": self.restored, "restored_bytes": self.restored_bytes,
            "spill_failures": self.failed,
            "remote_files": sum(r.files for r in self.disk.remotes), "remote_file_bytes": sum(r.file_bytes for r in self.disk.remotes),
            "remote_failures": sum(r.failures for r in self.disk.remotes), "remote_unwanted": sum(r.unwanted for r in self.disk.remotes),
            "remote_moved_bytes": sum(r.moved_bytes for r in self.disk.remotes),
        }  # fmt: skip

    async def tidy_far_away(self) -> None:
        """Removes remote files that nobody wants, and moves what lives out of those that are mostly dead, until cancelled."""
        while True:
            more = False
            for remote in self.disk.remotes:
                for tidy in (remote.remove_unwanted, remote.move_living):
                    more |= await asyncio.get_running_loop().run_in_executor(self._tidy_pool, tidy)
            if not more:
                await next_round(ROUND_S)

    # -- the end ----------------------------------------------------------------------------------------

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.disk.hurry()
        for pool in (self._write_pool, self._read_pool, self._far_write_pool, self._far_read_pool, self._tidy_pool):
            await asyncio.get_running_loop().run_in_executor(None, partial(pool.shutdown, cancel_futures=True))
        self._held.clear()
        self.disk.close()
