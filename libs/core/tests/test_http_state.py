"""Filters, prefixes and texts of the state API."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("aiohttp")

from shoal._cli.table import size, table, tree
from shoal._http import state
from shoal._http.metrics import merge, with_node
from shoal._http.server import authorized

ROWS = [{"node_id": "aa11", "state": "ALIVE", "pid": 7, "name": None}, {"node_id": "aa22", "state": "DEAD", "pid": 8, "name": "x"}]


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    async def nodes(_cluster):
        return list(ROWS), ["a warning"]

    monkeypatch.setitem(state.RESOURCES, "nodes", nodes)


def listed(*filters, limit=100):
    return asyncio.run(state.listed(None, "nodes", list(filters), limit))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ((), ["aa11", "aa22"]), (("state=ALIVE",), ["aa11"]), (("state=alive",), ["aa11"]), (("state!=ALIVE",), ["aa22"]), (("pid=8",), ["aa22"]),
        (("name=",), ["aa11"]), (("state=ALIVE", "pid=8"), []),
    ],
)  # fmt: skip
def test_filters_must_all_hold(filters, found):
    assert [row["node_id"] for row in listed(*filters)["result"]] == found


def test_a_list_says_what_it_left_out():
    answer = listed(limit=1)
    assert (len(answer["result"]), answer["total"], answer["num_filtered"], answer["truncated"], answer["warnings"]) == (1, 2, 2, True, ["a warning"])


def test_an_id_may_be_shortened_while_it_is_clear():
    one = lambda text: asyncio.run(state.one(None, "nodes", text))  # type: ignore[arg-type]  # noqa: E731
    assert one("aa1") == ROWS[0]
    assert one("AA22") == ROWS[1]
    assert one("b") is None
    with pytest.raises(state.BadRequest, match="2 nodes"):
        one("aa")


@pytest.mark.parametrize("name", ["nodes", "node", "placement-groups", "placement_group"])
def test_resources_have_forgiving_names(name):
    assert state.canonical(name) in state.RESOURCES


def test_a_bearer_token_and_nothing_else_opens():
    assert authorized("Bearer abc", b"abc")
    assert authorized("bearer abc ", b"abc")
    for header in ("", "abc", "Basic abc", "Bearer abd", "Bearer"):
        assert not authorized(header, b"abc")
    assert not authorized("Bearer ", b"")


def test_metrics_of_many_services_become_one_page():
    histogram = "# HELP h Time\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 3\nh_count 2\n"
    page = merge([with_node(histogram, "n1"), with_node(histogram, "n2"), "loose 1\n"])
    assert page.count("# TYPE h histogram") == 1
    assert [line for line in page.splitlines() if line.startswith("h_count")] == ['h_count{node="n1"} 2', 'h_count{node="n2"} 2']
    assert page.index("h_bucket") < page.index("loose 1")


def test_tables_cut_long_cells_and_show_nothing_as_a_dash():
    text = table([{"a": "x" * 100, "b": None}], ["a", "b"])
    assert "…" in text
    assert text.endswith("-")
    assert tree({"a": {"b": [1, {"c": None}]}}) == "a:\n  b:\n    - 1\n    - c: null"
    assert size(1 << 50) == "1024.0 TiB"
