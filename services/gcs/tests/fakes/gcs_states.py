"""Builders of records, and a cluster on a clock of its own."""

from __future__ import annotations

from typing import Any, TypeVar

from shoal_gcs.state import Cluster, Instant
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb

CPU = 10_000
E = TypeVar("E")


def node_id(n: int) -> bytes:
    return b"node" + n.to_bytes(12, "little")


def actor_id(n: int) -> bytes:
    return b"actr" + n.to_bytes(12, "little")


def worker_id(n: int) -> bytes:
    return b"work" + n.to_bytes(12, "little")


def group_id(n: int) -> bytes:
    return b"grup" + n.to_bytes(12, "little")


def node(n: int, cpus: float = 4, *, labels: dict[str, str] | None = None, **resources: float) -> pb.Node:
    amounts = {name: int(value * CPU) for name, value in {"CPU": cpus, **resources}.items()}
    return pb.Node(node_id=node_id(n), address=f"10.0.0.{n}:70", resources=amounts, available=amounts, labels=labels or {})


def actor_request(n: int, *, cpus: float = 1, held: float = 0, name: str = "", get_if_exists: bool = False, **fields: object) -> pb.CreateActorRequest:
    placement = pb.Placement(resources={"CPU": int(cpus * CPU)}, bundle_index=-1)
    for field in ("node_id", "soft", "placement_group_id", "bundle_index", "label_selector"):
        if field in fields:
            value = fields.pop(field)
            if field == "label_selector":
                placement.label_selector.update(value)  # type: ignore[call-overload]
            else:
                setattr(placement, field, value)
    record = pb.Actor(actor_id=actor_id(n), name=name, namespace="ns", class_name=f"Class{n}", **fields)  # type: ignore[arg-type]
    if held:
        record.resources["CPU"] = int(held * CPU)
    return pb.CreateActorRequest(actor=record, creation_task=b"task", placement=placement, get_if_exists=get_if_exists)


def group(n: int, bundles: list[float], strategy: str = "PACK", **fields: object) -> pb.PlacementGroup:
    made = [pb.Bundle(resources={"CPU": int(cpus * CPU)}) for cpus in bundles]
    return pb.PlacementGroup(placement_group_id=group_id(n), bundles=made, strategy=strategy, **fields)  # type: ignore[arg-type]


class Rig:
    """A cluster, its clock, and what it stored."""

    def __init__(self, nodes: int = 0, cpus: float = 4, **options: Any) -> None:
        self.cluster = Cluster(**options)
        self.now_ms = 1_000_000
        self.stored: dict[str, dict[bytes, bytes]] = {}
        for n in range(1, nodes + 1):
            self(on.NodeRegistered(node(n, cpus)))

    def __call__(self, event: on.Event, rank: float = 0.0) -> list[do.Effect]:
        return self.keep(self.cluster.handle(event, Instant(self.now_ms, self.now_ms, rank)))

    def keep(self, effects: list[do.Effect]) -> list[do.Effect]:
        for effect in effects:
            if isinstance(effect, do.Persist):
                self.stored.setdefault(effect.table, {})[effect.key] = effect.record
            elif isinstance(effect, do.DeleteRecord):
                self.stored.get(effect.table, {}).pop(effect.key, None)
        return effects

    def restarted(self, **options: Any) -> Rig:
        after = Rig(**options)
        after.now_ms = self.now_ms
        after.stored = {table: dict(rows) for table, rows in self.stored.items()}
        records = {table: list(rows.items()) for table, rows in self.stored.items()}
        after.keep(after.cluster.load(records, Instant(self.now_ms, self.now_ms)))
        return after

    def beat(self, n: int, cpus: float | None = None, lent: float = 0) -> list[do.Effect]:
        request = pb.HeartbeatRequest(node_id=node_id(n), resources_changed=cpus is not None)
        if cpus is not None:
            request.available["CPU"] = int(cpus * CPU)
        if lent:
            request.lent["CPU"] = int(lent * CPU)
        return self(on.NodeBeat(request))

    def wait(self, ms: int, *beating: int) -> list[do.Effect]:
        """Time goes by in steps of a second; the nodes named go on beating."""
        effects: list[do.Effect] = []
        for _ in range(max(1, ms // 1000)):
            self.now_ms += min(ms, 1000)
            for n in beating:
                self.beat(n)
            effects += self(on.TimePassed())
        return effects

    def started(self, n: int, effects: list[do.Effect], worker: int = 0) -> list[do.Effect]:
        """The StartActor among the effects succeeds."""
        start = only(effects, do.StartActor)
        return self(on.ActorStartAnswered(start.actor.actor_id, start.incarnation, start.node_id, on.StartStatus.STARTED, worker_id(worker or n), 4000 + n))

    def alive_actor(self, n: int, worker: int = 0, **fields: object) -> pb.Actor:
        self.started(n, self(on.ActorRequested(actor_request(n, **fields))), worker)  # type: ignore[arg-type]
        return self.actor(n)

    def actor(self, n: int) -> pb.Actor:
        found = self.cluster.actors.get(actor_id(n))
        assert found is not None
        return found

    def group(self, n: int) -> pb.PlacementGroup:
        found = self.cluster.groups.get(group_id(n))
        assert found is not None
        return found

    def done(self, effects: list[do.Effect]) -> list[do.Effect]:
        """Every bundle step among the effects succeeds, and so do those that follow."""
        later: list[do.Effect] = []
        for step in every(effects, do.ChangeBundles):
            later += self(on.BundlesChanged(step.node_id, step.step, step.group_id, step.attempt, True))
        return later + (self.done(later) if every(later, do.ChangeBundles) else [])

    def free(self, n: int) -> float:
        return self.cluster.nodes.living[node_id(n)].view.available.get("CPU", 0) / CPU


def every(effects: list[do.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def only(effects: list[do.Effect], kind: type[E]) -> E:
    found = every(effects, kind)
    assert len(found) == 1, f"{len(found)} of {kind.__name__} in {effects}"
    return found[0]
