"""How the real state machines do with many nodes: rows for docs/figures.md. `python scale.py [NODES...]`, by default 100, 1000 and 5000.

Decisions are counted by the time of one core; convergence and bytes by the virtual clock of the simulation, in which every node beats and
`OBSERVERS` of them keep a view of all others (all of them would: a view of 5,000 nodes in each of 5,000 processes does not fit into one).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gcs_node import GcsNode
from raylet_node import RayletNode
from shoal_base.scheduling import NodeView
from shoal_gcs.state import Cluster, Instant
from shoal_gcs.state import effects as gcs_do
from shoal_gcs.state import events as gcs_on
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.leases import LeaseSpec
from shoal_raylet.state import Scheduler, Settings
from shoal_raylet.v1 import raylet_pb2 as raylet
from world import Faults, World

UNIT = 10_000
SIZES = (100, 1_000, 5_000)
ACTORS_A_NODE = 20
CPUS = 32
OBSERVERS = 5
PENDING = 1_000_000
CLASSES = 1_000
SPILLED = 10_000
COLUMNS = (
    "nodes", "actors placed, per s", "bytes an actor", "heartbeats taken, per s", "tasks sent elsewhere, per s", "bytes to each node, when all change",
    "until all see it, s",
)  # fmt: skip
CONVERGED_S = 60.0
TICK_S = 0.05


def node_id(number: int) -> bytes:
    return number.to_bytes(16, "little")


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def timed(work: Callable[[], object]) -> float:
    """Seconds of one core: what else runs on the machine does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def at(now_ms: int, chance: float = 0.5) -> Instant:
    return Instant(now_ms, now_ms, chance)


# -- the control store ---------------------------------------------------------------------------------


def control_store(nodes: int) -> dict[str, float]:
    """Registers nodes, places actors, takes heartbeats."""
    cluster = Cluster()

    def register() -> None:
        for number in range(1, nodes + 1):
            resources = {"CPU": CPUS * UNIT}
            node = gcs.Node(node_id=node_id(number), address=f"10.0.0.1:{number}", resources=resources, available=resources)
            cluster.handle(gcs_on.NodeRegistered(node), at(1))

    registering = timed(register)
    count = nodes * ACTORS_A_NODE
    before = resident_bytes()
    placing = timed(lambda: place_actors(cluster, count))
    grown = resident_bytes() - before

    def beat() -> None:
        for number in range(1, nodes + 1):
            request = gcs.HeartbeatRequest(node_id=node_id(number), resources_changed=True, available={"CPU": UNIT})
            cluster.handle(gcs_on.NodeBeat(request), at(3))

    beating = timed(beat)
    return {
        "registrations/s": nodes / registering, "actors": count, "actors placed/s": count / placing, "bytes an actor": grown / count,
        "heartbeats/s": nodes / beating,
    }  # fmt: skip


def place_actors(cluster: Cluster, count: int) -> None:
    """Each is started where the control store wants it."""
    cluster.handle(gcs_on.JobAdded(gcs.Job()), at(1))
    for number in range(count):
        actor = gcs.Actor(actor_id=(number + 1).to_bytes(16, "big"), job_id=bytes([1, 0, 0, 0]), resources={"CPU": UNIT})
        request = gcs.CreateActorRequest(actor=actor, creation_task=bytes(200), placement=gcs.Placement(resources={"CPU": UNIT}, bundle_index=-1))
        for effect in cluster.handle(gcs_on.ActorRequested(request), at(2, (number * 0.618) % 1)):
            if isinstance(effect, gcs_do.StartActor):
                worker = number.to_bytes(16, "little")
                answer = gcs_on.ActorStartAnswered(effect.actor.actor_id, effect.incarnation, effect.node_id, gcs_on.StartStatus.STARTED, worker, 1)
                cluster.handle(answer, at(2))
    alive = sum(life.record.state == gcs.ACTOR_ALIVE for life in cluster.actors.lives.values())
    if alive != count:
        raise RuntimeError(f"{alive} of {count} actors found a place")


# -- a raylet ------------------------------------------------------------------------------------------


def view(number: int, free: int) -> NodeView:
    return NodeView(
        node_id=node_id(number), total={"CPU": CPUS * UNIT}, available={"CPU": free * UNIT}, labels={}, alive=True, draining=False, queued=0, bundles={}
    )  # fmt: skip


def local_scheduler(nodes: int) -> dict[str, float]:
    """A node without CPUs of its own, which sends all its tasks to others."""
    scheduler = Scheduler(Settings(bytes(16), prestart=0), {})
    looking = timed(lambda: scheduler.handle(on.ViewChanged([view(number, CPUS) for number in range(1, nodes + 1)]), 1.0))
    spec = LeaseSpec.read(raylet.LeaseClass(resources={"CPU": UNIT}, job_id=bytes(4), name="f", bundle_index=-1))
    wanted = min(SPILLED, nodes * CPUS)
    granted = 0

    def spill() -> None:
        nonlocal granted
        now, effects = 2.0, scheduler.handle(on.LeaseDemanded(b"client----------", 1, wanted, spec), 2.0)
        while granted < wanted:
            requests = [effect for effect in effects if isinstance(effect, do.RequestRemoteLease)]
            effects = []
            for request in requests:
                granted += 1
                answer = on.RemoteLeaseAnswered(request.request, True, granted, os.urandom(16), request.node_id, "10.0.0.1:1")
                effects += scheduler.handle(answer, now)
            if not requests:
                now += TICK_S
                effects = scheduler.handle(on.Ticked(), now)
                if now > CONVERGED_S:
                    raise RuntimeError(f"{granted} of {wanted} tasks found a node")

    return {"a view, ms": looking * 1e3, "tasks sent elsewhere/s": wanted / timed(spill)}


def waiting() -> dict[str, float]:
    """A million tasks that fit nowhere now, in a thousand classes: what they cost, and one look at them."""
    before = resident_bytes()
    scheduler = Scheduler(Settings(bytes(16), prestart=0), {"CPU": UNIT})

    def demand() -> None:
        for number in range(CLASSES):
            spec = LeaseSpec.read(raylet.LeaseClass(resources={"CPU": UNIT, "memory": number + 1}, job_id=bytes(4), name="f", bundle_index=-1))
            scheduler.handle(on.LeaseDemanded(number.to_bytes(16, "big"), 1, PENDING // CLASSES, spec), 1.0)

    demanding = timed(demand)
    tick = timed(lambda: scheduler.handle(on.Ticked(), 2.0))
    if scheduler.queued_leases() != PENDING:
        raise RuntimeError(f"{scheduler.queued_leases()} wait")
    return {"classes/s": CLASSES / demanding, "a tick, ms": tick * 1e3, "bytes a task": (resident_bytes() - before) / PENDING}


# -- the cluster's view of itself ----------------------------------------------------------------------


def convergence(nodes: int) -> dict[str, float]:
    """All nodes change at once; until every observer knows of every change, and what that cost each."""
    world = World(1, Faults("many nodes"))
    store = GcsNode(world)
    raylets = [RayletNode(world, store, number, {"CPU": CPUS * UNIT}, observes=number <= OBSERVERS) for number in range(1, nodes + 1)]
    observers = raylets[:OBSERVERS]

    def all_seen(free: int) -> bool:
        return all(
            sum(view.available.get("CPU") == free for view in observer.scheduler.core.view.nodes.values()) == nodes - 1 for observer in observers
        )  # fmt: skip

    def settled(free: int) -> float:
        began = world.now
        while not all_seen(free):
            if world.now - began > CONVERGED_S:
                raise RuntimeError(f"{nodes} nodes did not converge within {CONVERGED_S:g} s")
            world.run(0.05)
        return world.now - began

    joined = settled(CPUS * UNIT)
    world.run(2.0)
    before, ticks = store.told_bytes, store.ticks
    for one in raylets:
        one.scheduler.core.pool.free["CPU"] -= UNIT
    changed = settled((CPUS - 1) * UNIT)
    told = (store.told_bytes - before) / OBSERVERS
    return {"joined, s": joined, "converged, s": changed, "bytes a node": told, "ticks": store.ticks - ticks}


def measure(nodes: int) -> dict[str, dict[str, float]]:
    return {"nodes": {"n": nodes}, "store": control_store(nodes), "raylet": local_scheduler(nodes), "view": convergence(nodes)}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2])) if sys.argv[2] != "waiting" else waiting()))
        return
    sizes = [int(text) for text in sys.argv[1:]] or list(SIZES)
    rows = [json.loads(_apart(str(nodes))) for nodes in sizes]
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|")
    for row in rows:
        store, local, seen = row["store"], row["raylet"], row["view"]
        cells = [
            f"{row['nodes']['n']:,}", f"{store['actors placed/s']:,.0f} (of {store['actors']:,})", f"{store['bytes an actor']:,.0f}",
            f"{store['heartbeats/s']:,.0f}", f"{local['tasks sent elsewhere/s']:,.0f}", f"{seen['bytes a node']:,.0f} in {seen['ticks']:.0f} ticks",
            f"{seen['converged, s']:.2f}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    idle = json.loads(_apart("waiting"))
    cost = f"{idle['bytes a task']:.1f} bytes each, and {idle['a tick, ms']:.1f} ms a tick"
    print(f"\n{PENDING:,} tasks that wait in {CLASSES:,} classes cost their raylet {cost}.")


def _apart(what: str) -> str:
    """In a process of its own, so that memory is its own."""
    return subprocess.run([sys.executable, __file__, "--one", what], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
