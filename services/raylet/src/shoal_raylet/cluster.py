"""The other nodes: what the GCS says of them, leases from them, and whether we are still one of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.resources import Resources
from shoal_base.scheduling import NodeView
from shoal_base.wire import NodeDrains, WorkerDied
from shoal_gcs.v1 import gcs_pb2 as gcs

from . import effects as do
from . import events as on
from .doubt import ASKED, DOUBT, Doubt
from .rpc import RpcFailed
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet
    from .sessions import Session

_log = logging.getLogger(__name__)
_DISOWNED_TIMES = 2
# For a round of asking whether others hear the GCS, and again until the next: a part of the lease, but time enough to be answered on a busy machine.
# Three rounds must fit between doubt and the lease's end, since the cluster starts this node's actors elsewhere then.
_ROUND = 0.05
_ASK_LEAST_S = 0.25
_LEASE_TIMEOUT_S = 20.0
_TELL_TIMEOUT_S = 5.0
# Between attempts to tell another node something: at first, and at most.
_TELL_PAUSE_S = (0.05, 1.0)
Reply = TypeVar("Reply", bound=Message)
# Limit: dead nodes whose record is kept for NodeAddress.
MAX_DEAD = 10_000


def view_of(node: gcs.Node) -> NodeView:
    return NodeView(
        node_id=node.node_id, total=dict(node.resources), available=dict(node.available), labels=dict(node.labels), alive=node.alive, draining=node.draining,
        queued=node.queued_leases, bundles={},
    )  # fmt: skip


class Cluster:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self.nodes: dict[bytes, gcs.Node] = {}
        self._dead: list[bytes] = []
        self._doubting = False
        self._doubt_of_us = Doubt()
        self._disowned = 0
        self._joining = False
        self._returns: dict[bytes, list[do.ReturnRemoteLease]] = {}  # node -> what it is still to be told of; a call to it is on its way

    # -- events ---------------------------------------------------------------------------------------

    def on_event(self, channel: str, payload: bytes) -> None:
        if channel == "nodes":
            self.update([gcs.Node.FromString(payload)])
        elif channel == "resources":
            self._resources(gcs.NodeList.FromString(payload))
        elif channel == "pgs":
            self._group(gcs.PlacementGroup.FromString(payload))
        elif channel == "workers":
            self._worker_died(gcs.ReportWorkerDeathRequest.FromString(payload))
        elif channel == "jobs":
            job = gcs.Job.FromString(payload)
            if job.finished:
                if job.driver_worker_id:
                    self._driver_ended(job)
                self._raylet.job_finished(job.job_id)

    def update(self, nodes: list[gcs.Node]) -> None:
        views = []
        for node in nodes:
            if node.node_id == self._raylet.node_id:
                if not node.alive and node.end_ms:
                    self._raylet.fence(f"the cluster has declared this node dead: {node.death_cause or 'no reason given'}")
                continue
            was = self.nodes.get(node.node_id)
            self.nodes[node.node_id] = node
            if node.alive:
                views.append(view_of(node))
                if node.draining and not (was is not None and was.draining):
                    self._drains(node)
            elif was is None or was.alive:
                self._lost(node)
        if views:
            self._raylet.feed(on.ViewChanged(views))

    def _drains(self, node: gcs.Node) -> None:
        if not self._raylet.scheduler.draining:  # what would come here would have to go again
            self._raylet.broadcast(Type.NODE_DRAINS, NodeDrains(node.node_id).pack())

    def tell_of_draining(self, session: Session) -> None:
        """A client that has just come."""
        if not self._raylet.scheduler.draining:
            for node in self.nodes.values():
                if node.alive and node.draining:
                    session.conn.send(Type.NODE_DRAINS, NodeDrains(node.node_id).pack())

    def _lost(self, node: gcs.Node) -> None:
        self._dead.append(node.node_id)
        if len(self._dead) > MAX_DEAD:
            self.nodes.pop(self._dead.pop(0), None)
        self._raylet.peers.forget(node.address)
        self._raylet.node_lost(node.node_id, node.death_cause or "it left")

    def _resources(self, changed: gcs.NodeList) -> None:
        views = []
        for new in changed.nodes:
            node = self.nodes.get(new.node_id)
            if node is None or not node.alive or new.node_id == self._raylet.node_id:
                continue
            node.available.clear()
            for name, units in new.available.items():
                node.available[name] = units
            node.queued_leases = new.queued_leases
            if new.draining and not node.draining:
                node.draining = True
                self._drains(node)
            views.append(view_of(node))
        if views:
            self._raylet.feed(on.ViewChanged(views))

    def _group(self, group: gcs.PlacementGroup) -> None:
        created, removed = group.state == gcs.PG_CREATED, group.state == gcs.PG_REMOVED
        places: dict[int, tuple[bytes, Resources]] = {}
        for bundle in () if removed else group.bundles:
            places[bundle.index] = bundle.node_id, dict(bundle.resources)
        self._raylet.feed(on.GroupChanged(group.placement_group_id, places, created, removed))

    def _worker_died(self, death: gcs.ReportWorkerDeathRequest) -> None:
        if death.node_id == self._raylet.node_id:
            return
        running = frozenset(worker for worker in self._raylet.scheduler.leased_to(death.worker_id) if self._raylet.runs_a_task(worker))
        self._raylet.feed(on.WorkerDiedElsewhere(death.worker_id, running))
        task = death.started_task_id or bytes(16)
        self._raylet.owner_died(Type.WORKER_DIED, WorkerDied(death.worker_id, death.node_id, task, death.code, death.cause).pack())

    def _driver_ended(self, job: gcs.Job) -> None:
        died = WorkerDied(job.driver_worker_id, job.driver_node_id, bytes(16), Code.JOB_FINISHED, "its job has finished")
        self._raylet.dead_owners.died(Type.WORKER_DIED, died.pack())

    # -- leases from others -----------------------------------------------------------------------------

    async def request_lease(self, effect: do.RequestRemoteLease) -> None:
        """Whatever happens, the scheduler hears of it: what it waits for it does not ask for elsewhere."""
        answer = on.RemoteLeaseAnswered(effect.request, False, reason="that node is unknown")
        try:
            await self._request_lease(effect, answer)
        except asyncio.CancelledError:
            answer.reason = "the channel to that node was closed"
            raise
        finally:
            if not self._raylet.closing:
                self._raylet.feed(answer)

    async def _request_lease(self, effect: do.RequestRemoteLease, answer: on.RemoteLeaseAnswered) -> None:
        node = self.nodes.get(effect.node_id)
        if node is not None:
            request = pb.RequestLeaseRequest(
                lease_class=effect.spec.raw, hops=effect.hops, client_worker_id=effect.client, client_node_id=effect.client_node,
                wait_ms=int(effect.wait_s * 1000),
            )  # fmt: skip
            try:
                timeout_s = effect.wait_s * 3 + _LEASE_TIMEOUT_S
                reply = await self._raylet.peers.call(node.address, "RequestLease", request, pb.RequestLeaseReply, timeout_s)
            except RpcFailed as error:
                answer.reason = error.text
                return
            answer.granted, answer.lease_id, answer.worker_id, answer.node_id = reply.granted, reply.lease_id, reply.worker_id, reply.node_id
            answer.address, answer.reason, answer.free = reply.address, reply.reason, dict(reply.free)

    def reclaim_lease(self, effect: do.ReclaimLease) -> None:
        self._raylet.spawn(self._tell(effect.client_node, "ReclaimLease", self._raylet.outbox.reclaim_request(effect), pb.Empty))

    def return_lease(self, effect: do.ReturnRemoteLease) -> None:
        """Together with the others that go back to the same node in this turn of the loop, or while it is told of earlier ones."""
        waiting = self._returns.get(effect.node_id)
        if waiting is not None:
            waiting.append(effect)
            return
        self._returns[effect.node_id] = [effect]
        self._raylet.spawn(self._return_leases(effect.node_id))

    async def _return_leases(self, node_id: bytes) -> None:
        try:
            while leases := self._returns[node_id]:
                self._returns[node_id] = []
                reply = await self._tell(node_id, "ReturnLeases", self._raylet.outbox.return_request(leases), pb.ReturnLeasesReply)
                if reply is not None:
                    self._raylet.feed(on.NodeSpoke(node_id, dict(reply.free)))
        finally:
            del self._returns[node_id]

    async def _tell(self, node_id: bytes, method: str, request: Message, reply: type[Reply]) -> Reply | None:
        """What must be heard, though nobody waits for it: said again until that node answers, or is dead (None). A lease whose return is lost stays lent."""
        pause_s = _TELL_PAUSE_S[0]
        while (node := self.nodes.get(node_id)) is not None and node.alive:
            try:
                return await self._raylet.peers.call(node.address, method, request, reply, _TELL_TIMEOUT_S)
            except RpcFailed as error:
                if not error.unheard:
                    _log.error("node %s does not take %s: %s", node_id.hex()[:12], method, error)
                    return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _TELL_PAUSE_S[1])
        return None

    # -- are we still part of it? -------------------------------------------------------------------------

    def heard(self, known: bool, epoch: int, address: str) -> None:
        raylet = self._raylet
        if epoch < raylet.epoch:
            return  # of a head that was replaced, and may not know it yet
        if epoch > raylet.epoch:
            raylet.gcs.follow(address)
            self._join_again()
            return
        # Twice in a row: one answer may have been on its way since before we had registered.
        self._disowned = 0 if known or self._joining else self._disowned + 1
        if self._disowned >= _DISOWNED_TIMES:
            raylet.fence("the control store no longer knows this node: it was declared dead (heartbeats came too late, or an operator removed it)")

    def _join_again(self) -> None:
        """Another GCS process answers: it may lack what the last one knew."""
        if not self._joining:
            self._joining = True
            self._raylet.spawn(self._join())

    async def _join(self) -> None:
        try:
            await self._raylet.join()
            self._raylet.deaths.tell_again()
        except RpcFailed as error:
            if not error.unavailable:
                self._raylet.fence(f"the control store refuses this node: {error.text}")
        finally:
            self._joining = False

    def head_began(self) -> None:
        """One that has begun to lead has reached us. Others may have heard its first answer before we have."""
        self._doubt_of_us.over()

    def check_silence(self) -> None:
        raylet = self._raylet
        if raylet.heartbeat is None or self._doubting:
            return
        if raylet.heartbeat.silent_s() > raylet.lease_s * DOUBT:
            self._doubting = True
            raylet.spawn(self._doubt())
        else:
            self._doubt_of_us.over()

    async def _doubt(self) -> None:
        try:
            await self._ask_others()
            await asyncio.sleep(self._raylet.lease_s * _ROUND)
        finally:
            self._doubting = False

    async def _ask_others(self) -> None:
        raylet = self._raylet
        assert raylet.heartbeat is not None
        answers = await asyncio.gather(*(self._ask(node) for node in raylet.pick_peers(ASKED)))
        if why := self._doubt_of_us.judge(raylet.heartbeat.silent_s(), answers, raylet.lease_s):
            raylet.fence(why)

    async def _ask(self, node: gcs.Node) -> float | None:
        try:
            reply = await self._raylet.peers.call(node.address, "State", pb.Empty(), pb.StateReply, max(_ASK_LEAST_S, self._raylet.lease_s * _ROUND))
        except RpcFailed:
            return None
        return reply.gcs_silent_ms / 1000
