"""A scheduler with its world: workers register when forked, clients keep what they get. For tests of the state machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from shoal_base.scheduling import NodeView
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.leases import LeaseSpec
from shoal_raylet.state import Scheduler, Settings
from shoal_raylet.v1 import raylet_pb2 as pb
from shoal_raylet.workers import Phase

UNIT = 10_000
HERE = b"node-here-------"
THERE = b"node-there------"
JOB = b"job1"
E = TypeVar("E")


def spec(cpus: float = 1, job: bytes = JOB, **fields: Any) -> LeaseSpec:
    resources = {name: int(amount * UNIT) for name, amount in {"CPU": cpus, **fields.pop("resources", {})}.items()}
    return LeaseSpec.parse(pb.LeaseClass(resources=resources, job_id=job, name=fields.pop("name", "f"), **fields).SerializeToString())


def node(node_id: bytes, free: Mapping[str, float], total: Mapping[str, float] | None = None, labels: Mapping[str, str] | None = None) -> NodeView:
    def units(amounts: Mapping[str, float]) -> dict[str, int]:
        return {name: int(amount * UNIT) for name, amount in amounts.items()}

    return NodeView(
        node_id=node_id, total=units(total or free), available=units(free), labels=dict(labels or {}), alive=True, draining=False, queued=0, bundles={}
    )


class World:
    def __init__(self, cpus: float = 2, labels: Mapping[str, str] | None = None, *, auto: bool = True, **settings: Any) -> None:
        extra = settings.pop("resources", {})
        gpus = settings.pop("gpus", None)
        settings.setdefault("prestart", 0)
        total = {name: int(amount * UNIT) for name, amount in {"CPU": cpus, **extra}.items()}
        self.scheduler = Scheduler(Settings(HERE, **settings), total, labels, gpus)
        self.core = self.scheduler.core
        self.auto = auto
        self.now = 100.0
        self.log: list[do.Effect] = []
        self.next_worker = 0
        self.next_request = 0

    def feed(self, event: on.Event, after: float = 0.0) -> list[do.Effect]:
        """The effects, in order, of this event and of the forks that it causes."""
        self.now += after
        out = self.scheduler.handle(event, self.now)
        self.log += out
        if self.auto:
            for effect in list(out):
                if isinstance(effect, do.ForkWorker):
                    out += self.register(effect.fork)
        self.check()
        return out

    def register(self, fork: int) -> list[do.Effect]:
        self.next_worker += 1
        return self.feed(on.WorkerRegistered(fork, b"worker%010d" % self.next_worker, self.next_worker))

    def demand(self, client: bytes = b"client", class_id: int = 1, want: int = 1, spec: LeaseSpec | None = None) -> list[do.Effect]:
        return self.feed(on.LeaseDemanded(client, class_id, want, spec))

    def tick(self, after: float = 0.05) -> list[do.Effect]:
        return self.feed(on.Ticked(), after)

    def give_back(self, grant: do.GrantLease, discard: bool = False) -> list[do.Effect]:
        return self.feed(on.LeaseReturned(grant.lease_id, grant.node_id, discard))

    def die(self, worker_id: bytes, code: int = 1, cause: str = "signal 9") -> list[do.Effect]:
        return self.feed(on.WorkerDied(worker_id, code, cause))

    def request(self) -> int:
        self.next_request += 1
        return self.next_request

    def check(self) -> None:
        """The invariants that hold after every event."""
        core = self.core
        resumed = sum(lease.allocation.resources.get("CPU", 0) for lease in core.leases.values())
        for name, free in core.pool.free.items():
            assert free >= 0 or (name == "CPU" and free >= -resumed), f"{name} is {free}"
        lent = [lease.worker.id for lease in core.leases.values()]
        assert len(lent) == len(set(lent)), "a worker is lent twice"
        assert all(lease.worker.phase in (Phase.LEASED, Phase.ACTOR, Phase.ENDING) for lease in core.leases.values())
        assert all(wish.open > 0 for wish in core.queue.all()), "the queue holds what is not open"
        for wishes in core.wishes.values():
            for wish in wishes.values():
                assert wish.placed >= 0 and wish.asked >= 0 and wish.held >= 0 and wish.want >= 0
                assert wish.queued == (wish.open > 0)
        assert core.workers.idle_count == len(core.workers.idle())
        assert core.unmanned_actors == sum(placed.wish is None for row in core.unmanned.values() for placed in row)


def only(effects: list[do.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def one(effects: list[do.Effect], kind: type[E]) -> E:
    found = only(effects, kind)
    assert len(found) == 1, f"{kind.__name__} {len(found)} times in {effects}"
    return found[0]
