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
    """`version` grows with every change that may make room, so that what failed is not tried again in vain.

    What a node has free is what it has said last, less what was asked of it and is not answered. It says so in reports, which come by the control store and
    take a moment, and in its answers to this node: such a word outweighs reports for a while, else what was lent and went back between two would count wrongly.
    """

    def __init__(self) -> None:
        self.nodes = NodeTable()
        self._reported: dict[bytes, NodeView] = {}
        self._words: dict[bytes, tuple[float, Mapping[str, int]]] = {}  # until when it counts, and what that node had free; in the order of that
        self._asked: dict[bytes, dict[int, Mapping[str, int]]] = {}  # node -> request -> resources
        self._until: dict[int, tuple[bytes, float]] = {}  # request -> its node, and when it ends; in the order of that, since all last alike
        self.dead: OrderedDict[bytes, str] = OrderedDict()
        self.groups: OrderedDict[bytes, Group] = OrderedDict()
        self.version = 0

    def update(self, nodes: list[NodeView]) -> None:
        for node in nodes:
            if not node.alive:
                self.lose(node.node_id, "it ended")
                continue
            self._reported[node.node_id] = self.nodes[node.node_id] = node
            self.dead.pop(node.node_id, None)
            if node.node_id in self._asked or node.node_id in self._words:
                self._recount(node.node_id)
        self.version += 1

    def lose(self, node_id: bytes, cause: str) -> None:
        self.nodes.lose(node_id)
        self._reported.pop(node_id, None)
        self._words.pop(node_id, None)
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

    def asked(self, request: int, node_id: bytes, what: Mapping[str, int], until: float) -> None:
        """As good as gone: until that node answers, or a moment has passed (it may let the request wait)."""
        self._asked.setdefault(node_id, {})[request] = what
        self._until[request] = (node_id, until)
        self._recount(node_id)

    def answered(self, request: int) -> None:
        node_id, _ = self._until.pop(request, (b"", 0.0))
        asked = self._asked.get(node_id)
        if asked is None:
            return
        del asked[request]
        if not asked:
            del self._asked[node_id]
        self._recount(node_id)

    def said(self, node_id: bytes, free: Mapping[str, int], until: float) -> None:
        """That node's own word of what it has free, in an answer to this one."""
        self._words.pop(node_id, None)
        self._words[node_id] = (until, free)
        self._recount(node_id)

    def expire(self, now: float) -> None:
        while self._until:
            request, (_, until) = next(iter(self._until.items()))
            if until > now:
                break
            self.answered(request)
        while self._words:
            node_id, (until, _) = next(iter(self._words.items()))
            if until > now:
                break
            del self._words[node_id]
            self._recount(node_id)

    def _recount(self, node_id: bytes) -> None:
        node = self._reported.get(node_id)
        if node is None:
            self._words.pop(node_id, None)
            return
        asked = self._asked.get(node_id, {})
        available = dict(self._words[node_id][1] if node_id in self._words else node.available)
        for what in asked.values():
            subtract(available, what)
        available = {name: max(0, units) for name, units in available.items()}
        before = self.nodes[node_id].available
        self.nodes.replace(node_id, replace(node, available=available, queued=node.queued + len(asked)))
        if any(units > before.get(name, 0) for name, units in available.items()):
            self.nodes.grew(node_id)
            self.version += 1

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
