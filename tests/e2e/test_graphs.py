"""Graphs of bound calls: results, order, walks."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import shoal
from shoal.dag import ClassNode, DAGNode, FunctionNode, InputNode, MultiOutputNode

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote
def add(a, b):
    return a + b


@shoal.remote(num_cpus=0)
class Keeps:
    def __init__(self, start):
        self.value = start

    def plus(self, x):
        self.value += x
        return self.value

    @shoal.method(num_returns=2)
    def pair(self, x):
        return x, x + 1


def test_nodes_run_once_and_their_results_are_arguments_of_others():
    with InputNode() as given:
        total = add.bind(add.bind(given, 1), 2)
        both = MultiOutputNode([total, add.bind(total, total)])
    assert shoal.get(total.execute(5)) == 8
    assert shoal.get(both.execute(5)) == [8, 16]


def test_an_actor_of_a_graph_begins_anew_with_each_execution():
    with InputNode() as given:
        node = Keeps.bind(10).plus.bind(given)
    assert [shoal.get(node.execute(n)) for n in (1, 5, 0)] == [11, 15, 10]


def test_calls_bound_before_run_before_also_when_nobody_uses_their_results():
    node = Keeps.bind(1)
    node.plus.bind(2)
    node.plus.bind(3)
    assert shoal.get(node.plus.bind(0).execute()) == 6


def test_a_living_actor_keeps_its_state_and_a_call_with_several_results_has_a_node_for_each():
    actor = Keeps.remote(5)
    node = actor.plus.bind(3)
    assert [shoal.get(node.execute()), shoal.get(node.execute())] == [8, 11]
    first, second = actor.pair.bind(7)
    assert shoal.get(MultiOutputNode([second, first]).execute()) == [8, 7]
    assert (second.is_class_method_output, second.output_idx, second.num_returns) == (True, 1, 2)
    assert second.class_method_call is first.class_method_call and second.class_method_call.get_method_name() == "pair"


class Given:
    x, y = 2, 3


@pytest.mark.parametrize(
    ("part", "args", "kwargs"),
    [
        (lambda given: (given[0], given[1]), (2, 3), {}),
        (lambda given: (given[0], given[1]), ([2, 3],), {}),
        (lambda given: (given[0], given.y), (2,), {"y": 3}),
        (lambda given: (given["x"], given["y"]), ({"x": 2, "y": 3},), {}),
        (lambda given: (given.x, given.y), (Given(),), {}),
        (lambda given: (given.x, given["y"]), (), {"x": 2, "y": 3}),
    ],
)
def test_parts_of_the_input(part, args, kwargs):
    with InputNode() as given:
        node = add.bind(*part(given))
    assert shoal.get(node.execute(*args, **kwargs)) == 5


def test_what_is_wrong_with_a_graph_is_said_where_it_is():
    with InputNode() as given:
        node = add.bind(given[0], given.y)
        with pytest.raises(ValueError, match="the input of a graph cannot be an argument of ActorClass"):
            Keeps.bind(given)
    with pytest.raises(KeyError, match="input 'y', and execute.* was given 1 positional and \\['z'\\] named"):
        node.execute(1, z=2)
    with pytest.raises(ValueError, match="2 InputNodes"):
        add.bind(InputNode(), InputNode()).execute(1)
    with pytest.raises(AttributeError, match="bound already"):
        node.bind(1)
    with pytest.raises(AttributeError, match="with .execute"):
        node.remote()
    with pytest.raises(AttributeError, match="spoon"):
        _ = Keeps.bind(1).spoon


@dataclasses.dataclass
class Box:
    items: dict
    label: str = "box"


@shoal.remote
def unpack(box):
    return sum(shoal.get(box.items["all"])), box.label


def test_nodes_inside_containers_and_objects_become_references():
    box = Box({"all": [add.bind(1, 2), add.bind(3, 4)]})
    assert shoal.get(unpack.bind(box).execute()) == (10, "box")
    assert all(isinstance(node, FunctionNode) for node in box.items["all"]), "what was given is not changed"


def test_walks_see_each_node_once():
    shared = add.bind(1, 2)
    total = add.bind(shared, add.bind(shared, 3))
    seen = []
    assert total.apply_recursive(lambda node: seen.append(node.get_args()) or len(seen)) == 3
    assert seen == [(1, 2), (1, 3), (1, 2)], "results stand in the place of nodes"
    found = []
    shared.traverse_and_apply(found.append)
    assert {node.get_stable_uuid() for node in found} >= {shared.get_stable_uuid(), total.get_stable_uuid()} and len(found) == 3
    assert total.apply_functional([shared, {"x": total}, 5], lambda node: node is shared, lambda node: "here") == ["here", {"x": total}, 5]


def test_results_of_each_node_can_be_kept():
    first = add.bind(1, 2)
    last = add.bind(first, 3)
    last.execute(_ray_cache_refs=True)
    kept = asyncio.run(last.get_object_refs_from_last_execute())
    assert shoal.get([kept[first.get_stable_uuid()], kept[last.get_stable_uuid()]]) == [3, 6]
    last.clear_cache()
    assert asyncio.run(last.get_object_refs_from_last_execute()) == {}


def test_graphs_travel_and_are_made_of_plain_functions_and_classes_too():
    @shoal.remote
    def run(graph):
        return shoal.get(graph.execute(4))

    with InputNode(input_type={0: int}) as given:
        assert given[0].get_result_type() == "int" and given[0] is given[0]
        node = ClassNode(Given, (), {}, {"num_cpus": 0})
        graph: DAGNode = FunctionNode(lambda a, b: a * b, (given, 10), {}, {"name": "times"})
    assert shoal.get(run.remote(graph)) == 40
    assert isinstance(node.execute(), shoal.actor.ActorHandle)


def test_a_chain_longer_than_pythons_stack():
    node = add.bind(0, 1)
    for _ in range(1500):
        node = add.bind(node, 1)
    assert shoal.get(node.execute(), timeout=60) == 1501
