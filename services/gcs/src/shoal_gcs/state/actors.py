"""Actors: records, names, lives and deaths. Where they go is decided in `actor_placement`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from shoal_base.errors import Code

from ..v1 import gcs_pb2 as pb
from .actor_placement import ActorPlacement, Life
from .effects import Answer, DeleteRecord, KillActor, Persist, Publish, StartActor
from .events import ActorStartAnswered, StartStatus
from .history import History
from .kept import KeptStates, check_life
from .nodes import Nodes
from .placement_groups import PlacementGroups
from .turn import Refusal, Refused, Turn

TABLE = "actors"
SPEC_TABLE = "actor_specs"
NEVER_HELD = "the last handle to it went before it was created"
MAX_DEAD_WORKERS = 20_000  # Limit: remembered, so that an answer that was overtaken by a death report is recognised


class Actors:
    def __init__(self, turn: Turn, nodes: Nodes, groups: PlacementGroups, infeasible_timeout_ms: int, history: History | None = None) -> None:
        self._turn = turn
        self._history = history or History()
        self._nodes = nodes
        self.placement = ActorPlacement(turn, nodes, groups, infeasible_timeout_ms, start=self._start, changed=self._publish, give_up=self._end)
        self.lives: dict[bytes, Life] = {}
        self.kept = KeptStates(turn, self.lives)
        self.dead: OrderedDict[bytes, pb.Actor] = OrderedDict()  # in the order of their deaths; kept for listing and for late questions
        self._names: dict[tuple[str, str], bytes] = {}
        self._owned_by: dict[bytes, set[bytes]] = {}
        self._on_node: dict[bytes, set[bytes]] = {}
        self._dead_workers: OrderedDict[bytes, tuple[int, str]] = OrderedDict()
        self.on_death: Callable[[pb.Actor], None] = lambda actor: None
        self.most_of_job: Callable[[bytes], int] = lambda job_id: 0

    # -- questions

    def get(self, actor_id: bytes) -> pb.Actor | None:
        life = self.lives.get(actor_id)
        return life.record if life is not None else self.dead.get(actor_id)

    def named(self, namespace: str, name: str) -> pb.Actor | None:
        actor_id = self._names.get((namespace, name))
        return None if actor_id is None else self.lives[actor_id].record

    def __iter__(self) -> Iterator[pb.Actor]:
        yield from (life.record for life in self.lives.values())
        yield from self.dead.values()

    # -- requests

    def create(self, request: pb.CreateActorRequest) -> None:
        actor = request.actor
        if len(actor.actor_id) != 16:
            raise Refused(Refusal.INVALID, f"actor_id has {len(actor.actor_id)} bytes, not 16")
        if actor.max_restarts < -1:
            raise Refused(Refusal.INVALID, f"max_restarts={actor.max_restarts}: -1 means without end, otherwise it is a count")
        known = self.get(actor.actor_id)
        unclaimed = known is not None and not known.start_ms  # its last handle went first
        if known is not None and not unclaimed:  # the same request again, after an answer that was lost
            self._turn.emit(Answer(known))
            return
        if actor.name:
            holder = self.named(actor.namespace, actor.name)
            if holder is not None and request.get_if_exists:
                self._turn.emit(Answer(holder))
                return
            if holder is not None:
                raise Refused(
                    Refusal.ALREADY_EXISTS,
                    f"actor name {actor.name!r} in namespace {actor.namespace!r} is taken by actor {holder.actor_id.hex()}; "
                    "use another name, get_if_exists=True, or kill that actor",
                )
        self._check_job(actor)
        self.dead.pop(actor.actor_id, None)
        life = self._admit(request)
        life.record.state = pb.ACTOR_PENDING
        life.record.start_ms = self._turn.at.unix_ms
        self._turn.emit(Persist(SPEC_TABLE, life.actor_id, life.spec.SerializeToString()))
        self._owner_check(life)
        if unclaimed and life.actor_id in self.lives:
            self._end(life, Code.OUT_OF_SCOPE, NEVER_HELD)
        if life.actor_id in self.lives:
            self.placement.place(life)
        if life.actor_id in self.lives and life.placing_on is None:
            self._changed(life)
        self._turn.emit(Answer(life.record))

    def kill(self, actor_id: bytes, no_restart: bool, force: bool, reason: str) -> None:
        life = self.lives.get(actor_id)
        if life is None:
            if actor_id in self.dead:
                return
            raise Refused(Refusal.NOT_FOUND, f"no actor {actor_id.hex()}")
        why = reason or "killed by shoal.kill()"
        if no_restart:
            self._end(life, Code.KILLED_BY_USER, why, force=force)
        elif life.record.state == pb.ACTOR_ALIVE:
            # Its raylet reports the death, and that restarts it or not.
            self._turn.emit(KillActor(life.record.node_id, actor_id, life.record.worker_id, force, why))

    def node_draining(self, node_id: bytes) -> None:
        """Those that may start again, and can elsewhere, go: each ends after its running call, and its restart is not charged."""
        for actor_id in list(self._on_node.get(node_id, ())):
            life = self.lives[actor_id]
            record = life.record
            # One in a placement group moves with its bundle, when the node has ended.
            if record.state != pb.ACTOR_ALIVE or not record.max_restarts or life.migrating or life.request.pg_id:
                continue
            if self.placement.has_room(life):
                life.migrating = True
                self._turn.emit(KillActor(node_id, actor_id, record.worker_id, False, "its node is draining, and it starts elsewhere", migrate=True))

    def keep_arguments(self, arguments: pb.ActorArguments) -> None:
        life = self.lives.get(arguments.actor_id)
        check_life(life, arguments.actor_id, arguments.incarnation)
        assert life is not None
        life.spec.creation_task = arguments.creation_task
        self._turn.emit(Persist(SPEC_TABLE, life.actor_id, life.spec.SerializeToString()))

    def out_of_scope(self, actor_id: bytes) -> None:
        life = self.lives.get(actor_id)
        if life is not None and not life.record.detached:
            self._end(life, Code.OUT_OF_SCOPE, "the last handle to it is gone", force=False)
        elif life is None and actor_id not in self.dead:
            self._bury_unborn(actor_id)

    def _bury_unborn(self, actor_id: bytes) -> None:
        """Its creation is under way: both requests are made again while no control store answers, and may overtake each other.

        On record, since this control store may end in between. `start_ms` is 0 until the creation comes.
        """
        record = pb.Actor(actor_id=actor_id, state=pb.ACTOR_DEAD, death_code=Code.OUT_OF_SCOPE, death_cause=NEVER_HELD, end_ms=self._turn.at.unix_ms)
        self.dead[actor_id] = record
        self._turn.emit(Persist(TABLE, actor_id, record.SerializeToString()))
        self._turn.emit(Publish((f"actor:{actor_id.hex()}", "actors"), record.SerializeToString()))
        self.forget()

    # -- what raylets tell

    def start_answered(self, event: ActorStartAnswered) -> None:
        life = self.lives.get(event.actor_id)
        if life is None or life.placing_on != event.node_id or life.record.incarnation != event.incarnation:
            if event.status is StartStatus.STARTED:  # Invariant: a life that is not on record does not go on
                self._turn.emit(KillActor(event.node_id, event.actor_id, event.worker_id, True, "this life of the actor was given up meanwhile"))
            return
        dead_worker = self._dead_workers.get(event.worker_id) if event.worker_id else None
        if event.status is StartStatus.STARTED and dead_worker is None:
            self.placement.started(life)
            self._alive(life, event)
        elif event.status is StartStatus.NO_RESOURCES:
            self._leave_node(life)
            self.placement.refused(life, event.reason)
        elif event.status is StartStatus.INIT_RAISED:
            self.placement.abandoned(life)
            life.record.death_error = event.error
            self._end(life, Code.INIT_RAISED, event.reason or f"__init__ of {life.record.class_name} raised", kill=False)
        elif event.status is StartStatus.ENVIRONMENT_FAILED:
            self.placement.abandoned(life)
            self._end(life, Code.ENVIRONMENT_FAILED, event.reason or "its environment could not be made", kill=False)
        else:
            self.placement.abandoned(life)
            code, cause = dead_worker or (event.code or Code.WORKER_CRASHED, event.reason or "its worker died during __init__")
            self._worker_lost(life, code, cause)

    def worker_died(self, report: pb.ReportWorkerDeathRequest) -> None:
        code = report.code or Code.WORKER_CRASHED
        self._dead_workers[report.worker_id] = (code, report.cause)
        if len(self._dead_workers) > MAX_DEAD_WORKERS:
            self._dead_workers.popitem(last=False)
        for actor_id in list(self._on_node.get(report.node_id, ())):
            life = self.lives[actor_id]
            if life.record.worker_id == report.worker_id:
                # Killed, and not on record as dead: whoever killed it lets it restart.
                if report.intended and not report.migrated and code != Code.KILLED_BY_USER:
                    self._end(life, code, report.cause or "it ended itself", kill=False)
                else:
                    self._worker_lost(life, code, report.cause or "its worker died", charged=not report.migrated)
        for actor_id in list(self._owned_by.get(report.worker_id, ())):
            life = self.lives[actor_id]
            self._end(life, Code.OWNER_DIED, f"its owner, worker {report.worker_id.hex()[:12]}, died: {report.cause or 'no cause given'}")

    def node_died(self, node_id: bytes, cause: str) -> None:
        for actor_id in list(self._on_node.pop(node_id, ())):
            life = self.lives[actor_id]
            self.placement.abandoned(life)
            self._worker_lost(life, Code.NODE_DIED, f"node {node_id.hex()[:12]} died: {cause}")
        for life in list(self.lives.values()):
            if life.record.owner_node_id == node_id and not life.record.detached:
                self._end(life, Code.OWNER_DIED, f"its owner's node {node_id.hex()[:12]} died: {cause}")

    def node_registered(self, node_id: bytes, live_actors: tuple[bytes, ...]) -> None:
        """What the raylet has and what is on record are made one: after a restart of either side's connection."""
        there = set(live_actors)
        for actor_id in list(self._on_node.get(node_id, ())):
            life = self.lives[actor_id]
            if life.record.state == pb.ACTOR_ALIVE and actor_id not in there:
                self._worker_lost(life, Code.WORKER_CRASHED, "its worker died while the control store was away")
            elif life.unfinished:  # raylets start each incarnation once, whoever asks twice
                life.unfinished = False
                self.placement.resume(life, node_id)
                self._turn.emit(StartActor(node_id, life.record.incarnation, life.record, life.spec))
        for actor_id in there:
            known = self.lives.get(actor_id)
            if known is None or known.record.node_id != node_id:
                self._turn.emit(KillActor(node_id, actor_id, b"", True, "it is not on record at the control store"))

    # -- cascades

    def job_finished(self, job_id: bytes) -> None:
        for life in list(self.lives.values()):
            if life.record.job_id == job_id and not life.record.detached:
                self._end(life, Code.JOB_FINISHED, f"its job {job_id.hex()} has finished")
        for actor in self.dead.values():
            if actor.job_id == job_id:
                self._turn.emit(DeleteRecord(TABLE, actor.actor_id))

    def group_removed(self, group_id: bytes) -> None:
        for life in list(self.lives.values()):
            if life.request.pg_id == group_id:
                self._end(life, Code.PLACEMENT_GROUP_REMOVED, f"its placement group {group_id.hex()} was removed")

    # -- after a restart

    def load(self, actor: pb.Actor, spec: pb.CreateActorRequest | None) -> None:
        if actor.state == pb.ACTOR_DEAD or spec is None:
            self.dead[actor.actor_id] = actor
            return
        spec.actor.CopyFrom(actor)
        life = self._admit(spec)
        if actor.node_id:
            self._on_node.setdefault(actor.node_id, set()).add(actor.actor_id)
            life.unfinished = actor.state != pb.ACTOR_ALIVE
        else:
            self.placement.wait(life, "the control store was restarted")

    def settle_after_load(self) -> None:
        """What was on nodes that are no more."""
        self.dead = OrderedDict(sorted(self.dead.items(), key=lambda row: row[1].end_ms))
        for node_id in [node_id for node_id in self._on_node if not self._nodes.is_alive(node_id)]:
            self.node_died(node_id, "it is not on record")

    # -- lives

    def _check_job(self, actor: pb.Actor) -> None:
        most = self.most_of_job(actor.job_id)
        if most and sum(life.record.job_id == actor.job_id for life in self.lives.values()) >= most:
            raise Refused(Refusal.LIMIT, f"job {actor.job_id.hex()} has {most} living actors, as many as its JobConfig(max_actors={most}) allows")

    def _admit(self, request: pb.CreateActorRequest) -> Life:
        record = pb.Actor()
        record.CopyFrom(request.actor)
        request.ClearField("actor")
        life = Life(record, request)
        actor_id = life.actor_id
        self.lives[actor_id] = life
        if record.name:
            self._names[record.namespace, record.name] = actor_id
        if not record.detached and record.owner_worker_id:
            self._owned_by.setdefault(record.owner_worker_id, set()).add(actor_id)
        return life

    def _owner_check(self, life: Life) -> None:
        record = life.record
        if not record.detached and record.owner_worker_id in self._dead_workers:
            self._end(life, Code.OWNER_DIED, f"its owner, worker {record.owner_worker_id.hex()[:12]}, died")

    def _start(self, life: Life, node_id: bytes) -> None:
        record = life.record
        record.node_id = node_id
        record.pending_reason = ""
        self._on_node.setdefault(node_id, set()).add(life.actor_id)
        self._changed(life)
        self._turn.emit(StartActor(node_id, record.incarnation, record, life.spec))

    def _alive(self, life: Life, event: ActorStartAnswered) -> None:
        record = life.record
        record.state = pb.ACTOR_ALIVE
        record.worker_id, record.pid = event.worker_id, event.pid
        record.address = self._nodes.living[event.node_id].record.address
        record.pending_reason = ""
        if record.max_restarts == 0:
            life.spec.ClearField("creation_task")  # its arguments are not needed again
        self._changed(life)

    def _worker_lost(self, life: Life, code: int, cause: str, *, charged: bool = True) -> None:
        record = life.record
        if charged and record.max_restarts != -1 and record.restarts >= record.max_restarts:
            self._end(life, code, cause, kill=False)
            return
        self._free(life)
        self._leave_node(life)
        record.state = pb.ACTOR_RESTARTING
        record.restarts += charged
        life.migrating = False
        record.incarnation += 1
        record.death_code, record.death_cause = code, cause
        life.unfinished = False
        self.placement.place(life)
        if life.placing_on is None and life.actor_id in self.lives:
            self._changed(life)

    def _end(self, life: Life, code: int, cause: str, *, force: bool = True, kill: bool = True) -> None:
        """Invariant: what may still run of it is told to end, and its name is free again."""
        record, actor_id = life.record, life.actor_id
        node_id = life.placing_on or record.node_id
        if kill and node_id and self._nodes.is_alive(node_id):
            self._turn.emit(KillActor(node_id, actor_id, record.worker_id, force, cause))
        self._free(life)
        self._leave_node(life, keep_place=True)
        del self.lives[actor_id]
        if record.name and self._names.get((record.namespace, record.name)) == actor_id:
            del self._names[record.namespace, record.name]
        owned = self._owned_by.get(record.owner_worker_id)
        if owned is not None:
            owned.discard(actor_id)
            if not owned:
                del self._owned_by[record.owner_worker_id]
        record.state, record.death_code, record.death_cause = pb.ACTOR_DEAD, code, cause
        record.end_ms, record.pending_reason = self._turn.at.unix_ms, ""
        self.dead[actor_id] = record
        self._turn.emit(DeleteRecord(SPEC_TABLE, actor_id))
        self.kept.forget(actor_id)
        self._changed(life)
        if code == Code.JOB_FINISHED:
            self._turn.emit(DeleteRecord(TABLE, actor_id))
        self.forget()
        self.on_death(record)

    def forget(self) -> None:
        """Those that are dead for too long, or too many."""
        before = self._turn.at.unix_ms - self._history.age_ms
        while self.dead:
            oldest, record = next(iter(self.dead.items()))
            if len(self.dead) <= self._history.dead_actors and record.end_ms >= before:
                return
            del self.dead[oldest]
            self._turn.emit(DeleteRecord(TABLE, oldest))

    def _free(self, life: Life) -> None:
        """What it held is free again in our view; its raylet's next report has the last word."""
        record = life.record
        self.placement.abandoned(life)
        node = self._nodes.living.get(record.node_id)
        if record.state == pb.ACTOR_ALIVE and node is not None and not life.request.pg_id:
            node.release(record.resources)

    def _leave_node(self, life: Life, keep_place: bool = False) -> None:
        record = life.record
        there = self._on_node.get(record.node_id)
        if there is not None:
            there.discard(life.actor_id)
            if not there:
                del self._on_node[record.node_id]
        if not keep_place:
            record.node_id, record.worker_id, record.address, record.pid = b"", b"", "", 0

    def _changed(self, life: Life) -> None:
        record = life.record.SerializeToString()
        self._turn.emit(Persist(TABLE, life.actor_id, record))
        self._turn.emit(Publish((life.channel, "actors"), record))

    def _publish(self, life: Life) -> None:
        """A change that need not outlive us."""
        self._turn.emit(Publish((life.channel, "actors"), life.record.SerializeToString()))
