"""The warm reserve: how much of it there is, and that what is put finds it."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal_objectstore._arena import Arena, Store, create_arena
from shoal_objectstore.keeper import Keeper
from shoal_objectstore.reserve import KEEP_S, MOST_BYTES, PAUSE_S, QUIET_S, QUIET_SHARE, Reserve
from store_node import MIB, Client, nodes, until

GIB = 1 << 30


# -- how much ----------------------------------------------------------------------------------------------


def test_it_is_bounded_by_the_arena_and_by_what_the_machine_has_left() -> None:
    assert Reserve(100 * GIB, -1, 0.0).wanted(100 * GIB, 0.0) == MOST_BYTES >= 256 * MIB
    assert Reserve(400 * MIB, -1, 0.0).wanted(100 * GIB, 0.0) == 100 * MIB
    assert Reserve(100 * GIB, -1, 0.0).wanted(800 * MIB, 0.0) == 100 * MIB
    assert Reserve(100 * GIB, 7 * MIB, 0.0).wanted(1 * MIB, 1e9) == 7 * MIB, "a setting is kept to"
    assert Reserve(100 * GIB, 0, 0.0).wanted(100 * GIB, 0.0) == 0


def test_it_is_whole_after_an_idle_minute_and_small_after_ten_until_somebody_asks() -> None:
    reserve = Reserve(8 * GIB, -1, 0.0)
    assert reserve.wanted(100 * GIB, QUIET_S - 1) == MOST_BYTES
    assert reserve.wanted(100 * GIB, QUIET_S) == MOST_BYTES // QUIET_SHARE
    reserve.asked(5000.0)
    assert reserve.wanted(100 * GIB, 5000.0) == MOST_BYTES


def test_what_was_in_use_stays_warm_for_a_minute_but_for_what_the_machine_needs() -> None:
    reserve = Reserve(8 * GIB, -1, 0.0)
    reserve.asked(100.0)
    assert reserve.kept(100 * GIB, 3 * GIB, 100.0 + KEEP_S) == 3 * GIB
    assert reserve.kept(4 * GIB, 3 * GIB, 100.0 + KEEP_S) == 2 * GIB, "the machine has little left besides"
    assert reserve.kept(100 * GIB, 3 * GIB, 101.0 + KEEP_S) == MOST_BYTES


def test_who_asks_alone_copies_alone_and_a_stream_has_pages_made_ahead() -> None:
    reserve = Reserve(8 * GIB, -1, 0.0)
    assert reserve.pause_s(0.0) == 0.0, "at the start it is filled at once"
    reserve.asked(60.0)
    assert reserve.pause_s(60.0) == PAUSE_S
    assert reserve.pause_s(60.0 + PAUSE_S) == 0.0
    reserve.asked(62.0)
    reserve.asked(62.1)
    assert reserve.pause_s(62.1) == 0.0


# -- which units, and how they are filled ------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Store]:
    fd = create_arena(64 * MIB)
    yield Store(fd)
    os.close(fd)


def page_tables() -> tuple[int, int]:
    """(pages of shared memory in this process's page tables, faults so far)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssShmem"].split()[0]) // 4, resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_a_touch_goes_through_what_is_free_and_warm_and_leaves_it_as_it_is(store: Store) -> None:
    store.warm(20 * MIB)
    extent = store.reserve(16 * MIB, fill=False)
    figures = (store.free_warm_bytes, store.resident_bytes, store.file_resident_bytes)
    mapped, faults = page_tables()
    touched = store.touch(64 * MIB, 1.0)
    after, faults_after = page_tables()
    # None at all where the kernel gives no huge pages.
    assert touched in (4 * MIB, 0)
    assert faults_after - faults >= touched // (2 * MIB)
    assert after <= mapped, "in nobody's page tables"
    assert store.touch(2 * MIB, 1.0) == touched // 2, "not more than was said"
    assert (store.free_warm_bytes, store.resident_bytes, store.file_resident_bytes) == figures
    store.give_back(extent)
    assert store.check(True) == []


def test_a_touch_that_has_no_more_time_goes_on_the_next_time(store: Store) -> None:
    store.warm(6 * MIB)
    huge = store.touch(2 * MIB, 1.0)  # none where the kernel gives no huge pages
    extent = store.reserve(2 * MIB, fill=False)
    before = page_tables()[1]
    assert [store.touch(64 * MIB, 0.0) for _ in range(4)] == [huge] * 4, "two units in turn"
    assert page_tables()[1] - before >= 4 * (huge // (2 * MIB))
    assert store.touch(64 * MIB, 1.0) == 2 * huge
    store.give_back(extent)
    assert store.check(True) == []


def test_a_larger_object_takes_all_warm_units_and_cold_ones_besides(store: Store) -> None:
    assert store.warm(20 * MIB, 4) == 4, "by the turn"
    extent = store.reserve(16 * MIB, fill=False)
    assert store.cold_bytes(extent) == 8 * MIB
    store.fill(extent)
    store.give_back(extent)
    assert store.free_warm_bytes == 16 * MIB
    assert store.warm(20 * MIB) == 2
    assert store.warm(20 * MIB) == 0
    assert (store.free_warm_bytes, store.resident_bytes, store.file_resident_bytes) == (20 * MIB,) * 3
    extent = store.reserve(20 * MIB, fill=False)
    assert store.cold_bytes(extent) == 0
    store.give_back(extent)
    assert store.check(True) == []


def test_what_stays_warm_lies_together(store: Store) -> None:
    first, live, second = store.reserve(10 * MIB), store.reserve(6 * MIB), store.reserve(20 * MIB)
    store.give_back(first)
    store.give_back(second)
    assert store.trim(20 * MIB) == 10 * MIB
    extent = store.reserve(20 * MIB, fill=False)
    assert store.cold_bytes(extent) == 0
    store.give_back(extent)
    # Nowhere is so much free: half of it stays together.
    store.give_back(live)
    walls = [store.reserve(2 * MIB) for _ in range(32)]
    for wall in (*walls[:5], *walls[6:12], *walls[13:18], *walls[19:24], *walls[25:]):
        store.give_back(wall)
    assert store.trim(16 * MIB) == 40 * MIB
    extent = store.reserve(8 * MIB, fill=False)
    assert store.cold_bytes(extent) == 0
    store.give_back(extent)
    assert store.trim(0) == 16 * MIB
    assert store.check(True) == []


def test_the_reserve_is_filled_where_it_lies_together(store: Store) -> None:
    low = store.reserve(10 * MIB)
    store.reserve(6 * MIB)
    store.give_back(low)
    store.trim(0)
    assert store.warm(20 * MIB, 1) == 1
    assert store.warm(20 * MIB) == 9
    extent = store.reserve(20 * MIB, fill=False)
    assert store.cold_bytes(extent) == 0
    # Where nothing is long enough, in what is longest: 9 units, and 5 at the beginning.
    store.fill(extent)
    store.reserve(10 * MIB)
    last = store.reserve(18 * MIB)
    store.give_back(last)
    store.trim(0)
    assert store.warm(20 * MIB, 2) == 2
    assert store.cold_bytes(store.reserve(18 * MIB, fill=False)) == 14 * MIB
    assert store.check(True) == []


def test_the_reserve_never_exceeds_the_capacity(store: Store) -> None:
    extent = store.reserve(50 * MIB)
    assert store.warm(64 * MIB) == 7
    assert store.resident_bytes == 64 * MIB
    store.give_back(extent)
    assert store.check(True) == []


def test_the_parts_of_an_extent_are_the_whole_of_it(store: Store) -> None:
    for size in (1, 2 * MIB, 5 * MIB + 1, 19 * MIB):
        for parts in (1, 2, 3, 4):
            extent = store.reserve(size, fill=False)
            assert all(store.fill_part(extent, part, parts) for part in reversed(range(parts)))
            store.give_back(extent)
            assert store.file_resident_bytes == store.resident_bytes == -(-size // 4096) * 4096
            store.trim(0)
    with pytest.raises(ValueError, match="part 2 of 2"):
        store.fill_part(0, 2, 2)


def test_warming_stops_while_somebody_waits_for_pages() -> None:
    fd = create_arena(256 * MIB)
    store = Store(fd)
    seen = threading.Event()

    def work() -> None:
        while not seen.is_set():
            extent = store.reserve(64 * MIB, fill=False)
            store.fill_part(extent, 0, 1)
            store.give_back(extent)
            store.trim(0)

    thread = threading.Thread(target=work)
    thread.start()
    end = time.monotonic() + 60
    # Room for all that is wanted there is always: nothing else can make it return 0.
    while store.warm(150 * MIB, 1) and time.monotonic() < end:
        store.trim(0)
    late = time.monotonic() >= end
    seen.set()
    thread.join()
    assert not late
    assert store.warm(4 * MIB) == 2, "and goes on afterwards"
    os.close(fd)


# -- the service -------------------------------------------------------------------------------------------


def test_the_first_object_after_the_start_and_the_next_one_find_warm_pages(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=128 * MIB, warm_bytes=24 * MIB) as [node]:
            store = node.store.keeper.store
            await until(lambda: store.free_warm_bytes == 24 * MIB, "the reserve is filled, though nobody asked")
            one = await asyncio.to_thread(Client, node, 1)
            for n in range(2):
                before = store.resident_bytes
                extent = store.reserve(20 * MIB, fill=False)
                assert store.cold_bytes(extent) == 0
                store.give_back(extent)
                await asyncio.to_thread(one.put, bytes(20 * MIB))
                assert store.resident_bytes - before <= 24 * MIB, n
                await until(lambda: store.free_warm_bytes == 24 * MIB, "what was taken is filled again")
            assert store.check() == []
            one.close()

    asyncio.run(main())


class Touched:
    """A store that tells what was touched."""

    def __init__(self, store: Store) -> None:
        self._store, self.touched = store, [-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def touch(self, most: int, most_s: float) -> int:
        self.touched.append(self._store.touch(most, most_s))
        return self.touched[-1]


def test_the_reserve_is_touched_while_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.keeper.SWEEP_S", 0.02)

    async def main() -> None:
        async with nodes(tmp_path, capacity=128 * MIB, warm_bytes=24 * MIB) as [node]:
            keeper = node.store.keeper
            await until(lambda: keeper.store.free_warm_bytes == 24 * MIB, "the reserve is full")
            spy = keeper.store = Touched(keeper.store)  # type: ignore[assignment]
            await until(lambda: sum(spy.touched) >= 24 * MIB - 1 or spy.touched[-1] == 0, "all of it is touched, or the kernel has no huge pages")

    asyncio.run(main())


def test_an_object_larger_than_the_reserve_is_filled_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.keeper.FILLERS", 3)
    monkeypatch.setattr("shoal_objectstore.keeper.PART_BYTES", 4 * MIB)

    async def main() -> None:
        async with nodes(tmp_path, capacity=128 * MIB) as [node]:
            store = node.store.keeper.store
            one = await asyncio.to_thread(Client, node, 1)
            data = os.urandom(1 << 20) * 33
            location = await asyncio.to_thread(one.put, data)
            assert bytes(one.arena.get(*location)) == data
            assert store.file_resident_bytes == store.resident_bytes
            assert store.check() == []
            one.close()

    asyncio.run(main())


class SlowFill:
    """A store whose pages take as long to come as the test wants."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.filling, self.go_on = threading.Event(), threading.Event()
        self.warmed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def fill_part(self, extent: int, part: int, parts: int) -> bool:
        self.filling.set()
        assert self.go_on.wait(60)
        return self._store.fill_part(extent, part, parts)

    def warm(self, wanted: int, most: int) -> int:
        self.warmed += 1
        return self._store.warm(wanted, most)


def test_the_reserve_waits_while_a_put_does() -> None:
    async def main() -> None:
        fd = create_arena(128 * MIB)
        keeper = Keeper(fd, warm_bytes=8 * MIB)
        store = SlowFill(keeper.store)
        keeper.store = store  # type: ignore[assignment]
        Arena(fd, 1)
        granted: list[int] = []
        keeper.ask(1, 40 * MIB, granted.append, lambda code, text: None)
        await until(store.filling.is_set, "its pages are made")
        warming = asyncio.create_task(keeper.warming())
        for _ in range(5):
            await asyncio.sleep(0)
        assert store.warmed == 0
        store.go_on.set()
        await until(lambda: len(granted) == 1 and keeper.store.free_warm_bytes == 8 * MIB, "the put first, the reserve then")
        warming.cancel()
        await asyncio.gather(warming, return_exceptions=True)
        await keeper.close()
        os.close(fd)

    asyncio.run(main())


def test_a_client_that_is_gone_when_its_pages_are_there_leaves_them_to_others() -> None:
    async def main() -> None:
        fd = create_arena(128 * MIB)
        keeper = Keeper(fd, warm_bytes=0)
        Arena(fd, 1)
        told: list[object] = []
        keeper.ask(1, 40 * MIB, told.append, lambda code, text: told.append(text))
        keeper.leave(1)
        await until(lambda: keeper.store.free_warm_bytes == 40 * MIB, "given back")
        assert told == []
        await keeper.close()
        os.close(fd)

    asyncio.run(main())
