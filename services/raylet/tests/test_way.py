"""What goes to other nodes, and what does not: four nodes on a clock of pretence, where a call between two takes 2 ms."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import pytest
from raylet_world import HERE, UNIT, World, node, spec
from shoal_raylet import effects as do
from shoal_raylet import events as on

pytestmark = pytest.mark.timeout(60)
CPUS = 4
OTHERS = [b"node-other-%d----" % n for n in range(3)]
CALL_S, REPORT_S, TICK_S = 0.002, 0.1, 0.05


class Nodes:
    """A raylet, its clients, and three other nodes that lend what they have. `held_s`: of each class, how long its clients use a lease."""

    def __init__(self, held_s: dict[int, float], others_busy: bool = False) -> None:
        self.held_s = held_s
        self.world = World(cpus=CPUS)
        self.free = dict.fromkeys(OTHERS, 0 if others_busy else CPUS)
        self.events: list[tuple[float, int, object]] = []
        self.order = count()
        self.granted: Counter[tuple[int, bytes]] = Counter()  # (class, node)
        self.calls = self.refusals = 0
        self.class_of: dict[int, int] = {}
        self.lease = count(1000)
        self.report()
        self.later(TICK_S, self.tick)

    def later(self, after: float, what: object) -> None:
        heapq.heappush(self.events, (self.world.now + after, next(self.order), what))

    def feed(self, event: on.Event) -> None:
        for effect in self.world.feed(event):
            if isinstance(effect, do.GrantLease):
                self.granted[effect.class_id, effect.node_id] += 1
                self.later(self.held_s[effect.class_id], on.LeaseReturned(effect.lease_id, effect.node_id))
            elif isinstance(effect, do.RequestRemoteLease):
                self.calls += 1
                self.later(CALL_S / 2, lambda effect=effect: self.lend(effect))
            elif isinstance(effect, do.ReturnRemoteLease):
                self.calls += 1
                self.later(CALL_S / 2, lambda effect=effect: self.take_back(effect.node_id))
            else:
                assert isinstance(effect, (do.ForkWorker, do.BeginLease, do.ReclaimLease)), effect

    def lend(self, effect: do.RequestRemoteLease) -> None:
        yes = self.free[effect.node_id] > 0
        self.free[effect.node_id] -= yes
        self.refusals += not yes
        free = {"CPU": self.free[effect.node_id] * UNIT}
        lease = next(self.lease) if yes else 0
        self.later(CALL_S / 2, on.RemoteLeaseAnswered(effect.request, yes, lease, b"far%013d" % lease, effect.node_id, "h:1", "busy", free))

    def take_back(self, node_id: bytes) -> None:
        self.free[node_id] += 1
        self.later(CALL_S / 2, on.NodeSpoke(node_id, {"CPU": self.free[node_id] * UNIT}))

    def report(self) -> None:
        self.feed(on.ViewChanged([node(other, {"CPU": free}, {"CPU": CPUS}) for other, free in self.free.items()]))
        self.later(REPORT_S, self.report)

    def tick(self) -> None:
        self.feed(on.Ticked())
        self.later(TICK_S, self.tick)

    def run(self, until_s: float) -> None:
        end = self.world.now + until_s
        while self.events[0][0] < end:
            self.world.now, _, what = heapq.heappop(self.events)
            what() if callable(what) else self.feed(what)  # type: ignore[arg-type]
        self.world.now = end

    def far(self, class_id: int) -> int:
        return sum(n for (number, node_id), n in self.granted.items() if number == class_id and node_id != HERE)

    def here(self, class_id: int) -> int:
        return self.granted[class_id, HERE]


def wish(nodes: Nodes, class_id: int, want: int, **fields: object) -> None:
    nodes.feed(on.LeaseDemanded(b"client", class_id, want, spec(**fields)))


@pytest.mark.parametrize("classes", [1, 16])
def test_leases_that_come_back_at_once_are_lent_here(classes):
    """Each far one costs two calls, and in the time that it takes ten of this node have served."""
    nodes = Nodes(dict.fromkeys(range(classes), 0.0004))
    for number in range(classes):
        wish(nodes, number, 100_000)
    nodes.run(0.5)
    far, here = sum(map(nodes.far, range(classes))), sum(map(nodes.here, range(classes)))
    assert here > 4_500 and far < 0.05 * here
    assert nodes.calls < 2.5 * far + 20


def test_long_tasks_fill_every_node_from_the_first_moment_on():
    nodes = Nodes({1: 0.1})
    wish(nodes, 1, 1000)
    nodes.run(0.01)
    assert nodes.here(1) == CPUS and nodes.far(1) == CPUS * len(OTHERS)
    nodes.run(2.0)
    assert sum(nodes.granted.values()) > 0.9 * 20 * CPUS * 4
    assert nodes.refusals == 0


def test_long_tasks_beside_trivial_ones_go_to_other_nodes():
    nodes = Nodes({1: 0.0004, 2: 0.1})
    wish(nodes, 1, 100_000)
    wish(nodes, 2, 1000)
    nodes.run(2.0)
    assert nodes.far(2) > 0.8 * 20 * CPUS * len(OTHERS)


def test_a_class_whose_tasks_become_long_goes_to_other_nodes_again():
    nodes = Nodes({1: 0.0004})
    wish(nodes, 1, 100_000)
    nodes.run(0.5)
    before = nodes.far(1)
    nodes.held_s[1] = 0.1
    nodes.run(0.5)
    assert nodes.world.core.pool.free["CPU"] == 0 and not any(nodes.free.values())
    assert nodes.far(1) >= before + CPUS * len(OTHERS)


def test_trivial_tasks_go_to_other_nodes_when_nothing_comes_free_here():
    nodes = Nodes({1: 0.0004, 2: 60.0})
    wish(nodes, 1, 100_000)
    nodes.run(0.5)
    wish(nodes, 2, CPUS, node_id=HERE)  # here, for a minute
    nodes.run(0.2)
    assert nodes.world.core.pool.free["CPU"] == 0
    before = nodes.far(1)
    nodes.run(1.0)
    assert nodes.far(1) > before + 100


def test_trivial_tasks_that_are_to_spread_go_everywhere():
    nodes = Nodes({1: 0.0004})
    wish(nodes, 1, 100_000, strategy="SPREAD")
    nodes.run(0.5)
    assert nodes.far(1) > 1000


def test_a_node_that_has_refused_is_believed():
    """Its reports take a moment: another one who was faster is no reason to ask for each wish of each class."""
    nodes = Nodes(dict.fromkeys(range(16), 0.1))
    nodes.free = dict.fromkeys(OTHERS, 0)  # just now
    for number in range(16):
        wish(nodes, number, 4)
    nodes.run(0.05)
    assert nodes.refusals <= CPUS * len(OTHERS)
