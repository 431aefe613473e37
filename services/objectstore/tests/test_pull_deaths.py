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
from pull_workers import Owner, Worker
from shoal_objectstore import join
from shoal_objectstore._arena import Arena
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Node, StoreProcess, freed_everything, spill_files, started, until

DEATHS = int(os.environ.get("SHOAL_PULL_DEATHS", "4"))
SEEDS = int(os.environ.get("SHOAL_PULL_SEEDS", "2"))
BOUND_S = float(os.environ.get("SHOAL_CHAOS_S", "inf"))
SEED = int(os.environ.get("SHOAL_SEED", "1"))
NODES = 3
# The objects need as much as three of these have; copies come on top, so that a good part is on disk.
CAPACITY = 16 * MIB
# As in a cluster, but that what takes half a minute there takes a second here, and that objects of a megabyte are large: in parts, by several streams, and
# readers of the same one are sent to each other.
SETTINGS = {
    "peer.STALL_S": 0.5, "pulling.IDLE_S": 1, "grace.GRACE_S": 1.0, "grace.SHORT_GRACE_S": 0.2,
    "transfer.PART_BYTES": 256 << 10, "transfer.STREAM_BYTES": MIB, "spread.LARGE_BYTES": MIB, "spread.FAN_OUT": 1, "spread.IDLE_S": 0.5,
}  # fmt: skip
# What a store passes when it creates, seals, frees, gets, lends, evicts and sweeps; see shoal_arena.h.
POINTS = [*range(1, 23), *range(24, 39)]
LONGEST_LIFE_S = 1.2
# Longer than a peer is waited for, so that others give up on it, too.
LONGEST_STOP_S = 1.5
# Of a store without clients: 25 of its own, connections to and from its peers.
MOST_DESCRIPTORS = 60
pytestmark = pytest.mark.timeout(180 + min(6 * DEATHS, 2 * BOUND_S))


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
        if process.poll() is None and "stopped" in how:
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(rng.random() * LONGEST_STOP_S)
            process.send_signal(signal.SIGCONT if how == "stopped" else signal.SIGKILL)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM if how == "told to end" else signal.SIGKILL)
        else:
            how = "killed at a point"
        if how != "stopped":
            await asyncio.to_thread(process.wait, 20)
        if process.poll() is not None:
            if how in ("stopped", "told to end") and process.returncode:
                how = "killed at a point"
            well = process.returncode == (0 if how == "told to end" else -signal.SIGKILL) and (self.at_a_point[n] or how != "killed at a point")
            assert well, f"{how}, it ended with {process.returncode}: {self.log(n).read_text()}"
            await asyncio.sleep(rng.random() * 0.3)
            await self.succeed(n, rng)
        self.faults[how] += 1

    async def calm(self, n: int) -> None:
        """From now on it lives."""
        if self.at_a_point[n]:
            await asyncio.to_thread(self.now[n].kill)
            await self.succeed(n, None)


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
            await asyncio.sleep(rng.random() * LONGEST_LIFE_S)
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
