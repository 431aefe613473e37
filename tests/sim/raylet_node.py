"""A node of the simulation: the real `Scheduler`, with workers, sessions, heartbeats and calls as the raylet's shell has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from core_node import CoreNode
from gcs_node import GcsNode
from shoal_base.errors import Code
from shoal_base.frames import HEADER_SIZE, Type, pack_header, unpack_header
from shoal_base.scheduling import NodeView
from shoal_base.wire import ActorCreated, Event, Exit, LeaseBegin, LeaseDemand, LeaseGrant, LeaseReclaim, LeaseRefused, LeaseReturn, NodeDied, Owns, WorkerDied
from shoal_gcs.state import effects as gcs_do
from shoal_gcs.state import events as gcs_on
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.doubt import ASKED, DOUBT, Doubt
from shoal_raylet.leases import LeaseSpec
from shoal_raylet.state import Scheduler, Settings
from shoal_raylet.term import Term
from shoal_raylet.unreturned import Unreturned
from shoal_raylet.v1 import raylet_pb2 as pb
from store_node import StoreNode
from world import Connection, Link, World

HEARTBEAT_S = 1.0
LEASE_S = 10.0
EXIT_GRACE_S = 1.0
# Between attempts to reach a control store that is away, and how long a request is tried.
FIRST_PAUSE_S, MOST_PAUSE_S, GIVE_UP_S = 0.05, 1.0, 10.0
OWN_CHANNELS = ("jobs", "nodes", "pgs", "resources", "workers")


class RayletNode:
    def __init__(self, world: World, store: GcsNode, number: int, resources: dict[str, int], *, fork_s: float = 0.02, observes: bool = True) -> None:
        self.world = world
        self.gcs = store
        self.number = number
        self.node_id = world.id16()
        self.alive = True
        self.host_gone = False
        self.fork_s = fork_s
        self.resources = resources
        self.observes = observes  # keeps a view of the other nodes
        self.scheduler = Scheduler(Settings(self.node_id, prestart=0), resources)
        self.peers: dict[bytes, RayletNode] = {}
        self.nodes: dict[bytes, bool] = {}  # alive, as heard
        self.sessions: dict[bytes, tuple[CoreNode, Connection]] = {}
        self.cores: dict[bytes, CoreNode] = {}
        self.last_heard = world.now
        self.lease_until_ns = 0
        self.term = Term(self._renewed)
        self.ended_because = ""
        self.channels: dict[str, set[bytes]] = {}
        self._up = Link(world, self.node_id, store.node_id)
        self._answers: dict[int, Callable[..., None]] = {}
        self._numbers = itertools.count(1)
        self._pids = itertools.count(100 * number + 1)
        self._reporting = False
        self._beating = False
        self._sent_at = -1.0
        self._sent: dict[str, int] = {}
        self._doubt = Doubt()
        self._next_round = 0.0
        self._unreturned = Unreturned()
        self.epoch = 0
        self._deaths: list[gcs_on.WorkerDied] = []
        self._joining = False
        self._asked_at = world.now
        self._wanted: dict[str, None] = dict.fromkeys(OWN_CHANNELS if observes else ())
        self._listening = False
        self._pause_s = FIRST_PAUSE_S
        self.store = StoreNode(self)
        store.add(self)
        self._join()
        self._listen()
        world.after(0.05 * world.random.random(), self._tick)
        world.after(HEARTBEAT_S * world.random.random(), self._heartbeat_due)
        self.feed(on.Started())

    # -- the scheduler --------------------------------------------------------------------------------

    def feed(self, event: on.Event) -> None:
        if not self.alive:
            return
        effects = self.scheduler.handle(event, self.world.now)
        self._check()
        for effect in effects:
            _EFFECTS[type(effect)](self, effect)
        if not self._reporting:
            self._reporting = True
            self.world.after(0.02, self._report)

    def _check(self) -> None:
        core, world = self.scheduler.core, self.world
        resumed = sum(lease.allocation.resources.get("CPU", 0) for lease in core.leases.values())
        for name, free in core.pool.free.items():
            world.check(free >= 0 or (name == "CPU" and free >= -resumed), f"node {self.number}: {name} is {free}")
        lent = [lease.worker.id for lease in core.leases.values()]
        world.check(len(lent) == len(set(lent)), f"node {self.number}: a worker is lent twice")

    def _tick(self) -> None:
        if not self.alive:
            return
        busy = self.scheduler.waiting or self.scheduler.core.guests
        if busy:
            self._look_blocked()
        self.feed(on.Ticked())
        self.world.after(0.05 if busy else 0.5, self._tick)
        self._check_silence()
        self._look_for_idle_leases()

    def _look_for_idle_leases(self) -> None:
        now = self.world.now
        if self._unreturned.is_due(now):
            lent = [(lease, self.cores.get(worker), asked_back) for lease, worker, asked_back in self.scheduler.doubtful()]
            idle = [(lease, core.begun, asked_back) for lease, core, asked_back in lent if core is not None and not core.running_task]
            for lease in self._unreturned.late(now, idle):
                self.feed(on.LeaseIdle(lease))

    def _look_blocked(self) -> None:
        for worker in list(self.scheduler.lent()):
            core = self.cores.get(worker.id)
            if core is None or not core.alive:
                continue
            if core.blocked_for(0.001) and not worker.blocked:
                self.feed(on.WorkerBlocked(worker.id))
        for worker_id in self.scheduler.blocked():
            core = self.cores.get(worker_id)
            if core is None or not core.blocked_for(0.0):
                self.feed(on.WorkerUnblocked(worker_id))

    # -- heartbeats and being cut off -------------------------------------------------------------------

    def _report(self) -> None:
        self._reporting = False
        if self.alive and dict(self.scheduler.available()) != self._sent:
            if self.world.now - self._sent_at >= 0.1:
                self._beat()
            else:
                self._reporting = True
                self.world.after(0.1, self._report)

    def _heartbeat_due(self) -> None:
        if self.alive:
            self._beat()
            self.world.after(HEARTBEAT_S, self._heartbeat_due)

    def _beat(self) -> None:
        if self._beating:  # one at a time
            return
        self._beating = True
        self._sent_at = self.world.now
        self._sent = dict(self.scheduler.available())
        request = gcs.HeartbeatRequest(node_id=self.node_id, resources_changed=True, available=self._sent, queued_leases=self.scheduler.queued_leases())
        self._up.send(self.gcs.beat, self, request)

    def on_heard(self, known: bool, epoch: int) -> None:
        self._beating = False
        if not self.alive:
            return
        self.last_heard = self.world.now
        if known:
            self.term.answered(self._sent_at, LEASE_S)
        if epoch != self.epoch:
            self._join()  # another process answers: it may lack what the last one knew
        elif not known and self.nodes.get(self.node_id):
            self.fence("the control store no longer knows this node")

    def on_beat_failed(self) -> None:
        """Its host says that no control store runs there."""
        self._beating = False
        self.term.refused(self._sent_at, self.world.now, LEASE_S)

    def _renewed(self, until_ns: int) -> None:
        was_over = 0 < self.lease_until_ns <= self.world.now * 1e9
        self.lease_until_ns = until_ns
        if was_over:
            for core in self.cores.values():  # they look at it all the time
                self.world.after(0.0, core.step)

    def _join(self) -> None:
        if self._joining or not self.alive:
            return
        self._joining = True
        self._asked_at = self.world.now
        record = gcs.Node(
            node_id=self.node_id, address=f"10.0.0.{self.number}:70", resources=self.resources, available=self.scheduler.available(), alive=True
        )  # fmt: skip
        self._up.send(self.gcs.register, self, record, tuple(self.scheduler.live_actors()), tuple(self.scheduler.live_groups()))

    def on_register_failed(self) -> None:
        self._joining = False
        self.world.after(FIRST_PAUSE_S, self._join)

    # -- requests to the control store -----------------------------------------------------------------

    def tell_gcs(self, event: gcs_on.Event) -> None:
        """Made again while no control store answers, so that it may come twice."""
        self._ask(event, FIRST_PAUSE_S, self.world.now + GIVE_UP_S)

    def _ask(self, event: gcs_on.Event, pause_s: float, give_up: float) -> None:
        world = self.world

        def again() -> None:
            if self.alive and world.now < give_up:
                world.after(pause_s, self._ask, event, min(2 * pause_s, MOST_PAUSE_S), give_up)

        def done(answered: bool) -> None:
            if not answered or world.random.random() < world.faults.lost_calls:
                again()

        if world.random.random() < world.faults.lost_calls:
            again()
        else:
            self._up.send(self.gcs.ask, self, event, done)

    def _listen(self) -> None:
        self._listening = False
        if self.alive:
            self._up.send(self.gcs.subscribe, self, list(self._wanted))

    def on_stream_broken(self) -> None:
        if not self._listening:
            self._listening = True
            self.world.after(self._pause_s, self._listen)
            self._pause_s = min(2 * self._pause_s, MOST_PAUSE_S)

    def silent_s(self) -> float:
        return self.world.now - self.last_heard

    def _check_silence(self) -> None:
        if self.world.now < self._next_round:
            return
        self._next_round = self.world.now + LEASE_S * 0.1  # as the raylet: an answer or none, and a pause
        silent = self.silent_s()
        if silent <= LEASE_S * DOUBT:
            self._doubt.over()
            return
        others = [node for node in self.peers.values() if node is not self and self.nodes.get(node.node_id)]
        asked = self.world.random.sample(others, min(ASKED, len(others)))
        answers = [node.silent_s() if node.alive and not self.world.is_cut(self.node_id, node.node_id) else None for node in asked]
        if why := self._doubt.judge(silent, answers, LEASE_S):
            self.fence(why)

    # -- ends of this node ------------------------------------------------------------------------------

    def fence(self, why: str) -> None:
        self.world.note(f"node {self.number} fenced: {why}")
        self.crash(silent=False, why=why)

    def crash(self, *, silent: bool, why: str = "crashed") -> None:
        """The raylet and all its processes end. `silent`: with their host."""
        if not self.alive:
            return
        self.world.note(f"node {self.number} ({self.node_id.hex()[:6]}) ends: {why}, silent={silent}")
        self.alive = False
        self.host_gone = silent
        self.ended_because = why
        for core in list(self.cores.values()):
            core.crash(silent=silent)
        if not silent:
            Link(self.world, self.node_id, self.gcs.node_id).send(self.gcs.connection_lost, self.node_id)

    # -- news -------------------------------------------------------------------------------------------

    def on_registered(self, nodes: list[gcs.Node], epoch: int) -> None:
        self._joining = False
        if self.epoch:
            for event in self._deaths:
                self.tell_gcs(event)
        self.epoch = epoch
        self.term.answered(self._asked_at, LEASE_S)
        self._update(nodes)

    def on_gcs_event(self, channel: str, payload: bytes) -> None:
        if not self.alive:
            return
        self._pause_s = FIRST_PAUSE_S
        if channel == "nodes":
            self._update([gcs.Node.FromString(payload)])
        elif channel == "resources":
            nodes = gcs.NodeList.FromString(payload).nodes
            views = [_view(node) for node in nodes if node.node_id != self.node_id and self.nodes.get(node.node_id) and node.alive]
            if views:
                self.feed(on.ViewChanged(views))
        elif channel == "workers":
            self._worker_died_elsewhere(gcs.ReportWorkerDeathRequest.FromString(payload))
        elif channel == "jobs":
            job = gcs.Job.FromString(payload)
            if job.finished:
                self.feed(on.JobFinished(job.job_id))
        else:
            frame = _frame(Type.EVENT, Event(channel, payload).pack())
            for worker_id in sorted(self.channels.get(channel, ())):
                self._send(worker_id, frame)

    def _update(self, nodes: list[gcs.Node]) -> None:
        views = []
        for node in nodes:
            was = self.nodes.get(node.node_id)
            if was is False:
                continue
            self.nodes[node.node_id] = node.alive
            if node.node_id == self.node_id:
                if not node.alive:
                    self.fence("the cluster has declared this node dead")
                continue
            if node.alive:
                views.append(_view(node))
            else:
                self.feed(on.NodeLost(node.node_id, node.death_cause or "it left"))
                self._broadcast(_frame(Type.NODE_DIED, NodeDied(node.node_id, node.death_cause).pack()))
                self.store.died(node.node_id)
        if views:
            self.feed(on.ViewChanged(views))

    def _worker_died_elsewhere(self, death: gcs.ReportWorkerDeathRequest) -> None:
        if death.node_id == self.node_id:
            return
        self.feed(on.WorkerDiedElsewhere(death.worker_id, self._running_for(death.worker_id)))
        task = death.started_task_id or bytes(16)
        self._broadcast(_frame(Type.WORKER_DIED, WorkerDied(death.worker_id, death.node_id, task, death.code, death.cause).pack()))
        self.store.died(death.worker_id)

    # -- clients ----------------------------------------------------------------------------------------

    def connect(self, core: CoreNode) -> Connection:
        connection = Connection(self.world, core, self)
        self.sessions[core.worker_id] = (core, connection)
        self.cores[core.worker_id] = core
        return connection

    def _session(self, connection: Connection) -> bytes:
        return connection.ends[0].worker_id  # type: ignore[attr-defined,no-any-return]

    def on_data(self, connection: Connection, number: int, data: bytes) -> None:
        client = self._session(connection)
        at = 0
        while at < len(data):
            header = unpack_header(data[at : at + HEADER_SIZE])
            payload = data[at + HEADER_SIZE : at + HEADER_SIZE + header.length]
            at += HEADER_SIZE + header.length
            if client in self.sessions:
                self._on_frame(client, header.type, payload)

    def _on_frame(self, client: bytes, type_: int, payload: bytes) -> None:
        if type_ == Type.LEASE_DEMAND:
            demand = LeaseDemand.unpack(payload)
            spec = LeaseSpec.parse(demand.lease_class) if demand.lease_class else None
            self._look_blocked()
            self.feed(on.LeaseDemanded(client, demand.class_id, demand.want, spec))
        elif type_ == Type.LEASE_RETURN:
            given = LeaseReturn.unpack(payload)
            self.feed(on.LeaseReturned(given.lease_id, given.node_id, given.discard))
        elif type_ == Type.ACTOR_CREATED:
            created = ActorCreated.unpack(payload)
            self.feed(on.ActorCreated(client, created.actor_id, created.ok, created.error))
        elif type_ == Type.OWNS:
            owns = Owns.unpack(payload)
            self.feed(on.OwnershipChanged(client, owns.objects, owns.leaving))
        else:
            self.world.check(type_ == Type.HELLO, f"a raylet got a frame of type {type_}")

    def on_closed(self, connection: Connection, number: int) -> None:
        core = self.cores.get(self._session(connection))
        if core is not None and core.is_driver:
            self.cores.pop(core.worker_id, None)
            self._client_gone(core.worker_id)
            self.store.died(core.worker_id)
            self.tell_gcs(gcs_on.JobFinished(core.job_id))
            self.feed(on.JobFinished(core.job_id))
            self._report_death(core.worker_id, bytes(16), Code.WORKER_EXITED, "the driver has gone", True)

    def _client_gone(self, worker_id: bytes) -> None:
        if self.sessions.pop(worker_id, None) is None:
            return
        self.feed(on.ClientGone(worker_id, self._running_for(worker_id)))

    def _running_for(self, client: bytes) -> frozenset[bytes]:
        return frozenset(worker for worker in self.scheduler.leased_to(client) if (core := self.cores.get(worker)) is not None and core.running_task)

    def worker_exited(self, core: CoreNode, started: bytes, code: int) -> None:
        """Its process has ended."""
        if not self.alive or core.worker_id not in self.cores:
            return
        del self.cores[core.worker_id]
        self._client_gone(core.worker_id)
        self.feed(on.WorkerDied(core.worker_id, code, "its process ended", started))

    def add_job(self, job_id: bytes, driver: bytes) -> None:
        job = gcs.Job(job_id=job_id, driver_worker_id=driver, driver_node_id=self.node_id)
        self._up.send(self.gcs.post, gcs_on.JobAdded(job))

    def subscribe(self, client: bytes, channel: str) -> None:
        self.channels.setdefault(channel, set()).add(client)
        self._wanted[channel] = None
        self._up.send(self.gcs.subscribe, self, [channel])

    def _send(self, worker_id: bytes, data: bytes) -> None:
        session = self.sessions.get(worker_id)
        if session is not None:
            session[1].send(session[1].accepted, data)

    def _broadcast(self, data: bytes) -> None:
        for worker_id in list(self.sessions):
            self._send(worker_id, data)

    # -- calls from the GCS and other raylets -----------------------------------------------------------

    def start_actor(self, actor: gcs.Actor, spec: gcs.CreateActorRequest, incarnation: int, reply: Callable[..., None]) -> None:
        number = next(self._numbers)
        self._answers[number] = reply
        placement = pb.LeaseClass(resources=spec.placement.resources, strategy=spec.placement.strategy, job_id=actor.job_id, name="A", bundle_index=-1)
        held = {name: units for name, units in actor.resources.items() if units}
        self.feed(
            on.ActorRequested(
                number, actor.actor_id, incarnation, LeaseSpec.read(placement), held, spec.creation_task, actor.owner_worker_id, actor.owner_node_id,
                actor.detached, actor.name,
            )
        )  # fmt: skip

    def kill_actor(self, effect: gcs_do.KillActor, reply: Callable[..., None]) -> None:
        self.feed(on.KillRequested(effect.worker_id, effect.actor_id, effect.force, effect.reason))
        reply(None)

    def finish_job(self, job_id: bytes, reply: Callable[..., None]) -> None:
        self.feed(on.JobFinished(job_id))
        reply(None)

    def lease_requested(self, effect: do.RequestRemoteLease, reply: Callable[[pb.RequestLeaseReply | None], None]) -> None:
        number = next(self._numbers)
        self._answers[number] = reply
        spec = LeaseSpec.parse(effect.spec.raw)
        self.feed(on.RemoteLeaseRequested(number, spec, effect.hops, effect.client, effect.client_node, effect.wait_s))

    # -- effects ------------------------------------------------------------------------------------------

    def _fork(self, effect: do.ForkWorker) -> None:
        world = self.world

        def register() -> None:
            if self.alive:
                core = CoreNode(world, self, is_driver=False, job_id=bytes(4))
                self.feed(on.WorkerRegistered(effect.fork, core.worker_id, next(self._pids)))

        world.after(self.fork_s * (0.5 + world.random.random()), register)

    def _begin(self, effect: do.BeginLease) -> None:
        if core := self.cores.get(effect.worker_id):
            core.job_id = effect.spec.job
        self._send(effect.worker_id, _frame(Type.LEASE_BEGIN, LeaseBegin(effect.lease_id, b"").pack()))

    def _grant(self, effect: do.GrantLease) -> None:
        key = (effect.node_id, effect.lease_id)
        self.world.check(key not in self.world.granted, f"lease {effect.lease_id} of node {effect.node_id.hex()[:6]} is granted twice")
        self.world.granted.add(key)
        grant = LeaseGrant(effect.class_id, effect.lease_id, effect.worker_id, effect.node_id, effect.address, effect.spread_over)
        self._send(effect.client, _frame(Type.LEASE_GRANT, grant.pack()))

    def _refuse(self, effect: do.RefuseLease) -> None:
        self._send(effect.client, _frame(Type.LEASE_REFUSED, LeaseRefused(effect.class_id, effect.code, effect.reason).pack()))

    def _reclaim(self, effect: do.ReclaimLease) -> None:
        if effect.client_node in (b"", self.node_id):
            self._send(effect.client, _frame(Type.LEASE_RECLAIM, LeaseReclaim(effect.lease_id, effect.node_id).pack()))
        elif effect.client_node in self.peers:
            self._tell_peer(self.peers[effect.client_node], on.ReclaimPassedOn(effect.client, effect.lease_id, effect.node_id))

    def _answer_lease(self, effect: do.AnswerLease) -> None:
        reply = self._answers.pop(effect.request, None)
        address = effect.address or (f"10.0.0.{self.number}:70" if effect.lease_id else "")
        if reply is not None:
            message = pb.RequestLeaseReply(
                granted=effect.lease_id != 0, lease_id=effect.lease_id, worker_id=effect.worker_id, node_id=effect.node_id, address=address,
                reason=effect.reason, free=self.scheduler.available(),
            )  # fmt: skip
            reply(message)

    def _request_remote(self, effect: do.RequestRemoteLease) -> None:
        world, target = self.world, self.peers[effect.node_id]
        there, back = Link(world, self.node_id, target.node_id), Link(world, target.node_id, self.node_id)

        def answer(reply: pb.RequestLeaseReply | None) -> None:
            event = on.RemoteLeaseAnswered(effect.request, False, reason="that node does not answer")
            if reply is not None:
                event = on.RemoteLeaseAnswered(
                    effect.request, reply.granted, reply.lease_id, reply.worker_id, reply.node_id, reply.address, reply.reason, dict(reply.free)
                )  # fmt: skip
            self.feed(event)

        def send_back(reply: pb.RequestLeaseReply | None) -> None:
            back.send(answer, None if world.random.random() < world.faults.lost_calls else reply)

        def arrive() -> None:
            if target.alive:
                target.lease_requested(effect, send_back)
            elif not target.host_gone:
                back.send(answer, None)

        there.send(arrive)

    def _return_remote(self, effect: do.ReturnRemoteLease) -> None:
        target = self.peers.get(effect.node_id)
        if target is None:
            return
        running = effect.client_gone

        def arrive() -> None:
            core = target.cores.get(target.scheduler.lease_worker(effect.lease_id))
            busy = running and core is not None and bool(core.running_task)
            target.feed(on.LeaseReturned(effect.lease_id, target.node_id, effect.discard, effect.client_gone, busy))
            Link(self.world, target.node_id, self.node_id).send(self.feed, on.NodeSpoke(target.node_id, target.scheduler.available()))

        Link(self.world, self.node_id, target.node_id).send(arrive)

    def _tell_peer(self, target: RayletNode, event: on.Event) -> None:
        Link(self.world, self.node_id, target.node_id).send(target.feed, event)

    def _create_actor(self, effect: do.CreateActorOn) -> None:
        self._send(effect.worker_id, _frame(Type.ACTOR_CREATE, effect.creation_task))

    def _answer_actor(self, effect: do.AnswerActor) -> None:
        reply = self._answers.pop(effect.request, None)
        if reply is not None:
            status = gcs_on.StartStatus(effect.status)
            reply((status, effect.worker_id, effect.pid, effect.error, effect.reason, effect.code))

    def _exit(self, effect: do.ExitWorker) -> None:
        self._send(effect.worker_id, _frame(Type.EXIT, Exit(effect.force, effect.reason).pack()))
        if not effect.patient:
            self.world.after(EXIT_GRACE_S, self._kill_now, effect.worker_id)

    def _kill(self, effect: do.KillWorker) -> None:
        self._kill_now(effect.worker_id)

    def _kill_now(self, worker_id: bytes) -> None:
        core = self.cores.get(worker_id)
        if core is not None:
            core.crash(silent=False)

    def _tell_died(self, effect: do.TellWorkerDied) -> None:
        self._broadcast(_frame(Type.WORKER_DIED, WorkerDied(effect.worker_id, self.node_id, effect.started_task, effect.code, effect.cause).pack()))
        self.store.died(effect.worker_id)
        self._report_death(effect.worker_id, effect.started_task, effect.code, effect.cause, effect.intended, effect.actors)

    def _report_death(self, worker_id: bytes, task: bytes, code: int, cause: str, intended: bool, actors: list[bytes] | None = None) -> None:
        request = gcs.ReportWorkerDeathRequest(
            worker_id=worker_id, node_id=self.node_id, code=code, cause=cause, actor_ids=actors or [], intended=intended,
            started_task_id=task if any(task) else b"",
        )  # fmt: skip
        self._deaths.append(gcs_on.WorkerDied(request))
        self.tell_gcs(self._deaths[-1])


def _frame(type_: int, payload: bytes) -> bytes:
    return pack_header(len(payload), type_, epoch=1) + payload


def _view(node: gcs.Node) -> NodeView:
    return NodeView(
        node_id=node.node_id, total=dict(node.resources), available=dict(node.available), labels=dict(node.labels), alive=True, draining=node.draining,
        queued=node.queued_leases, bundles={},
    )  # fmt: skip


_EFFECTS: dict[type, Callable[[RayletNode, Any], None]] = {
    do.ForkWorker: RayletNode._fork,
    do.BeginLease: RayletNode._begin,
    do.GrantLease: RayletNode._grant,
    do.RefuseLease: RayletNode._refuse,
    do.ReclaimLease: RayletNode._reclaim,
    do.AnswerLease: RayletNode._answer_lease,
    do.RequestRemoteLease: RayletNode._request_remote,
    do.ReturnRemoteLease: RayletNode._return_remote,
    do.CreateActorOn: RayletNode._create_actor,
    do.AnswerActor: RayletNode._answer_actor,
    do.ExitWorker: RayletNode._exit,
    do.KillWorker: RayletNode._kill,
    do.TellWorkerDied: RayletNode._tell_died,
}
