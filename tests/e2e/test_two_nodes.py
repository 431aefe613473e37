"""The core API over two nodes: tasks, objects, actors and references between them, and a node's end."""

import os

import pytest
import shoal
from shoal.cluster_utils import Cluster
from shoal.util.placement_group import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy


@pytest.fixture(scope="module")
def two():
    """(head's node id, the other's), two CPUs each; the other has resource `far`."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "labels": {"zone": "a"}})
    other = cluster.add_node(num_cpus=2, resources={"far": 2}, labels={"zone": "b"})
    cluster.wait_for_nodes()
    cluster.connect()
    yield cluster.list_all_nodes()[0].unique_id, other.unique_id
    shoal.shutdown()
    cluster.shutdown()


def at(node, soft=False):
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}


@shoal.remote
def here(*_):
    return shoal.get_runtime_context().get_node_id()


def test_tasks_run_where_they_are_sent(two):
    head, other = two
    assert shoal.get([here.options(**at(n)).remote() for n in two], timeout=60) == [head, other]
    assert shoal.get(here.options(resources={"far": 1}).remote(), timeout=30) == other
    assert shoal.get(here.options(label_selector={"zone": "!a"}).remote(), timeout=30) == other
    assert shoal.get(here.options(label_selector={"zone": "a"}).remote(), timeout=30) == head


def test_what_does_not_fit_here_spills_over(two, tmp_path):
    @shoal.remote
    def meet(path, count):
        import time

        open(os.path.join(path, str(os.getpid())), "w").close()
        deadline = time.monotonic() + 30
        while len(os.listdir(path)) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return shoal.get_runtime_context().get_node_id()

    assert set(shoal.get([meet.remote(str(tmp_path), 4) for _ in range(4)], timeout=60)) == set(two)


def test_small_and_large_objects_move(two):
    np = pytest.importorskip("numpy")
    _, other = two

    @shoal.remote
    def makes(n):
        return np.arange(n)

    @shoal.remote
    def sums(x):
        return int(x.sum())

    there = makes.options(**at(other)).remote(500_000)
    assert shoal.get(there, timeout=60)[-1] == 499_999
    mine = shoal.put(np.ones(500_000))
    assert shoal.get(sums.options(**at(other)).remote(mine), timeout=60) == 500_000
    assert shoal.get(sums.options(**at(other)).remote(there), timeout=60) == sum(range(500_000))
    small = makes.options(**at(other)).remote(3)
    assert shoal.get(sums.remote(small), timeout=30) == 3


def test_references_and_borrowers_across_nodes(two):
    _, other = two

    @shoal.remote
    def makes():
        return [shoal.put(i) for i in range(5)]

    @shoal.remote
    def reads(refs):
        return shoal.get(refs)

    refs = shoal.get(makes.options(**at(other)).remote(), timeout=30)
    assert shoal.get(refs, timeout=30) == [0, 1, 2, 3, 4]
    assert shoal.get(reads.options(**at(other)).remote([shoal.put("x"), refs[1]]), timeout=30) == ["x", 1]


def test_actors_on_another_node_and_their_handles(two):
    _, other = two

    @shoal.remote(num_cpus=0)
    class Remote:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

        def where(self):
            return shoal.get_runtime_context().get_node_id()

        def items(self, n):
            yield from range(n)

    @shoal.remote
    def uses(handle):
        return shoal.get(handle.add.remote())

    actor = Remote.options(name="far-away", **at(other)).remote()
    assert shoal.get(actor.where.remote(), timeout=60) == other
    assert shoal.get([actor.add.remote() for _ in range(100)], timeout=30) == list(range(1, 101))
    assert shoal.get(uses.options(**at(other)).remote(actor), timeout=30) == 101
    assert shoal.get(shoal.get_actor("far-away").add.remote(), timeout=30) == 102
    assert [shoal.get(ref) for ref in actor.items.remote(20)] == list(range(20))
    shoal.kill(actor)


def test_nested_tasks_and_cancellation_across_nodes(two, tmp_path, wait_until):
    _, other = two
    started = tmp_path / "started"

    @shoal.remote
    def sleeps():
        import time

        started.touch()
        time.sleep(30)

    @shoal.remote
    def parent():
        return shoal.get(sleeps.options(**at(other)).remote())

    ref = parent.remote()
    wait_until(started.exists)
    shoal.cancel(ref)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(ref, timeout=30)


def test_groups_spread_over_nodes(two):
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert group.wait(30)
    assert set(placement_group_table(group)["bundles_to_node_id"].values()) == set(two)
    nodes = [here.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote() for i in range(2)]
    assert set(shoal.get(nodes, timeout=30)) == set(two)
    remove_placement_group(group)


@pytest.mark.parametrize(("strategy", "cpus", "nodes"), [
    ("STRICT_PACK", [1, 1], 1), ("PACK", [1, 1], 1), ("PACK", [2, 1], 2), ("SPREAD", [1, 1], 2), ("SPREAD", [1, 1, 1], 2), ("STRICT_SPREAD", [1, 1], 2),
    ("STRICT_PACK", [2, 1], None), ("STRICT_SPREAD", [1, 1, 1], None),
])  # fmt: skip
def test_groups_pack_and_spread_as_they_are_told(two, wait_until, strategy, cpus, nodes):
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, what="all CPUs to be free")
    group = placement_group([{"CPU": n} for n in cpus], strategy=strategy)
    if nodes is None:
        assert not group.wait(0.3)
    else:
        assert group.wait(30)
        assert len(set(placement_group_table(group)["bundles_to_node_id"].values())) == nodes
    remove_placement_group(group)


def test_an_error_from_another_node(two):
    @shoal.remote
    def fails():
        raise KeyError("far")

    with pytest.raises(KeyError) as caught:
        shoal.get(fails.options(**at(two[1])).remote(), timeout=30)
    assert caught.value.node_id == two[1][:12]


def test_a_nodes_death_retries_its_tasks_and_tells_of_its_actors(wait_until, tmp_path):
    shoal.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        doomed = cluster.add_node(num_cpus=2, resources={"doomed": 1})
        cluster.wait_for_nodes()
        cluster.connect()
        marks, doomed_id = tmp_path, doomed.unique_id

        @shoal.remote(max_retries=1)
        def survives():
            import time

            node = shoal.get_runtime_context().get_node_id()
            (marks / node).touch()
            if node == doomed_id:
                time.sleep(60)
            return node

        @shoal.remote(num_cpus=0)
        class There:
            def f(self):
                return 1

        ref = survives.options(**at(doomed_id, soft=True)).remote()
        actor = There.options(**at(doomed_id, soft=True)).remote()
        assert shoal.get(actor.f.remote(), timeout=60) == 1
        wait_until((marks / doomed_id).exists)
        cluster.remove_node(doomed)
        assert shoal.get(ref, timeout=60) == shoal.get_runtime_context().get_node_id()
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(actor.f.remote(), timeout=60)
        assert [n["Alive"] for n in shoal.nodes() if n["NodeID"] == doomed_id] == [False]
    finally:
        shoal.shutdown()
        cluster.shutdown()
