"""Placement groups on one node."""

import pytest
import shoal
from shoal.util import get_current_placement_group, placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

pytestmark = pytest.mark.usefixtures("cluster")
# What no node can run is given up after it; 10 s where nobody says so, which each such test would wait for.
SYSTEM_CONFIG = {service: {"infeasible_timeout_s": 1.0} for service in ("raylet", "gcs")}


@shoal.remote
def where():
    group = get_current_placement_group()
    return group.id.hex() if group else None


def inside(group, **kwargs):
    return PlacementGroupSchedulingStrategy(group, **kwargs)


def test_a_group_is_reserved_used_and_given_back(wait_until):
    group = placement_group([{"CPU": 1}, {"CPU": 1, "thing": 1}], strategy="PACK")
    assert group.wait(30)
    assert shoal.get(group.ready(), timeout=30) == group
    assert shoal.get(where.options(scheduling_strategy=inside(group)).remote(), timeout=30) == group.id.hex()
    wait_until(lambda: shoal.available_resources().get("CPU") == 2)
    assert placement_group_table(group)["state"] == "CREATED"
    remove_placement_group(group)
    wait_until(lambda: shoal.available_resources().get("CPU") == 4)
    assert placement_group_table(group)["state"] == "REMOVED"


def test_what_does_not_fit_waits_and_then_comes():
    first = placement_group([{"CPU": 3}])
    assert first.wait(30)
    second = placement_group([{"CPU": 3}])
    assert not second.wait(0.2)
    remove_placement_group(first)
    assert second.wait(30)
    remove_placement_group(second)


def test_strict_spread_over_one_node_never_comes():
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert not group.wait(0.3)
    remove_placement_group(group)


def test_actors_live_in_groups_and_children_are_captured():
    @shoal.remote(num_cpus=1)
    class Inside:
        def here(self):
            return shoal.get([where.remote(), where.options(scheduling_strategy="DEFAULT").remote()])

    group = placement_group([{"CPU": 2}])
    actor = Inside.options(scheduling_strategy=inside(group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True)).remote()
    assert shoal.get(actor.here.remote(), timeout=30) == [group.id.hex(), None]
    shoal.kill(actor)
    remove_placement_group(group)


def test_a_task_for_a_removed_group_fails():
    group = placement_group([{"CPU": 1}])
    assert group.wait(30)
    remove_placement_group(group)
    with pytest.raises(shoal.exceptions.TaskPlacementGroupRemoved):
        shoal.get(where.options(scheduling_strategy=inside(group)).remote(), timeout=30)


@pytest.mark.parametrize(("bundles", "kwargs", "text"), [
    ([], {}, "non-empty list"), ([{}], {}, "Bundle 0"), ([{"CPU": 0}], {}, "0 values"), ([{"CPU": -1}], {}, "negative"), ([{"CPU": "1"}], {}, "number"),
    ([{"CPU": 1}], {"strategy": "LOOSE"}, "LOOSE"), ([{"CPU": 1}], {"lifetime": "x"}, "lifetime"), ({"CPU": 1}, {}, "must be a list"),
])  # fmt: skip
def test_bad_groups_are_refused_by_name(bundles, kwargs, text):
    with pytest.raises(ValueError, match=text):
        placement_group(bundles, **kwargs)


def test_named_groups_are_found():
    group = placement_group([{"CPU": 1}], name="the-group")
    assert group.wait(30)
    assert shoal.util.get_placement_group("the-group") == group
    remove_placement_group(group)
    with pytest.raises(ValueError, match="nothing"):
        shoal.util.get_placement_group("nothing")


def test_node_affinity_and_labels():
    here = shoal.nodes()[0]["NodeID"]
    at = shoal.remote(lambda: shoal.get_runtime_context().get_node_id())
    assert shoal.get(at.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote(), timeout=30) == here
    assert shoal.get(at.options(label_selector={"zone": "in(a,b)"}).remote(), timeout=30) == here
    gone = NodeAffinitySchedulingStrategy("ab" * 16, soft=False)
    with pytest.raises(shoal.exceptions.TaskUnschedulableError):
        shoal.get(at.options(scheduling_strategy=gone).remote(), timeout=30)


def test_labels_choose_nodes_by_strategy_and_bundles_by_selector():
    @shoal.remote
    def at():
        return shoal.get_runtime_context().get_node_labels()["zone"]

    for hard in ({"zone": In("a", "b")}, {"zone": NotIn("z")}, {"zone": Exists()}, {"other": DoesNotExist()}):
        assert shoal.get(at.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard)).remote(), timeout=30) == "a"
    wished = NodeLabelSchedulingStrategy({}, soft={"zone": In("nowhere")})
    assert shoal.get(at.options(scheduling_strategy=wished).remote(), timeout=30) == "a"
    group = placement_group([{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"zone": "in(a,b)"}, {"zone": "!z"}])
    assert group.wait(30)
    remove_placement_group(group)
    elsewhere = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "z"}])
    assert not elsewhere.wait(0.3)
    remove_placement_group(elsewhere)


def test_a_group_that_goes_takes_its_actors_with_it_and_may_be_waited_for_elsewhere(wait_until):
    @shoal.remote
    class Member:
        def group(self):
            return get_current_placement_group().id

    @shoal.remote(num_cpus=0)
    def waits(group):
        return group.wait(30), group.id

    group = placement_group([{"CPU": 1}])
    assert shoal.get(waits.remote(group), timeout=60) == (True, group.id)
    member = Member.options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    assert shoal.get(member.group.remote(), timeout=60) == group.id
    remove_placement_group(group)
    with pytest.raises(shoal.exceptions.ActorPlacementGroupRemoved, match="was removed"):
        wait_until(lambda: shoal.get(member.group.remote(), timeout=60) is None)
