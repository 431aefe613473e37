"""The gRPC service Gcs: requests become events, effects become calls, writes and messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from . import __version__
from .allowances import Allowances
from .calls import CallRefused, CallStream, Kept, not_recorded
from .config import Config
from .leadership import Term
from .pubsub import Hub
from .raylets import Contract, Raylets
from .show import metrics_text
from .state import Cluster, History, Instant, Refusal, Refused
from .state import effects as do
from .state import events as on
from .storage import Opened, StorageError, Writer
from .subscription import Context, serve_subscriber
from .v1 import gcs_pb2 as pb

NAME = "shoal.gcs.v1.Gcs"
# What a user's token may ask; all else takes the node secret.
_LOOKING = ("ListNodes", "GetJob", "ListJobs", "GetActor", "ListActors", "GetPlacementGroup", "ListPlacementGroups", "Info", "Metrics")
USER_METHODS = frozenset(f"/{NAME}/{method}" for method in (*_LOOKING, "DrainNode"))
MAX_WAIT_S = 600.0  # Limit: of one WaitPlacementGroup or KvGet; ask again after it
MAX_LISTED = 10_000
TICK_S = 0.25
RESOURCE_TICK_S = 0.1
NODES_A_TICK = 100  # with more nodes the resource tick is longer in proportion

_EMPTY = b""
KILL_WAIT_S = 1.0
# What others learn or do by them must not be undone by a kill, so they wait for what was written before them.
_OUTWARD = frozenset([
    do.Publish, do.StartActor, do.KillActor, do.ChangeBundles, do.FinishJobOn, do.DrainRaylet, do.ForgetNode, do.WakeGroupWaiters, do.WakeKeyWaiters,
])  # fmt: skip
_SETTLED = (pb.PG_CREATED, pb.PG_REMOVED)
_STATUS = {
    Refusal.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Refusal.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_FAILURES = (Refused, StorageError, DecodeError)
# What a head answers whose term is over: nothing in it is a decision.
_ALWAYS = frozenset(["Heartbeat", "Info", "Metrics"])
_log = logging.getLogger(__name__)

Reply: TypeAlias = Message | bytes
Answer: TypeAlias = Message | bytes | Awaitable[Message | bytes]  # most answers are there at once, and cost no coroutine


class Service:
    """Everything on one event loop. `fail` is called when the control store cannot go on."""

    def __init__(
        self, config: Config, opened: Opened, writer: Writer, contract: Contract | None, secret: bytes | None, term: Term | None = None
    ) -> None:  # fmt: skip
        self.config = config
        self.opened = opened
        self.writer = writer
        self.term = term or Term.endless()
        self.standbys: list[str] = []
        self.start_ms = int(time.time() * 1000)
        history = History(
            config.dead_actors_kept, config.dead_nodes_kept, config.finished_jobs_kept, age_ms=int(config.history_s * 1000)
        )
        self.cluster = Cluster(
            lease_ms=int(config.lease_s * 1000), infeasible_timeout_ms=int(config.infeasible_timeout_s * 1000), history=history
        )
        self.hub = Hub(self.cluster.snapshot)
        self.raylets = Raylets(contract, secret, self._address_of, self.post, opened.epoch)
        self.allowances = Allowances(lambda: self.cluster.nodes.living, self.raylets.get, self.cluster.jobs.get)
        self._contract = contract
        self._loop = asyncio.get_running_loop()
        self._group_waiters: dict[bytes, list[asyncio.Future[None]]] = {}
        self._key_waiters: dict[tuple[str, bytes], list[asyncio.Future[None]]] = {}
        self._resource_tick: asyncio.TimerHandle | None = None
        self._resources_told = 0.0
        self._outward: deque[tuple[asyncio.Future[None] | None, list[do.Effect]]] = deque()
        self._tick: asyncio.TimerHandle | None = None
        self._known = pb.HeartbeatReply(known=True, gcs_epoch=opened.epoch, cluster_id=opened.cluster_id).SerializeToString()
        self._late = pb.HeartbeatReply(known=True, gcs_epoch=opened.epoch, cluster_id=opened.cluster_id, term_over=True).SerializeToString()
        self._unknown = pb.HeartbeatReply(known=False, gcs_epoch=opened.epoch, cluster_id=opened.cluster_id).SerializeToString()
        self.handled = 0
        self._doers: dict[type, Callable[[Any], object]] = {
            do.Persist: lambda effect: writer.put(effect.table, effect.key, effect.record),
            do.DeleteRecord: lambda effect: writer.put(effect.table, effect.key, None),
            do.Publish: self._publish,
            do.StartActor: self._start_actor,
            do.KillActor: lambda effect: self._to_raylet(effect.node_id, lambda raylet: raylet.kill_actor(effect)),
            do.ChangeBundles: self._change_bundles,
            do.FinishJobOn: lambda effect: self._to_raylet(effect.node_id, lambda raylet: raylet.finish_job(effect.job_id)),
            do.DrainRaylet: lambda effect: self._to_raylet(effect.node_id, lambda raylet: raylet.drain(effect)),
            do.ProbeNode: lambda effect: self.raylets.probe(effect.node_id, effect.address),
            do.ForgetNode: lambda effect: self.raylets.forget(effect.node_id),
            do.WakeGroupWaiters: lambda effect: _wake(self._group_waiters.pop(effect.group_id, ())),
            do.WakeKeyWaiters: lambda effect: _wake(self._key_waiters.pop((effect.namespace, effect.key), ())),
        }

    def start(self) -> None:
        """Takes up the stored state. Raises google.protobuf's DecodeError on a damaged record."""
        self._do(self.cluster.load(self.opened.records, self._now()))
        self.opened.records = {}
        self._tick = self._loop.call_later(TICK_S, self._time_passed)

    def tell_raylets(self, address: str) -> None:
        """Those of before: the head is here now. They would find it by themselves, but later."""
        for node_id in list(self.cluster.nodes.living) if self.opened.epoch > 1 else ():
            self._to_raylet(node_id, lambda raylet: raylet.head_changed(address))

    def stand_by_changed(self, standbys: list[str]) -> None:
        _log.info("heads that stand by: %s", ", ".join(standbys) or "none")
        self.standbys = standbys

    def check_term(self, method: str) -> None:
        """Raises CallRefused: another head may lead already."""
        if self.term.over() and method not in _ALWAYS:
            raise CallRefused(grpc.StatusCode.UNAVAILABLE, "the term of this head is over, and its storage does not answer: another one may have taken over")

    async def close(self) -> None:
        for timer in (self._tick, self._resource_tick):
            if timer is not None:
                timer.cancel()
        await self.raylets.close()
        for waiters in (*self._group_waiters.values(), *self._key_waiters.values()):
            _wake(waiters)

    # -- the one door, and what comes out of it

    def post(self, event: on.Event) -> None:
        """An event that nobody waits for."""
        try:
            self._handle(event)
        except Refused as refused:
            _log.info("%s: %s", type(event).__name__, refused)

    def ask(self, event: on.Event) -> Answer:
        """Answered once what must outlive us has reached the storage."""
        return self._kept(self._handle(event))

    def _kept(self, reply: Reply) -> Answer:
        """Nobody is told of what a kill at this moment would undo."""
        durable = self.writer.durable()
        return reply if durable is None else Kept(durable, _to_bytes(reply))  # as it is now: a later change of it may not be kept yet by then

    def _handle(self, event: on.Event) -> Reply:
        self.handled += 1
        return self._do(self.cluster.handle(event, self._now()))

    def _do(self, effects: list[do.Effect]) -> Reply:
        reply: Reply = _EMPTY
        outward = []
        for effect in effects:
            if type(effect) is do.Answer:
                reply = effect.message
            elif type(effect) in _OUTWARD:
                outward.append(effect)
            else:
                self._doers[type(effect)](effect)
        if outward:
            self._send_out(outward)
        if self._resource_tick is None and self.cluster.nodes.dirty:
            self._plan_resource_tick()
        return reply

    def _send_out(self, effects: list[do.Effect]) -> None:
        """Once all is stored that was decided so far, and in the order of the decisions."""
        try:
            durable = self.writer.durable()
        except StorageError:
            return  # the control store ends: its successor decides again, from what is stored
        if durable is None and not self._outward:
            self._act(effects)
            return
        self._outward.append((durable, effects))
        if durable is not None:
            durable.add_done_callback(self._stored)

    def _stored(self, durable: asyncio.Future[None]) -> None:
        if durable.cancelled() or durable.exception() is not None:
            self._outward.clear()
            return
        while self._outward and ((waits_for := self._outward[0][0]) is None or waits_for.done()):
            self._act(self._outward.popleft()[1])

    def _act(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            self._doers[type(effect)](effect)

    def _now(self) -> Instant:
        return Instant(int(time.time() * 1000), int(time.monotonic() * 1000), random.random())

    def _publish(self, effect: do.Publish) -> None:
        for channel in effect.channels:
            self.hub.publish(channel, effect.payload)

    def _address_of(self, node_id: bytes) -> tuple[str, str] | None:
        node = self.cluster.nodes.living.get(node_id)
        return None if node is None else (node.record.address, node.record.node_dir)

    def _to_raylet(self, node_id: bytes, call: Callable[[Any], None]) -> bool:
        raylet = self.raylets.get(node_id)
        if raylet is not None:
            call(raylet)
        return raylet is not None

    def _start_actor(self, effect: do.StartActor) -> None:
        if not self._to_raylet(effect.node_id, lambda raylet: raylet.start_actor(effect)):
            why = self._unreachable()
            event = on.ActorStartAnswered(effect.actor.actor_id, effect.incarnation, effect.node_id, on.StartStatus.NO_RESOURCES, reason=why)
            self._loop.call_soon(self.post, event)

    def _change_bundles(self, effect: do.ChangeBundles) -> None:
        if not self._to_raylet(effect.node_id, lambda raylet: raylet.change_bundles(effect)):
            why = self._unreachable()
            self._loop.call_soon(self.post, on.BundlesChanged(effect.node_id, effect.step, effect.group_id, effect.attempt, False, why))

    def _unreachable(self) -> str:
        if self._contract is None:
            return "this control store cannot call raylets: install shoal-raylet beside it, which brings their contract"
        return "the node is gone"

    # -- timers

    def _time_passed(self) -> None:
        self._tick = self._loop.call_later(TICK_S, self._time_passed)
        if not self.term.over():  # else nobody is declared dead: this time is counted as our own silence, not theirs
            self.post(on.TimePassed())

    def _plan_resource_tick(self) -> None:
        # The first change after a quiet time goes out at once; then one batch a tick.
        period = RESOURCE_TICK_S * max(1.0, len(self.cluster.nodes.living) / NODES_A_TICK)
        delay = max(0.0, self._resources_told + period - self._loop.time())
        self._resource_tick = self._loop.call_later(delay, self._tell_resources)

    def _tell_resources(self) -> None:
        self._resource_tick = None
        self._resources_told = self._loop.time()
        self.post(on.ResourceTickCame())

    # -- nodes

    async def register_node(self, request: pb.RegisterNodeRequest) -> Reply:
        _check_python(request.node)
        await _settled(self.ask(on.NodeRegistered(request.node, tuple(request.live_actors), tuple(request.live_groups))))
        config = self.config
        return pb.RegisterNodeReply(
            heartbeat_ms=int(config.heartbeat_s * 1000),
            lease_ms=int(config.lease_s * 1000),
            cluster_id=self.opened.cluster_id,
            gcs_epoch=self.opened.epoch,
            nodes=(node.record for node in self.cluster.nodes.living.values()),
        )

    def heartbeat(self, request: pb.HeartbeatRequest) -> Answer:
        self.post(on.NodeBeat(request))
        if not self.cluster.nodes.is_known(request.node_id):
            return self._unknown
        return self._late if self.term.over() else self._known

    def unregister_node(self, request: pb.UnregisterNodeRequest) -> Answer:
        return self.ask(on.NodeLeft(request.node_id, request.reason))

    def drain_node(self, request: pb.DrainNodeRequest) -> Answer:
        node = self.cluster.nodes.living.get(request.node_id)
        if node is not None and node.record.is_head and not self._another_head(request.node_id):
            raise Refused(Refusal.INVALID, f"node {request.node_id.hex()} is the head, and no other head stands by: the cluster would end with it")
        within_ms = request.within_ms or (max(1, request.deadline_ms - int(time.time() * 1000)) if request.deadline_ms else 0)
        return self.ask(on.NodeDrainRequested(request.node_id, request.reason, within_ms))

    def _another_head(self, node_id: bytes) -> bool:
        return bool(self.standbys) and any(node.record.is_head and node.node_id != node_id for node in self.cluster.nodes.living.values())

    def list_nodes(self, request: pb.Empty) -> Answer:
        return self._kept(pb.NodeList(nodes=self.cluster.nodes))

    # -- jobs

    def add_job(self, request: pb.AddJobRequest) -> Answer:
        return self.ask(on.JobAdded(request.job))

    def finish_job(self, request: pb.FinishJobRequest) -> Answer:
        return self.ask(on.JobFinished(request.job_id))

    async def ask_allowance(self, request: pb.AllowanceQuery) -> Reply:
        try:
            return await self.allowances.ask(request)
        except grpc.aio.AioRpcError as error:
            raise CallRefused(error.code(), f"node {request.node_id.hex()[:12]}: {error.details()}") from error

    def get_job(self, request: pb.JobQuery) -> Answer:
        job = self.cluster.jobs.get(request.job_id)
        if job is None:
            raise Refused(Refusal.NOT_FOUND, f"no job {request.job_id.hex()}")
        return self._kept(job)

    def list_jobs(self, request: pb.Empty) -> Answer:
        return self._kept(pb.JobList(jobs=self.cluster.jobs))

    # -- actors

    def create_actor(self, request: pb.CreateActorRequest) -> Answer:
        return self.ask(on.ActorRequested(request))

    def get_actor(self, request: pb.ActorQuery) -> Answer:
        if request.actor_id:
            actor = self.cluster.actors.get(request.actor_id)
            if actor is None:
                raise Refused(Refusal.NOT_FOUND, f"no actor {request.actor_id.hex()}")
            return self._kept(actor)
        actor = self.cluster.actors.named(request.namespace, request.name)
        if actor is None:
            raise Refused(Refusal.NOT_FOUND, f"no living actor is named {request.name!r} in namespace {request.namespace!r}")
        return self._kept(actor)

    def list_actors(self, request: pb.ListActorsRequest) -> Answer:
        chosen = pb.ActorList()
        limit = request.limit or MAX_LISTED
        for actor in self.cluster.actors:
            if request.named_only and (not actor.name or actor.state == pb.ACTOR_DEAD):
                continue
            if not request.all_namespaces and request.namespace and actor.namespace != request.namespace:
                continue
            if len(chosen.actors) >= limit:
                break
            chosen.actors.append(actor)
        return self._kept(chosen)

    async def kill_actor(self, request: pb.KillActorRequest) -> Reply:
        """Answered when its process is gone: a call that is made after kill() must not reach it. A node that cannot be heard is not waited for."""
        actor = self.cluster.actors.get(request.actor_id)
        raylet = self.raylets.get(actor.node_id) if actor is not None else None
        reply = await _settled(self.ask(on.ActorKillRequested(request.actor_id, request.no_restart, request.force, request.reason)))
        if raylet is not None and request.force:
            await raylet.told(request.actor_id, KILL_WAIT_S)
        return reply

    def actor_out_of_scope(self, request: pb.ActorOutOfScopeRequest) -> Answer:
        return self.ask(on.ActorWentOutOfScope(request.actor_id))

    def report_worker_death(self, request: pb.ReportWorkerDeathRequest) -> Answer:
        return self.ask(on.WorkerDied(request))

    def keep_checkpoint(self, request: pb.ActorCheckpoint) -> Answer:
        return self.ask(on.CheckpointKept(request))

    def get_checkpoint(self, request: pb.ActorQuery) -> Answer:
        state = self.cluster.actors.kept.get(request.actor_id)
        return self._kept(pb.ActorCheckpoint(actor_id=request.actor_id) if state is None else state)

    def keep_actor_arguments(self, request: pb.ActorArguments) -> Answer:
        return self.ask(on.ActorArgumentsKept(request))

    # -- placement groups

    def create_placement_group(self, request: pb.CreatePlacementGroupRequest) -> Answer:
        return self.ask(on.GroupRequested(request.group))

    def wait_placement_group(self, request: pb.WaitPlacementGroupRequest) -> Answer:
        query = pb.PlacementGroupQuery(placement_group_id=request.placement_group_id)
        group = self._group(query)
        return self._kept(group) if group.state in _SETTLED or not request.timeout_ms else self._group_settled(query, request.timeout_ms / 1000)

    async def _group_settled(self, query: pb.PlacementGroupQuery, timeout_s: float) -> Reply:
        deadline = self._loop.time() + min(timeout_s, MAX_WAIT_S)
        while (group := self._group(query)).state not in _SETTLED and (left := deadline - self._loop.time()) > 0:
            await _wait_in(self._group_waiters, query.placement_group_id, left)
        return await _settled(self._kept(group))

    def remove_placement_group(self, request: pb.PlacementGroupQuery) -> Answer:
        return self.ask(on.GroupRemovalRequested(request))

    def get_placement_group(self, request: pb.PlacementGroupQuery) -> Answer:
        return self._kept(self._group(request))

    def list_placement_groups(self, request: pb.Empty) -> Answer:
        return self._kept(pb.PlacementGroupList(groups=self.cluster.groups))

    def _group(self, query: pb.PlacementGroupQuery) -> pb.PlacementGroup:
        group = self.cluster.groups.find(query)
        if group is None:
            raise Refused(Refusal.NOT_FOUND, f"no placement group {query.placement_group_id.hex() or repr(query.name)}")
        return group

    # -- key value

    def kv_put(self, request: pb.KvPutRequest) -> Answer:
        return self.ask(on.KeyPut(request))

    def kv_get(self, request: pb.KvGetRequest) -> Answer:
        value = self.cluster.kv.get(request.namespace, request.key)
        if value is None and request.wait_ms:
            return self._key_there(request)
        return self._kept(pb.KvGetReply(found=value is not None, value=value or b""))

    async def _key_there(self, request: pb.KvGetRequest) -> Reply:
        namespace, key = request.namespace, request.key
        deadline = self._loop.time() + min(request.wait_ms / 1000, MAX_WAIT_S)
        while (value := self.cluster.kv.get(namespace, key)) is None and (left := deadline - self._loop.time()) > 0:
            await _wait_in(self._key_waiters, (namespace, key), left)
        return await _settled(self._kept(pb.KvGetReply(found=value is not None, value=value or b"")))

    def kv_delete(self, request: pb.KvDeleteRequest) -> Answer:
        return self.ask(on.KeyDeleted(request))

    def kv_keys(self, request: pb.KvKeysRequest) -> Answer:
        return self._kept(pb.KvKeysReply(keys=self.cluster.kv.keys(request.namespace, request.prefix)))

    # -- pub/sub

    def publish(self, request: pb.Event) -> Answer:
        self.hub.publish(request.channel, request.payload)
        return _EMPTY

    async def subscribe(self, _: object, context: Context) -> None:
        node_id = await serve_subscriber(self.hub, context, self._all_stored)
        if node_id:  # its raylet may be gone: knock
            self.post(on.NodeConnectionLost(node_id))

    async def _all_stored(self) -> None:
        with contextlib.suppress(StorageError):  # the control store ends, and its streams with it
            durable = self.writer.durable()
            if durable is not None:
                await asyncio.shield(durable)

    async def calls(self, _: object, context: Context) -> None:
        await CallStream(self._call, context).serve()

    def _call(self, method: str, payload: bytes) -> bytes | Awaitable[bytes]:
        row = METHODS.get(method)
        if row is None:
            raise CallRefused(grpc.StatusCode.UNIMPLEMENTED, f"no method {method!r}")
        request, function = row
        self.check_term(method)
        try:
            answer = function(self, request.FromString(payload))
        except _FAILURES as error:
            raise _refused(error) from error
        if isinstance(answer, Kept):
            return answer
        return _to_bytes(answer) if isinstance(answer, bytes | Message) else _bytes_later(answer)

    # -- the rest

    def info(self, request: pb.Empty) -> Answer:
        return pb.InfoReply(
            cluster_id=self.opened.cluster_id,
            gcs_epoch=self.opened.epoch,
            version=__version__,
            start_ms=self.start_ms,
            storage=self.config.storage.partition(":")[0],
            http_address=self.config.http_address,
            standbys=self.standbys,
        )

    def metrics(self, request: pb.Empty) -> Answer:
        return pb.MetricsReply(text=metrics_text(self))


METHODS: dict[str, tuple[type[Message], Callable[[Service, Any], Answer]]] = {
    "RegisterNode": (pb.RegisterNodeRequest, Service.register_node),
    "Heartbeat": (pb.HeartbeatRequest, Service.heartbeat),
    "UnregisterNode": (pb.UnregisterNodeRequest, Service.unregister_node),
    "DrainNode": (pb.DrainNodeRequest, Service.drain_node),
    "ListNodes": (pb.Empty, Service.list_nodes),
    "AddJob": (pb.AddJobRequest, Service.add_job),
    "FinishJob": (pb.FinishJobRequest, Service.finish_job),
    "AskAllowance": (pb.AllowanceQuery, Service.ask_allowance),
    "GetJob": (pb.JobQuery, Service.get_job),
    "ListJobs": (pb.Empty, Service.list_jobs),
    "CreateActor": (pb.CreateActorRequest, Service.create_actor),
    "GetActor": (pb.ActorQuery, Service.get_actor),
    "ListActors": (pb.ListActorsRequest, Service.list_actors),
    "KillActor": (pb.KillActorRequest, Service.kill_actor),
    "ActorOutOfScope": (pb.ActorOutOfScopeRequest, Service.actor_out_of_scope),
    "ReportWorkerDeath": (pb.ReportWorkerDeathRequest, Service.report_worker_death),
    "KeepCheckpoint": (pb.ActorCheckpoint, Service.keep_checkpoint),
    "GetCheckpoint": (pb.ActorQuery, Service.get_checkpoint),
    "KeepActorArguments": (pb.ActorArguments, Service.keep_actor_arguments),
    "CreatePlacementGroup": (pb.CreatePlacementGroupRequest, Service.create_placement_group),
    "WaitPlacementGroup": (pb.WaitPlacementGroupRequest, Service.wait_placement_group),
    "RemovePlacementGroup": (pb.PlacementGroupQuery, Service.remove_placement_group),
    "GetPlacementGroup": (pb.PlacementGroupQuery, Service.get_placement_group),
    "ListPlacementGroups": (pb.Empty, Service.list_placement_groups),
    "KvPut": (pb.KvPutRequest, Service.kv_put),
    "KvGet": (pb.KvGetRequest, Service.kv_get),
    "KvDelete": (pb.KvDeleteRequest, Service.kv_delete),
    "KvKeys": (pb.KvKeysRequest, Service.kv_keys),
    "Publish": (pb.Event, Service.publish),
    "Info": (pb.Empty, Service.info),
    "Metrics": (pb.Empty, Service.metrics),
}


def handlers(service: Service) -> grpc.GenericRpcHandler:
    methods = {name: _unary(service, name, *row) for name, row in METHODS.items()}
    methods["Calls"] = grpc.stream_stream_rpc_method_handler(service.calls, pb.CallBatch.FromString, pb.ResultBatch.SerializeToString)
    methods["Subscribe"] = grpc.stream_stream_rpc_method_handler(service.subscribe, pb.SubscribeRequest.FromString, None)
    return grpc.method_handlers_generic_handler(NAME, methods)


def _unary(service: Service, name: str, request: type[Message], method: Callable[[Service, Any], Answer]) -> grpc.RpcMethodHandler:
    async def run(message: Message, context: Context) -> Reply:
        try:
            service.check_term(name)
            return await _settled(method(service, message))
        except CallRefused as error:
            refused = error
        except _FAILURES as error:
            refused = _refused(error)
        await context.abort(refused.code, str(refused))
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(run, request.FromString, _to_bytes)


def _refused(error: Exception) -> CallRefused:
    if isinstance(error, Refused):
        return CallRefused(_STATUS[error.kind], str(error))
    if isinstance(error, StorageError):
        return not_recorded(error)
    return CallRefused(grpc.StatusCode.INVALID_ARGUMENT, f"not the request's message: {error}")


def _check_python(node: pb.Node) -> None:
    """Functions travel pickled, and their code only between interpreters of one minor version."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if node.python and node.python.split(".")[:2] != mine.split("."):
        raise CallRefused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"this cluster runs Python {mine}, and the node at {node.address} Python {node.python}: start it with Python {mine} (patch versions may differ)",
        )


async def _settled(answer: Answer) -> Reply:
    return answer if isinstance(answer, bytes | Message) else await answer


async def _bytes_later(answer: Awaitable[Reply]) -> bytes:
    try:
        return _to_bytes(await answer)
    except _FAILURES as error:
        raise _refused(error) from error


def _to_bytes(reply: Reply) -> bytes:
    if isinstance(reply, bytes):
        return reply
    serialised: bytes = reply.SerializeToString()
    return serialised


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


async def _wait_in(table: dict[Any, list[asyncio.Future[None]]], key: Hashable, timeout_s: float) -> None:
    """Until the key's waiters are woken, or the time is over."""
    waiter = asyncio.get_running_loop().create_future()
    table.setdefault(key, []).append(waiter)
    try:
        async with asyncio.timeout(timeout_s):
            await waiter
    except TimeoutError:
        pass
    finally:
        waiters = table.get(key)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del table[key]
