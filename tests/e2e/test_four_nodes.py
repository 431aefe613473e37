"""Four nodes on one machine: tasks, objects and placement groups across all of them."""

from __future__ import annotations

import shoal
from shoal.cluster_utils import Cluster
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def test_four_nodes_on_one_machine() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(3):
            cluster.add_node(wait=False, num_cpus=1)
        cluster.wait_for_nodes()
        cluster.connect()
        nodes = {node.node_id for node in cluster.list_all_nodes()}
        assert {node["NodeID"] for node in shoal.nodes() if node["Alive"]} == nodes and shoal.cluster_resources()["CPU"] == 4

        @shoal.remote
        def here(*_: object) -> str:
            return shoal.get_runtime_context().get_node_id()

        @shoal.remote
        def chunk(n: int) -> bytes:
            return bytes([n]) * (1 << 20)

        @shoal.remote
        def first_bytes(*parts: bytes) -> list[int]:
            return [part[0] for part in parts]

        group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
        assert group.wait(60)
        on = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=n) for n in range(4)]
        assert set(shoal.get([here.options(scheduling_strategy=where).remote() for where in on], timeout=60)) == nodes
        # From each node to each other one. Slots of the same number lie on each node: who read before all had come would read his own.
        for _ in range(5):
            parts = [chunk.options(scheduling_strategy=where).remote(n) for n, where in enumerate(on)]
            seen = shoal.get([first_bytes.options(scheduling_strategy=where).remote(*parts) for where in on], timeout=60)
            assert seen == [[0, 1, 2, 3]] * 4
        remove_placement_group(group)
    finally:
        shoal.shutdown()
        cluster.shutdown()
