"""Placement groups: bundles reserved on nodes together, one phase when one node holds them all, else two."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from shoal_base.labels import Selector, parse_selector
from shoal_base.node_table import has_room
from shoal_base.resources import fits, show
from shoal_base.scheduling import NodeView, Request, place_bundles

from ..v1 import gcs_pb2 as pb
from .effects import Answer, ChangeBundles, DeleteRecord, Persist, Publish, WakeGroupWaiters
from .events import BundlesChanged, BundleStep
from .nodes import Node, Nodes
from .turn import Refusal, Refused, Turn

TABLE = "groups"
STRATEGIES = frozenset(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
MAX_BUNDLES = 10_000  # Limit
MAX_REMOVED_GROUPS = 1_000  # Limit: remembered, so that late questions are told that they were removed
RETRY_MS = 1_000  # refusals are forgotten after it, so that no lost report makes anything wait for ever
PATIENT_REFUSALS = 2  # more in a row make a group pause: several that take the same room from each other would do nothing else
PAUSE_MS = 50
ROOM_MS = 1_000  # how long a raylet waits for the leases of its tasks, where they are in the way
CHANNELS = ("pgs",)

Shape = tuple[str, tuple[tuple[tuple[str, int], ...], ...], tuple[str, ...]]  # groups of one shape fit or do not fit alike

PENDING, CREATED, REMOVED, RESCHEDULING = pb.PG_PENDING, pb.PG_CREATED, pb.PG_REMOVED, pb.PG_RESCHEDULING


class Part:
    """The bundles that one attempt puts on one node."""

    __slots__ = ("bundles", "node_id", "since", "step", "total", "wait_ms")

    def __init__(self, node: Node, bundles: list[pb.Bundle]) -> None:
        self.node_id = node.node_id
        self.bundles = tuple(bundles)
        self.total: dict[str, int] = {}
        for bundle in bundles:
            for name, units in bundle.resources.items():
                self.total[name] = self.total.get(name, 0) + units
        self.wait_ms = 0 if fits(self.total, node.view.available) else ROOM_MS
        self.since = node.reserve(self.total)
        self.step: BundleStep | None = None  # the last one done


class Group:
    __slots__ = ("attempt", "group_id", "not_before_ms", "parts", "record", "refusals", "refused", "requests", "seen", "selectors", "shape", "wishes")

    def __init__(self, record: pb.PlacementGroup) -> None:
        self.record = record
        self.group_id: bytes = record.placement_group_id
        self.attempt = 0
        self.parts: dict[bytes, Part] = {}  # under way
        self.refused: dict[bytes, int] = {}  # node -> its version then
        self.refusals = 0  # in a row
        self.not_before_ms = 0
        self.wishes = [dict(bundle.resources) for bundle in record.bundles]
        self.selectors = bundle_selectors(record)
        kinds = {(*sorted(wish.items()), str(by)): Request(wish, selector=by) for wish, by in zip(self.wishes, self.selectors, strict=True)}
        self.requests = list(kinds.values())  # each kind of bundle once
        self.seen = (-1, 0)  # version and losses of the table of nodes when it fitted nowhere, and nobody had refused; -1: it must look
        self.shape: Shape = (record.strategy, tuple(tuple(sorted(wish.items())) for wish in self.wishes), tuple(map(str, self.selectors)))


def bundle_selectors(record: pb.PlacementGroup) -> list[Selector]:
    try:
        return [parse_selector(dict(bundle.label_selector)) for bundle in record.bundles]
    except ValueError as error:
        raise Refused(Refusal.INVALID, str(error)) from error


class PlacementGroups:
    def __init__(self, turn: Turn, nodes: Nodes) -> None:
        self._turn = turn
        self._nodes = nodes
        self.groups: dict[bytes, Group] = {}
        self.removed: OrderedDict[bytes, pb.PlacementGroup] = OrderedDict()
        self._names: dict[tuple[str, str], bytes] = {}
        self._waiting: dict[bytes, Group] = {}
        self._forgot_refusals_ms = 0
        self.on_created: Callable[[], None] = lambda: None
        self.on_removed: Callable[[bytes], None] = lambda group_id: None

    # -- questions

    def get(self, group_id: bytes) -> pb.PlacementGroup | None:
        group = self.groups.get(group_id)
        return group.record if group is not None else self.removed.get(group_id)

    def find(self, query: pb.PlacementGroupQuery) -> pb.PlacementGroup | None:
        if query.placement_group_id:
            return self.get(query.placement_group_id)
        group_id = self._names.get((query.namespace, query.name))
        return None if group_id is None else self.groups[group_id].record

    def places(self, group_id: bytes) -> dict[bytes, None]:
        """The nodes where bundles of it lie."""
        return dict.fromkeys(bundle.node_id for bundle in self.groups[group_id].record.bundles)

    def __iter__(self) -> Iterator[pb.PlacementGroup]:
        yield from (group.record for group in self.groups.values())
        yield from self.removed.values()

    def waiting(self) -> int:
        return len(self._waiting)

    def why_unusable(self, group_id: bytes, index: int) -> str:
        """Empty: its bundles can be used."""
        group = self.groups.get(group_id)
        if group is None:
            return f"placement group {group_id.hex()[:12]} was removed or never made"
        if index >= len(group.record.bundles):
            return f"placement group {group_id.hex()[:12]} has {len(group.record.bundles)} bundles, there is no index {index}"
        if group.record.state == CREATED:
            return ""
        return f"waits for placement group {group_id.hex()[:12]}" + (f": {group.record.pending_reason}" if group.record.pending_reason else "")

    # -- requests

    def create(self, record: pb.PlacementGroup) -> None:
        self._check(record)
        known = self.get(record.placement_group_id)
        if known is not None:  # the same request again, after an answer that was lost
            self._turn.emit(Answer(known))
            return
        record.state, record.pending_reason = PENDING, ""
        for index, bundle in enumerate(record.bundles):
            bundle.index = index
            bundle.node_id = b""
        group = self._admit(record)
        self._place(group)
        if not group.parts:
            self._changed(group)
        else:
            self._persist(group)
        self._turn.emit(Answer(record))

    def remove(self, query: pb.PlacementGroupQuery) -> None:
        record = self.find(query)
        if record is None:
            raise Refused(Refusal.NOT_FOUND, f"no placement group {query.placement_group_id.hex() or query.name!r}")
        if record.state != REMOVED:
            self._remove(self.groups[record.placement_group_id])

    # -- what raylets tell

    def bundles_changed(self, event: BundlesChanged) -> bool:
        """Whether resources may be free that were not."""
        group = self.groups.get(event.group_id)
        part = group.parts.get(event.node_id) if group is not None else None
        if group is None or part is None or group.attempt != event.attempt:
            return event.step is BundleStep.CANCEL  # of an attempt that was given up: its place was given back then
        if not event.done:
            self._give_up_attempt(group, event)
            return True
        part.step = event.step
        if event.step is BundleStep.PREPARE:
            if all(other.step is not None for other in group.parts.values()):
                for other in group.parts.values():
                    self._send(group, other, BundleStep.COMMIT)
        elif all(other.step in (BundleStep.COMMIT, BundleStep.PREPARE_AND_COMMIT) for other in group.parts.values()):
            self._created(group)
        return False

    def node_died(self, node_id: bytes, cause: str) -> None:
        for group in list(self.groups.values()):
            if node_id in group.parts:
                self._cancel_parts(group)
                self._wait(group, f"node {node_id.hex()[:12]} died while bundles were reserved on it")
            lost = [bundle for bundle in group.record.bundles if bundle.node_id == node_id]
            if lost:
                for bundle in lost:
                    bundle.node_id = b""
                group.record.state = RESCHEDULING
                group.record.pending_reason = f"{len(lost)} of {len(group.record.bundles)} bundles were lost with node {node_id.hex()[:12]}: {cause}"
                if not group.parts:  # else: placed once the attempt under way has ended
                    self._waiting[group.group_id] = group
                self._changed(group)

    def node_registered(self, node: Node, live_groups: Iterable[bytes]) -> None:
        for group_id in live_groups:
            group = self.groups.get(group_id)
            held = [bundle for bundle in group.record.bundles if bundle.node_id == node.node_id] if group is not None else []
            if not held and (group is None or node.node_id not in group.parts):
                self._turn.emit(ChangeBundles(node.node_id, BundleStep.CANCEL, group_id, -1, ()))
        for group in self.groups.values():
            for bundle in group.record.bundles:
                if bundle.node_id == node.node_id:
                    self._show(node, group, bundle)

    # -- cascades

    def job_finished(self, job_id: bytes) -> None:
        for group in list(self.groups.values()):
            if group.record.job_id == job_id and not group.record.detached:
                self._remove(group)

    def creator_died(self, actor_id: bytes) -> None:
        for group in list(self.groups.values()):
            if group.record.creator_actor_id == actor_id and not group.record.detached:
                self._remove(group)

    # -- waiting

    def retry(self) -> None:
        """Resources changed. One look decides for all groups of a shape."""
        hopeless: dict[Shape, str] = {}
        quiet: dict[tuple[Shape, tuple[int, int]], bool] = {}
        for group in list(self._waiting.values()):
            if self._waiting.get(group.group_id) is not group or self._turn.at.steady_ms < group.not_before_ms:
                continue
            key = (group.shape, group.seen)
            if key not in quiet:
                quiet[key] = self._nothing_grew(group)
            if quiet[key]:
                group.seen = (self._nodes.table.version, group.seen[1])
                continue
            if group.shape in hopeless:
                self._wait(group, hopeless[group.shape])
                continue
            self._place(group)
            if not group.parts and not group.refused and group.record.state != RESCHEDULING:
                hopeless[group.shape] = group.record.pending_reason

    def _nothing_grew(self, group: Group) -> bool:
        """Since it fitted nowhere, no node has grown by what could take one of its bundles: then it fits nowhere still."""
        version, losses = group.seen
        table = self._nodes.table
        if version < 0 or losses != table.losses or group.refused:
            return False
        grown = (self._nodes.living[view.node_id] for view in table.since(version))
        return not any(has_room(request, node.reclaimed() if node.lent else node.view) for node in grown for request in group.requests)

    def time_passed(self) -> None:
        now = self._turn.at.steady_ms
        if self._waiting and now - self._forgot_refusals_ms >= RETRY_MS:
            self._forgot_refusals_ms = now
            for group in self._waiting.values():
                group.refused.clear()
            self.retry()

    # -- after a restart

    def load(self, record: pb.PlacementGroup) -> None:
        group = self._admit(record)
        if record.state != CREATED:
            record.pending_reason = record.pending_reason or "the control store was restarted"
            self._waiting[group.group_id] = group

    def settle_after_load(self) -> None:
        gone = {bundle.node_id for group in self.groups.values() for bundle in group.record.bundles if bundle.node_id}
        for node_id in gone:
            if not self._nodes.is_alive(node_id):
                self.node_died(node_id, "it is not on record")

    # -- inner works

    def _check(self, record: pb.PlacementGroup) -> None:
        if len(record.placement_group_id) != 16:
            raise Refused(Refusal.INVALID, f"placement_group_id has {len(record.placement_group_id)} bytes, not 16")
        if record.strategy not in STRATEGIES:
            raise Refused(Refusal.INVALID, f"placement group strategy {record.strategy!r}: choose one of {', '.join(sorted(STRATEGIES))}")
        if not 0 < len(record.bundles) <= MAX_BUNDLES:
            raise Refused(Refusal.INVALID, f"a placement group has 1 to {MAX_BUNDLES} bundles, got {len(record.bundles)}")
        for index, bundle in enumerate(record.bundles):
            if not any(bundle.resources.values()) or min(bundle.resources.values()) < 0:
                asked = show(bundle.resources)
                raise Refused(Refusal.INVALID, f"bundle {index} asks for {asked}; a bundle needs at least one resource above zero and none below")
        holder = self._names.get((record.namespace, record.name)) if record.name else None
        if holder is not None and holder != record.placement_group_id:
            raise Refused(Refusal.ALREADY_EXISTS, f"placement group name {record.name!r} in namespace {record.namespace!r} is taken by {holder.hex()}")

    def _admit(self, record: pb.PlacementGroup) -> Group:
        group = Group(record)
        self.groups[group.group_id] = group
        if record.name:
            self._names[record.namespace, record.name] = group.group_id
        return group

    def _place(self, group: Group) -> None:
        """Starts an attempt for the bundles that lie nowhere, or lets the group wait."""
        missing = [bundle for bundle in group.record.bundles if not bundle.node_id]
        node_ids, reason = self._choose(group, missing)
        group.seen = (-1, 0)
        if not node_ids:
            if not group.refused and group.record.state == PENDING:
                group.seen = (self._nodes.table.version, self._nodes.table.losses)
            self._wait(group, reason)
            return
        self._waiting.pop(group.group_id, None)
        group.attempt += 1
        by_node: dict[bytes, list[pb.Bundle]] = {}
        for bundle, node_id in zip(missing, node_ids, strict=True):
            by_node.setdefault(node_id, []).append(bundle)
        group.parts = {node_id: Part(self._nodes.living[node_id], bundles) for node_id, bundles in by_node.items()}
        step = BundleStep.PREPARE_AND_COMMIT if len(group.parts) == 1 else BundleStep.PREPARE
        for part in group.parts.values():
            self._send(group, part, step)

    def _choose(self, group: Group, missing: list[pb.Bundle]) -> tuple[list[bytes], str]:
        nodes = [node for node in self._nodes.living.values() if group.refused.get(node.node_id) != node.version]
        wishes, selectors = group.wishes, group.selectors
        partly = len(missing) < len(wishes)
        if partly:
            wishes = [group.wishes[bundle.index] for bundle in missing]
            selectors = [group.selectors[bundle.index] for bundle in missing]

        def places(views: list[NodeView]) -> list[NodeView]:
            return self._beside(group, views) if partly else views

        strategy, views = group.record.strategy, places([node.view for node in nodes])
        placed = place_bundles(wishes, strategy, views, selectors=selectors)
        if isinstance(placed, str) and any(node.lent for node in nodes):
            # Tasks without end would keep every node busy. Where they run, the raylet has them make room.
            after = place_bundles(wishes, strategy, places([node.reclaimed() if node.lent else node.view for node in nodes]), selectors=selectors)
            placed = placed if isinstance(after, str) else after
        if not isinstance(placed, str):
            return placed, ""
        if group.refused:
            return [], group.record.pending_reason
        never = place_bundles(wishes, strategy, views, selectors=selectors, capacity=True)
        return [], f"no nodes of this cluster could ever hold it: {never}" if isinstance(never, str) else placed

    def _beside(self, group: Group, views: list[NodeView]) -> list[NodeView]:
        """Where lost bundles may go, given where the others lie."""
        others = {bundle.node_id for bundle in group.record.bundles if bundle.node_id}
        free = [view for view in views if view.node_id not in others]
        if group.record.strategy == "STRICT_SPREAD":
            return free
        if group.record.strategy == "STRICT_PACK":
            return [view for view in views if view.node_id in others]
        if group.record.strategy == "SPREAD" and free:
            return free
        return views

    def _send(self, group: Group, part: Part, step: BundleStep) -> None:
        wait_ms = part.wait_ms if step in (BundleStep.PREPARE, BundleStep.PREPARE_AND_COMMIT) else 0
        self._turn.emit(ChangeBundles(part.node_id, step, group.group_id, group.attempt, part.bundles, wait_ms))

    def _created(self, group: Group) -> None:
        for part in group.parts.values():
            node = self._nodes.living[part.node_id]
            node.settle(part.total, True, part.since)
            for bundle in part.bundles:
                bundle.node_id = part.node_id
                self._show(node, group, bundle)
        group.parts = {}
        group.refused.clear()
        group.refusals = 0
        if not all(bundle.node_id for bundle in group.record.bundles):  # a node died meanwhile
            self._changed(group)
            self._place(group)
            return
        group.record.state, group.record.pending_reason = CREATED, ""
        self._changed(group)
        self._turn.emit(WakeGroupWaiters(group.group_id))
        self.on_created()

    def _show(self, node: Node, group: Group, bundle: pb.Bundle) -> None:
        resources = group.wishes[bundle.index]
        node.view.bundles[group.group_id, bundle.index] = (resources, dict(resources))

    def _give_up_attempt(self, group: Group, event: BundlesChanged) -> None:
        self._cancel_parts(group, refused_by=event.node_id)
        node = self._nodes.living.get(event.node_id)
        if node is not None:
            group.refused[event.node_id] = node.version
        group.refusals += 1
        if group.refusals > PATIENT_REFUSALS:
            pause = min(PAUSE_MS << min(group.refusals - PATIENT_REFUSALS, 10), RETRY_MS)
            group.not_before_ms = self._turn.at.steady_ms + pause
        self._wait(group, f"node {event.node_id.hex()[:12]} refused: {event.reason or 'it gave no reason'}")

    def _cancel_parts(self, group: Group, refused_by: bytes = b"") -> None:
        parts, group.parts = group.parts, {}
        for part in parts.values():
            node = self._nodes.living.get(part.node_id)
            if node is not None:
                node.settle(part.total, False, part.since, refused=part.node_id == refused_by)
                self._send(group, part, BundleStep.CANCEL)

    def _wait(self, group: Group, reason: str) -> None:
        self._waiting[group.group_id] = group
        if reason and group.record.pending_reason != reason:
            group.record.pending_reason = reason
            self._publish(group)

    def _remove(self, group: Group) -> None:
        record = group.record
        self._cancel_parts(group)
        self._waiting.pop(group.group_id, None)
        self._take_back(group)
        del self.groups[group.group_id]
        if record.name:
            del self._names[record.namespace, record.name]
        record.state, record.pending_reason = REMOVED, ""
        self.removed[group.group_id] = record
        if len(self.removed) > MAX_REMOVED_GROUPS:
            self.removed.popitem(last=False)
        self._turn.emit(DeleteRecord(TABLE, group.group_id))
        self._publish(group)
        self._turn.emit(WakeGroupWaiters(group.group_id))
        self.on_removed(group.group_id)

    def _take_back(self, group: Group) -> None:
        """Its place counts as free at once: what goes to a node next goes there after the cancel."""
        by_node: dict[bytes, list[pb.Bundle]] = {}
        for bundle in group.record.bundles:
            if bundle.node_id:
                by_node.setdefault(bundle.node_id, []).append(bundle)
        for node_id, bundles in by_node.items():
            node = self._nodes.living.get(node_id)
            if node is None:
                continue
            for bundle in bundles:
                node.view.bundles.pop((group.group_id, bundle.index), None)
                node.release(group.wishes[bundle.index])
            self._turn.emit(ChangeBundles(node_id, BundleStep.CANCEL, group.group_id, group.attempt, tuple(bundles)))

    def _changed(self, group: Group) -> None:
        record = group.record.SerializeToString()
        self._turn.emit(Persist(TABLE, group.group_id, record))
        self._turn.emit(Publish(CHANNELS, record))

    def _persist(self, group: Group) -> None:
        self._turn.emit(Persist(TABLE, group.group_id, group.record.SerializeToString()))

    def _publish(self, group: Group) -> None:
        self._turn.emit(Publish(CHANNELS, group.record.SerializeToString()))
