"""Where actors go. Those that fit nowhere wait by class (equal placement), so that one look decides for all of a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec.structs import replace
from shoal_base.errors import Code
from shoal_base.labels import parse_selector
from shoal_base.node_table import LOOK_AT, candidates, could_hold, grown, has_room
from shoal_base.resources import Resources, add, show, subtract
from shoal_base.scheduling import Choice, NodeView, Request, choose_node

from ..v1 import gcs_pb2 as pb
from .nodes import Nodes
from .placement_groups import PlacementGroups
from .turn import Refusal, Refused, Turn

FIRST_WINDOW = 4  # after a refusal this many of a class are tried at once; each start doubles it
RETRY_MS = 1_000  # refusals are forgotten after it, so that no lost report makes anything wait for ever


class Life:
    """An actor that is not dead. `spec` is its request without the record."""

    __slots__ = (
        "actor_id", "bundle", "channel", "counted", "held", "in_bundle", "key", "migrating", "placing_on", "record", "request", "since", "spec", "unfinished",
    )  # fmt: skip

    def __init__(self, record: pb.Actor, spec: pb.CreateActorRequest) -> None:
        self.record = record
        self.spec = spec
        self.actor_id: bytes = record.actor_id
        self.channel = f"actor:{record.actor_id.hex()}"
        self.request = placement_request(spec.placement)
        # What it takes once it is placed. More may be wanted to place it: that chooses the node, and keeps nobody waiting.
        held = {name: units for name, units in record.resources.items() if units}
        self.held = self.request if held == self.request.resources or self.request.pg_id else replace(self.request, resources=held)
        self.key: bytes = repr(sorted(held.items())).encode() + spec.placement.SerializeToString(deterministic=True)
        self.placing_on: bytes | None = None  # a StartActor is under way there
        self.bundle: Resources | None = None  # what is free in the bundle it is in
        self.in_bundle: Resources = {}  # what it takes of that
        self.counted = False  # among its class's `under_way`
        self.migrating = False  # told to end, so that it starts elsewhere
        self.since = 0
        self.unfinished = False  # a StartActor was under way when the control store went down


def placement_request(placement: pb.Placement) -> Request:
    try:
        return Request(
            resources=dict(placement.resources),
            strategy=placement.strategy,
            affinity=placement.node_id,
            soft=placement.soft,
            selector=parse_selector(dict(placement.label_selector)),
            soft_selector=parse_selector(dict(placement.soft_label_selector)),
            pg_id=placement.placement_group_id,
            bundle_index=placement.bundle_index,
        )
    except ValueError as error:
        raise Refused(Refusal.INVALID, str(error)) from error


class WaitingClass:
    """Lives on while those it sent are under way, so that it remembers who refused.

    `seen`: no node had room when the table of nodes was of that version, so that only those that grew since are looked at; -1: it must look at all.
    """

    __slots__ = ("held", "infeasible_since", "lives", "losses", "reason", "refused", "request", "seen", "under_way", "window")

    def __init__(self, life: Life) -> None:
        self.request = life.request
        self.held = life.held
        self.lives: dict[bytes, Life] = {}  # in the order of arrival
        self.refused: dict[bytes, int] = {}  # node -> its version then
        self.reason = ""
        self.infeasible_since: int | None = None
        self.window = FIRST_WINDOW
        self.under_way = 0
        self.seen = -1
        self.losses = 0  # of the table, then


class GiveUp(Protocol):
    def __call__(self, life: Life, code: int, cause: str, *, force: bool = True, kill: bool = True) -> None: ...


class ActorPlacement:
    def __init__(
        self,
        turn: Turn,
        nodes: Nodes,
        groups: PlacementGroups,
        infeasible_timeout_ms: int,
        *,
        start: Callable[[Life, bytes], None],
        changed: Callable[[Life], None],
        give_up: GiveUp,
    ) -> None:
        self._turn = turn
        self._nodes = nodes
        self._groups = groups
        self._infeasible_timeout_ms = infeasible_timeout_ms
        self._start = start
        self._changed = changed
        self._give_up = give_up
        self._waiting: dict[bytes, WaitingClass] = {}
        self._forgot_refusals_ms = 0

    def waiting(self) -> int:
        return sum(len(waiting.lives) for waiting in self._waiting.values())

    # -- decisions

    def place(self, life: Life) -> None:
        """Starts it somewhere, or lets it wait, or gives it up."""
        waiting = self._waiting.get(life.key)
        if waiting is not None:
            waiting.lives[life.actor_id] = life
            self._try(life.key, waiting)
            self._tell(life, waiting)
            return
        choice = self._choose(life, {})
        if choice.node_id is not None:
            self._dispatch(life, choice)
            return
        waiting = self._waiting[life.key] = WaitingClass(life)
        waiting.lives[life.actor_id] = life
        self._blocked(waiting, choice)

    def wait(self, life: Life, reason: str, refused_by: bytes | None = None) -> None:
        waiting = self._waiting.setdefault(life.key, WaitingClass(life))
        # Those that were tried before go first again.
        waiting.lives = {life.actor_id: life, **waiting.lives} if refused_by else {**waiting.lives, life.actor_id: life}
        node = self._nodes.living.get(refused_by) if refused_by else None
        if node is not None:
            waiting.refused[node.node_id] = node.version
        waiting.reason = reason
        life.record.pending_reason = reason

    def retry(self) -> None:
        """Resources changed."""
        for key, waiting in list(self._waiting.items()):
            if self._waiting.get(key) is waiting:
                self._try(key, waiting)

    def time_passed(self) -> None:
        now = self._turn.at.steady_ms
        if self._waiting and now - self._forgot_refusals_ms >= RETRY_MS:
            self._forgot_refusals_ms = now
            for waiting in self._waiting.values():
                if waiting.refused:
                    waiting.refused.clear()
                    waiting.seen = -1
            self.retry()
        for waiting in list(self._waiting.values()):
            if waiting.infeasible_since is not None and now - waiting.infeasible_since >= self._infeasible_timeout_ms:
                self._refuse_all(waiting)

    def has_room(self, life: Life) -> bool:
        """Whether it could start somewhere now."""
        return self._choose(life, {}).node_id is not None

    # -- outcomes

    def started(self, life: Life) -> None:
        self._settle(life, taken=True)
        if life.bundle is not None:
            self._take_of_bundle(life, life.bundle, dict(life.record.resources))
        waiting = self._waiting.get(life.key)
        if waiting is not None:
            waiting.window *= 2
            self._close_class(life.key, waiting)

    def refused(self, life: Life, reason: str) -> None:
        node_id = life.placing_on
        self._leave_bundle(life)
        self._settle(life, taken=False, refused=True)
        where = f"node {node_id.hex()[:12]}" if node_id else "its node"
        self.wait(life, f"{where} had no room: {reason or 'it gave no reason'}", refused_by=node_id)
        waiting = self._waiting[life.key]
        waiting.window = FIRST_WINDOW
        self._try(life.key, waiting)
        self._tell(life, waiting)

    def abandoned(self, life: Life) -> None:
        """It is not being placed any more, whatever it was, and it holds nothing."""
        self._leave_bundle(life)
        if life.placing_on is not None:
            self._settle(life, taken=False)
        waiting = self._waiting.get(life.key)
        if waiting is not None:
            waiting.lives.pop(life.actor_id, None)
            self._close_class(life.key, waiting)

    # -- inner works

    def _choose(self, of: Life | WaitingClass, refused: dict[bytes, int]) -> Choice:
        """Among all nodes."""
        request = of.request
        if request.pg_id:
            return self._choose_in_group(request, refused)
        rank = self._turn.rank()
        choice = choose_node(request, candidates(request, self._nodes.table, rank, self._skip(refused)), None, rank)
        if choice.node_id is None and choice.feasible:
            choice = self._busy(of, self._nodes.table.around(rank), refused) or choice
        if choice.node_id is None and choice.feasible:
            # Tasks without end would keep every node busy. Where they run, the raylet has them make room.
            after = self._reclaim(request, self._nodes.table.around(rank), refused)
            choice = choice if after.node_id is None else after
        return Choice(None) if choice.node_id is None and refused else choice

    def _choose_grown(self, waiting: WaitingClass) -> Choice | None:
        """Among those that grew since none had room. None: the answer is what it was."""
        request, table = waiting.request, self._nodes.table
        if waiting.infeasible_since is not None and any(could_hold(request, node) for node in table.since(waiting.seen)):
            return self._choose(waiting, waiting.refused)
        found = grown(request, table, waiting.seen, self._skip(waiting.refused))
        choice = choose_node(request, found, None, self._turn.rank()) if found else Choice(None)
        if choice.node_id is None:
            choice = self._busy(waiting, table.since(waiting.seen), waiting.refused) or choice
        if choice.node_id is None:
            choice = self._reclaim(request, table.since(waiting.seen), waiting.refused)
        if choice.node_id is None:
            waiting.seen = table.version
            return None
        return choice

    def _choose_in_group(self, request: Request, refused: dict[bytes, int]) -> Choice:
        why_not = self._groups.why_unusable(request.pg_id, request.bundle_index)
        if why_not:
            return Choice(None, why_not)
        living = self._nodes.living
        nodes = [living[node_id] for node_id in self._groups.places(request.pg_id) if node_id in living] or living.values()
        choice = choose_node(request, [node.view for node in nodes if refused.get(node.node_id) != node.version], None, self._turn.rank())
        return Choice(None) if choice.node_id is None and refused else choice

    def _busy(self, of: Life | WaitingClass, views: Iterable[NodeView], refused: dict[bytes, int]) -> Choice | None:
        """No node has room to place it: one then that could, and has room for what it holds. None: there is none, or it holds what places it."""
        request, held, living = of.request, of.held, self._nodes.living
        if held is request:
            return None
        wished = living.get(request.affinity)
        if wished is not None and could_hold(request, wished.view):  # soft, too, means elsewhere only once it is gone
            views = [wished.view]
        found = []
        for view in views:
            node = living[view.node_id]
            if refused.get(node.node_id) != node.version and could_hold(request, view) and has_room(held, view):
                found.append(view)
                if len(found) == LOOK_AT:
                    break
        choice = choose_node(held, found, None, self._turn.rank()) if found else None
        return choice if choice is not None and choice.node_id is not None else None

    def _reclaim(self, request: Request, views: Iterable[NodeView], refused: dict[bytes, int]) -> Choice:
        """Where it fits once tasks have given back what they have."""
        living, after = self._nodes.living, []
        for view in views:
            node = living[view.node_id]
            if node.lent and refused.get(node.node_id) != node.version and could_hold(request, view) and has_room(request, emptied := node.reclaimed()):
                after.append(emptied)
                if len(after) == LOOK_AT:
                    break
        return choose_node(request, after, None, self._turn.rank()) if after else Choice(None)

    def _skip(self, refused: dict[bytes, int]) -> Callable[[bytes], bool] | None:
        living = self._nodes.living
        return (lambda node_id: refused.get(node_id) == living[node_id].version) if refused else None

    def _try(self, key: bytes, waiting: WaitingClass) -> None:
        table, request = self._nodes.table, waiting.request
        for life in list(waiting.lives.values()):
            if waiting.refused and waiting.under_way >= waiting.window:
                return
            look_at_all = waiting.seen < 0 or waiting.losses != table.losses or bool(request.pg_id)
            choice = self._choose(waiting, waiting.refused) if look_at_all else self._choose_grown(waiting)
            if choice is None:
                return
            if choice.node_id is None:
                self._blocked(waiting, choice)
                return
            waiting.infeasible_since = None
            del waiting.lives[life.actor_id]
            waiting.under_way += 1
            life.counted = True
            self._dispatch(life, choice)
        self._close_class(key, waiting)

    def _close_class(self, key: bytes, waiting: WaitingClass) -> None:
        if not waiting.lives and not waiting.under_way:
            self._waiting.pop(key, None)

    def _dispatch(self, life: Life, choice: Choice) -> None:
        node_id = choice.node_id
        assert node_id is not None
        life.placing_on = node_id
        node, group_id = self._nodes.living[node_id], life.request.pg_id
        if group_id:
            self._take_of_bundle(life, node.view.bundles[group_id, choice.bundle_index][1], dict(life.request.resources))
        else:
            life.since = node.reserve(life.record.resources)
        self._start(life, node_id)

    def _take_of_bundle(self, life: Life, free: Resources, resources: Resources) -> None:
        """While it starts, what places it; then what it holds. Of others in the bundle, tasks first of all, only the raylet knows."""
        self._leave_bundle(life)
        subtract(free, resources)
        life.bundle, life.in_bundle = free, resources

    def _leave_bundle(self, life: Life) -> None:
        if life.bundle is not None:
            add(life.bundle, life.in_bundle)
            life.bundle, life.in_bundle = None, {}

    def resume(self, life: Life, node_id: bytes) -> None:
        """Its StartActor was under way before a restart of the control store, and is sent again."""
        life.placing_on = node_id
        if not life.request.pg_id:
            life.since = self._nodes.living[node_id].reserve(life.record.resources)

    def _settle(self, life: Life, taken: bool, refused: bool = False) -> None:
        node_id, life.placing_on = life.placing_on, None
        node = self._nodes.living.get(node_id) if node_id else None
        if node is not None:
            node.settle({} if life.request.pg_id else life.record.resources, taken, life.since, refused=refused)
        if life.counted:
            life.counted = False
            self._waiting[life.key].under_way -= 1

    def _blocked(self, waiting: WaitingClass, choice: Choice) -> None:
        """No node has room."""
        request, reason = waiting.request, choice.reason
        waiting.seen, waiting.losses = self._nodes.table.version, self._nodes.table.losses
        if choice.feasible:
            waiting.infeasible_since = None
        elif request.affinity and not request.soft and not self._nodes.is_alive(request.affinity):
            self._refuse_affinity(waiting)
            return
        elif waiting.infeasible_since is None:
            waiting.infeasible_since = self._turn.at.steady_ms
        if reason and reason != waiting.reason:
            waiting.reason = reason
            for life in waiting.lives.values():
                life.record.pending_reason = reason
                self._changed(life)

    def _tell(self, life: Life, waiting: WaitingClass) -> None:
        if life.actor_id in waiting.lives and life.record.pending_reason != waiting.reason:
            life.record.pending_reason = waiting.reason
            self._changed(life)

    def _refuse_all(self, waiting: WaitingClass) -> None:
        limit_s = self._infeasible_timeout_ms / 1000
        for life in list(waiting.lives.values()):
            needs = show(waiting.request.resources)
            why = f"it needs {needs}, and for {limit_s:g} s no living node could ever hold it ({waiting.reason}); start such a node, or ask for less"
            self._give_up(life, Code.UNSCHEDULABLE, why, kill=False)

    def _refuse_affinity(self, waiting: WaitingClass) -> None:
        node_id = waiting.request.affinity
        dead = self._nodes.dead.get(node_id)
        state = f"has died ({dead.death_cause})" if dead is not None else "is not part of this cluster"
        why = f"it must run on node {node_id.hex()}, which {state}; use soft=True to let it run elsewhere"
        for life in list(waiting.lives.values()):
            self._give_up(life, Code.NODE_AFFINITY_FAILED, why, kill=False)
