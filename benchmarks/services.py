"""The control store and the raylet by themselves: what they grant, start and place in a second, and cost idle; on one node and on four of one machine.

    python benchmarks/services.py                      # every row
    python benchmarks/services.py --only 'idle*'       # what a cluster costs that does nothing
    python benchmarks/services.py --only 'leases*'     # those whose names match
    python benchmarks/services.py --nodes 1 4 8 --json FILE

Leases are asked for as a driver does, by frames on the raylet's socket, and no task runs under them; beside their rate stands what each costs all raylets
together, by the kernel's count of their time, and how many in a hundred another node has lent; beside that of placement groups what each costs
all processes. Nothing is faked: nodes are supervisors with their services and workers, so that four of them on two cores measure the machine's scheduler
as well. The load is printed.

The idle rows are of a cluster that has done nothing for a moment: the part of a core that its processes take, by the kernel's own count of their time, and
their memory, each page divided by those who share it. The driver, which is this program, is not counted.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import shoal
from shoal.cluster_utils import Cluster
from shoal.util import placement_group, remove_placement_group
from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import LeaseDemand, LeaseGrant, LeaseReturn
from shoal_raylet.v1 import raylet_pb2 as pb

CPUS = 4  # of each node
ACTORS, GROUPS, LEASES = 50, 20, 200
GROUP_ROUNDS = 10  # of GROUPS at once, in a window
MANY_ACTORS, TORCH_WORKERS = 200, 100
WINDOWS = 5
SETTLE_S, IDLE_S = 5.0, 20.0
UNIT = 10_000
TIMEOUT_S = 60.0


class Client:
    """A driver that has nothing to run."""

    def __init__(self, node_dir: str) -> None:
        self.id = os.urandom(16)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(Path(node_dir) / "raylet.sock"))
        self.frames = BlockingFrames(sock)
        self.frames.send(Type.HELLO, pack_hello(self.id, bytes(16), kind=PeerKind.DRIVER))
        self.frames.send(Type.REGISTER, pb.RegisterWorker(worker_id=self.id, pid=os.getpid(), driver=True).SerializeToString())
        self.frames.expect(Type.HELLO)
        payload, fds = self.frames.expect(Type.REGISTERED)
        for fd in fds:
            os.close(fd)
        self.job = pb.Registered.FromString(payload).job_id
        self.classes = 0
        self.granted = self.far = 0

    def new_class(self, **fields: Any) -> int:
        self.classes += 1
        lease_class = pb.LeaseClass(resources={"CPU": UNIT}, job_id=self.job, name="nothing", **fields)
        self.frames.send(Type.LEASE_DEMAND, LeaseDemand(self.classes, 0, lease_class.SerializeToString()).pack())
        return self.classes

    def demand(self, number: int, want: int) -> None:
        self.frames.send(Type.LEASE_DEMAND, LeaseDemand(number, want).pack())

    def grant(self) -> LeaseGrant:
        while True:
            kind, payload, _fds = self.frames.recv(TIMEOUT_S)
            if kind == Type.LEASE_GRANT:
                grant = LeaseGrant.unpack(payload)
                self.granted += 1
                self.far += bool(grant.address)
                return grant
            if kind == Type.LEASE_REFUSED:
                raise RuntimeError(f"the raylet refused: {payload!r}")

    def give_back(self, grant: LeaseGrant) -> None:
        self.frames.send(Type.LEASE_RETURN, LeaseReturn(grant.lease_id, grant.node_id).pack())

    def close(self) -> None:
        self.frames.close()


def rate(batch: Callable[[], int]) -> float:
    """In a second, the median of some windows; `batch` does so many, after one that warms up."""
    batch()
    rates = []
    for _ in range(WINDOWS):
        begin = time.perf_counter()
        done = batch()
        rates.append(done / (time.perf_counter() - begin))
    return statistics.median(rates)


# -- leases -------------------------------------------------------------------------------------------------------


def one_lease_at_a_time(client: Client) -> Callable[[], int]:
    number = client.new_class()

    def batch() -> int:
        for _ in range(LEASES):
            client.demand(number, 1)
            client.give_back(client.grant())
        return LEASES

    return batch


def many_leases(client: Client, held: int) -> Callable[[], int]:
    """As many as there are CPUs, each given back as soon as it came, while more are wished."""
    number = client.new_class()

    def batch() -> int:
        wanted = LEASES * held
        client.demand(number, wanted)
        for _ in range(wanted):
            client.give_back(client.grant())
        return wanted

    return batch


def classes_in_turn(client: Client) -> Callable[[], int]:
    """Sixteen classes that wait for the same CPUs: the raylet lends to each in its turn."""
    numbers = [client.new_class(depth=0, label_selector={"row": f"!{n}"}) for n in range(16)]

    def batch() -> int:
        for number in numbers:
            client.demand(number, LEASES // 4)
        total = len(numbers) * (LEASES // 4)
        for _ in range(total):
            client.give_back(client.grant())
        return total

    return batch


# -- actors and placement groups --------------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
class Nothing:
    def nothing(self) -> None:
        pass


def actors_created() -> int:
    actors = [Nothing.remote() for _ in range(ACTORS)]  # type: ignore[attr-defined]
    shoal.get([actor.nothing.remote() for actor in actors], timeout=TIMEOUT_S)
    return ACTORS  # they end with their handles


def actors_in_one_call() -> float:
    """Seconds until each has answered; the driver waits for nothing meanwhile."""
    begin = time.perf_counter()
    actors = [Nothing.remote() for _ in range(MANY_ACTORS)]  # type: ignore[attr-defined]
    shoal.get([actor.nothing.remote() for actor in actors], timeout=10 * TIMEOUT_S)
    return time.perf_counter() - begin


@shoal.remote(num_cpus=0)
class WithTorch:
    def sum(self) -> float:
        import torch

        return float(torch.ones(2).sum())


def torch_workers() -> float:
    """Seconds until workers of a node that has preloaded torch have used it. Without `preload=` each imports it anew, at seconds of a core."""
    with shoal.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, preload=["torch"]):
        shoal.get(WithTorch.remote().sum.remote(), timeout=10 * TIMEOUT_S)  # type: ignore[attr-defined]
        begin = time.perf_counter()
        workers = [WithTorch.remote() for _ in range(TORCH_WORKERS)]  # type: ignore[attr-defined]
        shoal.get([worker.sum.remote() for worker in workers], timeout=10 * TIMEOUT_S)
        return time.perf_counter() - begin


def groups_placed(bundles: int, strategy: str) -> Callable[[], int]:
    def some() -> None:
        groups = [placement_group([{"CPU": 0.01}] * bundles, strategy=strategy) for _ in range(GROUPS)]
        for group in groups:
            if not group.wait(TIMEOUT_S):
                raise TimeoutError(f"a placement group of {bundles} bundles was not ready after {TIMEOUT_S:g} s")
        for group in groups:
            remove_placement_group(group)

    def batch() -> int:
        for _ in range(GROUP_ROUNDS):
            some()
        return GROUPS * GROUP_ROUNDS

    return batch


# -- a cluster that does nothing -----------------------------------------------------------------------------------


def raylets_cpu_s() -> float:
    """What all nodes' raylets have used."""
    return sum(processes.cpu_s(pid) for pid in processes.started() if processes.name_of(pid) == "raylet")


def cluster_cpu_s() -> float:
    """What all nodes and this program have used."""
    return time.process_time() + sum(map(processes.cpu_s, processes.started()))


def idle() -> dict[str, tuple[float, float]]:
    """Percent of a core and MiB, by kind of process."""
    time.sleep(SETTLE_S)
    pids = processes.started()
    before, begin = {pid: processes.cpu_s(pid) for pid in pids}, time.monotonic()
    time.sleep(IDLE_S)
    elapsed = time.monotonic() - begin
    found: dict[str, tuple[float, float]] = {}
    for pid in pids:
        percent, mib = found.get(processes.name_of(pid), (0.0, 0.0))
        found[processes.name_of(pid)] = percent + 100 * (processes.cpu_s(pid) - before[pid]) / elapsed, mib + processes.proportional_mib(pid)
    found["all"] = sum(percent for percent, _ in found.values()), sum(mib for _, mib in found.values())
    return found


# -- the run ------------------------------------------------------------------------------------------------------


def rows(client: Client, nodes: int) -> dict[str, Callable[[], int]]:
    found = {
        "leases, one at a time": one_lease_at_a_time(client),
        f"leases, {CPUS} held": many_leases(client, CPUS),
        "leases, 16 classes in turn": classes_in_turn(client),
        f"actors, {ACTORS} created and called": actors_created,
        "placement groups, 1 bundle": groups_placed(1, "PACK"),
        "placement groups, 4 bundles, PACK": groups_placed(4, "PACK"),
    }
    if nodes > 1:
        found[f"leases, {nodes * CPUS} held, of all nodes"] = many_leases(client, nodes * CPUS)
        found[f"placement groups, {nodes} bundles, STRICT_SPREAD"] = groups_placed(nodes, "STRICT_SPREAD")
    return found


def measured(nodes: int, only: str) -> Iterator[tuple[str, float, str]]:
    """Name, figure, unit."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(wait=False, num_cpus=CPUS)
        cluster.wait_for_nodes()
        cluster.connect()
        if fnmatch.fnmatch("idle", only):
            for name, (percent, mib) in idle().items():
                yield f"idle: {name}", percent, f"% of a core, {mib:.0f} MiB"
        client = Client(cluster.list_all_nodes()[0].node_dir)
        for name, batch in rows(client, nodes).items():
            if fnmatch.fnmatch(name, only):
                granted, far, used_s, all_used_s = client.granted, client.far, raylets_cpu_s(), cluster_cpu_s()
                figure, granted = rate(batch), client.granted - granted
                if name.startswith("placement groups"):
                    yield name, figure, f"/s, {(cluster_cpu_s() - all_used_s) * 1e6 / ((WINDOWS + 1) * GROUPS * GROUP_ROUNDS):.0f} µs each"
                    continue
                cost = f", {(raylets_cpu_s() - used_s) * 1e6 / granted:.0f} µs each, {100 * (client.far - far) / granted:.0f} % far" if granted else ""
                yield name, figure, "/s" + cost
        client.close()
        if fnmatch.fnmatch(name := f"actors, {MANY_ACTORS} in one call", only):
            yield name, actors_in_one_call(), " s"
    finally:
        shoal.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4], help="how many nodes, one cluster after the other (default 1 4)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores, {CPUS} CPUs a node")
    figures: dict[int, dict[str, float]] = {}
    for nodes in given.nodes:
        print(f"\n{nodes} node{'s' if nodes > 1 else ''}")
        figures[nodes] = {}
        for name, figure, unit in measured(nodes, given.only):
            figures[nodes][name] = figure
            print(f"{name:<50}{figure:>12,.{0 if unit.startswith('/s') else 2}f}{unit}", flush=True)
    name = f"torch, in {TORCH_WORKERS} workers of a node that preloads it"
    if fnmatch.fnmatch(name, given.only) and importlib.util.find_spec("torch") is not None:
        figures.setdefault(1, {})[name] = torch_workers()
        print(f"\n{name:<50}{figures[1][name]:>12,.2f} s", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"load_1_min": os.getloadavg()[0], "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
