"""Pools, GPUs and bundles add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_raylet.bundles import Bundles, Pool, pick_gpus

pytestmark = pytest.mark.timeout(30)
UNIT = 10_000


def test_a_fraction_of_a_gpu_never_straddles_two_devices():
    pool = Pool({"GPU": 2 * UNIT}, {"0": UNIT, "1": UNIT})
    first, second = pool.allocate({"GPU": 6000}), pool.allocate({"GPU": 6000})
    assert first and second and first.gpus != second.gpus
    assert pool.free["GPU"] == 8000
    assert pool.allocate({"GPU": 5000}) is None, "4000 are left on each: together they are enough, on one device not"
    assert pool.allocate({"GPU": 4000}) is not None


def test_fractions_fill_one_gpu_before_they_break_another():
    assert pick_gpus(3000, {"0": UNIT, "1": 4000}) == {"1": 3000}


def test_what_was_taken_comes_back_once():
    pool = Pool({"CPU": UNIT, "GPU": UNIT}, {"0": UNIT})
    taken = pool.allocate({"CPU": UNIT, "GPU": 5000})
    assert taken is not None
    taken.release()
    taken.release()
    assert pool.free == {"CPU": UNIT, "GPU": UNIT} and pool.gpus == {"0": UNIT} and pool.taken == 0


def test_lent_cpus_come_back_once_when_the_lease_ends_blocked():
    pool = Pool({"CPU": UNIT})
    taken = pool.allocate({"CPU": UNIT})
    assert taken is not None and taken.lend_cpu() and not taken.lend_cpu()
    assert pool.free["CPU"] == UNIT
    taken.release()
    assert pool.free["CPU"] == UNIT


def test_a_worker_that_goes_on_may_oversubscribe_the_node_until_a_task_ends():
    pool = Pool({"CPU": UNIT})
    blocked = pool.allocate({"CPU": UNIT})
    assert blocked is not None
    blocked.lend_cpu()
    other = pool.allocate({"CPU": UNIT})
    assert other is not None
    blocked.resume_cpu()
    assert pool.free["CPU"] == -UNIT and pool.available()["CPU"] == 0
    other.release()
    assert pool.allocate({"CPU": UNIT}) is None
    blocked.release()
    assert pool.free["CPU"] == UNIT


def test_bundles_of_one_group_come_and_go_without_another():
    node = Pool({"CPU": 4 * UNIT})
    bundles = Bundles(node)
    for group in (b"a", b"b"):
        assert bundles.prepare(group, {0: {"CPU": UNIT}, 1: {"CPU": UNIT}}, 0.0) == ""
        assert bundles.commit(group, [0, 1]) == []
    assert [bundle.index for bundle in bundles.remove(b"a", [1, 5])] == [1]
    assert len(bundles.pools(b"a", -1)) == 1 and bundles.pools(b"a", 1) == []
    assert len(bundles.pools(b"b", -1)) == 2 and node.free["CPU"] == UNIT
    assert [bundle.index for bundle in bundles.remove(b"a")] == [0]
    assert not bundles.holds(b"a") and bundles.holds(b"b") and bundles.remove(b"a") == []
    assert bundles.commit(b"a", [0]) == [0]


def test_bundles_are_prepared_all_or_none():
    node = Pool({"CPU": 2 * UNIT})
    bundles = Bundles(node)
    why = bundles.prepare(b"g", {0: {"CPU": UNIT}, 1: {"CPU": 2 * UNIT}}, 0.0)
    assert "bundle 1" in why and "CPU 2" in why
    assert node.free == {"CPU": 2 * UNIT}
    assert bundles.prepare(b"g", {0: {"CPU": UNIT}}, 0.0) == "" == bundles.prepare(b"g", {0: {"CPU": UNIT}}, 0.0)
    assert node.free == {"CPU": UNIT}


def test_a_bundle_serves_only_once_committed_and_returns_when_its_last_lease_ends():
    node = Pool({"CPU": 2 * UNIT, "GPU": UNIT}, {"0": UNIT})
    bundles = Bundles(node)
    bundles.prepare(b"g", {0: {"CPU": UNIT, "GPU": UNIT}}, 0.0)
    assert bundles.pools(b"g", 0) == []
    assert bundles.commit(b"g", [0]) == [] and bundles.commit(b"g", [5]) == [5]
    (pool,) = bundles.pools(b"g", -1)
    lease = pool.allocate({"GPU": 5000})
    assert lease is not None and lease.gpus == {"0": 5000}
    bundles.remove(b"g")
    assert bundles.pools(b"g", -1) == []
    assert node.free == {"CPU": UNIT, "GPU": 0}, "its device is still in use"
    lease.release()
    bundles.settle()
    assert node.free == {"CPU": 2 * UNIT, "GPU": UNIT} and node.gpus == {"0": UNIT}


@given(st.lists(st.tuples(st.sampled_from(["take", "give", "lend", "resume"]), st.integers(0, 25_000)), max_size=60))
def test_whatever_happens_everything_returns_at_the_end(steps):
    pool = Pool({"CPU": 4 * UNIT, "GPU": 3 * UNIT}, {"0": UNIT, "1": UNIT, "2": UNIT})
    taken = []
    for what, amount in steps:
        if what == "take":
            allocation = pool.allocate({"GPU": amount, "CPU": amount // 2})
            if allocation:
                taken.append(allocation)
        elif taken:
            one = taken[amount % len(taken)]
            if what == "give":
                taken.remove(one)
                one.release()
            elif what == "lend":
                one.lend_cpu()
            else:
                one.resume_cpu()
        assert pool.free["GPU"] >= 0 and all(0 <= left <= UNIT for left in pool.gpus.values())
        assert sum(pool.gpus.values()) == pool.free["GPU"]
    for one in taken:
        one.release()
    assert pool.free == pool.total and pool.taken == 0
