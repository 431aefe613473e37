"""A placement group whose node is lost."""

import pytest
import shoal
from shoal.testing import wait_until
from shoal.util import placement_group, placement_group_table
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.timeout(100)


@shoal.remote(num_cpus=1, max_retries=5)
def where():
    return shoal.get_runtime_context().get_node_id()


def test_a_group_is_placed_anew_when_its_node_dies_and_what_waits_for_it_runs_there(cluster):
    first = cluster.add_node(num_cpus=1, resources={"thing": 1})
    group = placement_group([{"CPU": 1, "thing": 1}])
    assert group.wait(60)
    inside = where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    before = shoal.get(inside.remote(), timeout=60)
    cluster.remove_node(first, allow_graceful=False)
    wait_until(lambda: placement_group_table(group)["state"] == "RESCHEDULING", 60)
    waits = inside.remote()
    second = cluster.add_node(num_cpus=1, resources={"thing": 1})
    assert shoal.get(waits, timeout=60) == second.node_id != before
    assert placement_group_table(group)["state"] == "CREATED"
