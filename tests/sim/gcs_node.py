"""The control store of the simulation: the real `Cluster`, and what its service does around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal_gcs.state import Cluster, Instant, Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb
from world import Link, World

if TYPE_CHECKING:
    from raylet_node import RayletNode

TICK_S = 0.25
RESOURCE_TICK_S = 0.1
RETRY_S = 0.05
LEASE_MS = 10_000


class GcsNode:
    def __init__(self, world: World) -> None:
        self.world = world
        self.node_id = b"gcs-------------"
        self.alive = True
        self.cluster = Cluster(lease_ms=LEASE_MS)
        self.raylets: dict[bytes, RayletNode] = {}
        self._links: dict[bytes, Link] = {}
        self._channels: dict[str, dict[bytes, None]] = {}
        self._ticking = False
        self._killing: dict[tuple[bytes, bytes], int] = {}
        self._starts_behind: dict[tuple[bytes, bytes], list[do.StartActor]] = {}
        world.after(TICK_S, self._tick)

    def add(self, raylet: RayletNode) -> None:
        self.raylets[raylet.node_id] = raylet
        self._links[raylet.node_id] = Link(self.world, self.node_id, raylet.node_id)

    def post(self, event: on.Event) -> pb.Actor | pb.Job | None:
        """None when it is refused, or has no answer."""
        world = self.world
        try:
            effects = self.cluster.handle(event, Instant(int(world.now * 1000), int(world.now * 1000), world.random.random()))
        except Refused as refused:
            world.note(f"gcs refuses {type(event).__name__}: {refused}")
            return None
        answer = None
        for effect in effects:
            if isinstance(effect, do.Answer):
                answer = effect.message
            elif type(effect) in _DOERS:
                _DOERS[type(effect)](self, effect)
        if self.cluster.nodes.dirty and not self._ticking:
            self._ticking = True
            world.after(RESOURCE_TICK_S, self._tell_resources)
        return answer  # type: ignore[return-value]

    def _tick(self) -> None:
        self.world.after(TICK_S, self._tick)
        self.post(on.TimePassed())

    def _tell_resources(self) -> None:
        self._ticking = False
        self.post(on.ResourceTickCame())

    # -- what raylets ask ---------------------------------------------------------------------------

    def register(self, raylet: RayletNode, record: pb.Node) -> None:
        self.post(on.NodeRegistered(record))
        self._links[raylet.node_id].send(raylet.on_registered, [_copy(node.record) for node in self.cluster.nodes.living.values()])

    def beat(self, raylet: RayletNode, request: pb.HeartbeatRequest) -> None:
        self.post(on.NodeBeat(request))
        self._links[raylet.node_id].send(raylet.on_heard, self.cluster.nodes.is_known(request.node_id))

    def subscribe(self, raylet: RayletNode, channel: str) -> None:
        self._channels.setdefault(channel, {})[raylet.node_id] = None
        for payload in self.cluster.snapshot(channel):
            self._links[raylet.node_id].send(raylet.on_gcs_event, channel, payload)

    def connection_lost(self, node_id: bytes) -> None:
        self.post(on.NodeConnectionLost(node_id))

    # -- effects --------------------------------------------------------------------------------------

    def _publish(self, effect: do.Publish) -> None:
        for channel in effect.channels:
            for node_id in self._channels.get(channel, ()):
                raylet = self.raylets[node_id]
                self._links[node_id].send(raylet.on_gcs_event, channel, effect.payload)

    def _call(self, node_id: bytes, run: Callable[[RayletNode, Callable[..., None]], None], done: Callable[..., None]) -> None:
        """Made again until it is answered, or the node is dead."""
        world, raylet = self.world, self.raylets[node_id]
        if node_id not in self.cluster.nodes.living:
            done(None)
            return
        answered: list[bool] = []

        def answer(*args: Any) -> None:
            if not answered:
                answered.append(True)
                done(*args)

        def reply(*args: Any) -> None:
            if world.random.random() >= world.faults.lost_calls:
                Link(world, node_id, self.node_id).send(answer, *args)
            else:
                Link(world, node_id, self.node_id).send(again)

        def arrive() -> None:
            if raylet.alive:
                run(raylet, reply)
            elif not raylet.host_gone:
                Link(world, node_id, self.node_id).send(world.after, RETRY_S, again)
            else:
                world.after(1.0, again)

        def again() -> None:
            if not answered:
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
