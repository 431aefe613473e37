"""Options: what is refused, and that the error names it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal import _options
from shoal._ids import PlacementGroupID
from shoal._options import check_actor, check_method, check_task, placement_of, resources_of
from shoal.util.placement_group import PlacementGroup
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = "ab" * 16


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"num_cpu": 1}, ValueError, r"Invalid option keyword num_cpu .*Did you mean num_cpus\?"),
    ({"lifetime": "detached"}, ValueError, "Invalid option keyword lifetime for remote functions"),
    ({"object_store_memory": 1}, ValueError, "object_store_memory"),
    ({"num_cpus": -1}, ValueError, "num_cpus cannot be negative"),
    ({"num_cpus": "2"}, TypeError, "'num_cpus'"),
    ({"num_cpus": True}, TypeError, "'num_cpus'"),
    ({"num_cpus": float("nan")}, ValueError, "num_cpus"),
    ({"num_cpus": 0.00001}, ValueError, "num_cpus.*1/10000"),
    ({"num_gpus": 1.5}, ValueError, "num_gpus=1.5"),
    ({"memory": -5}, ValueError, "memory cannot be negative"),
    ({"resources": {"CPU": 1}}, ValueError, "Use the 'num_cpus' and 'num_gpus' keyword"),
    ({"resources": {"GPU": 1}}, ValueError, "Use the 'num_cpus' and 'num_gpus' keyword"),
    ({"resources": {"memory": 1}}, ValueError, "memory"),
    ({"resources": {"x": -1}}, ValueError, r"resources\['x'\] cannot be negative"),
    ({"resources": [1]}, TypeError, "'resources'"),
    ({"max_retries": -2}, ValueError, "'max_retries'"),
    ({"max_retries": 1.5}, TypeError, "'max_retries'"),
    ({"max_calls": -1}, ValueError, "'max_calls'"),
    ({"num_returns": -1}, ValueError, "'num_returns'"),
    ({"num_returns": "stream"}, TypeError, "num_returns='stream'"),
    ({"retry_exceptions": [1]}, ValueError, "retry_exceptions holds 1"),
    ({"retry_exceptions": "x"}, TypeError, "retry_exceptions"),
    ({"scheduling_strategy": "PACKED"}, ValueError, "scheduling_strategy='PACKED'"),
    ({"scheduling_strategy": 3}, TypeError, "scheduling_strategy"),
    ({"label_selector": {"zone": "in("}}, ValueError, "zone"),
    ({"label_selector": {"zone": 5}}, TypeError, "'zone': 5"),
    ({"runtime_env": 5}, TypeError, "runtime_env must be dict"),
    ({"fallback_strategy": [{"labels": {}}]}, ValueError, r"fallback_strategy\[0\]"),
    ({"_generator_backpressure_num_objects": 0}, ValueError, "_generator_backpressure_num_objects"),
])  # fmt: skip
def test_a_wrong_task_option_is_refused_by_name(options, error, text):
    with pytest.raises(error, match=text):
        check_task(options)


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"max_retries": 1}, ValueError, "Invalid option keyword max_retries for actors"),
    ({"num_returns": 2}, ValueError, "Invalid option keyword num_returns for actors"),
    ({"name": ""}, ValueError, "cannot be an empty string"),
    ({"name": 3}, TypeError, "name must be None or a string"),
    ({"namespace": ""}, ValueError, "namespace"),
    ({"lifetime": "for ever"}, ValueError, "lifetime"),
    ({"get_if_exists": True}, ValueError, "name must be specified"),
    ({"max_concurrency": 0}, ValueError, "'max_concurrency'"),
    ({"max_restarts": -2}, ValueError, "'max_restarts'"),
    ({"max_pending_calls": 0}, ValueError, "'max_pending_calls'"),
    ({"max_task_retries": 2, "max_restarts": 0}, ValueError, "max_task_retries"),
    ({"concurrency_groups": {"io": 0}}, ValueError, r"concurrency_groups\['io'\]"),
    ({"concurrency_groups": {"": 1}}, ValueError, "concurrency_groups"),
])  # fmt: skip
def test_a_wrong_actor_option_is_refused_by_name(options, error, text):
    with pytest.raises(error, match=text):
        check_actor(options)


def test_method_options_are_those_of_methods():
    assert check_method({"num_returns": 2, "concurrency_group": "io"})
    with pytest.raises(ValueError, match="Invalid option keyword num_cpus for actor methods"):
        check_method({"num_cpus": 1})


def test_none_stands_for_the_default_everywhere():
    for table, check in ((_options.TASK, check_task), (_options.ACTOR, check_actor), (_options.METHOD, check_method)):
        check(dict.fromkeys(table))


@given(st.floats(min_value=0.0001, max_value=1000).map(lambda x: round(x, 4)))
def test_amounts_become_units_and_zeros_vanish(amount):
    assert resources_of({"num_cpus": amount, "resources": {"a": amount, "b": 0}}, 1) == {"CPU": round(amount * 10000), "a": round(amount * 10000)}


def test_defaults_and_accelerators():
    assert resources_of({}, 1) == {"CPU": 10000}
    assert resources_of({"num_cpus": 0}, 1) == {}
    assert resources_of({"num_cpus": 0, "num_gpus": 0.5, "memory": 10, "accelerator_type": "A100"}, 1) == {
        "GPU": 5000, "memory": 100000, "accelerator_type:A100": 10,
    }  # fmt: skip


def test_strategies_become_placements():
    assert placement_of({"scheduling_strategy": "SPREAD"}, {}, b"").strategy == "SPREAD"
    near = placement_of({"scheduling_strategy": NodeAffinitySchedulingStrategy(NODE, soft=True)}, {}, b"")
    assert (near.node_id, near.soft) == (bytes.fromhex(NODE), True)
    labels = NodeLabelSchedulingStrategy({"a": In("1", "2"), "b": Exists()}, soft={"c": NotIn("3"), "d": DoesNotExist()})
    place = placement_of({"scheduling_strategy": labels}, {}, b"")
    assert place.label_selector == {"a": "in(1,2)", "b": "exists()"}
    assert place.soft_label_selector == {"c": "!in(3)", "d": "!exists()"}


def test_the_last_fallback_is_what_must_hold_and_the_first_selector_is_wished():
    place = placement_of({"label_selector": {"zone": "a"}, "fallback_strategy": [{"label_selector": {"zone": "b"}}]}, {}, b"")
    assert (place.label_selector, place.soft_label_selector) == ({"zone": "b"}, {"zone": "a"})


def test_a_node_id_that_is_none_is_refused():
    for wrong in ("xyz", "abcd"):
        with pytest.raises(ValueError, match="is no node id"):
            NodeAffinitySchedulingStrategy(wrong, soft=False)


def _group(*bundles):
    return PlacementGroup(PlacementGroupID(b"g" * 16), list(bundles))


def test_a_bundle_index_that_the_group_lacks_is_refused():
    with pytest.raises(ValueError, match="bundle index 2 is invalid"):
        placement_of({"scheduling_strategy": PlacementGroupSchedulingStrategy(_group({"CPU": 1}), 2)}, {"CPU": 10000}, b"")


def test_a_request_that_fits_in_no_bundle_is_refused():
    with pytest.raises(ValueError, match="CPU 2 cannot fit into any bundle"):
        placement_of({"scheduling_strategy": PlacementGroupSchedulingStrategy(_group({"CPU": 1}, {"CPU": 1}))}, {"CPU": 20000}, b"")


def test_children_are_captured_only_without_a_strategy_of_their_own():
    assert placement_of({}, {}, b"g" * 16).placement_group == b"g" * 16
    assert placement_of({"scheduling_strategy": "DEFAULT"}, {}, b"g" * 16).placement_group == b""
    assert placement_of({"placement_group": None}, {}, b"g" * 16).placement_group == b""


def test_two_ways_to_name_a_group_at_once_are_refused():
    with pytest.raises(ValueError, match="scheduling_strategy"):
        placement_of({"scheduling_strategy": "SPREAD", "placement_group": _group({"CPU": 1})}, {}, b"")
