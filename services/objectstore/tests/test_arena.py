"""The arena from one process: what a client may rely on."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from shoal_objectstore import Arena, LayoutMismatch, NeedExtent, ObjectGone, Store, WrongState, create_arena, get_include
from shoal_objectstore._arena import WHOLE, format_arena

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20


def lend(store: Store, arena: Arena, size: int) -> None:
    """As the service does it."""
    extent = store.reserve(size, WHOLE) if size > store.extent_bytes // 4 else store.reserve(store.extent_bytes)
    store.lend_extent(extent, arena.client)
    arena.add_extent(extent)


def put(store: Store, arena: Arena, data: bytes | memoryview) -> tuple[int, int]:
    try:
        return arena.put(data)
    except NeedExtent:
        lend(store, arena, len(data))
        return arena.put(data)


@pytest.fixture
def store() -> Store:
    fd = create_arena(64 * MIB, 16, 8192)
    try:
        return Store(fd)
    finally:
        os.close(fd)


@pytest.fixture
def arena(store: Store) -> Arena:
    return Arena(store.fd, 1)


def test_a_view_is_read_only_and_no_copy(store: Store, arena: Arena) -> None:
    location = put(store, arena, np.arange(100_000, dtype=np.int64).tobytes())
    one, two = np.frombuffer(arena.get(*location), np.int64), np.frombuffer(Arena(store.fd, 2).get(*location), np.int64)
    assert not one.flags.writeable
    assert one.ctypes.data % 64 == 0
    assert np.array_equal(one, two)
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1


def test_what_the_collector_finds_in_a_cycle_is_given_back(store: Store, arena: Arena) -> None:
    """It clears what an object refers to before the object goes: the pin's way back, and the mapping under it."""
    location = put(store, arena, b"a" * 1000)
    successor = Store(store.fd)
    own = successor.arena()
    cycle: list[object] = [arena.get(*location), memoryview(arena.get(*location)), arena.create(100), own.get(*location), own, successor]
    cycle.append(cycle)
    del own, successor, cycle
    gc.collect()
    assert store.objects()[0] == [(*location, 1000, "sealed", 1, 0)]
    assert store.check(True) == []


def test_a_freed_object_stays_while_a_view_of_it_lives_and_is_gone_for_others(store: Store, arena: Arena) -> None:
    location = put(store, arena, b"a" * 200_000)
    view = memoryview(arena.get(*location))[5:10]
    arena.free(*location)
    with pytest.raises(ObjectGone, match=f"slot {location[0]} generation {location[1]}"):
        arena.get(*location)
    with pytest.raises(ObjectGone):
        arena.free(*location)
    other = put(store, arena, b"b" * 200_000)
    assert bytes(view) == b"aaaaa"
    del view
    arena.free(*other)
    store.sweep()
    assert store.resident_bytes == store.free_warm_bytes
    assert store.check(True) == []


def test_an_unsealed_object_cannot_be_got_and_a_dropped_one_is_aborted(store: Store, arena: Arena) -> None:
    lend(store, arena, 1000)
    writable = arena.create(1000)
    with pytest.raises(WrongState):
        arena.get(*writable.location)
    del writable
    gc.collect()
    assert store.sweep()["created"] == 0
    sealed = put(store, arena, b"x")
    with pytest.raises(WrongState):
        arena.seal(*sealed)


def test_a_place_is_one_process_until_it_is_taken_back(store: Store, arena: Arena) -> None:
    with pytest.raises(WrongState, match=f"client 1 belongs to process {os.getpid()}"):
        Arena(store.fd, 1)
    store.reclaim_client(1)
    assert Arena(store.fd, 1).client == 1


def test_a_late_notice_of_a_death_does_not_touch_the_place_s_next_process(store: Store, arena: Arena) -> None:
    pid, started = store.identity(1)
    location = put(store, arena, b"mine")
    pinned = arena.get(*location)
    store.reclaim_client(1, pid, started - 1)
    store.reclaim_client(1, pid + 1, started)
    assert 1 in store.clients()
    assert store.objects()[0][0][5] == 1, "its pin is there"
    store.reclaim_client(1, pid, started)
    assert 1 not in store.clients()
    del pinned
    # The same end told twice, and the second notice is late: what it was told of was a place that had been taken back.
    again = store.identity(1)
    assert again == (0, started)
    following = Arena(store.fd, 1)
    kept = following.get(*location)
    store.reclaim_client(1, *again)
    assert 1 in store.clients()
    assert store.objects()[0][0][5] == 1
    del kept


def test_what_is_no_arena_is_refused_by_name(tmp_path: object) -> None:
    fd = os.memfd_create("x")
    with pytest.raises(LayoutMismatch, match="no Shoal arena"):
        Arena(fd, 1)
    format_arena(fd, 8 * MIB, 4, 4096)
    os.pwrite(fd, (99).to_bytes(4, "little"), 8)
    with pytest.raises(LayoutMismatch, match="layout 99, this program was built for layout 2"):
        Arena(fd, 1)
    os.pwrite(fd, (2).to_bytes(4, "little"), 8)
    os.pwrite(fd, (12345).to_bytes(8, "little"), 80)
    with pytest.raises(LayoutMismatch, match="damaged"):
        Arena(fd, 1)
    os.close(fd)
    with pytest.raises(LayoutMismatch, match="impossible limits"):
        create_arena(1000)


def test_the_header_is_where_get_include_says() -> None:
    assert os.path.exists(os.path.join(get_include(), "shoal_arena.h"))


def test_frees_by_another_client_return_to_the_lender_of_the_space(store: Store, arena: Arena) -> None:
    other = Arena(store.fd, 2)
    lend(store, arena, 500_000)
    before = store.resident_bytes
    for _ in range(200):
        location = arena.put(bytes(500_000))  # 2 MiB of extent: the fifth needs the first one's space
        other.free(*location)
    assert store.resident_bytes == before


def test_the_store_takes_idle_extents_and_keeps_their_pages_warm_or_gives_them_back(store: Store, arena: Arena) -> None:
    location = put(store, arena, bytes(20 * MIB))
    store.sweep(2)
    arena.free(*location)
    for _ in range(3):
        store.sweep(2)
    assert store.free_warm_bytes == 20 * MIB
    with pytest.raises(NeedExtent):
        arena.create(20 * MIB)
    assert store.trim(4 * MIB) == 16 * MIB
    assert store.file_resident_bytes == 4 * MIB
    assert store.trim(0) == 4 * MIB
    assert store.file_resident_bytes == 0


def test_a_grant_that_is_acted_on_late_never_makes_room_where_another_thread_has_put(store: Store, arena: Arena) -> None:
    """Two threads of one process wait for an extent each. The first is granted one and does not run for a while; the store takes that one back, unused, and
    lends it to the second, which puts. Then the first goes on."""
    size = 8 * MIB
    first = store.reserve(size, WHOLE)
    store.lend_extent(first, 1)
    time.sleep(0.11)  # the grace of what was just lent
    store.sweep(0)
    second = store.reserve(size, WHOLE)
    assert second == first, "the warmest place is given again"
    store.lend_extent(second, 1)
    arena.add_extent(second)
    location = arena.put(b"2" * size)
    arena.add_extent(first)
    with pytest.raises(NeedExtent):
        arena.put(b"7" * size)
    assert bytes(memoryview(arena.get(*location))) == b"2" * size
    assert store.check(True) == []


def test_a_grant_that_was_taken_back_and_never_given_again_is_no_error(store: Store, arena: Arena) -> None:
    extent = store.reserve(2 * MIB)
    store.lend_extent(extent, 1)
    arena.add_extent(extent)
    location = arena.put(b"a" * 1000)
    store.sweep(0, squeeze=True)  # taken, and drains
    arena.add_extent(extent)
    assert arena.extents == 0
    with pytest.raises(NeedExtent):
        arena.put(b"b" * 1000)
    assert bytes(memoryview(arena.get(*location))) == b"a" * 1000


def test_a_full_arena_says_how_much_is_missing_and_squeezing_finds_free_pages(store: Store, arena: Arena) -> None:
    locations = [put(store, arena, bytes(700_000)) for _ in range(84)]
    with pytest.raises(NeedExtent) as full:
        store.reserve(30 * MIB, WHOLE)
    assert full.value.args[1] > 0
    for index, location in enumerate(locations):
        if index % 3:
            arena.free(*location)
    store.sweep(0, squeeze=True)
    extent = store.reserve(30 * MIB, WHOLE)
    store.give_back(extent)
    assert all(len(arena.get(*location)) == 700_000 for location in locations[::3])
    for location in locations[::3]:
        arena.free(*location)
    store.sweep()
    store.trim(0)
    assert (store.resident_bytes, store.file_resident_bytes) == (0, 0)
    assert store.check(True) == []


def test_mixed_sizes_in_churn_lose_under_a_tenth_to_fragmentation() -> None:
    fd = create_arena(512 * MIB, 16, 65536)
    store = Store(fd)
    os.close(fd)
    arena = Arena(store.fd, 1)
    rng = np.random.default_rng(1)
    live: list[tuple[tuple[int, int], int]] = []
    total = 0
    # Until it is full, then on and on: what is live when a request first fails is the measure.
    for _ in range(6000):
        size = int(min(100_000 * rng.pareto(1.0) + 100_000, 40 * MIB))
        while total + size > 460 * MIB:
            at = int(rng.integers(len(live)))
            live[at], live[-1] = live[-1], live[at]
            location, gone = live.pop()
            arena.free(*location)
            total -= gone
        try:
            writable = arena.create(size)
        except NeedExtent:
            try:
                lend(store, arena, size)
            except NeedExtent:
                store.sweep(0)
                try:
                    lend(store, arena, size)
                except NeedExtent:
                    store.sweep(0, squeeze=True)
                    lend(store, arena, size)
            writable = arena.create(size)
        live.append((writable.seal(), size))
        total += size
    assert store.check(True) == []


def test_a_forked_child_releases_nothing_and_can_read_what_it_has(store: Store, arena: Arena) -> None:
    location = put(store, arena, b"f" * 100_000)
    buffer = arena.get(*location)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            same = bytes(memoryview(buffer)[:1]) == b"f"
            del buffer
            gc.collect()
            try:
                arena.get(*location)
            except WrongState:
                code = 0 if same and not arena.usable else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.objects()[0][0][5] == 1, "the parent's pin is there"


def test_threads_of_several_clients_put_get_and_free_at_once(store: Store) -> None:
    arenas = [Arena(store.fd, n) for n in (1, 2, 3)]
    lock = threading.Lock()
    shared: list[tuple[tuple[int, int], int]] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        arena = arenas[seed % 3]
        try:
            for _ in range(300):
                byte = int(rng.integers(256))
                size = int(rng.integers(1, 200_000))
                try:
                    location = arena.put(bytes([byte]) * size)
                except NeedExtent:
                    with lock:
                        lend(store, arena, size)
                    continue
                with lock:
                    shared.append((location, byte))
                    other, value = shared[int(rng.integers(len(shared)))]
                    free = shared.pop(int(rng.integers(len(shared))))[0] if len(shared) > 20 else None
                try:
                    view = memoryview(arena.get(*other))
                    assert view[0] == value == view[-1]
                except ObjectGone:
                    pass
                if free:
                    arena.free(*free)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    sweeping = threading.Event()

    def sweep() -> None:
        while not sweeping.wait(0.002):
            store.sweep(1, squeeze=True)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sweeping.set()
    sweeper.join()
    assert not errors, errors
    for location, _ in shared:
        arenas[0].free(*location)
    # An extent that was lent a moment ago is left alone until its grace is over.
    deadline = time.monotonic() + 10
    store.sweep()
    while store.resident_bytes != store.free_warm_bytes and time.monotonic() < deadline:
        threading.Event().wait(0.01)
        store.sweep()
    assert store.check(True) == []
    assert store.resident_bytes == store.free_warm_bytes


class ArenaAgainstDict(RuleBasedStateMachine):
    """Three clients and the store, in any order of calls, beside a dictionary."""

    locations = Bundle("locations")
    views = Bundle("views")

    @initialize()
    def open(self) -> None:
        self.fd = create_arena(24 * MIB, 8, 4096)
        self.store = Store(self.fd)
        self.arenas = {n: Arena(self.store.fd, n) for n in (1, 2, 3)}
        self.live: dict[tuple[int, int], bytes] = {}
        self.pinned: list[list[tuple[memoryview, bytes]]] = []
        self.granted: list[tuple[int, int]] = []
        self.granted_bytes = 0  # in all; some are taken back after their grace

    @rule(
        target=locations,
        client=st.sampled_from([1, 2, 3]),
        size=st.sampled_from([0, 1, 1023, 1024, 1025, 100_000, 700_000, 1_500_000, 3_000_000]),
        byte=st.integers(0, 255),
    )
    def put(self, client: int, size: int, byte: int) -> tuple[int, int]:
        data = bytes([byte]) * size
        arena = self.arenas[client]
        try:
            location = put(self.store, arena, data)
        except NeedExtent:
            self.store.sweep(0, squeeze=True)
            try:
                location = put(self.store, arena, data)
            except NeedExtent:
                held = sum(len(d) for d in self.live.values()) + sum(len(d) for rows in self.pinned for _, d in rows) + self.granted_bytes
                assert held > 4 * MIB, f"{held} bytes live in an arena of 24 MiB and {size} found no room"
                return (0, 0)
        assert location not in self.live
        self.live[location] = data
        return location

    @rule(target=views, location=locations, client=st.sampled_from([1, 2, 3]))
    def get(self, location: tuple[int, int], client: int) -> int:
        rows: list[tuple[memoryview, bytes]] = []
        if location in self.live:
            rows.append((memoryview(self.arenas[client].get(*location)), self.live[location]))
        else:
            with pytest.raises(ObjectGone):
                self.arenas[client].get(*location)
        self.pinned.append(rows)
        return len(self.pinned) - 1

    @rule(view=consumes(views))
    def drop(self, view: int) -> None:
        self.pinned[view].clear()

    @rule(location=consumes(locations), client=st.sampled_from([1, 2, 3]))
    def free(self, location: tuple[int, int], client: int) -> None:
        if location in self.live:
            self.arenas[client].free(*location)
            del self.live[location]

    @rule(client=st.sampled_from([1, 2, 3]), size=st.integers(1, 1_000_000))
    def abort(self, client: int, size: int) -> None:
        with contextlib.suppress(NeedExtent):
            self.arenas[client].create(size).abort()

    @rule(client=st.sampled_from([1, 2, 3]), size=st.sampled_from([1_500_000, 3_000_000]))
    def grant(self, client: int, size: int) -> None:
        """To a thread that does not look yet; one that comes after the store began anew has no grace."""
        with contextlib.suppress(NeedExtent):
            extent = self.store.reserve(size, WHOLE)
            self.store.lend_extent(extent, client)
            self.granted.append((client, extent))
            self.granted_bytes += size

    @precondition(lambda self: bool(self.__dict__.get("granted")))
    @rule(data=st.data(), twice=st.booleans())
    def look_at_last(self, data: st.DataObject, twice: bool) -> None:
        at = data.draw(st.integers(0, len(self.granted) - 1))
        client, extent = self.granted[at] if twice else self.granted.pop(at)
        self.arenas[client].add_extent(extent)

    @rule(idle=st.integers(0, 2), squeeze=st.booleans())
    def sweep(self, idle: int, squeeze: bool) -> None:
        self.store.sweep(idle, squeeze)

    @rule(keep=st.sampled_from([0, 4 * MIB]))
    def trim(self, keep: int) -> None:
        self.store.trim(keep)

    @rule(client=st.sampled_from([1, 2, 3]))
    def die(self, client: int) -> None:
        """Its views die with it; what it sealed stays."""
        for rows in self.pinned:
            rows[:] = [row for row in rows if row[0].obj.arena.client != client]  # type: ignore[attr-defined]
        self.store.reclaim_client(client)
        self.arenas[client] = Arena(self.store.fd, client)

    @rule()
    def restart(self) -> None:
        self.store = Store(self.fd)

    @precondition(lambda self: hasattr(self, "live"))
    @invariant()
    def holds(self) -> None:
        for rows in self.pinned:
            for view, data in rows:
                assert len(view) == len(data)
                assert not data or (view[0] == data[0] and view[-1] == data[-1] and view[len(data) // 2] == data[0])
        faults = [f for f in self.store.check(True) if "freed, not pinned" not in f]
        assert faults == []

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        self.pinned.clear()
        for location in self.live:
            self.arenas[1].free(*location)
        self.store = Store(self.fd)  # for which the grace of what was just granted is over
        self.store.sweep(0)
        self.store.sweep(0)
        assert self.store.check(True) == []
        assert self.store.resident_bytes == self.store.free_warm_bytes
        self.store.trim(0)
        assert self.store.file_resident_bytes == 0
        os.close(self.fd)


TestArenaAgainstDict = ArenaAgainstDict.TestCase
EXAMPLES = int(os.environ.get("SHOAL_EXAMPLES", "40"))
TestArenaAgainstDict.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_put_allocates_no_page_of_the_arena_so_that_its_process_is_charged_for_none(store: Store, arena: Arena) -> None:
    lend(store, arena, 20 * MIB)
    before = store.file_resident_bytes
    location = arena.put(b"x" * (20 * MIB))
    assert store.file_resident_bytes == before
    assert len(arena.get(*location)) == 20 * MIB
    assert store.file_resident_bytes == before


CHURN = int(os.environ.get("SHOAL_CHURN", "30000"))


def own_memory() -> int:
    """Bytes of this process's own, without the arena."""
    with open("/proc/self/status") as told:
        fields = dict(line.split(":", 1) for line in told)
    return int(fields["RssAnon"].split()[0]) << 10


@pytest.mark.timeout(120 + CHURN // 1000)
def test_memory_stays_flat_over_many_objects_of_random_sizes() -> None:
    """SHOAL_CHURN sets how many (default 30,000); `make soak` does ten million and says what was held on the way."""
    rng = random.Random(1)
    fd = create_arena(64 * MIB, 16, 8192)
    store = Store(fd)
    os.close(fd)
    arena = Arena(store.fd, 1)
    data, living, moved, began = memoryview(bytes(200_000)), [], 0, time.monotonic()
    held: list[tuple[int, int, int]] = []
    for n in range(CHURN):
        size = int(10 ** rng.uniform(1.0, 5.3))
        living.append((put(store, arena, data[:size]), size))
        moved += size
        if len(living) > 200:
            location, size = living.pop(rng.randrange(len(living)))
            assert len(arena.get(*location)) == size
            arena.free(*location)
        if n % 1000 == 0:
            store.sweep(0)
        if n % (CHURN // 10) == CHURN // 10 - 1:
            held.append((store.resident_bytes, own_memory(), n + 1))
    for resident, own, n in held:
        print(f"{n:>12,} objects: {resident / MIB:5.1f} MiB of the arena, {own / MIB:6.1f} MiB of the process")
    print(f"{moved / 1e9:,.0f} GB in {time.monotonic() - began:,.0f} s")
    store.sweep(0)
    for resident, own, _ in held[3:]:
        assert resident <= held[2][0] * 1.3 + 4 * MIB
        assert own <= held[2][1] + 4 * MIB
    for location, _ in living:
        arena.free(*location)
    store.sweep(0)
    assert store.check(True) == []
    assert store.resident_bytes == store.free_warm_bytes
