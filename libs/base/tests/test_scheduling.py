"""The policy's promises, by example and by property."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_base.labels import parse_selector
from shoal_base.resources import fits
from shoal_base.scheduling import STRATEGIES, NodeView, Request, choose_node, place_bundles

U = 10_000


def node(name: str, cpus: float = 4, free: float | None = None, **rest: object) -> NodeView:
    view = NodeView(name.encode() * 16, {"CPU": int(cpus * U)}, {"CPU": int((cpus if free is None else free) * U)})
    for key, value in rest.items():
        setattr(view, key, value)
    return view


A, B, C = (name.encode() * 16 for name in "abc")


def test_the_local_node_is_taken_until_it_is_half_full() -> None:
    one = Request({"CPU": U})
    assert choose_node(one, [node("a", free=3), node("b")], A, 0.9).node_id == A
    assert choose_node(one, [node("a", free=2), node("b")], A, 0.9).node_id == B


def test_beyond_half_the_less_used_node_is_taken() -> None:
    assert choose_node(Request({"CPU": U}), [node("a", free=1), node("b", free=2), node("c", free=1)], A, 0.0).node_id == B


def test_below_half_other_nodes_are_packed() -> None:
    nodes = [node("a", free=0), node("b", 8, 8), node("c", 8, 5)]
    assert choose_node(Request({"CPU": U}), nodes, A, 0.0).node_id == C


def test_rank_spreads_over_the_best_few() -> None:
    nodes = [node(name) for name in "bcd"]
    chosen = {choose_node(Request({"CPU": U}), nodes, A, rank).node_id for rank in (0.0, 0.4, 0.8)}
    assert len(chosen) == 3


def test_large_arguments_draw_the_task_to_them_and_small_ones_do_not() -> None:
    nodes = [node("a"), node("b")]
    assert choose_node(Request({"CPU": U}, argument_bytes={B: 1 << 30}), nodes, A, 0.0).node_id == B
    assert choose_node(Request({"CPU": U}, argument_bytes={B: 1 << 10}), nodes, A, 0.0).node_id == A


def test_a_queue_sends_work_elsewhere() -> None:
    assert choose_node(Request({"CPU": U}), [node("a", queued=8), node("b")], A, 0.0).node_id == B


def test_spread_takes_the_least_used() -> None:
    assert choose_node(Request({"CPU": U}, strategy="SPREAD"), [node("a", free=3), node("b")], A, 0.0).node_id == B


def test_dead_and_draining_nodes_get_nothing() -> None:
    choice = choose_node(Request({"CPU": U}), [node("a", alive=False), node("b", draining=True)], A, 0.0)
    assert (choice.node_id, choice.feasible, choice.reason) == (None, False, "no node is alive")


def test_what_no_node_has_is_infeasible_and_what_is_busy_waits() -> None:
    never = choose_node(Request({"CPU": U, "GPU": U}), [node("a")], A, 0.0)
    assert not never.feasible
    assert "GPU 1" in never.reason
    assert "largest: CPU 4" in never.reason
    busy = choose_node(Request({"CPU": U}), [node("a", free=0)], A, 0.0)
    assert (busy.node_id, busy.feasible) == (None, True)


def test_affinity_is_kept_even_to_a_busy_node() -> None:
    request = Request({"CPU": U}, affinity=A)
    assert choose_node(request, [node("a"), node("b")], B, 0.0).node_id == A
    busy = choose_node(request, [node("a", free=0), node("b")], B, 0.0)
    assert (busy.node_id, busy.feasible) == (None, True)
    assert "busy" in busy.reason


def test_hard_affinity_to_a_dead_node_fails_and_soft_goes_elsewhere() -> None:
    nodes = [node("a", alive=False), node("b")]
    hard = choose_node(Request({"CPU": U}, affinity=A), nodes, B, 0.0)
    assert (hard.node_id, hard.feasible) == (None, False)
    assert A.hex() in hard.reason
    assert choose_node(Request({"CPU": U}, affinity=A, soft=True), nodes, B, 0.0).node_id == B


def test_selectors_hold_and_soft_selectors_prefer() -> None:
    nodes = [node("a", labels={"zone": "eu"}), node("b", labels={"zone": "us"})]
    us = parse_selector({"zone": "us"})
    assert choose_node(Request({"CPU": U}, selector=us), nodes, A, 0.0).node_id == B
    assert choose_node(Request({"CPU": U}, soft_selector=us), nodes, A, 0.0).node_id == B
    nodes[1].available["CPU"] = 0
    assert choose_node(Request({"CPU": U}, soft_selector=us), nodes, A, 0.0).node_id == A
    assert choose_node(Request({"CPU": U}, selector=us), nodes, A, 0.0).feasible
    nowhere = choose_node(Request({"CPU": U}, selector=parse_selector({"zone": "asia"})), nodes, A, 0.0)
    assert not nowhere.feasible
    assert "zone=asia" in nowhere.reason


def test_a_placement_groups_bundle_counts_and_not_the_nodes_rest() -> None:
    group = b"g" * 16
    with_bundle = node("b", free=0)
    with_bundle.bundles = {(group, 0): ({"CPU": U}, {"CPU": 0}), (group, 1): ({"CPU": U}, {"CPU": U})}
    nodes = [node("a"), with_bundle]
    choice = choose_node(Request({"CPU": U}, pg_id=group), nodes, A, 0.0)
    assert (choice.node_id, choice.bundle_index) == (B, 1)
    assert choose_node(Request({"CPU": U}, pg_id=group, bundle_index=0), nodes, A, 0.0).reason.endswith("is busy")
    assert not choose_node(Request({"CPU": 2 * U}, pg_id=group), nodes, A, 0.0).feasible
    waiting = choose_node(Request({"CPU": U}, pg_id=b"h" * 16), nodes, A, 0.0)
    assert (waiting.node_id, waiting.feasible) == (None, True)


units = st.integers(0, 4).map(lambda n: n * U)
resources = st.fixed_dictionaries({"CPU": units}, optional={"GPU": units, "memory": units})


@st.composite
def views(draw: st.DrawFn) -> list[NodeView]:
    out = []
    for n in range(draw(st.integers(0, 5))):
        total = draw(resources)
        free = {name: draw(st.integers(0, amount)) for name, amount in total.items()}
        labels = draw(st.dictionaries(st.sampled_from(["zone", "kind"]), st.sampled_from(["x", "y"])))
        out.append(NodeView(bytes([n + 1]) * 16, total, free, labels, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 9))))
    return out


@given(views(), resources, st.sampled_from(["", "SPREAD"]), st.sampled_from([{}, {"zone": "x"}, {"zone": "!x"}]), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_the_choice_is_sound_and_complete(nodes: list[NodeView], need: dict[str, int], strategy: str, labels: dict[str, str], rank: float) -> None:
    selector = parse_selector(labels)
    choice = choose_node(Request(need, strategy=strategy, selector=selector), nodes, bytes([1]) * 16, rank)
    candidates = [n for n in nodes if n.alive and not n.draining and selector.matches(n.labels)]
    free = {n.node_id for n in candidates if fits(need, n.available)}
    assert (choice.node_id in free) if free else (choice.node_id is None)
    assert choice.feasible == any(fits(need, n.total) for n in candidates) or choice.node_id is not None
    assert bool(choice.reason) == (choice.node_id is None)


@given(views(), st.lists(resources, min_size=1, max_size=4), st.sampled_from(STRATEGIES))
@settings(deadline=None)
def test_a_placement_never_takes_more_than_is_free_and_keeps_its_strategy(nodes: list[NodeView], bundles: list[dict[str, int]], strategy: str) -> None:
    placed = place_bundles(bundles, strategy, nodes)
    alive = {n.node_id: n for n in nodes if n.alive and not n.draining}
    if isinstance(placed, str):
        assert placed
    else:
        assert len(placed) == len(bundles)
        for node_id in set(placed):
            needs = [bundle for at, bundle in zip(placed, bundles, strict=True) if at == node_id]
            total = {name: sum(need.get(name, 0) for need in needs) for name in ("CPU", "GPU", "memory")}
            assert fits(total, alive[node_id].available)
        if strategy == "STRICT_PACK":
            assert len(set(placed)) == 1
        if strategy == "STRICT_SPREAD":
            assert len(set(placed)) == len(bundles)
    if strategy == "STRICT_SPREAD":
        possible = any(
            all(fits(bundle, alive[at].available) for bundle, at in zip(bundles, order, strict=True)) for order in itertools.permutations(alive, len(bundles))
        )
        assert possible == (not isinstance(placed, str))
    if strategy == "STRICT_PACK":
        whole = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU", "memory")}
        assert any(fits(whole, n.available) for n in alive.values()) == (not isinstance(placed, str))


def test_pack_uses_one_node_and_spread_uses_all() -> None:
    nodes = [node(name) for name in "abc"]
    assert len(set(place_bundles([{"CPU": U}] * 3, "PACK", nodes))) == 1
    assert len(set(place_bundles([{"CPU": U}] * 3, "SPREAD", nodes))) == 3
    assert len(set(place_bundles([{"CPU": 3 * U}] * 3, "PACK", nodes))) == 3
    assert sorted(place_bundles([{"CPU": U}] * 6, "SPREAD", nodes)) == sorted([A, A, B, B, C, C])


def test_what_could_be_placed_on_empty_nodes_is_told_apart_from_what_never_can() -> None:
    nodes = [node("a", free=0)]
    assert place_bundles([{"CPU": U}], "PACK", nodes) == "bundle 0 (CPU 1) fits no node now"
    assert place_bundles([{"CPU": U}], "PACK", nodes, capacity=True) == [A]
    assert place_bundles([{"CPU": 9 * U}], "PACK", nodes, capacity=True) == "bundle 0 (CPU 9) fits no node"


def test_each_bundle_keeps_its_own_selector() -> None:
    nodes = [node("a", labels={"zone": "eu"}), node("b", labels={"zone": "us"})]
    selectors = [parse_selector({"zone": "us"}), parse_selector({"zone": "eu"})]
    assert place_bundles([{"CPU": U}] * 2, "PACK", nodes, selectors=selectors) == [B, A]


def test_an_unknown_strategy_is_named() -> None:
    assert "'STACK'" in str(place_bundles([{}], "STACK", [node("a")]))
