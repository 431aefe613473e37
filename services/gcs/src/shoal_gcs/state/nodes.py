"""Nodes: their leases, and the control store's view of their resources."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping

from msgspec.structs import replace
from shoal_base.node_table import NodeTable
from shoal_base.resources import Resources
from shoal_base.scheduling import NodeView

from ..v1 import gcs_pb2 as pb
from .effects import DeleteRecord, DrainRaylet, FinishJobOn, ForgetNode, Persist, ProbeNode, Publish
from .history import History
from .turn import Refusal, Refused, Turn

TABLE = "nodes"
HEARTBEAT_MS = 1_000
LEASE_MS = 10_000
SILENT_MS = 2_500  # then the node is probed: a dead process on a living host refuses
PROBE_EVERY_MS = 1_000
LOST_EVERY_MS = 250  # of a node whose connection broke, until it is heard again: a process that is being killed may be heard to listen for a moment yet
STALL_MS = 1_500  # longer between two looks: we were stopped, not they
DRAIN_GRACE_MS = 15_000  # a drained node ends by itself; this long after its deadline it is declared dead
# A raylet whose stream broke has missed what was published meanwhile: deaths of workers are told again to whoever subscribes so soon after them.
TOLD_AGAIN_MS = 60_000
MAX_TOLD_AGAIN = 10_000  # Limit: the oldest are forgotten first


class Node:
    """A living node.

    The view (what placement decides by) is the node's last report, carried forward by what the control store did since: `in_flight` is taken from
    it while a raylet has not answered. Erring upward is harmless, because the raylet refuses what it has not; erring downward would let work wait for nothing.
    """

    __slots__ = (
        "confirmed", "drain_ends_ms", "heard_ms", "in_flight", "lent", "lost", "node_id", "probed_ms", "record", "reported", "reports", "table", "version",
        "view",
    )  # fmt: skip

    def __init__(self, record: pb.Node, heard_ms: int, confirmed: bool, table: NodeTable) -> None:
        self.table = table
        self.node_id = record.node_id
        self.record = record
        self.heard_ms = heard_ms
        self.drain_ends_ms: int | None = None
        self.probed_ms = heard_ms
        self.lost = False  # its connection, since it was heard last
        self.confirmed = confirmed  # it registered in this epoch: only then anything is placed there
        self.in_flight: Resources = {}
        self.reported: Resources = dict(record.available) or dict(record.resources)
        self.lent: Resources = {}
        self.reports = 0
        self.version = 0  # grows when something may fit that did not
        self.view = NodeView(
            node_id=record.node_id,
            total=dict(record.resources),
            available=dict(self.reported),
            labels=dict(record.labels),
            alive=confirmed,
            draining=record.draining,
            queued=record.queued_leases,
            bundles={},
        )

    def carry_over(self, before: Node) -> None:
        """It registered again: calls under way and bundles stay."""
        self.version = before.version + 1
        self.view.bundles = before.view.bundles
        self.in_flight = before.in_flight
        self._refresh(self.in_flight)

    def report(self, available: Mapping[str, int], lent: Mapping[str, int]) -> None:
        self.reported, self.lent = dict(available), dict(lent)
        self.reports += 1
        view = self.view.available
        view.clear()
        view.update(self.reported)
        self._refresh(self.in_flight)
        self._grew()

    def reserve(self, resources: Mapping[str, int]) -> int:
        """For a call under way. The number returned goes to `settle`."""
        for name, units in resources.items():
            self.in_flight[name] = self.in_flight.get(name, 0) + units
        self._refresh(resources)
        return self.reports

    def settle(self, resources: Mapping[str, int], taken: bool, since: int, *, refused: bool = False) -> None:
        """The call ended. A report that came meanwhile is taken to include its outcome.

        A refusal is no reason for others who were refused to try again: two of them would take turns for ever.
        """
        for name, units in resources.items():
            left = self.in_flight.get(name, 0) - units
            if left > 0:
                self.in_flight[name] = left
            else:
                self.in_flight.pop(name, None)
            if taken and since == self.reports:
                self.reported[name] = self.reported.get(name, 0) - units
        self._refresh(resources)
        if not refused:
            self._grew()

    def release(self, resources: Mapping[str, int]) -> None:
        total = self.view.total
        for name, units in resources.items():
            self.reported[name] = min(total.get(name, 0), self.reported.get(name, 0) + units)
        self._refresh(resources)
        self._grew()

    def reclaimed(self) -> NodeView:
        """The view as it will be when its tasks' leases have come back: a raylet asks for them as soon as an actor, or a bundle, waits there."""
        names = {*self.reported, *self.lent}
        taken = self.in_flight
        return replace(self.view, available={name: max(0, self.reported.get(name, 0) + self.lent.get(name, 0) - taken.get(name, 0)) for name in names})

    def _grew(self) -> None:
        self.version += 1
        self.table.grew(self.node_id)

    def _refresh(self, names: Mapping[str, int]) -> None:
        # Invariant: what placement sees is never below zero, whatever order reports and answers come in.
        view, reported, in_flight = self.view.available, self.reported, self.in_flight
        for name in names:
            view[name] = max(0, reported.get(name, 0) - in_flight.get(name, 0))


class Nodes:
    def __init__(self, turn: Turn, lease_ms: int = LEASE_MS, history: History | None = None) -> None:
        self._turn = turn
        self._history = history or History()
        self._lease_ms = lease_ms
        self.living: dict[bytes, Node] = {}
        self.table = NodeTable()  # the views of the living
        self._at_address: dict[str, dict[bytes, None]] = {}
        self.dead: OrderedDict[bytes, pb.Node] = OrderedDict()
        self.dirty: set[bytes] = set()
        self._deaths: deque[tuple[int, bytes]] = deque(maxlen=MAX_TOLD_AGAIN)
        self._looked_ms: int | None = None

    def __iter__(self) -> Iterator[pb.Node]:
        yield from (node.record for node in self.living.values())
        yield from self.dead.values()

    def is_alive(self, node_id: bytes) -> bool:
        return node_id in self.living

    def is_known(self, node_id: bytes) -> bool:
        """Registered with this very process, and not declared dead."""
        node = self.living.get(node_id)
        return node is not None and node.confirmed

    def load(self, record: pb.Node) -> None:
        """A node of the time before a restart: has one lease term to come back. Of the dead, too, raylets may not have heard."""
        if not record.alive:
            self.dead[record.node_id] = record
            return
        self._admit(Node(record, self._turn.at.steady_ms, confirmed=False, table=self.table))

    def settle_after_load(self) -> None:
        self._looked_ms = self._turn.at.steady_ms  # a stop before the first look is one of ours, too
        self.dead = OrderedDict(sorted(self.dead.items(), key=lambda row: row[1].end_ms))

    def register(self, record: pb.Node) -> Node:
        if len(record.node_id) != 16:
            raise Refused(Refusal.INVALID, f"node_id has {len(record.node_id)} bytes, not 16")
        dead = self.dead.get(record.node_id)
        if dead is not None:
            raise Refused(Refusal.INVALID, f"node {record.node_id.hex()} was declared dead ({dead.death_cause}); start the raylet again under a new node id")
        known = self.living.get(record.node_id)
        record.alive = True
        record.start_ms = known.record.start_ms if known else record.start_ms or self._turn.at.unix_ms
        if not record.available:
            for name, units in record.resources.items():
                record.available[name] = units
        node = Node(record, self._turn.at.steady_ms, confirmed=True, table=self.table)
        if known is not None:
            node.carry_over(known)
            if known.record.draining:
                self._drain_on(node, known)
            self._leave_address(known.record)
        self._admit(node)
        self._turn.emit(Persist(TABLE, record.node_id, record.SerializeToString()))
        self._changed(node)
        return node

    def _admit(self, node: Node) -> None:
        self.living[node.node_id] = node
        self.table[node.node_id] = node.view
        self._at_address.setdefault(node.record.address, {})[node.node_id] = None

    def _leave_address(self, record: pb.Node) -> None:
        there = self._at_address.get(record.address, {})
        there.pop(record.node_id, None)
        if not there:
            self._at_address.pop(record.address, None)

    def beat(self, request: pb.HeartbeatRequest) -> bool:
        """Whether something may fit now that did not."""
        node = self.living.get(request.node_id)
        if node is None or not node.confirmed:
            return False
        node.heard_ms = self._turn.at.steady_ms
        node.lost = False
        record = node.record
        if request.queued_leases != record.queued_leases:
            record.queued_leases = node.view.queued = request.queued_leases
            self.dirty.add(node.node_id)
        if request.pending or record.pending:
            del record.pending[:]
            record.pending.extend(request.pending)
        if not request.resources_changed:
            return False
        node.report(request.available, request.lent)
        if dict(record.available) != node.reported:  # each node is told of each change, and not of each heartbeat
            record.available.clear()
            record.available.update(node.reported)
            self.dirty.add(node.node_id)
        return True

    def drain(self, node_id: bytes, reason: str, within_ms: int) -> None:
        node = self.living.get(node_id)
        if node is None:
            raise Refused(Refusal.NOT_FOUND, f"no living node {node_id.hex()}")
        record = node.record
        record.draining = node.view.draining = True
        record.drain_reason = reason or "asked to"
        record.drain_deadline_ms = self._turn.at.unix_ms + within_ms if within_ms else 0
        node.drain_ends_ms = self._turn.at.steady_ms + within_ms if within_ms else None
        self._turn.emit(Persist(TABLE, node_id, record.SerializeToString()))
        self._turn.emit(DrainRaylet(node_id, record.drain_reason, within_ms))
        self._changed(node)

    def draining(self) -> list[bytes]:
        return [node_id for node_id, node in self.living.items() if node.view.draining]

    def is_draining(self, node_id: bytes) -> bool:
        node = self.living.get(node_id)
        return node is not None and node.view.draining

    def _drain_on(self, node: Node, known: Node) -> None:
        """It registers again, and was to drain: it may not have been told."""
        record, before = node.record, known.record
        was_told = record.draining
        record.draining = node.view.draining = True
        record.drain_reason, record.drain_deadline_ms = before.drain_reason, before.drain_deadline_ms
        within_ms = max(1, before.drain_deadline_ms - self._turn.at.unix_ms) if before.drain_deadline_ms else 0
        node.drain_ends_ms = self._turn.at.steady_ms + within_ms if within_ms else None
        if not was_told:
            self._turn.emit(DrainRaylet(node.node_id, record.drain_reason, within_ms))

    def die(self, node_id: bytes, cause: str) -> pb.Node | None:
        """None: it was not alive."""
        node = self.living.pop(node_id, None)
        if node is None:
            return None
        record = node.record
        self.table.lose(node_id)
        self._leave_address(record)
        record.alive, record.death_cause, record.end_ms = False, cause, self._turn.at.unix_ms
        record.available.clear()
        del record.pending[:]
        self.dead[node_id] = record
        self._turn.emit(Persist(TABLE, node_id, record.SerializeToString()))
        self.forget()
        self._turn.emit(ForgetNode(node_id))
        self._turn.emit(Publish(("nodes",), record.SerializeToString()))
        self.dirty.add(node_id)
        return record

    def forget(self) -> None:
        """Those that are dead for too long, or too many."""
        before = self._turn.at.unix_ms - self._history.age_ms
        while self.dead:
            oldest, record = next(iter(self.dead.items()))
            if len(self.dead) <= self._history.dead_nodes and record.end_ms >= before:
                return
            del self.dead[oldest]
            self._turn.emit(DeleteRecord(TABLE, oldest))

    def expired(self) -> list[tuple[bytes, str]]:
        """Those whose term is over; the silent ones are probed on the way."""
        now = self._turn.at.steady_ms
        stalled = now - self._looked_ms if self._looked_ms is not None else 0
        self._looked_ms = now
        if stalled > STALL_MS:
            # This process was stopped or starved: heartbeats of that time are still unread, so it counts for nobody's silence.
            for node in self.living.values():
                node.heard_ms += stalled
        over = []
        for node in self.living.values():
            silent = now - node.heard_ms
            if silent >= self._lease_ms:
                over.append((node.node_id, f"no heartbeat for {silent / 1000:.1f} s"))
            elif node.drain_ends_ms is not None and now >= node.drain_ends_ms + DRAIN_GRACE_MS:
                over.append((node.node_id, f"it was to end ({node.record.drain_reason}), and did not by its deadline"))
            elif silent >= SILENT_MS:
                self._probe(node, now, PROBE_EVERY_MS)
            elif node.lost:
                self._probe(node, now, LOST_EVERY_MS)
        return over

    def connection_lost(self, node_id: bytes) -> None:
        node = self.living.get(node_id)
        if node is not None:
            node.lost = True
            self._probe(node, self._turn.at.steady_ms, 0)

    def predecessors(self, node: Node) -> list[bytes]:
        """Living nodes at the same address: their raylet's port is another's now."""
        address = node.record.address
        return [node_id for node_id in self._at_address.get(address, ()) if node_id != node.node_id] if address else []

    def finish_job(self, job_id: bytes) -> None:
        for node_id in self.living:
            self.finish_job_on(node_id, job_id)

    def finish_job_on(self, node_id: bytes, job_id: bytes) -> None:
        self._turn.emit(FinishJobOn(node_id, job_id))

    def publish_worker_death(self, report: pb.ReportWorkerDeathRequest) -> None:
        payload = report.SerializeToString()
        self._deaths.append((self._turn.at.steady_ms, payload))
        self._turn.emit(Publish(("workers",), payload))

    def recent_deaths(self) -> list[bytes]:
        """Reports of workers' deaths that a new subscriber may have missed."""
        since = self._turn.at.steady_ms - TOLD_AGAIN_MS
        while self._deaths and self._deaths[0][0] < since:
            self._deaths.popleft()
        return [payload for _, payload in self._deaths]

    def publish_changes(self) -> None:
        records = [self.living[key].record if key in self.living else self.dead[key] for key in self.dirty if key in self.living or key in self.dead]
        self.dirty.clear()
        if records:
            self._turn.emit(Publish(("resources",), pb.NodeList(nodes=records).SerializeToString()))

    def _probe(self, node: Node, now: int, every_ms: int) -> None:
        if now - node.probed_ms >= every_ms:
            node.probed_ms = now
            self._turn.emit(ProbeNode(node.node_id, node.record.address))

    def _changed(self, node: Node) -> None:
        self.dirty.add(node.node_id)
        self._turn.emit(Publish(("nodes",), node.record.SerializeToString()))
