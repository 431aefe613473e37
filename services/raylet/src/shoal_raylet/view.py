"""What this node knows of the others: their resources, and where placement groups lie."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace
from shoal_base.node_table import NodeTable, could_hold
from shoal_base.resources import Resources, fits, show, subtract
from shoal_base.scheduling import NodeView

from .leases import LeaseSpec

# Limit: how many dead nodes and ended groups are remembered, to say what became of them.
MAX_REMEMBERED = 10_000


class Group(msgspec.Struct):
    created: bool = False
    removed: bool = False
    places: Mapping[int, tuple[bytes, Resources]] = msgspec.field(default_factory=dict)


class ClusterView:
    """`version` grows with every change, so that what failed is not tried again in vain."""

    def __init__(self) -> None:
        self.nodes = NodeTable()  # as reported, less what was asked of them since
        self._reported: dict[bytes, NodeView] = {}
        self._debits: dict[bytes, dict[int, Mapping[str, int]]] = {}  # node -> request -> resources
        self._until: dict[int, tuple[bytes, float]] = {}  # request -> its node, and when it ends; in the order of that, since all last alike
        self._credits: dict[bytes, list[tuple[float, Mapping[str, int]]]] = {}  # what went back to a node: until when it counts, and what
        self.dead: OrderedDict[bytes, str] = OrderedDict()
        self.groups: OrderedDict[bytes, Group] = OrderedDict()
        self.version = 0

    def update(self, nodes: list[NodeView]) -> None:
        for node in nodes:
            if not node.alive:
                self.lose(node.node_id, "it ended")
                continue
            self._reported[node.node_id] = self.nodes[node.node_id] = node
            for request in self._debits.pop(node.node_id, ()):
                del self._until[request]
            self.dead.pop(node.node_id, None)
            if node.node_id in self._credits:
                self._recount(node.node_id)
        self.version += 1

    def lose(self, node_id: bytes, cause: str) -> None:
        self.nodes.lose(node_id)
        self._reported.pop(node_id, None)
        self._credits.pop(node_id, None)
        self.dead.setdefault(node_id, cause)
        if len(self.dead) > MAX_REMEMBERED:
            self.dead.popitem(last=False)
        self.version += 1

    def set_group(self, group_id: bytes, group: Group) -> None:
        self.groups[group_id] = group
        if len(self.groups) > MAX_REMEMBERED:
            ended = next((key for key, known in self.groups.items() if known.removed), None)
            self.groups.pop(ended) if ended else self.groups.popitem(last=False)
        self.version += 1

    def debit(self, request: int, node_id: bytes, what: Mapping[str, int], until: float) -> None:
        """What was just asked for is as good as gone: until that node reports, refuses, or a moment has passed (it reports only what changed)."""
        self._debits.setdefault(node_id, {})[request] = what
        self._until[request] = (node_id, until)
        self._recount(node_id)

    def credit(self, request: int) -> None:
        node_id, _ = self._until.pop(request, (b"", 0.0))
        asked = self._debits.get(node_id)
        if asked is None:
            return
        del asked[request]
        if not asked:
            del self._debits[node_id]
        self._recount(node_id)
        self.nodes.grew(node_id)
        self.version += 1

    def returned(self, node_id: bytes, what: Mapping[str, int], until: float) -> None:
        """A lease of it went back: it has that room again, though it takes a moment to say so, and what it said before may come after."""
        if node_id in self.nodes:
            self._credits.setdefault(node_id, []).append((until, what))
            self._recount(node_id)
            self.nodes.grew(node_id)
            self.version += 1

    def expire(self, now: float) -> None:
        while self._until:
            request, (_, until) = next(iter(self._until.items()))
            if until > now:
                break
            self.credit(request)
        for node_id in list(self._credits):
            left = [row for row in self._credits[node_id] if row[0] > now]
            if len(left) < len(self._credits[node_id]):
                self._credits[node_id] = left
                if not left:
                    del self._credits[node_id]
                self._recount(node_id)

    def _recount(self, node_id: bytes) -> None:
        node = self._reported.get(node_id)
        if node is None:
            return
        available = dict(node.available)
        asked = self._debits.get(node_id, {})
        # Summed before they are held to what there can be: what was asked for and has gone back already is in both.
        for what in asked.values():
            subtract(available, what)
        for _until, what in self._credits.get(node_id, ()):
            for name, units in what.items():
                available[name] = available.get(name, 0) + units
        available = {name: max(0, min(units, node.total.get(name, 0))) for name, units in available.items()}
        self.nodes.replace(node_id, replace(node, available=available, queued=node.queued + len(asked)))

    def able(self, spec: LeaseSpec, rank: float = 0.0) -> Iterator[NodeView]:
        """Nodes that could run it if they were empty, from any place on."""
        for node in self.nodes.around(rank):
            if spec.affinity and not spec.soft and node.node_id != spec.affinity:
                continue
            if could_hold(spec.request, node):
                yield node

    def group_places(self, spec: LeaseSpec) -> list[bytes]:
        """The nodes whose bundle could take it."""
        group = self.groups.get(spec.group)
        if group is None or not group.created or group.removed:
            return []
        places = group.places
        wanted = places.values() if spec.bundle_index < 0 else [places[spec.bundle_index]] if spec.bundle_index in places else []
        return list(dict.fromkeys(node for node, resources in wanted if node and fits(spec.resources, resources)))


def show_nodes(nodes: list[NodeView]) -> str:
    """The largest of them, for the message of what fits nowhere."""
    if not nodes:
        return "the cluster has no living node"
    largest = max(nodes, key=lambda node: (node.total.get("GPU", 0), node.total.get("CPU", 0), node.total.get("memory", 0)))
    labels = f" and labels {largest.labels}" if largest.labels else ""
    return f"the cluster's largest of {len(nodes)} node{'s' * (len(nodes) > 1)} is {largest.node_id.hex()[:12]} with {show(largest.total)}{labels}"
