"""The store's process dies at each instrumented point of its own while clients put, get and free: every object keeps its bytes, nobody's space is given twice,
and its successor's books are right to the byte.

The parent process is the clients (three places in the arena), a forked child is the store. Every object bears its own name in all its words, so that one object
in another's place is seen wherever it lies. Grants are acted on late, some of them only after a successor came, and some twice.

SHOAL_STORE_DEATHS sets how many random deaths there are (default 20; `make kills`: 1,000), SHOAL_SEED where they begin.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import time
import traceback
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from shoal_base.processes import set_parent_death_signal
from shoal_objectstore import Arena, ArenaError, NeedExtent, ObjectGone, Store, create_arena
from shoal_objectstore._arena import WHOLE, crash_at

MIB = 1 << 20
CAPACITY = 48 * MIB
CLIENTS = (1, 2, 3)
DEATHS = int(os.environ.get("SHOAL_STORE_DEATHS", "20"))
BOUND_S = float(os.environ.get("SHOAL_CHAOS_S", "inf"))
SEED = int(os.environ.get("SHOAL_SEED", "1"))
# Of shoal_arena_units.h and shoal_arena_store.h: what the store passes when it lends, takes back, cools, drains, evicts and reclaims; and those of a client
# that it passes, too.
POINTS = [3, 4, 21, 22, *range(24, 39)]
# Objects of such a size may be evicted: the clients must be ready to find them gone.
EVICTABLE = 7
LEND, RECLAIM = 1, 2
REQUEST, ANSWER = struct.Struct("<BIQ"), struct.Struct("<i")
Location = tuple[int, int]
pytestmark = pytest.mark.timeout(150 + min(DEATHS, 2 * BOUND_S))


# -- the store ----------------------------------------------------------------------------------------


def room(store: Store, size: int) -> int:
    for squeeze in (None, False, True):
        if squeeze is not None:
            store.sweep(0, squeeze)
        with contextlib.suppress(NeedExtent):
            return store.reserve(size, WHOLE) if size > store.extent_bytes // 4 else store.reserve(store.extent_bytes)
    return -1


def answer(store: Store, kind: int, client: int, size: int) -> int:
    if kind == RECLAIM:
        store.reclaim_client(client)
        return 0
    extent = room(store, size)
    if extent >= 0:
        store.lend_extent(extent, client)
    return extent


def housekeeping(store: Store, rng: random.Random) -> None:
    what = rng.randrange(6)
    if what <= 2:
        store.sweep(rng.randrange(2), squeeze=what == 2)
    elif what == 3:
        store.trim(rng.choice([0, 8 * MIB]))
    elif what == 4:
        store.warm(rng.choice([2 * MIB, 6 * MIB]))
    else:
        own = store.arena()
        for slot, generation, size in store.coldest(4 * MIB):
            if size % 16 == EVICTABLE:
                with contextlib.suppress(ArenaError):
                    pin = own.get(slot, generation)
                    store.evict(pin)
                    del pin


def be_the_store(fd: int, sock: socket.socket, rng: random.Random, point: int, after: int) -> None:
    store = Store(fd)
    if point:
        crash_at(point, after)
    sock.settimeout(0.002)
    while True:
        try:
            request = sock.recv(REQUEST.size, socket.MSG_WAITALL)
        except TimeoutError:
            housekeeping(store, rng)
            continue
        if not request:
            return
        sock.sendall(ANSWER.pack(answer(store, *REQUEST.unpack(request))))
        if rng.random() < 0.3:
            housekeeping(store, rng)


class Service:
    """The store's process, and its successors."""

    def __init__(self, fd: int, rng: random.Random) -> None:
        self.fd = fd
        self.rng = rng
        self.deaths = 0
        self.pid = 0

    def start(self, point: int = 0, after: int = 0) -> None:
        ours, theirs = socket.socketpair()
        seed = self.rng.randrange(1 << 30)
        self.pid = os.fork()
        if not self.pid:
            try:
                set_parent_death_signal()
                ours.close()
                be_the_store(self.fd, theirs, random.Random(seed), point, after)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        theirs.close()
        self.sock = ours
        self.sock.settimeout(30)

    def ask(self, kind: int, client: int, size: int = 0) -> int | None:
        """None: it died over this question, or before."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(REQUEST.pack(kind, client, size))
            told = self.sock.recv(ANSWER.size, socket.MSG_WAITALL)
            if len(told) == ANSWER.size:
                return int(ANSWER.unpack(told)[0])
        self.sock.close()
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status), f"the store ended by itself: {os.waitstatus_to_exitcode(status)}"
        self.deaths += 1
        return None

    def kill(self) -> None:
        """If it lives."""
        if self.sock.fileno() >= 0:
            os.kill(self.pid, signal.SIGKILL)
            self.stop()

    def stop(self) -> None:
        self.sock.close()
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0


# -- its clients ----------------------------------------------------------------------------------------


class Clients:
    def __init__(self, fd: int, service: Service, rng: random.Random) -> None:
        self.fd = fd
        self.service = service
        self.rng = rng
        self.arenas = {n: Arena(fd, n) for n in CLIENTS}
        self.live: dict[Location, int] = {}  # sizes
        self.views: list[tuple[int, Location, memoryview]] = []
        self.granted: list[tuple[int, int]] = []  # and not looked at yet
        self.dead = 0  # a client whose things were not taken back yet

    def name(self, location: Location) -> int:
        return location[1] << 32 | location[0]

    def right(self, location: Location, view: memoryview) -> None:
        found = np.frombuffer(view, np.uint64, len(view) // 8)
        wrong = np.flatnonzero(found != self.name(location))
        if len(wrong):
            other = int(found[wrong[0]])
            raise AssertionError(
                f"object {location} of {len(view)} bytes holds the bytes of {(other & 0xFFFFFFFF, other >> 32)} from word {wrong[0]} on, in {len(wrong)} words"
            )

    def put(self) -> None:
        client, rng = self.rng.choice(CLIENTS), self.rng
        size = rng.choice([8, 3000, 100_000, MIB + 5, 3 * MIB, 8 * MIB]) // 16 * 16 + rng.choice([0, EVICTABLE])
        try:
            writable = self.arenas[client].create(size)
        except NeedExtent:
            extent = self.service.ask(LEND, client, size)
            if extent is None:
                raise
            if extent < 0:
                self.make_room()
            else:
                self.granted.append((client, extent))
                if rng.random() < 0.6:
                    self.look(len(self.granted) - 1)
            return
        with memoryview(writable) as view:
            np.frombuffer(view, np.uint64, size // 8)[:] = self.name(writable.location)
        if rng.random() < 0.1:
            writable.abort()
        else:
            self.live[writable.seal()] = size

    def look(self, at: int) -> None:
        client, extent = self.granted[at] if self.rng.random() < 0.2 else self.granted.pop(at)
        self.arenas[client].add_extent(extent)

    def make_room(self) -> None:
        self.views.clear()
        for location in self.rng.sample(sorted(self.live), len(self.live) // 2):
            self.free(location)

    def free(self, location: Location) -> None:
        size = self.live.pop(location)
        try:
            self.arenas[self.rng.choice(CLIENTS)].free(*location)
        except ObjectGone:
            assert size % 16 == EVICTABLE, f"object {location} is gone, and nobody freed it"

    def get(self) -> None:
        location = self.rng.choice(list(self.live))
        client = self.rng.choice(CLIENTS)
        try:
            view = memoryview(self.arenas[client].get(*location))
        except ObjectGone:
            assert self.live.pop(location) % 16 == EVICTABLE, f"object {location} is gone, and nobody freed it"
            return
        assert len(view) == self.live[location]
        self.right(location, view)
        self.views.append((client, location, view))

    def drop(self) -> None:
        _, location, view = self.views.pop(self.rng.randrange(len(self.views)))
        self.right(location, view)

    def die(self) -> None:
        """One of the clients ends, and another process gets its place once the store, or its successor, has taken everything back."""
        client = self.rng.choice(CLIENTS)
        self.views = [row for row in self.views if row[0] != client]
        self.granted = [row for row in self.granted if row[0] != client]
        if self.service.ask(RECLAIM, client) is None:
            self.dead = client
            raise NeedExtent
        self.arenas[client] = Arena(self.fd, client)

    def step(self) -> None:
        rng = self.rng
        what = rng.randrange(20)
        if what < 9:
            self.put()
        elif what < 12 and self.live:
            self.get()
        elif what < 14 and self.views:
            self.drop()
        elif what < 17 and len(self.live) > 6:
            self.free(rng.choice(list(self.live)))
        elif what < 19 and self.granted:
            self.look(rng.randrange(len(self.granted)))
        elif what == 19 and rng.random() < 0.2:
            self.die()

    def work(self, bound_s: float) -> None:
        """Until the store dies or the time is over."""
        end = time.monotonic() + bound_s
        with contextlib.suppress(NeedExtent):  # nobody lends just now
            if not self.go_on():
                return
            while time.monotonic() < end:
                self.step()

    def go_on(self) -> bool:
        """What was asked of a store that died is asked of its successor. Whether that one has lived to answer."""
        if self.dead:
            if self.service.ask(RECLAIM, self.dead) is None:
                return False
            self.arenas[self.dead] = Arena(self.fd, self.dead)
            self.dead = 0
        return True

    def everything_is_right(self) -> None:
        for location, size in list(self.live.items()):
            try:
                view = memoryview(self.arenas[1].get(*location))
            except ObjectGone:
                assert size % 16 == EVICTABLE, f"object {location} is gone, and nobody freed it"
                continue
            self.right(location, view)
        for _, location, view in self.views:
            self.right(location, view)

    def end(self) -> None:
        self.everything_is_right()
        self.views.clear()
        for location in list(self.live):
            self.free(location)
        store = Store(self.fd)
        store.sweep(0)
        store.sweep(0)
        assert store.check(True) == []
        assert store.objects() == ([], 0)
        assert store.resident_bytes == store.free_warm_bytes
        store.trim(0)
        assert store.file_resident_bytes == store.resident_bytes == 0


def run(seed: int, deaths: Iterable[tuple[int, int]], each_s: float) -> int:
    """Stores of which each dies at its (point, passes), or is killed when its time is over. Returns how many died by themselves."""
    rng = random.Random(seed)
    fd = create_arena(CAPACITY, 8, 8192)
    try:
        service = Service(fd, rng)
        service.start()
        clients = Clients(fd, service, rng)
        for _ in range(200):
            clients.step()
        service.stop()
        for point, after in deaths:
            service.start(point, after)
            clients.work(each_s)
            service.kill()
            clients.everything_is_right()
        service.start()
        assert clients.go_on()
        for _ in range(200):
            clients.step()
        service.stop()
        clients.end()
        return service.deaths
    finally:
        os.close(fd)


@pytest.mark.parametrize("point", POINTS)
def test_a_store_that_dies_at_a_point_leaves_every_object_its_own_bytes(point: int) -> None:
    assert run(SEED * 1000 + point, [(point, 1), (point, 2), (point, 5)], 15.0) >= 2, "the point was hardly passed"


def test_stores_that_die_at_random_leave_every_object_its_own_bytes() -> None:
    rng, began, count = random.Random(SEED), time.monotonic(), 0

    def deaths() -> Iterator[tuple[int, int]]:
        nonlocal count
        while count < DEATHS and time.monotonic() - began < BOUND_S:
            count += 1
            # Half of them by themselves, the others when their time is over.
            yield (rng.choice(POINTS), rng.randrange(1, 20)) if count % 2 else (0, 0)

    run(SEED, deaths(), 0.25)
    print(f"{count} stores killed in {time.monotonic() - began:.1f} s, seed {SEED}: every object has its own bytes, nothing is left")
