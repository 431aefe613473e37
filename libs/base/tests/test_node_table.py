"""The table of nodes, and what is chosen among."""

from __future__ import annotations

import pytest
from shoal_base.labels import parse_selector
from shoal_base.node_table import LOOK_AT, NodeTable, candidates, grown
from shoal_base.scheduling import NodeView, Request, choose_node

U = 10_000
ONE = Request({"CPU": U})


def node(number: int, free: int = 4, **more: object) -> NodeView:
    return NodeView(number.to_bytes(16, "big"), total={"CPU": 4 * U}, available={"CPU": free * U}, **more)  # type: ignore[arg-type]


def table(*nodes: NodeView) -> NodeTable:
    made = NodeTable()
    for one in nodes:
        made[one.node_id] = one
    return made


def ids(nodes: object) -> list[int]:
    return [int.from_bytes(one.node_id, "big") for one in nodes]  # type: ignore[attr-defined]


def test_since_tells_what_grew_later_and_each_once() -> None:
    nodes = table(*map(node, range(5)))
    seen = nodes.version
    nodes.grew(node(3).node_id)
    nodes.grew(node(1).node_id)
    nodes.grew(node(3).node_id)
    nodes.replace(node(4).node_id, node(4, free=0))
    assert ids(nodes.since(seen)) == [3, 1]
    assert ids(nodes.since(nodes.version)) == []
    assert len(ids(nodes.since(-1))) == 5


def test_a_lost_node_is_in_no_list_and_losing_it_again_is_nothing() -> None:
    nodes = table(*map(node, range(4)))
    nodes.lose(node(1).node_id)
    nodes.lose(node(1).node_id)
    nodes.grew(node(1).node_id)
    assert (sorted(ids(nodes.around(0.0))), sorted(ids(nodes.since(-1))), nodes.losses) == ([0, 2, 3], [0, 2, 3], 1)


@pytest.mark.parametrize("rank", [0.0, 0.3, 0.999])
def test_around_tells_all_from_any_place_on(rank: float) -> None:
    nodes = table(*map(node, range(7)))
    told = ids(nodes.around(rank))
    assert sorted(told) == list(range(7))
    assert told[0] == int(rank * 7)


def test_of_many_nodes_a_few_with_room_are_compared_and_they_differ_by_rank() -> None:
    nodes = table(*(node(n, free=n % 2) for n in range(1000)))
    chosen = {choose_node(ONE, candidates(ONE, nodes, rank / 10), None, rank / 10).node_id for rank in range(10)}
    assert len(candidates(ONE, nodes, 0.5)) == LOOK_AT
    assert len(chosen) > 5
    assert all(nodes[one].available["CPU"] for one in chosen if one)


def test_the_only_node_with_room_among_many_is_found() -> None:
    nodes = table(*(node(n, free=n == 777) for n in range(1000)))
    assert all(ids(candidates(ONE, nodes, rank / 7)) == [777] for rank in range(7))
    assert candidates(ONE, nodes, 0.1, skip=lambda node_id: node_id == node(777).node_id) != []  # all others: they can say why not
    assert choose_node(ONE, candidates(ONE, nodes, 0.1, skip=lambda node_id: node_id == node(777).node_id), None, 0.0).node_id is None


def test_where_the_arguments_lie_is_among_the_candidates_wherever_one_begins() -> None:
    nodes = table(*map(node, range(1000)))
    wish = Request({"CPU": U}, argument_bytes={node(500).node_id: 1 << 30})
    assert all(choose_node(wish, candidates(wish, nodes, rank), None, rank).node_id == node(500).node_id for rank in (0.0, 0.2, 0.9))


def test_affinity_looks_at_one_node_and_a_soft_one_elsewhere_only_when_that_cannot() -> None:
    nodes = table(*map(node, range(1000)))
    there = node(500).node_id
    assert ids(candidates(Request({"CPU": U}, affinity=there), nodes, 0.0)) == [500]
    assert ids(candidates(Request({"CPU": U}, affinity=there, soft=True), nodes, 0.0)) == [500]
    assert candidates(Request({"CPU": U}, affinity=b"gone" * 4), nodes, 0.0) == []
    assert len(candidates(Request({"CPU": U}, affinity=b"gone" * 4, soft=True), nodes, 0.0)) == LOOK_AT


def test_grown_finds_room_only_where_something_came_free_since() -> None:
    nodes = table(*(node(n, labels={"zone": "eu"}) for n in range(100)))
    seen = nodes.version
    nodes[node(7).node_id] = node(7, free=0, labels={"zone": "eu"})
    nodes[node(8).node_id] = node(8, labels={"zone": "us"})
    nodes[node(9).node_id] = node(9, labels={"zone": "eu"})
    assert ids(grown(Request({"CPU": U}, selector=parse_selector({"zone": "eu"})), nodes, seen)) == [9]
    assert ids(grown(ONE, nodes, seen)) == [9, 8]
    assert ids(grown(ONE, nodes, seen, skip=lambda node_id: node_id == node(9).node_id)) == [8]
