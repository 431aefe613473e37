"""Clients killed and stopped at each instrumented point and at random: nobody waits, nothing leaks, what was sealed stays.

SHOAL_KILLS sets the number of random kills (default 200), SHOAL_CHAOS_S the time after which there are no more (default: none), SHOAL_SEED where they begin.
`make kills` does 10,000, or as many as ten minutes allow.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable

import pytest
from shoal_base.processes import set_parent_death_signal
from shoal_objectstore import Arena, ArenaError, NeedExtent, ObjectGone, Store, WrongState, create_arena
from shoal_objectstore._arena import crash_at, points_passed

MIB = 1 << 20
KILLS = int(os.environ.get("SHOAL_KILLS", "200"))
SEED = int(os.environ.get("SHOAL_SEED", "1"))
BOUND_S = float(os.environ.get("SHOAL_CHAOS_S", "inf"))
pytestmark = pytest.mark.timeout(120 + min(KILLS // 2, 2 * BOUND_S))
Location = tuple[int, int]

# All points of shoal_arena.h that a client passes, and those that only the store does.
POINTS = list(range(1, 21))
STORE_POINTS = [21, 22, 23]


class Harness:
    """The store and one client of its own, which forks victims."""

    def __init__(self) -> None:
        fd = create_arena(96 * MIB, 64, 8192)
        self.store = Store(fd)
        os.close(fd)
        self.own = Arena(self.store.fd, 1)
        self.busy: set[int] = set()
        self.shared: dict[Location, int] = {}

    def lend(self, arena: Arena | int, size: int = 2 * MIB) -> int:
        try:
            extent = self.store.reserve(size)
        except NeedExtent:
            self.store.sweep(0, squeeze=True)
            extent = self.store.reserve(size)
        self.store.lend_extent(extent, arena if isinstance(arena, int) else arena.client)
        if isinstance(arena, Arena):
            arena.add_extent(extent)
        return extent

    def put(self, byte: int, size: int = 150_000) -> Location:
        while True:
            try:
                location = self.own.put(bytes([byte]) * size)
            except NeedExtent:
                self.lend(self.own)
                continue
            self.shared[location] = byte
            return location

    def clients(self) -> tuple[int, int]:
        free = [n for n in range(2, 64) if n not in self.busy]
        self.busy.update(free[:2])
        return free[0], free[1]

    def fork(self, work: Callable[[Arena, Arena, dict[Location, int]], None]) -> tuple[int, tuple[int, int]]:
        """A child that attaches two clients, so that one can free what the other put."""
        numbers = self.clients()
        attached, granted = os.pipe(), os.pipe()
        pid = os.fork()
        if pid:
            # Space is lent to those who are there.
            assert os.read(attached[0], 1)
            os.write(granted[1], bytes(self.lend(numbers[0]) for _ in range(2)))
            for fd in (*attached, *granted):
                os.close(fd)
            return pid, numbers
        code = 99
        try:
            set_parent_death_signal()
            one, two = Arena(self.store.fd, numbers[0]), Arena(self.store.fd, numbers[1])
            os.write(attached[1], b"a")
            for extent in os.read(granted[0], 2):
                one.add_extent(extent)
            for fd in (*attached, *granted):
                os.close(fd)
            work(one, two, self.shared)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reclaim(self, numbers: tuple[int, int]) -> None:
        for number in (*numbers, *numbers):  # twice: it is idempotent
            self.store.reclaim_client(number)
        self.busy.difference_update(numbers)

    def still_works(self) -> None:
        """Everything that a living client does, in bounded time and with the right bytes."""
        start = time.monotonic()
        location = self.put(7)
        assert bytes(memoryview(self.own.get(*location))[:1]) == b"\x07"
        self.own.free(*location)
        del self.shared[location]
        for at, byte in list(self.shared.items()):
            try:
                view = memoryview(self.own.get(*at))
            except ObjectGone:
                del self.shared[at]  # a victim freed it
                continue
            assert view[0] == byte == view[-1] == view[len(view) // 2]
        self.store.sweep(0)
        assert time.monotonic() - start < 5.0
        assert self.store.check() == []

    def end(self) -> None:
        """Everything is given up; then nothing may be left of anybody."""
        for slot, generation, _size, state, _creator, _pins in self.store.objects(100_000)[0]:
            if state == "sealed":
                self.own.free(slot, generation)
        self.store.sweep(0)
        self.store.sweep(0)
        assert self.store.check(True) == []
        assert self.store.objects() == ([], 0)
        assert self.store.resident_bytes == self.store.free_warm_bytes
        self.store.trim(0)
        assert self.store.file_resident_bytes == 0


def live_a_little(one: Arena, two: Arena, shared: dict[Location, int], rng: random.Random, rounds: int) -> None:
    """All operations in random order, on own and on others' objects, with the bytes checked."""
    mine: list[tuple[Location, int]] = []
    views: list[memoryview] = []
    others = list(shared.items())
    for _ in range(rounds):
        action = rng.randrange(8)
        byte = rng.randrange(256)
        try:
            if action <= 1:
                mine.append((one.put(bytes([byte]) * rng.randrange(1, 120_000)), byte))
            elif action == 2:
                one.create(rng.randrange(1, 100_000)).abort()
            elif action == 3 and mine:
                two.free(*mine.pop(rng.randrange(len(mine)))[0])
            elif action == 4 and mine:
                one.free(*mine.pop(rng.randrange(len(mine)))[0])
            elif action == 5 and others:
                location, value = rng.choice(others)
                view = memoryview(two.get(*location))
                if view[0] != value or view[-1] != value:
                    os._exit(77)
                views.append(view)
            elif action == 6 and views:
                views.pop(rng.randrange(len(views)))
            elif action == 7 and others and rng.random() < 0.2:
                location, _ = others.pop(rng.randrange(len(others)))
                held = one.get(*location)
                one.free(*location)
                del held  # the last pin: this process releases it
        except NeedExtent:
            while mine:
                one.free(*mine.pop()[0])
        except (ObjectGone, WrongState):
            continue


def died_at(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return status


@pytest.mark.parametrize("point", POINTS)
def test_a_client_killed_at_a_point_leaves_nothing_behind(point: int) -> None:
    harness = Harness()
    hit = 0
    for after in (1, 2, 5):
        for byte in range(4):
            harness.put(byte)

        def work(one: Arena, two: Arena, shared: dict[Location, int], after: int = after) -> None:
            crash_at(point, after)
            live_a_little(one, two, shared, random.Random(point * 100 + after), 3000)

        pid, numbers = harness.fork(work)
        status = died_at(pid)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        hit += os.WIFSIGNALED(status)
        harness.reclaim(numbers)
        harness.still_works()
    assert hit == 3, f"the point was passed by {hit} of 3 victims"
    harness.end()


@pytest.mark.parametrize("point", POINTS)
def test_nobody_waits_for_a_client_that_is_stopped_at_a_point(point: int) -> None:
    harness = Harness()
    for byte in range(6):
        harness.put(byte)

    def work(one: Arena, two: Arena, shared: dict[Location, int]) -> None:
        crash_at(point, 2, signal.SIGSTOP)
        live_a_little(one, two, shared, random.Random(point), 3000)

    pid, numbers = harness.fork(work)
    _, status = os.waitpid(pid, os.WUNTRACED)
    try:
        assert os.WIFSTOPPED(status), f"it ended with {status}"
        harness.still_works()
        harness.store.sweep(0, squeeze=True)
        harness.still_works()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    harness.reclaim(numbers)
    harness.still_works()
    harness.end()


def end_of(pid: int, how: str, rng: random.Random, harness: Harness) -> str:
    """Kills a victim, or stops it first and sees that nobody waits for it. One with a point to die or stop at gets the time to come to it; some have freed what
    it takes before. Returns how it ended."""
    if "point" not in how:
        select.select([], [], [], rng.random() * 0.01)
    elif not came_to_its_point(pid):
        how = how.removesuffix(" at a point")
    if how in ("kill", "stop"):
        os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    if "stop" in how:
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"a victim saw wrong bytes or failed: {os.waitstatus_to_exitcode(status)}"
        harness.still_works()
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"a victim saw wrong bytes or failed: {os.waitstatus_to_exitcode(status)}"
    return how


def came_to_its_point(pid: int) -> bool:
    end = time.monotonic() + 0.5
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.001)
    return True


HOW = {"kill": 8, "kill at a point": 8, "stop": 1, "stop at a point": 1}


def test_clients_killed_and_stopped_at_random_leave_nothing_behind() -> None:
    """At random moments, and at random passes of each instrumented point."""
    harness = Harness()
    rng = random.Random(SEED)
    victims: dict[int, tuple[tuple[int, int], str]] = {}
    began, n, said = time.monotonic(), 0, 0.0
    done: dict[str, int] = dict.fromkeys(HOW, 0)
    while n < KILLS and time.monotonic() - began < BOUND_S:
        while len(harness.shared) < 8:
            harness.put(rng.randrange(256))
        while len(victims) < 3:
            seed, [how] = rng.randrange(1 << 30), rng.choices(list(HOW), HOW.values())
            at = (rng.choice(POINTS), rng.randrange(1, 8), signal.SIGSTOP if "stop" in how else signal.SIGKILL) if "point" in how else (0, 0, 0)

            def work(one: Arena, two: Arena, shared: dict[Location, int], seed: int = seed, at: tuple[int, int, int] = at) -> None:
                crash_at(*at)
                live_a_little(one, two, shared, random.Random(seed), 1 << 30)

            pid, numbers = harness.fork(work)
            victims[pid] = numbers, how
        pid = rng.choice(list(victims))
        numbers, how = victims.pop(pid)
        done[end_of(pid, how, rng, harness)] += 1
        harness.reclaim(numbers)
        n += 1
        assert harness.store.check() == [], f"after kill {n}"
        if n % 10 == 0:
            harness.still_works()
            # What ended processes sealed has no owner here.
            living = {number for pair, _ in victims.values() for number in pair} | {1}
            for slot, generation, _size, state, creator, _pins in harness.store.objects(100_000)[0]:
                if state == "sealed" and creator not in living:
                    try:
                        harness.own.free(slot, generation)
                    except ArenaError:
                        continue
        if time.monotonic() - began > said + 60:
            said = time.monotonic() - began
            print(f"{n} after {said:.0f} s", flush=True)
    for pid, (numbers, _) in victims.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        harness.reclaim(numbers)
    harness.still_works()
    harness.end()
    ends = f"{done['kill']} killed at random moments, {done['kill at a point']} at random points, {done['stop'] + done['stop at a point']} stopped first"
    print(f"{n} clients in {time.monotonic() - began:.1f} s, seed {SEED}: {ends}; nothing is left, nobody waited")


def test_every_point_is_passed_by_what_the_victims_do() -> None:
    harness = Harness()
    for byte in range(8):
        harness.put(byte)
    read, write = os.pipe()

    def work(one: Arena, two: Arena, shared: dict[Location, int]) -> None:
        live_a_little(one, two, shared, random.Random(3), 3000)
        os.write(write, bytes(p for p in POINTS if points_passed()[p]))

    pid, numbers = harness.fork(work)
    assert died_at(pid) == 0
    assert list(os.read(read, 100)) == POINTS
    os.close(read)
    os.close(write)
    harness.reclaim(numbers)
    harness.end()

def evict_and_free(fd: int, point: int, after: int) -> None:
    """A store and a client in one process, which dies in the middle of the store's own ends of objects."""
    store = Store(fd)
    one, own = Arena(fd, 1), store.arena()
    for _ in range(4):
        extent = store.reserve(2 * MIB)
        store.lend_extent(extent, 1)
        one.add_extent(extent)
    locations = [one.put(bytes([n]) * 100_000, bytes([n % 2 + 1]) * 32) for n in range(40)]
    crash_at(point, after)
    for location in locations[:20]:
        store.evict(own.get(*location))
    store.free_owned([b"\1" * 16], [])


@pytest.mark.parametrize("point", STORE_POINTS)
@pytest.mark.parametrize("after", [1, 4, 10])
def test_a_store_killed_at_a_point_leaves_its_successor_all_that_it_did_not_free(point: int, after: int) -> None:
    fd = create_arena(32 * MIB, 16, 8192)
    pid = os.fork()
    if not pid:
        try:
            set_parent_death_signal()
            evict_and_free(fd, point, after)
        finally:
            os._exit(99)
    assert os.WIFSIGNALED(died_at(pid)), "the point was not passed"
    store = Store(fd)
    os.close(fd)
    store.reclaim_client(1)
    store.sweep(0)
    assert store.check() == []
    own = store.arena()
    living = [(slot, generation) for slot, generation, _size, state, _creator, _pins in store.objects(1000)[0] if state == "sealed"]
    # Each evict and each free of an owned object passes its points once: what was begun is done, the rest is whole.
    begun = after if point == 22 else after - 1 if point == 21 else 20 + after
    assert len(living) == 40 - begun
    for location in living:
        view = memoryview(own.get(*location))
        assert set(view[::4096]) == {view[0]}
        assert store.owner(*location) == bytes([view[0] % 2 + 1]) * 32
        del view
        own.free(*location)
    store.sweep(0)
    store.sweep(0)
    assert store.check(True) == []
    assert store.resident_bytes == store.free_warm_bytes
    store.trim(0)
    assert store.file_resident_bytes == 0

