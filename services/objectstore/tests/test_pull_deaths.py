"""Stores killed and stopped while they pull from each other: whoever asked has the value or a named error in bounded time, nothing is lost, nothing is left.

Each node has a store in a process of its own, an arena that its objects do not fit in, and two clients here, which put, pull, move and free objects of all
nodes. They are owners as core workers are: they know where an object and its copies lie, say FREE and KEEP until SETTLED answers, and say it again to a store
that begins anew. Some askers leave without a word of what they got. A store is killed at a random moment, at a random pass of an instrumented point or while
it is stopped, or told to end, or stopped for longer than its peers wait for it. Objects bear their own name in all their bytes.

What was spilled by a store that died is its successor's, from the files that are there: so an object is looked for as its owner does, in the arena and then by
its store, never at the place where it was put.

SHOAL_PULL_DEATHS sets how many faults there are for each of SHOAL_PULL_SEEDS seeds (default 4 and 2; `make kills`: 300 and 1), SHOAL_CHAOS_S the time after
which there are no more, SHOAL_SEED where they begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import Struct, field
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.wire import Free, Keep, Pull, Pulled, Settled
from shoal_objectstore import join
from shoal_objectstore._arena import Arena, NeedExtent, ObjectGone
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, StoreProcess, freed_everything, spill_files, started, until, value

Location = tuple[int, int]
DEATHS = int(os.environ.get("SHOAL_PULL_DEATHS", "4"))
SEEDS = int(os.environ.get("SHOAL_PULL_SEEDS", "2"))
BOUND_S = float(os.environ.get("SHOAL_CHAOS_S", "inf"))
SEED = int(os.environ.get("SHOAL_SEED", "1"))
NODES = 3
CAPACITY = 16 * MIB
# They need as much as three arenas have; copies come on top, so that a good part is on disk.
OBJECTS = 60
SIZES = (0, 700, 150_000, MIB + 5, 3 * MIB)
# As in a cluster, but that what takes half a minute there takes a second here, and that objects of a megabyte are large: in parts, by several streams, and
# readers of the same one are sent to each other.
SETTINGS = {
    "peer.STALL_S": 0.5, "pulling.IDLE_S": 1, "grace.GRACE_S": 1.0, "grace.SHORT_GRACE_S": 0.2,
    "transfer.PART_BYTES": 256 << 10, "transfer.STREAM_BYTES": MIB, "spread.LARGE_BYTES": MIB, "spread.FAN_OUT": 1, "spread.IDLE_S": 0.5,
}  # fmt: skip
# What a store passes when it creates, seals, frees, gets, lends, evicts and sweeps; see shoal_arena.h.
POINTS = [*range(1, 23), *range(24, 39)]
# Longer than a peer is waited for, so that others give up on it, too.
LONGEST_STOP_S = 1.5
# Limit: of a pull; a source that is stopped is asked four times, on a machine that does much else.
PULL_S = 30.0
# An asker that is told one of these asks again; the object is not lost.
FOR_NOW = {Code.UNREACHABLE, Code.SHUTTING_DOWN, Code.FETCH_TIMED_OUT, Code.ARENA_FULL, Code.OUT_OF_DISK}
# Of a store without clients: 25 of its own, connections to and from its peers.
MOST_DESCRIPTORS = 60
pytestmark = pytest.mark.timeout(180 + min(6 * DEATHS, 2 * BOUND_S))


class Object(Struct, eq=False):
    """What its owner knows of it."""

    number: int
    size: int
    node: int
    location: Location
    copies: set[tuple[int, Location]] = field(default_factory=set)
    freed: bool = False
    busy: bool = False  # somebody frees or moves it

    @property
    def id(self) -> bytes:
        return self.number.to_bytes(20, "little")


class Owner:
    """All objects, and which copies there are of them. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[int, Object] = {}
        self.done: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._number = 0

    def new(self) -> int:
        with self.lock:
            self._number += 1
            return self._number

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1

    def any(self, rng: random.Random) -> Object | None:
        with self.lock:
            return self.objects[rng.choice(list(self.objects))] if self.objects else None

    def take(self, known: Object) -> bool:
        """For freeing or moving it: one at a time."""
        with self.lock:
            if known.busy or known.freed:
                return False
            known.busy = True
            return True

    def places(self, known: Object) -> tuple[tuple[int, Location], list[tuple[int, Location]]]:
        """(where it lies, its copies)"""
        with self.lock:
            return (known.node, known.location), sorted(known.copies)


class Stores:
    """The nodes' stores, each with its successors."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.now: list[StoreProcess] = []
        self.at_a_point = [False] * len(nodes)  # whether it may die by itself
        self.faults: Counter[str] = Counter()

    def log(self, n: int) -> Path:
        return self.nodes[n].dir / "stderr"

    async def said(self) -> str:
        """For whoever looks for the fault: where each thread is, and what was logged before."""
        for store in self.now:
            store.process.send_signal(signal.SIGCONT)
            store.process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.5)
        told = []
        for n in range(len(self.now)):
            # Of each thread what of it is in the store's own code.
            lines = [line for line in self.log(n).read_text().splitlines() if line.strip() and ("File" not in line or "shoal_objectstore" in line)]
            told += [f"node {n}:", *lines[-100:]]
        return "\n".join(told)

    def descriptors(self, n: int) -> list[str]:
        found, place = [], f"/proc/{self.now[n].process.pid}/fd"
        for fd in os.listdir(place):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"{place}/{fd}"))
        return found

    def begin(self, n: int, point: int = 0, after: int = 1) -> StoreProcess:
        process = StoreProcess(self.nodes[n], point, after, SETTINGS, self.log(n))
        self.now[n : n + 1] = [process]
        self.at_a_point[n] = point > 0
        return process

    async def succeed(self, n: int, rng: random.Random | None) -> None:
        """A successor, which may have a point to die at; some die of it before they serve. Without `rng`: one that lives."""
        while True:
            point = rng.choice(POINTS) if rng is not None and rng.random() < 0.4 else 0
            process = self.begin(n, point, rng.randrange(1, 15) if rng is not None else 1)
            try:
                await asyncio.to_thread(process.wait)
                return
            except AssertionError:
                if not point:
                    raise
                assert await asyncio.to_thread(process.process.wait, 20) == -signal.SIGKILL
                self.faults["killed at a point"] += 1

    async def fault(self, n: int, rng: random.Random) -> None:
        process = self.now[n].process
        how = rng.choices(["killed", "stopped", "killed while stopped", "told to end"], [6, 3, 1, 1])[0]
        if "stopped" in how:
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(rng.random() * LONGEST_STOP_S)
        if how == "stopped":
            process.send_signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(self.now[n].kill, signal.SIGTERM if how == "told to end" else signal.SIGKILL)
        if process.poll() is not None:
            if how in ("stopped", "told to end") and process.returncode:
                how = "killed at a point"
                assert self.at_a_point[n] and process.returncode == -signal.SIGKILL, f"it ended with {process.returncode}: {self.log(n).read_text()}"
            await asyncio.sleep(rng.random() * 0.3)
            await self.succeed(n, rng)
        self.faults[how] += 1

    async def calm(self, n: int) -> None:
        """From now on it lives."""
        if self.at_a_point[n]:
            await asyncio.to_thread(self.now[n].kill)
            await self.succeed(n, None)


class GivenUp(Exception):
    """The test has failed elsewhere."""


class Worker:
    """A client of a node: an owner, and an asker."""

    def __init__(self, nodes: list[Node], n: int, arena: Arena, owner: Owner, rng: random.Random) -> None:
        self.nodes = nodes
        self.n = n
        self.node = nodes[n]
        self.arena = arena
        self.owner = owner
        self.rng = rng
        self.client: Client | None = None
        self.unsettled: dict[int, Free] = {}
        self.number = 0
        self.view: tuple[Object, memoryview] | None = None
        self.stopping = threading.Event()
        self.given_up = False

    # -- the connection ---------------------------------------------------------------------------------

    def connected(self) -> Client:
        end = time.monotonic() + PULL_S
        while self.client is None:
            assert time.monotonic() < end, f"no store serves at node {self.n}"
            if self.given_up:
                raise GivenUp
            with contextlib.suppress(OSError, EOFError):
                self.client = Client(self.node, 1, self.arena)
                break
            time.sleep(0.02)  # until its successor is there
        return self.client

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    # -- what a core worker does --------------------------------------------------------------------------

    def put(self) -> None:
        number = self.owner.new()
        size = self.rng.choice(SIZES)
        data = value(number, size)
        while True:
            try:
                location = self.arena.put(data)
                break
            except NeedExtent:
                pass
            try:
                grant = self.connected().extent(size, PULL_S)
            except (EOFError, OSError):
                self.leave()
                continue
            if grant.code:
                assert grant.code in FOR_NOW, grant.text
                self.owner.count(f"put: {Code(grant.code).name}")
                return
            self.arena.add_extent(grant.extent)
        with self.owner.lock:
            self.owner.objects[number] = Object(number, size, self.n, location)

    def ask(self, known: Object) -> Pulled | None:
        """PULL, with all places that are known. None: this node's own store died over it."""
        (at, location), copies = self.owner.places(known)
        there = self.nodes[at]
        others = tuple((self.nodes[n].node_id, *place, self.nodes[n].raylet.address) for n, place in copies if n not in (self.n, at))
        client = self.connected()
        client.id += 1
        began = time.monotonic()
        try:
            client.frames.send(Type.PULL, Pull(client.id, known.id, known.size, there.node_id, *location, there.raylet.address, others=others).pack())
            answer = Pulled.unpack(client.expect(Type.PULLED, PULL_S))
        except TimeoutError:
            raise AssertionError(f"node {self.n} has not answered within {PULL_S:g} s: object {known.number} of node {at}") from None
        except (EOFError, OSError):
            self.leave()
            return None
        finally:
            self.owner.slowest_s = max(self.owner.slowest_s, time.monotonic() - began)
        assert answer.id == client.id
        if answer.code in (Code.OBJECT_FREED, Code.OBJECT_LOST):
            with self.owner.lock:
                still = not known.freed and (known.node, known.location) == (at, location)
            assert not still, f"object {known.number} ({known.size} bytes) of node {at} lives at {location}; node {self.n} is told: {answer.text}"
        else:
            assert not answer.code or answer.code in FOR_NOW, answer
        return answer

    def see(self, known: Object, place: Location) -> memoryview | None:
        """Its bytes, which must be its own; None: they are not here (any more)."""
        try:
            view = memoryview(self.arena.get(*place))
        except ObjectGone:
            return None
        if bytes(view) != value(known.number, known.size):
            raise AssertionError(f"object {known.number} of {known.size} bytes at {place} of node {self.n} holds {len(view)} others: {bytes(view[:16])!r}")
        return view

    def here(self, known: Object) -> list[Location]:
        home, copies = self.owner.places(known)
        return [place for n, place in (home, *copies) if n == self.n]

    def read(self, known: Object) -> str:
        """Why not, a named error of the moment; empty if it is here."""
        end = time.monotonic() + 2 * PULL_S
        places = self.here(known)
        while True:
            for place in places:
                view = self.see(known, place)
                if view is not None:
                    self.hold(known, view)
                    return ""
            assert time.monotonic() < end, f"object {known.number} was brought to node {self.n} and gone again each time"
            answer = self.ask(known)
            if answer is not None and answer.code:
                return Code(answer.code).name
            places = [] if answer is None else [(answer.slot, answer.generation)]
            for place in places:
                self.told(known, place)

    def hold(self, known: Object, view: memoryview) -> None:
        """Some are mapped for a while, whatever becomes of their store."""
        if self.view is None:
            self.view = known, view
        elif self.rng.random() < 0.2:
            (known, view), self.view = self.view, None
            assert bytes(view) == value(known.number, known.size), f"object {known.number} of {known.size} bytes changed while node {self.n} mapped it"

    def told(self, known: Object, place: Location) -> None:
        with self.owner.lock:
            late = known.freed
            if (self.n, place) != (known.node, known.location):
                known.copies.add((self.n, place))
        if late:
            self.end([(self.n, place)])

    def forget(self, known: Object) -> None:
        """An asker that leaves and has told nobody what it got."""
        self.ask(known)
        self.leave()

    # -- ends and moves -----------------------------------------------------------------------------------

    def end(self, places: list[tuple[int, Location]]) -> None:
        for at in range(len(self.nodes)):
            slots = [place for n, place in places if n == at]
            if at == self.n:
                slots = [place for place in slots if not self.freed_here(place)]
            if slots:
                self.number += 1
                address = "" if at == self.n else self.nodes[at].raylet.address
                self.unsettled[self.number] = Free(self.nodes[at].node_id, tuple(slots), address, self.number)
        self.settle()

    def freed_here(self, place: Location) -> bool:
        try:
            self.arena.free(*place)
        except ObjectGone:
            return False
        return True

    def settle(self) -> None:
        """Until everything said is carried out, by whichever store that takes."""
        end = time.monotonic() + 2 * PULL_S
        while self.unsettled:
            assert time.monotonic() < end, f"not settled: {self.unsettled}"
            client = self.connected()
            try:
                for message in self.unsettled.values():
                    client.frames.send(message.TYPE, message.pack())
                while self.unsettled:
                    del self.unsettled[Settled.unpack(client.expect(Type.SETTLED, PULL_S)).number]
            except TimeoutError:
                raise AssertionError(f"node {self.n} has not settled within {PULL_S:g} s: {self.unsettled}") from None
            except (EOFError, OSError):
                self.leave()

    def free(self, known: Object) -> None:
        if not self.owner.take(known):
            return
        with self.owner.lock:
            known.freed = True
            del self.owner.objects[known.number]
            places = [(known.node, known.location), *known.copies]
        self.end(places)

    def move(self, known: Object) -> None:
        """The copy here becomes the primary one; the one where it came from goes."""
        if self.owner.places(known)[0][0] == self.n or not self.owner.take(known):
            return
        for place in self.here(known):
            pin = self.see(known, place)
            if pin is None:
                continue
            self.number += 1
            self.unsettled[self.number] = Keep(self.node.node_id, (place,), "", self.number)
            self.settle()
            with self.owner.lock:
                old = (known.node, known.location)
                known.node, known.location = self.n, place
                known.copies.discard((self.n, place))
            pin.release()
            self.end([old])
            self.owner.count("moved")
            break
        with self.owner.lock:
            known.busy = False

    def step(self) -> None:
        rng = self.rng
        what = rng.random()
        if len(self.owner.objects) < OBJECTS and what < 0.3:
            self.put()
            return
        known = self.owner.any(rng)
        if known is None:
            return
        if what < 0.8:
            self.owner.count(self.read(known) or "read")
        elif what < 0.86:
            self.forget(known)
        elif what < 0.92:
            self.move(known)
        elif len(self.owner.objects) > OBJECTS // 2:
            self.free(known)

    def work(self) -> None:
        with contextlib.suppress(GivenUp):
            while len(self.owner.objects) < OBJECTS // 2:
                self.put()
            while not self.stopping.is_set():
                self.step()

    # -- the end ------------------------------------------------------------------------------------------

    def finds(self, objects: list[Object]) -> None:
        """Nothing is killed any more, so all of it can be had."""
        for known in objects:
            end = time.monotonic() + 2 * PULL_S
            while why := self.read(known):
                assert time.monotonic() < end, f"object {known.number} cannot be had at node {self.n}: {why}"
                time.sleep(0.05)
        self.view = None


async def nothing_is_left(stores: Stores) -> None:
    """In the books of the processes that live, and then in those of a successor to each."""
    for n, node in enumerate(stores.nodes):
        async with node.stub() as stub:

            async def empty(stub=stub) -> bool:
                return not (await stub.List(pb.ListRequest())).total

            end = time.monotonic() + 30
            while not await empty():
                assert time.monotonic() < end, f"left at node {n}: {(await stub.List(pb.ListRequest())).objects}"
                await asyncio.sleep(0.05)
            checked = await stub.Check(pb.Empty())
            assert checked.ok, list(checked.faults)
        # Its own, and idle connections, of which there are at most four to and from each other store.
        await until(lambda n=n: len(stores.descriptors(n)) < MOST_DESCRIPTORS, f"few descriptors at node {n}: {stores.descriptors(n)}", 30)  # type: ignore[misc]
        assert not [name for name in stores.descriptors(n) if name.startswith("/dev/shm")]
    for n, node in enumerate(stores.nodes):
        await asyncio.to_thread(stores.now[n].kill, signal.SIGTERM)
        assert stores.now[n].process.returncode == 0
        await started(node)
        await freed_everything(node)
        await node.store.close()
        assert spill_files(node) == []
        assert {path.name for path in (node.dir / "spill").iterdir()} <= {"journal", "node.json"}
        assert "Traceback" not in (said := stores.log(n).read_text()), said


class Trial:
    """Nodes, their stores and workers, and the faults between them."""

    def __init__(self, root: Path, seed: int, deaths: int) -> None:
        self.rng = random.Random(seed)
        self.nodes = [Node(n + 1, root, CAPACITY) for n in range(NODES)]
        self.stores, self.owner = Stores(self.nodes), Owner()
        self.workers: list[Worker] = []
        self.breaking: set[asyncio.Task[None]] = set()
        self.on_disk = 0  # alone, when all was over
        self.deaths, self.begun, self.began = deaths, 0, time.monotonic()

    async def start(self) -> None:
        for n, node in enumerate(self.nodes):
            await node.raylet.start()
            join.lay_out(node.raylet.arena, CAPACITY)
            self.stores.begin(n)
            arena = Arena(node.raylet.arena, 1)
            self.workers += [Worker(self.nodes, n, arena, self.owner, random.Random(self.rng.random())) for _ in range(2)]
        for store in self.stores.now:
            await asyncio.to_thread(store.wait)

    async def break_stores(self, n: int, rng: random.Random) -> None:
        while self.begun < self.deaths and time.monotonic() - self.began < BOUND_S:
            self.begun += 1
            await asyncio.sleep(rng.random() * 0.6)
            await self.stores.fault(n, rng)
        await self.stores.calm(n)

    async def go_on(self) -> None:
        """Work and faults, until there were enough of them or somebody found something wrong."""
        working = {asyncio.create_task(asyncio.to_thread(worker.work)) for worker in self.workers}
        self.breaking = breaking = {asyncio.create_task(self.break_stores(n, random.Random(self.rng.random()))) for n in range(NODES)}
        while breaking:
            done, _ = await asyncio.wait(working | breaking, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            breaking = breaking - done
        for worker in self.workers:
            worker.stopping.set()
        await asyncio.gather(*working)

    async def end(self) -> None:
        for node in self.nodes:
            async with node.stub() as stub:
                self.on_disk += sum(each.state == "on disk" for each in (await stub.List(pb.ListRequest())).objects)
        objects = list(self.owner.objects.values())
        for worker in self.workers:
            worker.view = None
        await asyncio.gather(*(asyncio.to_thread(worker.finds, objects) for worker in self.workers[::2]))
        for known in objects:
            await asyncio.to_thread(self.rng.choice(self.workers).free, known)
        for worker in self.workers:
            worker.leave()
        await nothing_is_left(self.stores)

    async def clean_up(self) -> None:
        """Also after a failure, with stores that are stopped, and workers that wait for them."""
        for task in self.breaking:
            task.cancel()
        await asyncio.gather(*self.breaking, return_exceptions=True)
        for worker in self.workers:
            worker.given_up = True
            worker.stopping.set()
        for store in self.stores.now:
            if store.process.poll() is None:
                await asyncio.to_thread(store.kill)
        for node in self.nodes:
            await node.raylet.close()


async def run(root: Path, seed: int, deaths: int) -> str:
    # Each worker has a thread of its own for as long as it works; those that wait for processes come on top.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * NODES + 8))
    trial = Trial(root, seed, deaths)
    try:
        await trial.start()
        await trial.go_on()
        await trial.end()
    except BaseException as error:
        error.add_note(await trial.stores.said())
        raise
    finally:
        await trial.clean_up()
    owner = trial.owner
    faults, done = (", ".join(f"{n} {what}" for what, n in sorted(which.items())) for which in (trial.stores.faults, owner.done))
    return f"stores {faults}; clients {done}; no pull took longer than {owner.slowest_s:.1f} s; {trial.on_disk} objects were on disk alone"


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_stores_killed_and_stopped_while_they_pull_from_each_other_lose_nothing_and_leave_nothing(tmp_path: Path, seed: int) -> None:
    open_before, threads_before, began = len(os.listdir("/proc/self/fd")), threading.active_count(), time.monotonic()
    said = asyncio.run(run(tmp_path, seed, DEATHS))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= open_before
    assert threading.active_count() <= threads_before
    print(f"{time.monotonic() - began:.1f} s, seed {seed}: {said}; nothing is lost, nothing is left")
