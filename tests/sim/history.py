"""One history from one seed: a cluster, programs, what goes wrong, and what must hold.

`python history.py SEED...` tells one line of JSON for each; `--seeds N` tries so many on all cores, for at most `--seconds`, and tells of those that fail.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace

from core_node import Context, CoreNode, Program
from gcs_node import GcsNode
from programs import Driver, Heir, Recoverable
from raylet_node import RayletNode
from world import Faults, Violation, World

UNIT = 10_000
PROGRAM_S = 300.0  # virtual
SETTLE_S = 30.0
MAX_FAILURES = 5  # of one sweep; more say no more

KINDS = [
    Faults("calm"),
    Faults("late", local_s=0.01, remote_s=0.2),
    Faults("lost calls", remote_s=0.05, lost_calls=0.1),
    Faults("workers die", local_s=0.002, remote_s=0.02, worker_crashes=6),
    Faults("nodes die", local_s=0.002, remote_s=0.02, node_crashes=1, host_crashes=1, worker_crashes=2),
    Faults("partitions", local_s=0.002, remote_s=0.02, partitions=2),
    Faults("connections break", local_s=0.002, remote_s=0.02, broken_connections=4),
    Faults("dials fail", local_s=0.002, remote_s=0.02, unanswered_dials=0.3),
    Faults("control store restarts", local_s=0.002, remote_s=0.02, store_restarts=4),
    Faults("control store restarts while others die", local_s=0.002, remote_s=0.02, store_restarts=3, worker_crashes=4, node_crashes=1),
    Faults("everything", local_s=0.002, remote_s=0.05, lost_calls=0.05, store_restarts=2, worker_crashes=3, host_crashes=1, partitions=1, broken_connections=3,
           unanswered_dials=0.05),
    Faults("values move", local_s=0.002, remote_s=0.02, stored=0.5),
    Faults("values die", local_s=0.002, remote_s=0.02, node_crashes=2, host_crashes=1, worker_crashes=2, stored=0.8, recoverable=True),
    Faults("owners die", local_s=0.002, remote_s=0.02, stored=0.5, orphans=True),
]


def kind_of(seed: int) -> Faults:
    return KINDS[seed % len(KINDS)]


class History:
    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.world = World(seed, faults or kind_of(seed))
        self.random = self.world.random
        self.store = GcsNode(self.world)
        self.raylets: list[RayletNode] = []
        for number in range(1, self.random.randint(2, 4) + 1):
            self.add_node(number, 4 if number == 1 else self.random.choice([2, 4]))
        self.drivers: list[CoreNode] = []

    def add_node(self, number: int, cpus: int) -> None:
        self.raylets.append(RayletNode(self.world, self.store, number, {"CPU": cpus * UNIT}))
        for raylet in self.raylets:
            raylet.peers = {other.node_id: other for other in self.raylets if other is not raylet}

    def run(self) -> None:
        world = self.world
        world.run(1.0)
        for number in range(self.random.randint(1, 2)):
            driver = CoreNode(world, self.raylets[0], is_driver=True, job_id=(number + 1).to_bytes(4, "little"))
            self.drivers.append(driver)
            moves = self.random.randint(10, 30)
            driver.start(lambda context, moves=moves: self.program(context, moves))  # type: ignore[misc]
        self.plan_faults()
        world.after(0.05, self.look)
        ended = world.run(PROGRAM_S, lambda: all(driver.ended or not driver.alive for driver in self.drivers))
        world.check(ended, f"a program waits for ever: {[self.show_wait(driver) for driver in self.drivers if driver.alive and not driver.ended]}")
        world.heal()
        self.store.restart()
        world.run(SETTLE_S)
        self.check_references()
        self.check_leases()
        for driver in self.drivers:
            driver.crash(silent=False)
        world.run(SETTLE_S)
        self.check_rest()

    def program(self, context: Context, moves: int) -> Program:
        faults = self.world.faults
        if faults.orphans:
            return Heir(context, moves, False).program()
        return (Recoverable(context, 3 * moves, False) if faults.recoverable else Driver(context, moves, not faults.harmless)).program()

    def show_wait(self, driver: CoreNode) -> str:
        waiting = driver.fiber.waiting if driver.fiber is not None else None
        return f"{driver.driven.counts()} {[(ref.id.hex(), driver.driven.entry(ref.id)) for ref in waiting or []]}"

    # -- what goes wrong -----------------------------------------------------------------------------

    def plan_faults(self) -> None:
        world, faults = self.world, self.world.faults
        for count, event in (
            (faults.worker_crashes, self.crash_worker), (faults.node_crashes, self.crash_node), (faults.host_crashes, self.crash_host),
            (faults.broken_connections, self.break_connection), (faults.store_restarts, self.restart_store),
        ):  # fmt: skip
            for _ in range(count):
                world.after(0.2 + self.random.random() * 4, event)
        at = self.random.random()
        for _ in range(faults.partitions):
            length = self.random.choice([0.5, 3, 9, 15])
            world.after(at, self.cut)
            world.after(at + length, world.heal)
            at += length + self.random.random() * 3

    def crash_worker(self) -> None:
        alive = [core for core in self.world.cores.values() if core.alive and not core.is_driver]
        if alive:
            self.random.choice(alive).crash(silent=False)

    def restart_store(self) -> None:
        self.store.crash()
        self.world.after(self.random.choice([0.05, 0.5, 2.0]) * self.random.random(), self.store.restart)

    def _other_node(self) -> RayletNode | None:
        alive = [raylet for raylet in self.raylets[1:] if raylet.alive]
        return self.random.choice(alive) if alive else None

    def crash_node(self) -> None:
        if node := self._other_node():
            node.crash(silent=False)

    def crash_host(self) -> None:
        if node := self._other_node():
            node.crash(silent=True)

    def break_connection(self) -> None:
        found = [
            connection
            for core in self.world.cores.values() if core.alive
            for connection in core.connections.values()
            if connection.open and isinstance(connection.ends[1], CoreNode) and connection.ends[0].node_id != connection.ends[1].node_id
        ]  # fmt: skip
        if found:
            connection = self.random.choice(found)
            self.world.note(f"connection {connection.dialled} breaks")
            connection.break_off()

    def cut(self) -> None:
        group = [raylet.node_id for raylet in self.raylets[1:] if self.random.random() < 0.5] or [self.raylets[-1].node_id]
        self.world.partition(group, [self.store.node_id, *(raylet.node_id for raylet in self.raylets if raylet.node_id not in group)])

    # -- what must hold ------------------------------------------------------------------------------

    def look(self) -> None:
        """At all times: what a living process holds a reference to, its living owner has."""
        world = self.world
        world.after(0.05, self.look)
        for core in world.cores.values():
            if core.actor_id and core.actor_id not in self.store.cluster.actors.lives:
                continue  # it is told to end, and nobody can call it any more: what its creator held for it may go before its process
            for ref in core.live if core.alive else ():
                owner = world.cores[ref.owner[:16]]
                if not owner.alive or world.holders[ref.id] & world.doubted or owner.worker_id in world.doubted:
                    continue
                world.check(owner.driven.entry(ref.id) is not None, f"object {ref.id.hex()} is freed, and {core.worker_id.hex()[:6]} holds a reference to it")

    def check_references(self) -> None:
        """The programs have ended and dropped everything; nothing is under way."""
        for core in self.world.cores.values():
            if not core.alive:
                continue
            counts = core.driven.counts()
            who = f"process {core.worker_id.hex()[:6]} on node {core.raylet.number} (driver: {core.is_driver}, actor: {core.actor_id.hex()[:8]})"
            for name in ("tasks", "leases", "runs"):
                self.world.check(counts[name] == 0, f"{who} still has {name}: {counts} {core.driven.leases()}")
            counted, found = core.driven.holdings()
            assert counted == found, f"job limits would be held against {counted}, and there are {found}"
            left = [(one.hex(), self.world.cores[owner[:16]].alive, core.driven.entry(one)) for one, owner in core.driven.entries()]
            self.world.check(not left, f"{who} still has entries: {left}")
            self.world.check(counts["lineage"] == counts["lineage_bytes"] == 0, f"{who} still keeps finished tasks: {counts}")

    def check_leases(self) -> None:
        """Nobody works, and all clients live: what is lent now would stay lent."""
        for raylet in self.raylets:
            lent = [lease for lease in raylet.scheduler.core.leases.values() if lease.wish is not None] if raylet.alive else []
            who = [(lease.id, lease.client.hex()[:6], lease.client_node.hex()[:6], raylet.cores[lease.worker.id].running_task.hex()) for lease in lent]
            self.world.check(not lent, f"node {raylet.number} still lends {who} though every program has ended")

    def check_rest(self) -> None:
        """The jobs have ended: everything is free, and everybody knows it."""
        living = [raylet for raylet in self.raylets if raylet.alive]
        for raylet in living:
            core, free = raylet.scheduler.core, raylet.scheduler.available()
            self.world.check(not core.leases and not core.queue and not core.actors, f"node {raylet.number} still lends {core.leases} or queues")
            self.world.check(dict(free) == raylet.resources, f"node {raylet.number} has {free} free of {raylet.resources}")
            self.world.check(not core.borrowed and not core.asked, f"node {raylet.number} still borrows")
        names = {raylet.node_id for raylet in living}
        self.world.check(set(self.store.cluster.nodes.living) == names, "the control store and the nodes disagree about who lives")
        for raylet in living:
            seen = {node_id: dict(view.available) for node_id, view in raylet.scheduler.core.view.nodes.items()}
            true = {other.node_id: other.resources for other in living if other is not raylet}
            self.world.check(seen == true, f"node {raylet.number} sees {seen}, not {true}")
        for actor in self.store.cluster.actors:
            self.world.check(actor.actor_id in self.store.cluster.actors.dead, f"actor {actor.actor_id.hex()} outlives its job")


def place_actors(nodes: int, actors: int) -> float:
    """A large cluster without programs: every actor finds a place. Returns the virtual seconds it took."""
    from shoal_gcs.state import events as on
    from shoal_gcs.v1 import gcs_pb2 as pb

    history = History(1, replace(KINDS[0], name="large"))
    world = history.world
    for number in range(len(history.raylets) + 1, nodes + 1):
        history.raylets.append(RayletNode(world, history.store, number, {"CPU": 16 * UNIT}))
    for raylet in history.raylets:
        raylet.peers = {other.node_id: other for other in history.raylets if other is not raylet}
    world.run(2.0)
    driver = CoreNode(world, history.raylets[0], is_driver=True, job_id=bytes([1, 0, 0, 0]))
    began = world.now
    ids = []
    for _ in range(actors):
        actor_id = driver.driven.new_actor_id()
        ids.append(actor_id)
        task = driver.driven.creation_task(actor_id, driver.pack("create", {}, []))
        record = pb.Actor(actor_id=actor_id, job_id=driver.job_id, owner_worker_id=driver.worker_id, owner_node_id=driver.node_id, resources={"CPU": UNIT})
        request = pb.CreateActorRequest(actor=record, creation_task=task, placement=pb.Placement(resources={"CPU": UNIT}, bundle_index=-1))
        driver.tell_raylet(driver.raylet.tell_gcs, on.ActorRequested(request))

    def placed() -> bool:
        return world.steps % 64 == 0 and sum(life.record.state == pb.ACTOR_ALIVE for life in history.store.cluster.actors.lives.values()) == actors

    world.check(world.run(60.0, placed), "not every actor found a place")
    took = world.now - began
    lives = [core.actor_id for core in world.cores.values() if core.actor_id and core.alive]
    world.check(sorted(lives) == sorted(ids), f"{len(lives)} actors live, {actors} were asked for")
    return took


def tell(seed: int) -> dict[str, object]:
    history = History(seed)
    began = time.perf_counter()
    problem = ""
    try:
        history.run()
    except Violation as wrong:
        problem = f"{type(wrong).__name__}: {wrong}"
    except Exception:
        problem = traceback.format_exc()
    world = history.world
    row: dict[str, object] = {"seed": seed, "faults": world.faults.name, "problem": problem, "steps": world.steps, "took": time.perf_counter() - began}
    if problem:
        row["history"] = list(world.history)[-40:]
    return row


def sweep(count: int, seconds: float) -> int:
    """The first `count` seeds, or as many as there is time for; how many failed."""
    began = time.perf_counter()
    done: Counter[str] = Counter()
    failed = 0
    # spawn: a fork would share what the first histories left in memory, and so depend on them.
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for row in pool.imap_unordered(tell, range(count)):
            done[str(row["faults"])] += 1
            if row["problem"]:
                failed += 1
                print("\n  ".join([f"seed {row['seed']} ({row['faults']}): {row['problem']}", *row.get("history", ())]))  # type: ignore[misc]
                print(f"again: {sys.executable} {os.path.abspath(__file__)} {row['seed']}", flush=True)
            if failed == MAX_FAILURES or time.perf_counter() - began > seconds:
                break
        pool.terminate()
    kinds = ", ".join(f"{name} {number}" for name, number in sorted(done.items()))
    print(f"{sum(done.values())} histories in {time.perf_counter() - began:.0f} s, {failed} failed: {kinds}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="*")
    parser.add_argument("--seeds", type=int, default=0, help="try so many, from 0")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="and stop after so long")
    given = parser.parse_args()
    for seed in given.seed:
        print(json.dumps(tell(seed)), flush=True)
    return 1 if given.seeds and sweep(given.seeds, given.seconds) else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of ids are iterated in the order of their hashes
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
