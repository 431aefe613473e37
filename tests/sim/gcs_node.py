"""The control store of the simulation: the real `Cluster`, and what its service does around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal_gcs.service import NODES_A_TICK, RESOURCE_TICK_S
from shoal_gcs.state import Cluster, Instant, Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb
from world import Link, World

if TYPE_CHECKING:
    from raylet_node import RayletNode

TICK_S = 0.25
RETRY_S = 0.05
LEASE_MS = 10_000
WRITE_S = 0.004  # longest, of one batch to the storage


class GcsNode:
    def __init__(self, world: World) -> None:
        self.world = world
        self.node_id = b"gcs-------------"
        self.alive = True
        self.life = 1  # the epoch that raylets hear of
        self.ticks = 0
        self.told_bytes = 0  # of the nodes' resources, to all
        self.records: dict[str, dict[bytes, bytes]] = {}
        self.raylets: dict[bytes, RayletNode] = {}
        self._links: dict[bytes, Link] = {}
        self._durable_at = world.now
        self._begin_life()

    def _begin_life(self) -> None:
        self.cluster = Cluster(lease_ms=LEASE_MS)
        self._channels: dict[str, dict[bytes, None]] = {}
        self._ticking = False
        self._killing: dict[tuple[bytes, bytes], int] = {}
        self._starts_behind: dict[tuple[bytes, bytes], list[do.StartActor]] = {}
        self.world.after(TICK_S, self._tick, self.life)

    # -- dying and coming back ------------------------------------------------------------------------

    def crash(self) -> None:
        """What had not reached the storage is lost, and whoever waits for an answer hears that the connection broke."""
        if self.alive:
            self.world.note("the control store ends")
            self.alive = False
            self.life += 1
            for node_id, link in self._links.items():
                link.send(self.raylets[node_id].on_stream_broken)

    def restart(self) -> None:
        if not self.alive:
            self.world.note("the control store is started again")
            self.alive = True
            self._begin_life()
            self._do(self.cluster.load({table: list(rows.items()) for table, rows in self.records.items()}, self._instant()))

    def _instant(self) -> Instant:
        now = int(self.world.now * 1000)
        return Instant(now, now, self.world.random.random())

    def _write(self, life: int, batch: list[do.Persist | do.DeleteRecord]) -> None:
        if life != self.life:
            return
        for one in batch:
            rows = self.records.setdefault(one.table, {})
            if isinstance(one, do.Persist):
                rows[one.key] = one.record
            else:
                rows.pop(one.key, None)

    def add(self, raylet: RayletNode) -> None:
        self.raylets[raylet.node_id] = raylet
        self._links[raylet.node_id] = Link(self.world, self.node_id, raylet.node_id)

    def post(self, event: on.Event) -> pb.Actor | pb.Job | None:
        """None when it is refused, or has no answer."""
        if not self.alive:
            return None
        try:
            effects = self.cluster.handle(event, self._instant())
        except Refused as refused:
            self.world.note(f"gcs refuses {type(event).__name__}: {refused}")
            return None
        return self._do(effects)

    def _do(self, effects: list[do.Effect]) -> pb.Actor | pb.Job | None:
        world = self.world
        answer = None
        batch: list[do.Persist | do.DeleteRecord] = []
        told: list[do.Effect] = []
        for effect in effects:
            if isinstance(effect, do.Answer):
                answer = effect.message
            elif isinstance(effect, do.Persist | do.DeleteRecord):
                batch.append(effect)
            elif type(effect) in _DOERS:
                told.append(effect)
        if batch:
            self._durable_at = max(self._durable_at, world.now + WRITE_S * world.random.random())
            world.at(self._durable_at, self._write, self.life, batch)
        if told:
            self._when_durable(self._tell, told)
        if self.cluster.nodes.dirty and not self._ticking:
            self._ticking = True
            world.after(RESOURCE_TICK_S * max(1.0, len(self.cluster.nodes.living) / NODES_A_TICK), self._tell_resources, self.life)
        return answer  # type: ignore[return-value]

    def _when_durable(self, act: Callable[..., None], *args: Any) -> None:
        """Nobody hears of what a kill at this moment would undo."""
        if self._durable_at > self.world.now:
            self.world.at(self._durable_at, self._if_alive, self.life, act, args)
        else:
            act(*args)

    def _if_alive(self, life: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life == self.life:
            act(*args)

    def _tell(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            _DOERS[type(effect)](self, effect)

    def _tick(self, life: int) -> None:
        if life == self.life and self.alive:
            self.world.after(TICK_S, self._tick, life)
            self.post(on.TimePassed())

    def _tell_resources(self, life: int) -> None:
        if life == self.life and self.alive:
            self._ticking = False
            self.ticks += 1
            self.post(on.ResourceTickCame())

    # -- what raylets ask ---------------------------------------------------------------------------

    def ask(self, raylet: RayletNode, event: on.Event, done: Callable[[bool], None]) -> None:
        """Answered once what must outlive this process has reached the storage; `done(False)`: the connection broke, nobody knows what became of it."""
        link = self._links[raylet.node_id]
        if not self.alive:
            link.send(done, False)
            return
        self.post(copy.deepcopy(event))  # it may come again, and whoever handles it may keep parts of it
        self.world.at(self._durable_at, lambda life: link.send(done, life == self.life), self.life)

    def register(self, raylet: RayletNode, record: pb.Node, actors: tuple[bytes, ...], groups: tuple[bytes, ...]) -> None:
        def registered(done: bool) -> None:
            if done and self.alive:
                raylet.on_registered([_copy(node.record) for node in self.cluster.nodes.living.values()] if raylet.observes else [], self.life)
            else:
                raylet.on_register_failed()

        self.ask(raylet, on.NodeRegistered(record, actors, groups), registered)

    def beat(self, raylet: RayletNode, request: pb.HeartbeatRequest) -> None:
        if not self.alive:
            self._links[raylet.node_id].send(raylet.on_beat_failed)
            return
        self.post(on.NodeBeat(request))
        self._links[raylet.node_id].send(raylet.on_heard, self.cluster.nodes.is_known(request.node_id), self.life)

    def subscribe(self, raylet: RayletNode, channels: list[str]) -> None:
        """Of a stream that is open; at first, and after it broke, with all that the raylet listens to."""
        if not self.alive:
            self._links[raylet.node_id].send(raylet.on_stream_broken)
            return
        for channel in channels:
            self._channels.setdefault(channel, {})[raylet.node_id] = None
            for payload in self.cluster.snapshot(channel):
                self._when_durable(self._links[raylet.node_id].send, raylet.on_gcs_event, channel, payload)

    def connection_lost(self, node_id: bytes) -> None:
        self.post(on.NodeConnectionLost(node_id))

    # -- effects --------------------------------------------------------------------------------------

    def _publish(self, effect: do.Publish) -> None:
        for channel in effect.channels:
            for node_id in self._channels.get(channel, ()):
                raylet = self.raylets[node_id]
                self.told_bytes += len(effect.payload) if channel == "resources" else 0
                self._links[node_id].send(raylet.on_gcs_event, channel, effect.payload)

    def _call(self, node_id: bytes, run: Callable[[RayletNode, Callable[..., None]], None], done: Callable[..., None]) -> None:
        """Made again until it is answered, or the node is dead."""
        world, raylet = self.world, self.raylets[node_id]
        if node_id not in self.cluster.nodes.living:
            done(None)
            return
        answered: list[bool] = []
        life = self.life

        def answer(*args: Any) -> None:
            if not answered and life == self.life:
                answered.append(True)
                done(*args)

        def reply(*args: Any) -> None:
            if world.random.random() >= world.faults.lost_calls:
                Link(world, node_id, self.node_id).send(answer, *args)
            else:
                Link(world, node_id, self.node_id).send(again)

        def arrive() -> None:
            if raylet.alive and life < raylet.epoch:
                return  # refused: another life of the control store has begun, and nobody waits for the answer
            if raylet.alive:
                run(raylet, reply)
            elif not raylet.host_gone:
                Link(world, node_id, self.node_id).send(world.after, RETRY_S, again)
            else:
                world.after(1.0, again)

        def again() -> None:
            if not answered and life == self.life:
                self._call(node_id, run, answer)

        if world.random.random() < world.faults.lost_calls:
            world.after(RETRY_S, again)
        else:
            Link(world, self.node_id, node_id).send(arrive)

    def _start_actor(self, effect: do.StartActor) -> None:
        key = (effect.node_id, effect.actor.actor_id)
        if self._killing.get(key):
            self._starts_behind.setdefault(key, []).append(effect)
            return
        actor, spec, incarnation = _copy(effect.actor), _copy(effect.spec), effect.incarnation

        def done(answer: tuple[Any, ...] | None) -> None:
            if answer is not None:
                self.post(on.ActorStartAnswered(actor.actor_id, incarnation, effect.node_id, *answer))

        self._call(effect.node_id, lambda raylet, reply: raylet.start_actor(actor, spec, incarnation, reply), done)

    def _kill_actor(self, effect: do.KillActor) -> None:
        key = (effect.node_id, effect.actor_id)
        self._killing[key] = self._killing.get(key, 0) + 1

        def done(_: object) -> None:
            self._killing[key] -= 1
            if not self._killing[key]:
                del self._killing[key]
                for start in self._starts_behind.pop(key, ()):
                    self._start_actor(start)

        self._call(effect.node_id, lambda raylet, reply: raylet.kill_actor(effect, reply), done)

    def _finish_job(self, effect: do.FinishJobOn) -> None:
        self._call(effect.node_id, lambda raylet, reply: raylet.finish_job(effect.job_id, reply), lambda _: None)

    def _probe(self, effect: do.ProbeNode) -> None:
        raylet = self.raylets[effect.node_id]
        if not raylet.alive and not raylet.host_gone and not self.world.is_cut(self.node_id, effect.node_id):
            self.world.after(0.3, self.post, on.NodeRefused(effect.node_id))

    # -- seen from outside ------------------------------------------------------------------------------

    def actor(self, actor_id: bytes) -> pb.Actor | None:
        return self.cluster.actors.get(actor_id)


def _copy(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


_DOERS: dict[type, Callable[[GcsNode, Any], None]] = {
    do.Publish: GcsNode._publish,
    do.StartActor: GcsNode._start_actor,
    do.KillActor: GcsNode._kill_actor,
    do.FinishJobOn: GcsNode._finish_job,
    do.ProbeNode: GcsNode._probe,
}
