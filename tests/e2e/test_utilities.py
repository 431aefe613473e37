"""Actor pools, queues, and results as they come."""

import asyncio
import os
import threading
import time

import pytest
import shoal
from shoal.util import ActorPool
from shoal.util.queue import Empty, Full, Queue

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("cluster")]


@shoal.remote(num_cpus=0)
class Worker:
    def double(self, x):
        if x == "dies":
            os._exit(1)
        if x == "fails":
            raise KeyError("seven")
        return 2 * x

    def wait(self, path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return "waited"

    @shoal.method(num_returns=2)
    def two(self, x):
        return x, x + 1


def double(actor, x):
    return actor.double.remote(x)


def wait(actor, path):
    return actor.wait.remote(str(path))


# -- actor pools -----------------------------------------------------------------------------------


def test_a_pool_maps_in_order_or_as_results_come():
    pool = ActorPool([Worker.remote() for _ in range(3)])
    assert list(pool.map(double, range(20))) == [2 * i for i in range(20)]
    assert sorted(pool.map_unordered(double, range(20))) == [2 * i for i in range(20)]
    assert list(pool.map(lambda actor, x: actor.two.remote(x), range(5))) == [[x, x + 1] for x in range(5)]
    assert pool.has_free() and not pool.has_next()
    with pytest.raises(StopIteration, match="No more results"):
        pool.get_next()
    with pytest.raises(StopIteration, match="No more results"):
        pool.get_next_unordered()


def test_a_free_actor_is_taken_out_of_a_pool_and_put_into_it(tmp_path):
    worker, go = Worker.remote(), tmp_path / "go"
    pool = ActorPool([worker])
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(worker)
    pool.submit(wait, go)
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(worker)
    assert not pool.has_free() and pool.pop_idle() is None
    pool.submit(double, 1)
    pool.push(Worker.remote())  # takes what waits
    assert pool.get_next_unordered(timeout=30) == 2
    assert pool.has_free()
    go.touch()
    assert pool.get_next_unordered(timeout=30) == "waited"
    assert pool.pop_idle() is not None and pool.pop_idle() is not None and pool.pop_idle() is None


def test_what_is_late_stays_the_next_unless_it_is_ignored(tmp_path):
    go = tmp_path / "go"
    pool = ActorPool([Worker.remote(), Worker.remote()])
    for take in (pool.get_next, pool.get_next_unordered):
        pool.submit(wait, go)
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match="Timed out waiting for result"):
                take(timeout=timeout)
        assert pool.has_next()
        with pytest.raises(TimeoutError, match="has been ignored"):
            take(timeout=0, ignore_if_timedout=True)
        assert not pool.has_next() and pool.has_free()
    pool.submit(wait, go)
    pool.submit(double, 3)
    go.touch()
    assert [pool.get_next(timeout=30), pool.get_next(timeout=30)] == ["waited", 6]


def test_results_in_order_are_refused_after_some_were_taken_out_of_order(tmp_path):
    pool = ActorPool([Worker.remote(), Worker.remote()])
    go = tmp_path / "go"
    pool.submit(wait, go)
    pool.submit(double, 1)
    assert pool.get_next_unordered(timeout=30) == 2
    with pytest.raises(ValueError, match="not allowed to call get_next"):
        pool.get_next(timeout=30)
    go.touch()
    assert list(pool.map(double, [5, 6])) == [10, 12]


def test_an_error_of_a_call_is_raised_in_its_place_and_what_nobody_took_is_given_up():
    pool = ActorPool([Worker.remote()])
    results = pool.map(double, [1, "fails", 2, "fails"])
    assert next(results) == 2
    with pytest.raises(KeyError, match="seven"):
        next(results)
    assert pool.has_next()
    assert list(pool.map(double, [3])) == [6]


def test_a_dead_actor_gets_no_more_and_what_waits_runs_on_the_others_or_on_a_new_one():
    pool = ActorPool([Worker.remote(), Worker.remote()])
    results = pool.map(double, ["dies", 1, 2, 3])
    with pytest.raises(shoal.exceptions.ActorDiedError):
        next(results)
    assert [pool.get_next(timeout=30) for _ in range(3)] == [2, 4, 6]
    assert list(pool.map(double, range(6))) == [2 * i for i in range(6)]
    pool.submit(double, "dies")
    pool.submit(double, 8)
    with pytest.raises(shoal.exceptions.ActorDiedError):
        pool.get_next(timeout=30)
    assert not pool.has_next() and not pool.has_free()
    with pytest.raises(StopIteration, match="1 of the submitted values have not run"):
        pool.get_next(timeout=30)
    pool.push(Worker.remote())
    assert pool.get_next(timeout=30) == 16
    with pytest.raises(RuntimeError, match="2 of the submitted values have not run: the pool has no actor left"):
        list(ActorPool([]).map(double, [1, 2]))


# -- queues ----------------------------------------------------------------------------------------


def test_a_queue_gives_what_was_put_in_order_and_says_what_it_holds():
    queue = Queue(maxsize=2)
    assert queue.empty() and not queue.full()
    queue.put(1)
    queue.put_nowait(2)
    assert queue.full() and queue.qsize() == queue.size() == len(queue) == 2
    for refused in (lambda: queue.put_nowait(3), lambda: queue.put(3, timeout=0.05), lambda: queue.put(3, timeout=0), lambda: queue.put(3, False, -1)):
        with pytest.raises(Full):
            refused()
    assert [queue.get(), queue.get(timeout=5)] == [1, 2]
    for refused in (queue.get_nowait, lambda: queue.get(timeout=0.05), lambda: queue.get(timeout=0), lambda: queue.get(False, -1)):
        with pytest.raises(Empty):
            refused()
    for wrong in (lambda: queue.get(timeout=-1), lambda: queue.put(1, timeout=-1)):
        with pytest.raises(ValueError, match="non-negative"):
            wrong()
    queue.shutdown()
    queue.shutdown()


def test_batches_are_put_and_taken_whole_or_not_at_all():
    queue = Queue(maxsize=3)
    queue.put_nowait_batch(x for x in (5, 6))
    with pytest.raises(Full, match="Cannot add 2 items to queue of size 2 and maxsize 3"):
        queue.put_nowait_batch([7, 8])
    with pytest.raises(Empty, match="Cannot get 3 items from queue of size 2"):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(0) == []
    assert queue.get_nowait_batch(2) == [5, 6]
    queue.put_nowait_batch("ab")
    assert queue.get_nowait_batch(2) == ["a", "b"]
    for wrong, error in ((lambda: queue.put_nowait_batch(5), TypeError), (lambda: queue.get_nowait_batch("1"), TypeError)):
        with pytest.raises(error):
            wrong()
    with pytest.raises(ValueError, match="nonnegative"):
        queue.get_nowait_batch(-1)
    queue.shutdown(force=True)


def test_who_waits_at_a_queue_goes_on_when_another_process_comes():
    queue = Queue(maxsize=1, actor_options={"name": "a queue"})
    assert "a queue" in shoal.util.list_named_actors()

    @shoal.remote(num_cpus=0)
    def feed(to, count):
        for i in range(count):
            to.put(i)
        return "fed"

    fed = feed.remote(queue, 5)
    assert [queue.get(timeout=30) for _ in range(5)] == list(range(5))
    assert shoal.get(fed, timeout=30) == "fed"

    async def both():
        taken = asyncio.ensure_future(queue.get_async())
        await queue.put_async("later", timeout=30)
        assert await taken == "later"
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        await queue.put_async(1)
        with pytest.raises(Full):
            await queue.put_async(2, timeout=0.05)
        with pytest.raises(ValueError, match="non-negative"):
            await queue.get_async(timeout=-1)

    asyncio.run(both())
    queue.shutdown()


# -- results as they come --------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
def echo(x, path=None):
    while path is not None and not os.path.exists(path):
        time.sleep(0.01)
    return x


def test_results_come_as_they_are_ready_by_value_or_by_reference(tmp_path):
    go = str(tmp_path / "go")
    refs = [echo.remote("late", go), echo.remote("soon")]
    results = shoal.util.as_completed(refs)
    assert next(results) == "soon"  # a chunk is not waited for
    open(go, "w").close()
    assert list(results) == ["late"]
    assert set(shoal.util.as_completed(refs, yield_obj_refs=True, timeout=0.01, fetch_local=False)) == set(refs)
    assert list(shoal.util.as_completed([])) == []


def test_a_map_runs_no_more_at_once_than_it_may_and_takes_from_its_source_as_it_goes():
    taken = []

    def source():
        for i in range(50):
            taken.append(i)
            yield i

    results = shoal.util.map_unordered(echo, source(), backpressure_size=4, chunk_size=10)
    next(results)
    assert len(taken) <= 8
    assert len(list(results)) == 49 and len(taken) == 50
    assert sorted(shoal.util.map_unordered(echo, range(5), backpressure_size=None)) == list(range(5))
    assert sorted(map(shoal.get, shoal.util.map_unordered(echo, range(5), backpressure_size=2, chunk_size=1, yield_obj_refs=True))) == list(range(5))
    worker = Worker.remote()
    assert sorted(shoal.util.map_unordered(worker.double, range(3))) == [0, 2, 4]


@pytest.mark.parametrize(("options", "text"), [({"chunk_size": 0}, "chunk_size"), ({"num_returns": 2}, "num_returns"), ({"backpressure_size": 0}, "positive")])
def test_a_chunk_of_nothing_and_another_count_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        list(shoal.util.map_unordered(echo, [1], **options))
    if "backpressure_size" not in options:
        with pytest.raises(ValueError, match=text):
            list(shoal.util.as_completed([shoal.put(1)], **options))


# -- names, and what cannot be pickled -------------------------------------------------------------


def test_names_are_listed_here_or_everywhere_while_their_actors_live(wait_until):
    here, there = Worker.options(name="here").remote(), Worker.options(name="there", namespace="elsewhere").remote()
    unnamed = Worker.remote()
    shoal.get([actor.double.remote(1) for actor in (here, there, unnamed)])
    mine = shoal.get_runtime_context().namespace
    listed = shoal.util.list_named_actors(all_namespaces=True)
    assert {"name": "here", "namespace": mine} in listed and {"name": "there", "namespace": "elsewhere"} in listed
    assert "here" in shoal.util.list_named_actors() and "there" not in shoal.util.list_named_actors()
    shoal.kill(here)
    wait_until(lambda: "here" not in shoal.util.list_named_actors(), what="the dead actor's name to go")


def test_what_cannot_be_pickled_is_named_down_to_the_part():
    lock = threading.Lock()

    def holds():
        return lock

    class Holder:
        def __init__(self):
            self.part = lock

    with open(os.devnull, "w") as out:
        fine, parts = shoal.util.inspect_serializability(holds, name="holds", print_file=out)
        assert not fine and [(part.obj is lock, part.path, part.parent is holds) for part in parts] == [(True, ("holds", "lock"), True)]
        fine, parts = shoal.util.inspect_serializability(Holder(), name="held", print_file=out)
        assert not fine and [part.path for part in parts] == [("held", "part")]
        fine, parts = shoal.util.inspect_serializability(holds, name="holds", depth=0, print_file=out)
        assert not fine and [part.obj for part in parts] == [holds]
        assert shoal.util.inspect_serializability(lambda: 1, print_file=out) == (True, set())
