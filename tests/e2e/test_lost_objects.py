"""Objects whose only copy dies with its node come back by running their tasks again; what cannot come back says why. Real nodes, killed with SIGKILL."""

import gc
import os
import time

import pytest
import shoal
from shoal.cluster_utils import Cluster
from shoal.exceptions import ObjectReconstructionFailedError, OwnerDiedError, RayTaskError
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from shoal_base.errors import Code

pytestmark = pytest.mark.timeout(120)

SIZE = 300_000  # lies in the store


@pytest.fixture(scope="module")
def made():
    """A cluster whose head has one CPU, so that whoever waits with a worker in hand would wait for ever."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.connect()
    yield cluster
    shoal.shutdown()
    cluster.shutdown()


@pytest.fixture
def doomed(made):
    """A node that is to die in the test."""
    node = made.add_node(num_cpus=4)
    yield node
    if node in made.worker_nodes:
        made.remove_node(node)


@pytest.fixture
def runs(tmp_path):
    """Notes each run of a task: `note(path, name)` in the task, `runs(name)` in the test."""
    path = tmp_path / "runs"
    path.touch()

    def count(name):
        return path.read_text().split().count(name)

    count.path = str(path)
    return count


def note(path, name):
    with open(path, "a") as file:
        file.write(name + "\n")


def at(node):
    """There if it lives, elsewhere otherwise."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=True)}


def ready(*refs):
    assert len(shoal.wait(list(refs), num_returns=len(refs), timeout=60, fetch_local=False)[0]) == len(refs)


@shoal.remote
def make(path, name, *parts):
    """A large value that tells what it was made of."""
    note(path, name)
    return (name.encode() + b"".join(part[: part.index(b".")] for part in parts) + b".").ljust(SIZE, b"-")


def told(value):
    return value.rstrip(b"-")


def test_a_lost_result_is_made_again(made, doomed, runs):
    ref = make.options(**at(doomed)).remote(runs.path, "a")
    ready(ref)
    made.remove_node(doomed)
    assert told(shoal.get(ref, timeout=60)) == b"a."
    assert runs("a") == 2
    assert told(shoal.get(ref, timeout=60)) == b"a."
    assert runs("a") == 2


def test_a_chain_whose_links_were_let_go_is_made_again_from_its_beginning(made, doomed, runs):
    there = at(doomed)
    first = make.options(**there).remote(runs.path, "a")
    second = make.options(**there).remote(runs.path, "b", first)
    third = make.options(**there).remote(runs.path, "c", second)
    del first, second
    ready(third)
    made.remove_node(doomed)
    assert told(shoal.get(third, timeout=60)) == b"cba."
    assert [runs(name) for name in "abc"] == [2, 2, 2]


def test_what_several_need_is_made_again_once(made, doomed, runs):
    there = at(doomed)
    base = make.options(**there).remote(runs.path, "base")
    users = [make.options(**there).remote(runs.path, f"u{n}", base) for n in range(6)]
    ready(*users)
    made.remove_node(doomed)
    assert [told(value) for value in shoal.get(users, timeout=60)] == [b"u%dbase." % n for n in range(6)]
    assert runs("base") == 2
    assert [runs(f"u{n}") for n in range(6)] == [2] * 6


def test_a_task_whose_argument_is_lost_waits_for_it_without_a_worker(made, doomed, runs):
    refs = [make.options(**at(doomed)).remote(runs.path, f"a{n}") for n in range(4)]
    ready(*refs)
    made.remove_node(doomed)
    # Submitted before anybody here knows of the death, on the one CPU that is left, which making them again needs too.
    users = [make.remote(runs.path, f"u{n}", refs[n]) for n in range(4)]
    assert [told(value) for value in shoal.get(users, timeout=60)] == [b"u%da%d." % (n, n) for n in range(4)]


def test_small_results_live_with_their_owner_and_run_once(made, doomed, runs):
    @shoal.remote
    def small(path):
        note(path, "small")
        return "small"

    ref = small.options(**at(doomed)).remote(runs.path)
    ready(ref)
    made.remove_node(doomed)
    assert shoal.get(ref, timeout=30) == "small"
    assert runs("small") == 1


def test_a_borrower_of_a_lost_object_gets_it_from_its_owner(made, doomed, runs):
    @shoal.remote(num_cpus=0)
    class Reader:
        def keep(self, refs):
            self.refs = refs
            return len(shoal.wait(refs, timeout=60, fetch_local=False)[0])

        def read(self):
            return told(shoal.get(self.refs[0], timeout=60))

    reader = Reader.options(scheduling_strategy=NodeAffinitySchedulingStrategy(made.head_node.node_id, soft=False)).remote()
    ref = make.options(**at(doomed)).remote(runs.path, "a")
    assert shoal.get(reader.keep.remote([ref]), timeout=60) == 1
    made.remove_node(doomed)
    assert shoal.get(reader.read.remote(), timeout=60) == b"a."
    assert runs("a") == 2


def test_items_of_a_generator_are_made_again(made, doomed, runs):
    @shoal.remote(num_returns="streaming", max_retries=2)
    def count(path):
        note(path, "count")
        for n in range(5):
            yield (b"%d." % n).ljust(SIZE, b"-")

    items = list(count.options(**at(doomed)).remote(runs.path))
    assert len(items) == 5
    del items[1]
    ready(*items)
    made.remove_node(doomed)
    assert [told(value) for value in shoal.get(items, timeout=60)] == [b"0.", b"2.", b"3.", b"4."]
    assert runs("count") == 2


def test_results_of_an_actor_that_restarts_are_made_again_where_its_calls_may_be_retried(made, doomed, runs):
    @shoal.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
    class Maker:
        def make(self, path, name):
            note(path, name)
            return (name.encode() + b".").ljust(SIZE, b"-")

    maker = Maker.options(**at(doomed)).remote()
    ref = maker.make.remote(runs.path, "a")
    once = maker.make.options(max_task_retries=0).remote(runs.path, "b")
    ready(ref, once)
    made.remove_node(doomed)
    assert told(shoal.get(ref, timeout=60)) == b"a."
    assert runs("a") == 2
    with pytest.raises(ObjectReconstructionFailedError, match=r"node \w+ that held it died.*Maker\.make, which was called with max_retries=0") as caught:
        shoal.get(once, timeout=60)
    assert caught.value.reason is Code.RETRIES_DISABLED
    assert caught.value.object_ref_hex == once.hex()


def test_without_retries_nothing_is_made_again_and_the_error_says_so(made, doomed, runs):
    ref = make.options(max_retries=0, **at(doomed)).remote(runs.path, "a")
    ready(ref)
    made.remove_node(doomed)
    with pytest.raises(ObjectReconstructionFailedError, match=f"{doomed.node_id[:12]}.*make, which was called with max_retries=0") as caught:
        shoal.get(ref, timeout=60)
    assert caught.value.reason is Code.RETRIES_DISABLED
    assert runs("a") == 1


def test_retries_that_are_used_up_are_told(made, doomed, runs, wait_until):
    ref = make.options(max_retries=1, **at(doomed)).remote(runs.path, "a")
    ready(ref)
    second = made.add_node(num_cpus=4)
    try:
        blocker = block.options(**at(made.head_node)).remote(runs.path)
        wait = shoal.wait([blocker], timeout=0)
        assert not wait[0]
        made.remove_node(doomed)
        wait_until(lambda: runs("a") == 2, what="it is made again where there is room, on the second node")
        ready(ref)
        made.remove_node(second)
        os.unlink(runs.path)
        with pytest.raises(ObjectReconstructionFailedError, match="make, which has used all of its max_retries") as caught:
            shoal.get(ref, timeout=60)
        assert caught.value.reason is Code.RETRIES_EXHAUSTED
        assert shoal.get(blocker, timeout=60) == "done"
    finally:
        if second in made.worker_nodes:
            made.remove_node(second)


@shoal.remote(max_retries=0)
def block(path):
    deadline = time.monotonic() + 60
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return "done"


def test_an_argument_that_was_put_and_let_go_is_named(made, doomed, runs):
    part = shoal.put((b"part.").ljust(SIZE, b"-"))
    part_hex = part.hex()
    ref = make.options(**at(doomed)).remote(runs.path, "a", part)
    ready(ref)
    del part
    made.remove_node(doomed)
    with pytest.raises(ObjectReconstructionFailedError, match=f"make, which cannot run again: its argument {part_hex}") as caught:
        shoal.get(ref, timeout=60)
    assert caught.value.reason is Code.LINEAGE_BROKEN


def test_large_arguments_by_value_are_kept_for_another_run(made, doomed, runs):
    ref = make.options(**at(doomed)).remote(runs.path, "a", (b"value.").ljust(SIZE, b"-"))
    ready(ref)
    made.remove_node(doomed)
    assert told(shoal.get(ref, timeout=60)) == b"avalue."


def test_lineage_is_bounded_and_the_oldest_goes_first(made, doomed, runs):
    engine = shoal._runtime.state.engine
    kept = engine.stats()["lineage_bytes"]
    engine.limit_lineage(kept + 2 * SIZE + 10_000)
    try:
        refs = [make.options(**at(doomed)).remote(runs.path, f"a{n}", (b"%d." % n).ljust(SIZE, b"-")) for n in range(3)]
        for ref in refs:
            ready(ref)
        assert engine.stats()["lineage_bytes"] <= kept + 2 * SIZE + 10_000
        made.remove_node(doomed)
        assert [told(value) for value in shoal.get(refs[1:], timeout=60)] == [b"a11.", b"a22."]
        with pytest.raises(ObjectReconstructionFailedError, match="SHOAL_MAX_LINEAGE_BYTES") as caught:
            shoal.get(refs[0], timeout=60)
        assert caught.value.reason is Code.LINEAGE_EVICTED
    finally:
        engine.limit_lineage(1 << 30)


def test_nothing_is_kept_once_the_results_are_dropped(made, runs, wait_until):
    engine = shoal._runtime.state.engine
    gc.collect()  # errors of other tests hold frames, and those hold references
    wait_until(lambda: engine.stats()["lineage"] == 0, what="what other tests have dropped goes")
    refs = [make.remote(runs.path, "a")]
    for _ in range(5):
        refs.append(make.remote(runs.path, "b", refs[-1]))
    ready(*refs)
    assert engine.stats()["lineage"] == 6
    del refs[:-1]
    assert engine.stats()["lineage"] == 6  # the last one may need them all
    refs.clear()
    wait_until(lambda: engine.stats()["lineage"] == 0, what="the kept tasks go with the last result")
    assert engine.stats()["lineage_bytes"] == 0


def test_what_a_dead_process_had_not_made_yet_is_told_with_its_pid_and_node(made, doomed):
    @shoal.remote(num_cpus=0)
    def sleeps():
        time.sleep(60)

    @shoal.remote(num_cpus=0)
    class Holder:
        def make(self):
            return os.getpid(), [sleeps.remote()]

    holder = Holder.options(**at(doomed)).remote()
    pid, [ref] = shoal.get(holder.make.remote(), timeout=60)
    os.kill(pid, 9)
    began = time.monotonic()
    with pytest.raises(OwnerDiedError, match=f"{doomed.node_id[:12]}.*pid {pid}: .*SIGKILL") as caught:
        shoal.get(ref, timeout=30)
    assert caught.value.object_ref_hex == ref.hex()
    assert time.monotonic() - began < 10  # about a second where nothing else runs


def test_a_task_that_fails_when_it_runs_again_raises_its_error(made, doomed, tmp_path):
    @shoal.remote(max_retries=2)
    def once(path):
        if os.path.exists(path):
            raise ValueError("not twice")
        open(path, "w").close()
        return b"-" * SIZE

    ref = once.options(**at(doomed)).remote(str(tmp_path / "ran"))
    ready(ref)
    made.remove_node(doomed)
    with pytest.raises(ValueError, match="not twice") as caught:
        shoal.get(ref, timeout=60)
    assert isinstance(caught.value, RayTaskError)
