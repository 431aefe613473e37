"""Which node: the policy, as pure functions. The raylet (tasks) and the GCS (actors, placement groups) both decide with it.

A node is a candidate when it is alive, not draining, and its labels match. Among those whose *free* resources hold the request the best few are found by
a score (utilisation above one half, the bytes of arguments that lie elsewhere, what queues there), and one of them is taken at random: all raylets decide
from copies that are a little old, and would otherwise all choose the same node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import msgspec

from .labels import ANY, Selector
from .resources import Resources, add, fits, show, subtract

BundleKey = tuple[bytes, int]
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

# Below this share of its scarcest resource a node is as good as empty: fill it (pack). Above, less used is better (spread).
PACK_UNTIL = 0.5
# Among how many of the best the choice is random.
BEST_FEW = 3
# Scores closer than this are equal.
_SCORE_STEP = 0.05
# Arguments of this size, all elsewhere, weigh as much as a full node; smaller ones proportionally less.
_HEAVY_ARGUMENT_BYTES = 64 << 20
_ALWAYS_COUNT = ("CPU", "memory")
# One queued request for each CPU weighs as much as this share of utilisation.
_QUEUED_WEIGHT = 0.5


class NodeView(msgspec.Struct):
    """What one node knows of another (or of itself). `bundles`: (placement group, index) -> (total, available)."""

    node_id: bytes
    total: Resources = msgspec.field(default_factory=dict)
    available: Resources = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    alive: bool = True
    draining: bool = False
    queued: int = 0
    bundles: dict[BundleKey, tuple[Resources, Resources]] = msgspec.field(default_factory=dict)


class Request(msgspec.Struct, frozen=True):
    resources: Mapping[str, int]
    strategy: str = ""  # "" or "SPREAD"
    affinity: bytes = b""  # a node id
    soft: bool = False  # of the affinity: elsewhere when that node is gone or could never run it
    selector: Selector = ANY
    soft_selector: Selector = ANY
    pg_id: bytes = b""
    bundle_index: int = -1  # any
    argument_bytes: Mapping[bytes, int] = msgspec.field(default_factory=dict)  # node -> bytes of arguments that lie there


class Choice(msgspec.Struct, frozen=True):
    """`node_id` None: it must wait, `reason` says for what; not `feasible`: no known node could ever run it. `bundle_index`: set for a placement group."""

    node_id: bytes | None
    reason: str = ""
    feasible: bool = True
    bundle_index: int = -1


def choose_node(request: Request, nodes: Iterable[NodeView], local: bytes | None, rank: float) -> Choice:
    """`rank`, in [0, 1), is the caller's random number.

    >>> full = NodeView(b"a" * 16, total={"CPU": 10_000}, available={"CPU": 0})
    >>> choose_node(Request({"CPU": 10_000}), [full], local=full.node_id, rank=0.0).reason
    'CPU 1 is wanted; the nodes that have so much are busy'
    """
    living = [node for node in nodes if node.alive and not node.draining]
    if request.affinity:
        chosen = _at(request, living)
        if chosen.feasible or not request.soft:
            return chosen
    matching = [node for node in living if request.selector.matches(node.labels)]
    if not matching:
        why = f"no living node has the labels {request.selector}" if living else "no node is alive"
        return Choice(None, why, feasible=False)
    if request.pg_id:
        return _in_group(request, matching, local, rank)
    free = [node for node in matching if fits(request.resources, node.available)]
    if not free:
        return _none_free(request, matching)
    preferred = [node for node in free if request.soft_selector.matches(node.labels)] or free
    if request.strategy == "SPREAD":
        return Choice(_least_used(request, preferred, rank).node_id)
    return Choice(_best(request, preferred, local, rank).node_id)


def _none_free(request: Request, matching: Sequence[NodeView]) -> Choice:
    wanted = show(request.resources)
    if any(fits(request.resources, node.total) for node in matching):
        return Choice(None, f"{wanted} is wanted; the nodes that have so much are busy")
    labelled = f" among those with the labels {request.selector}" if request.selector else ""
    return Choice(None, f"{wanted} is wanted; no node has so much{labelled} (largest: {_largest(request, matching)})", feasible=False)


def _largest(request: Request, nodes: Sequence[NodeView]) -> str:
    return show({name: max(node.total.get(name, 0) for node in nodes) for name in request.resources})


def _at(request: Request, living: Sequence[NodeView]) -> Choice:
    node = next((node for node in living if node.node_id == request.affinity), None)
    name = request.affinity.hex()
    if node is None:
        return Choice(None, f"node {name} is not alive", feasible=False)
    if not request.selector.matches(node.labels):
        return Choice(None, f"node {name} has not the labels {request.selector}", feasible=False)
    if not fits(request.resources, node.total):
        return Choice(None, f"node {name} has {show(node.total)}; {show(request.resources)} is wanted", feasible=False)
    if not fits(request.resources, node.available):
        return Choice(None, f"node {name} is busy; {show(request.resources)} is wanted, {show(node.available)} is free")
    return Choice(node.node_id)


def _in_group(request: Request, nodes: Sequence[NodeView], local: bytes | None, rank: float) -> Choice:
    """The bundle is the reservation: its own free resources count, not the node's."""
    group = request.pg_id.hex()
    seen = possible = False
    free: list[tuple[bool, int, bytes]] = []
    for node in nodes:
        for (pg_id, index), (total, available) in node.bundles.items():
            if pg_id != request.pg_id or request.bundle_index not in (-1, index):
                continue
            seen = True
            possible = possible or fits(request.resources, total)
            if fits(request.resources, available):
                free.append((node.node_id != local, index, node.node_id))
    which = f"placement group {group}" if request.bundle_index < 0 else f"bundle {request.bundle_index} of placement group {group}"
    if free:
        nearest = sorted(free)
        if request.strategy == "SPREAD":
            nearest = [nearest[int(rank * len(nearest))]]
        _, index, node_id = nearest[0]
        return Choice(node_id, bundle_index=index)
    if not seen:
        return Choice(None, f"{which} is on no living node yet")
    if not possible:
        return Choice(None, f"{show(request.resources)} is wanted; {which} never has so much", feasible=False)
    return Choice(None, f"{show(request.resources)} is wanted; {which} is busy")


def utilisation(need: Mapping[str, int], node: NodeView) -> float:
    """The scarcest resource's share in use once `need` is taken; memory and CPU always count, others when they are needed.

    >>> utilisation({"CPU": 10_000}, NodeView(b"", {"CPU": 40_000}, {"CPU": 30_000}))
    0.5
    """
    worst = 0.0
    total, available = node.total, node.available
    for name in _ALWAYS_COUNT:
        if whole := total.get(name, 0):
            worst = max(worst, (whole - available.get(name, 0) + need.get(name, 0)) / whole)
    for name, units in need.items():
        if units and name not in _ALWAYS_COUNT and (whole := total.get(name, 0)):
            worst = max(worst, (whole - available.get(name, 0) + units) / whole)
    return worst


def _score(request: Request, node: NodeView, used: float) -> float:
    score = 0.0 if used <= PACK_UNTIL else used
    cpus = max(1.0, node.total.get("CPU", 0) / 10_000)
    score += _QUEUED_WEIGHT * min(4.0, node.queued / cpus)
    everything = sum(request.argument_bytes.values())
    if everything:
        missing = everything - request.argument_bytes.get(node.node_id, 0)
        score += missing / max(everything, _HEAVY_ARGUMENT_BYTES)
    return score


def _best(request: Request, nodes: Sequence[NodeView], local: bytes | None, rank: float) -> NodeView:
    def key(node: NodeView) -> tuple[int, bool, float, bytes]:
        used = utilisation(request.resources, node)
        return int(_score(request, node, used) / _SCORE_STEP), node.node_id != local, -used, node.node_id

    scored = sorted(((key(node), node) for node in nodes), key=itemgetter(0))
    best = scored[0]
    if not best[0][1]:  # the local node is as good as any: no hop, no copy
        return best[1]
    few = [node for rating, node in scored[:BEST_FEW] if rating[0] == best[0][0]]
    return few[int(rank * len(few))]


def _least_used(request: Request, nodes: Sequence[NodeView], rank: float) -> NodeView:
    def load(node: NodeView) -> int:
        cpus = max(1.0, node.total.get("CPU", 0) / 10_000)
        return int((utilisation(request.resources, node) + min(4.0, node.queued / cpus)) / _SCORE_STEP)

    least = min(load(node) for node in nodes)
    equal = sorted((node for node in nodes if load(node) == least), key=lambda node: node.node_id)
    return equal[int(rank * len(equal))]


# -- placement groups ---------------------------------------------------------------------------------


def place_bundles(
    bundles: Sequence[Mapping[str, int]],
    strategy: str,
    nodes: Iterable[NodeView],
    *,
    selectors: Sequence[Selector] | None = None,
    capacity: bool = False,
) -> list[bytes] | str:
    """A node for each bundle, or why there is no placement. `capacity`: as if every node were empty, to learn whether it could ever be placed.

    PACK and SPREAD are wishes, the STRICT ones are kept or there is no placement; STRICT_SPREAD finds one whenever there is one.
    """
    if strategy not in STRATEGIES:
        return f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}"
    room = [_Room(node, capacity) for node in nodes if node.alive and not node.draining]
    if not room:
        return "no node is alive"
    wishes = [_Wish(index, dict(bundle), selectors[index] if selectors else ANY) for index, bundle in enumerate(bundles)]
    for wish in wishes:
        if not any(r.takes(wish) for r in room):
            labelled = f" with the labels {wish.selector}" if wish.selector else ""
            return f"bundle {wish.index} ({show(wish.resources)}) fits no node{labelled}" + ("" if capacity else " now")
    # Large ones first: small ones fit in what is left.
    wishes.sort(key=lambda wish: (-max((_share(wish, r) for r in room), default=0.0), wish.index))
    placed = {"STRICT_PACK": _together, "STRICT_SPREAD": _apart, "PACK": _packed, "SPREAD": _spread}[strategy](wishes, room)
    if placed is None:
        return _why_not(strategy, bundles, room)
    return [placed[index] for index in range(len(bundles))]


class _Wish(msgspec.Struct):
    index: int
    resources: Resources
    selector: Selector


class _Room:
    """One node's free resources while bundles are laid in."""

    __slots__ = ("free", "node", "taken")

    def __init__(self, node: NodeView, capacity: bool) -> None:
        self.node = node
        self.free = dict(node.total if capacity else node.available)
        self.taken = 0

    def takes(self, wish: _Wish) -> bool:
        return wish.selector.matches(self.node.labels) and fits(wish.resources, self.free)

    def put(self, wish: _Wish) -> None:
        subtract(self.free, wish.resources)
        self.taken += 1

    def take_back(self, wish: _Wish) -> None:
        add(self.free, wish.resources)
        self.taken -= 1

    def used(self) -> float:
        return utilisation({}, NodeView(b"", self.node.total, self.free))


_Placed = dict[int, bytes]


def _share(wish: _Wish, room: _Room) -> float:
    return max((units / total for name, units in wish.resources.items() if (total := room.node.total.get(name, 0)) > 0), default=0.0)


def _held_by(room: _Room, wishes: Sequence[_Wish]) -> list[_Wish]:
    """What of `wishes` fits there together, large ones first."""
    held = []
    for wish in wishes:
        if room.takes(wish):
            room.put(wish)
            held.append(wish)
    for wish in held:
        room.take_back(wish)
    return held


def _together(wishes: Sequence[_Wish], rooms: Sequence[_Room]) -> _Placed | None:
    fitting = [room for room in rooms if len(_held_by(room, wishes)) == len(wishes)]
    if not fitting:
        return None
    room = min(fitting, key=lambda room: (-room.used(), room.node.node_id))
    return {wish.index: room.node.node_id for wish in wishes}


def _apart(wishes: Sequence[_Wish], rooms: Sequence[_Room]) -> _Placed | None:
    """A maximum matching by augmenting paths: a greedy choice can take the only node of a later bundle."""
    order = sorted(rooms, key=lambda room: (room.used(), room.node.node_id))
    owner: dict[int, _Wish] = {}

    def seat(wish: _Wish, visited: set[int]) -> bool:
        for at, room in enumerate(order):
            if at in visited or not room.takes(wish):
                continue
            visited.add(at)
            if at not in owner or seat(owner[at], visited):
                owner[at] = wish
                return True
        return False

    if not all(seat(wish, set()) for wish in wishes):
        return None
    return {wish.index: order[at].node.node_id for at, wish in owner.items()}


def _packed(wishes: Sequence[_Wish], rooms: Sequence[_Room]) -> _Placed | None:
    """Few nodes: again and again the one that holds most of what is left."""
    left, placed = list(wishes), {}
    open_rooms = list(rooms)
    while left:
        best: _Room | None = None
        held: list[_Wish] = []
        for room in sorted(open_rooms, key=lambda room: (-room.used(), room.node.node_id)):
            here = _held_by(room, left)
            if len(here) > len(held):
                best, held = room, here
        if best is None:
            return None
        open_rooms.remove(best)
        for wish in held:
            placed[wish.index] = best.node.node_id
            left.remove(wish)
    return placed


def _spread(wishes: Sequence[_Wish], rooms: Sequence[_Room]) -> _Placed | None:
    """On as many nodes as there are; where that fails, as tightly as it takes."""
    apart = _apart(wishes, rooms)
    if apart is not None:
        return apart
    placed: _Placed = {}
    laid: list[tuple[_Room, _Wish]] = []
    for wish in wishes:
        fitting = [room for room in rooms if room.takes(wish)]
        if not fitting:
            for room, earlier in laid:
                room.take_back(earlier)
            return _packed(wishes, rooms)
        room = min(fitting, key=lambda room: (room.taken, room.used(), room.node.node_id))
        room.put(wish)
        laid.append((room, wish))
        placed[wish.index] = room.node.node_id
    return placed


def _why_not(strategy: str, bundles: Sequence[Mapping[str, int]], rooms: Sequence[_Room]) -> str:
    total: Resources = {}
    for bundle in bundles:
        add(total, bundle)
    if strategy == "STRICT_SPREAD":
        return f"{len(bundles)} bundles want a node of their own each; {len(rooms)} nodes are alive, and not enough of them have room"
    if strategy == "STRICT_PACK":
        return f"no single node has room for all bundles ({show(total)})"
    return f"the bundles ({show(total)}) do not fit the nodes together"
