"""The whole state, its one door, and what follows from one noun for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..v1 import gcs_pb2 as pb
from . import events as on
from .actors import SPEC_TABLE, Actors
from .actors import TABLE as ACTOR_TABLE
from .effects import Effect
from .history import History
from .jobs import META, NEXT_JOB, Jobs
from .jobs import TABLE as JOB_TABLE
from .kept import TABLE as STATE_TABLE
from .kv import TABLE as KV_TABLE
from .kv import KeyValues
from .nodes import LEASE_MS, Nodes
from .nodes import TABLE as NODE_TABLE
from .placement_groups import TABLE as GROUP_TABLE
from .placement_groups import PlacementGroups
from .turn import Instant, Turn

TABLES = (META, NODE_TABLE, JOB_TABLE, ACTOR_TABLE, SPEC_TABLE, STATE_TABLE, GROUP_TABLE, KV_TABLE)
FORGET_EVERY_MS = 10_000
Records = dict[str, list[tuple[bytes, bytes]]]


class Cluster:
    """Takes one event at a time and returns the effects. Not for several threads."""

    def __init__(self, *, lease_ms: int = LEASE_MS, infeasible_timeout_ms: int = 10_000, history: History | None = None) -> None:
        self._turn = Turn()
        self._history = history or History()
        self._forgot_ms = 0
        self.nodes = Nodes(self._turn, lease_ms, self._history)
        self.jobs = Jobs(self._turn, self._history)
        self.groups = PlacementGroups(self._turn, self.nodes)
        self.actors = Actors(self._turn, self.nodes, self.groups, infeasible_timeout_ms, self._history)
        self.kv = KeyValues(self._turn)
        self.actors.most_of_job = self.jobs.max_actors
        self.actors.on_death = lambda actor: self.groups.creator_died(actor.actor_id)
        self.groups.on_removed = self.actors.group_removed
        self.groups.on_created = self.actors.placement.retry
        self._doors: dict[type, Callable[[Any], None]] = {
            on.NodeRegistered: self._node_registered,
            on.NodeBeat: self._node_beat,
            on.NodeLeft: lambda event: self._node_died(event.node_id, event.reason or "it left the cluster"),
            on.NodeDrainRequested: self._node_drain_requested,
            on.NodeConnectionLost: lambda event: self.nodes.connection_lost(event.node_id),
            on.NodeRefused: lambda event: self._node_died(event.node_id, "its host refuses connections to its raylet: the process is gone"),
            on.JobAdded: lambda event: self.jobs.add(event.job),
            on.JobFinished: lambda event: self._job_finished(event.job_id),
            on.ActorRequested: lambda event: self.actors.create(event.request),
            on.ActorStartAnswered: self._actor_start_answered,
            on.ActorKillRequested: lambda event: self.actors.kill(event.actor_id, event.no_restart, event.force, event.reason),
            on.ActorWentOutOfScope: lambda event: self.actors.out_of_scope(event.actor_id),
            on.CheckpointKept: lambda event: self.actors.kept.keep(event.state),
            on.ActorArgumentsKept: lambda event: self.actors.keep_arguments(event.arguments),
            on.WorkerDied: self._worker_died,
            on.GroupRequested: lambda event: self.groups.create(event.group),
            on.GroupRemovalRequested: self._group_removal_requested,
            on.BundlesChanged: self._bundles_changed,
            on.KeyPut: lambda event: self.kv.put(event.request),
            on.KeyDeleted: lambda event: self.kv.delete(event.request),
            on.ResourceTickCame: lambda event: self.nodes.publish_changes(),
            on.TimePassed: self._time_passed,
        }

    def handle(self, event: on.Event, at: Instant) -> list[Effect]:
        """Raises Refused for a request that cannot be; then nothing has changed."""
        self._turn.begin(at)
        try:
            self._doors[type(event)](event)
        except BaseException:
            self._turn.end()
            raise
        return self._turn.end()

    def load(self, records: Records, at: Instant) -> list[Effect]:
        """The state of before a restart. Raises google.protobuf's DecodeError on a damaged record."""
        self._turn.begin(at)
        for key, record in records.get(META, ()):
            if key == NEXT_JOB:
                self.jobs.load_next(record)
        for _, record in records.get(NODE_TABLE, ()):
            self.nodes.load(pb.Node.FromString(record))
        for _, record in records.get(JOB_TABLE, ()):
            self.jobs.load(pb.Job.FromString(record))
        for _, record in records.get(GROUP_TABLE, ()):
            self.groups.load(pb.PlacementGroup.FromString(record))
        specs = dict(records.get(SPEC_TABLE, ()))
        for key, record in records.get(ACTOR_TABLE, ()):
            spec = specs.get(key)
            self.actors.load(pb.Actor.FromString(record), None if spec is None else pb.CreateActorRequest.FromString(spec))
        for _, record in records.get(STATE_TABLE, ()):
            self.actors.kept.load(pb.ActorCheckpoint.FromString(record))
        for _, record in records.get(KV_TABLE, ()):
            self.kv.load(pb.KvPutRequest.FromString(record))
        self.nodes.settle_after_load()
        self.jobs.settle_after_load()
        self.groups.settle_after_load()
        self.actors.settle_after_load()
        return self._turn.end()

    def snapshot(self, channel: str) -> list[bytes]:
        """What a new subscriber of the channel is told first."""
        if channel.startswith("actor:"):
            try:
                actor = self.actors.get(bytes.fromhex(channel[6:]))
            except ValueError:
                return []
            return [] if actor is None else [actor.SerializeToString()]
        if channel == "nodes":
            return [node.SerializeToString() for node in self.nodes]
        if channel == "resources":
            return [pb.NodeList(nodes=(node.record for node in self.nodes.living.values())).SerializeToString()]
        if channel == "actors":
            return [life.record.SerializeToString() for life in self.actors.lives.values()]
        if channel == "pgs":
            return [group.record.SerializeToString() for group in self.groups.groups.values()]
        if channel == "workers":
            return self.nodes.recent_deaths()
        if channel == "jobs":
            return [job.SerializeToString() for job in self.jobs.running()]
        return []

    # -- what follows from what

    def _retry(self) -> None:
        self.groups.retry()
        self.actors.placement.retry()

    def _node_registered(self, event: on.NodeRegistered) -> None:
        came_back = self.nodes.is_alive(event.node.node_id)
        node = self.nodes.register(event.node)
        for job_id in self.jobs.finished_lately() if came_back else ():
            self.nodes.finish_job_on(node.node_id, job_id)
        for replaced in self.nodes.predecessors(node):
            self._node_died(replaced, f"another raylet, {node.node_id.hex()[:12]}, has its address {node.record.address}")
        self.groups.node_registered(node, event.live_groups)
        self.actors.node_registered(node.node_id, event.live_actors)
        self._retry()

    def _node_beat(self, event: on.NodeBeat) -> None:
        if self.nodes.beat(event.request):
            self._retry()

    def _node_drain_requested(self, event: on.NodeDrainRequested) -> None:
        self.nodes.drain(event.node_id, event.reason, event.within_ms)
        self.actors.node_draining(event.node_id)

    def _node_died(self, node_id: bytes, cause: str) -> None:
        record = self.nodes.die(node_id, cause)
        if record is None:
            return
        for job_id in self.jobs.of_driver_node(node_id):
            self._job_finished(job_id)
        self.groups.node_died(node_id, cause)
        self.actors.node_died(node_id, cause)
        self._retry()

    def _job_finished(self, job_id: bytes) -> None:
        if not self.jobs.finish(job_id):
            return
        self.actors.job_finished(job_id)
        self.groups.job_finished(job_id)
        self.kv.job_finished(job_id)
        self.nodes.finish_job(job_id)
        self._retry()

    def _actor_start_answered(self, event: on.ActorStartAnswered) -> None:
        self.actors.start_answered(event)
        self.actors.placement.retry()

    def _worker_died(self, event: on.WorkerDied) -> None:
        report = event.report
        self.actors.worker_died(report)
        for job_id in self.jobs.of_driver(report.worker_id):
            self._job_finished(job_id)
        self.nodes.publish_worker_death(report)
        self._retry()

    def _group_removal_requested(self, event: on.GroupRemovalRequested) -> None:
        self.groups.remove(event.query)
        self._retry()

    def _bundles_changed(self, event: on.BundlesChanged) -> None:
        if self.groups.bundles_changed(event):
            self._retry()

    def _time_passed(self, event: on.TimePassed) -> None:
        for node_id, cause in self.nodes.expired():
            self._node_died(node_id, cause)
        for node_id in self.nodes.draining():  # what had no other place when it began
            self.actors.node_draining(node_id)
        self.groups.time_passed()
        self.actors.placement.time_passed()
        self._forget()

    def _forget(self) -> None:
        """What has ended long ago; looked at now and then."""
        now = self._turn.at
        if now.steady_ms - self._forgot_ms >= FORGET_EVERY_MS:
            self._forgot_ms = now.steady_ms
            self.nodes.forget()
            self.jobs.forget()
            self.actors.forget()
