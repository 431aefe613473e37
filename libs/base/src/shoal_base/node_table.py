"""The nodes that decisions are made among: by id, from any place on, and by what has grown since somebody looked last.

With thousands of nodes a decision must not look at all of them. Who places something new begins anywhere, and compares the first few that have room; who
found no room remembers the table's `version`, and looks next time only at those where something may fit that did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .resources import fits
from .scheduling import NodeView, Request

# Limit: nodes with room that one decision compares. Of so many, taken anywhere, the best is nearly as good as the best of all, and equal raylets choose apart.
LOOK_AT = 32


class NodeTable(dict[bytes, NodeView]):
    """`version` counts growth: a node that came, or where something came free. `losses` counts nodes that went.

    >>> table = NodeTable()
    >>> table[b"a"] = NodeView(b"a")
    >>> seen = table.version
    >>> table[b"b"] = NodeView(b"b")
    >>> [node.node_id for node in table.since(seen)]
    [b'b']
    """

    __slots__ = ("_at", "_order", "_stamps", "losses", "version")

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.losses = 0
        self._order: list[bytes] = []
        self._at: dict[bytes, int] = {}
        self._stamps: dict[bytes, int] = {}  # in the order of growth

    def __setitem__(self, node_id: bytes, view: NodeView) -> None:
        if node_id not in self:
            self._at[node_id] = len(self._order)
            self._order.append(node_id)
        super().__setitem__(node_id, view)
        self.grew(node_id)

    def replace(self, node_id: bytes, view: NodeView) -> None:
        """Less is free there than was: nobody need look again."""
        super().__setitem__(node_id, view)

    def lose(self, node_id: bytes) -> None:
        if super().pop(node_id, None) is None:
            return
        self.losses += 1
        del self._stamps[node_id]
        at, last = self._at.pop(node_id), self._order.pop()
        if last != node_id:
            self._order[at], self._at[last] = last, at

    def grew(self, node_id: bytes) -> None:
        """Something may fit there that did not."""
        if node_id in self:
            self.version += 1
            self._stamps.pop(node_id, None)
            self._stamps[node_id] = self.version

    def since(self, version: int) -> Iterator[NodeView]:
        """Those that grew after `version`, the latest first."""
        for node_id in reversed(self._stamps):
            if self._stamps[node_id] <= version:
                return
            yield self[node_id]

    def around(self, rank: float) -> Iterator[NodeView]:
        """All, from a place that `rank`, in [0, 1), names."""
        order = self._order
        first = int(rank * len(order))
        for at in range(len(order)):
            yield self[order[first + at - len(order)]]


def has_room(request: Request, node: NodeView) -> bool:
    return node.alive and not node.draining and fits(request.resources, node.available) and request.selector.matches(node.labels)


def could_hold(request: Request, node: NodeView) -> bool:
    """Were it empty."""
    return node.alive and not node.draining and fits(request.resources, node.total) and request.selector.matches(node.labels)


def candidates(request: Request, table: NodeTable, rank: float, skip: Callable[[bytes], bool] | None = None) -> list[NodeView]:
    """What `choose_node` is to decide among: a few that have room, and all when none has, so that it can say why. `skip`: nodes to leave out."""

    def allowed(node: NodeView) -> bool:
        return skip is None or not skip(node.node_id)

    if request.affinity:
        there = table.get(request.affinity)
        if there is not None and allowed(there) and (not request.soft or could_hold(request, there)):
            return [there]
        if not request.soft:
            return []
    if len(table) <= LOOK_AT or request.pg_id or request.soft_selector:
        return [node for node in table.values() if allowed(node)]
    found = {node_id: node for node_id in request.argument_bytes if (node := table.get(node_id)) is not None and allowed(node) and has_room(request, node)}
    for node in table.around(rank):
        if has_room(request, node) and allowed(node):
            found[node.node_id] = node
            if len(found) >= LOOK_AT:
                break
    return list(found.values()) or [node for node in table.values() if allowed(node)]


def grown(request: Request, table: NodeTable, since: int, skip: Callable[[bytes], bool] | None = None) -> list[NodeView]:
    """A few of those that have room, and grew after the version at which none had."""
    found = []
    for node in table.since(since):
        if has_room(request, node) and (skip is None or not skip(node.node_id)):
            found.append(node)
            if len(found) == LOOK_AT:
                break
    return found
