"""multiprocessing.Pool and joblib on actors."""

from __future__ import annotations

import os
import time

import pytest
import shoal
from shoal.util.multiprocessing import Pool, TimeoutError

pytestmark = pytest.mark.timeout(90)


def square(x: int) -> int:
    return x * x


def assigned() -> dict[str, float]:
    return shoal.get_runtime_context().get_assigned_resources()


def three_is_bad(x: int) -> int:
    if x == 3:
        raise KeyError("three")
    return x


@pytest.fixture(scope="module")
def pool(cluster):
    with Pool(2, ray_remote_args={"num_cpus": 0.1}) as made:
        yield made


def test_the_methods_of_the_standard_pool(pool):
    assert pool.map(square, range(50)) == [x * x for x in range(50)]
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert pool.apply(int, ("11",), {"base": 2}) == 3
    assert list(pool.imap(square, range(20), 3)) == [x * x for x in range(20)]
    assert sorted(pool.imap_unordered(square, range(20))) == [x * x for x in range(20)]
    assert pool.map(square, []) == []


def test_a_map_of_large_results_comes_whole(pool):
    assert sum(pool.map(square, range(100_000))) == sum(x * x for x in range(100_000))


def test_what_a_call_raises_is_raised_and_told_to_the_callback(pool):
    with pytest.raises(KeyError, match="three"):
        pool.map(three_is_bad, range(5))
    errors: list[BaseException] = []
    result = pool.map_async(three_is_bad, range(5), error_callback=errors.append)
    result.wait(30)
    assert not result.successful()
    assert isinstance(errors[0], KeyError)
    results = iter(pool.imap(three_is_bad, range(5)))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert next(results) == 4


def test_get_of_what_is_not_there_yet_times_out(pool):
    result = pool.apply_async(time.sleep, (0.5,))
    with pytest.raises(TimeoutError):
        result.get(0.01)
    assert result.get(30) is None


def test_a_killed_worker_is_replaced_and_only_its_work_fails(pool):
    with pytest.raises(shoal.exceptions.RayActorError):
        pool.apply(os._exit, (1,))
    assert pool.map(square, range(4)) == [0, 1, 4, 9]


def test_imap_takes_from_its_source_only_as_it_is_consumed(pool):
    taken: list[int] = []

    def source():
        for i in range(10_000):
            taken.append(i)
            yield i

    results = pool.imap(square, source())
    assert next(results) == 0
    assert len(taken) < 100


def test_a_source_that_fails_fails_in_its_place(pool):
    def source():
        yield 1
        yield 2
        raise KeyError("source")

    results = pool.imap(square, source())
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(KeyError, match="source"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_callbacks_hear_each_result_once_and_one_that_raises_harms_nobody(pool, caplog):
    heard: list[object] = []
    assert pool.apply_async(square, (3,), callback=heard.append, error_callback=heard.append).get(30) == 9
    assert pool.map_async(square, [1, 2], callback=heard.append).get(30) == [1, 4]
    assert pool.starmap_async(pow, [(2, 3)], 1, heard.append).get(30) == [8]
    assert pool.starmap_async(pow, [(2, 4)], heard.append).get(30) == [16]  # as in Ray
    assert pool.map_async(square, [], callback=heard.append).get(30) == []
    assert heard == [9, [1, 4], [8], [16], []]
    result = pool.apply_async(square, (2,), callback=lambda _: 1 / 0)
    assert (result.get(30), result.successful()) == (4, True)
    assert "a callback of a pool's call raised" in caplog.text


def test_a_chunk_of_nothing_is_refused_and_an_iterators_timeout_is_the_standard_librarys(pool):
    for call in (pool.map, pool.starmap, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Chunksize must be 1"):
            call(square, [(1,)], 0)
    results = pool.imap(time.sleep, [0.3])
    with pytest.raises(TimeoutError):
        results.next(timeout=0.01)
    assert results.next(timeout=30) is None


def remember(name: str) -> None:
    os.environ[name] = os.environ.get(name, "") + "I"


def recall(name: str) -> str:
    return os.environ[name]


def test_each_worker_runs_the_initializer_once(cluster):
    with Pool(2, initializer=remember, initargs=("POOL_WAS_HERE",)) as pool:
        assert pool.map(recall, ["POOL_WAS_HERE"] * 6, chunksize=1) == ["I"] * 6


def test_workers_are_replaced_after_maxtasksperchild_and_join_waits(cluster):
    made = Pool(1, maxtasksperchild=2, ray_remote_args={"num_cpus": 0.1})
    pids = made.map(lambda _: os.getpid(), range(12), chunksize=2)
    assert [len(set(pids[i : i + 4])) for i in range(0, 12, 4)] == [1, 1, 1] and len(set(pids)) == 3  # a task is a chunk, as in the standard library
    slow = made.apply_async(time.sleep, (0.1,))
    with pytest.raises(ValueError, match="still running"):
        made.join()
    made.close()
    with pytest.raises(ValueError, match="not running"):
        made.apply(square, (1,))
    made.join()
    assert slow.successful()


def test_a_closed_pool_ends_its_iterators_and_join_reads_their_sources_to_the_end(cluster):
    for joined in (False, True):
        made = Pool(1, maxtasksperchild=3, ray_remote_args={"num_cpus": 0.1})
        results = made.imap(square, iter(range(7)))
        assert next(results) == 0
        made.close()
        if joined:
            made.join()
        assert list(results) == [x * x for x in range(1, 7)]
        made.join()


def test_a_terminated_pool_gives_up_what_it_had_in_bounded_time(cluster):
    with Pool(1, ray_remote_args={"num_cpus": 0.1}) as made:
        running, waiting = made.apply_async(time.sleep, (60,)), [made.apply_async(time.sleep, (60,)) for _ in range(3)]
        results = made.imap(time.sleep, iter([60] * 20))
    made.join()
    with pytest.raises(shoal.exceptions.RayActorError):
        running.get(30)
    for result in waiting:
        with pytest.raises((shoal.exceptions.RayActorError, RuntimeError)):
            result.get(30)
    for _ in range(2):
        with pytest.raises((shoal.exceptions.RayActorError, RuntimeError, ValueError)):
            results.next(timeout=30)
    with pytest.raises(ValueError, match="not running"):
        made.__enter__()


def test_more_workers_than_cpus_are_refused_by_number(cluster):
    with pytest.raises(ValueError, match="1000 processes"):
        Pool(1000)


def test_scikit_learn_searches_a_grid_on_the_cluster(cluster):
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    from shoal.util.joblib import register_ray
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    register_ray()
    x, y = load_iris(return_X_y=True)
    with joblib.parallel_backend("ray", n_jobs=2, ray_remote_args={"num_cpus": 0.1}):
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(8)) == [i * i for i in range(8)]
        found = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3).fit(x, y)
    assert found.best_score_ > 0.9
    with joblib.parallel_backend("ray", ray_remote_args={"resources": {"nowhere": 1}}):
        held = joblib.Parallel(n_jobs=2, ray_remote_args={"num_cpus": 0.25})(joblib.delayed(assigned)() for _ in range(2))
    assert held == [{"CPU": 0.25}] * 2


def test_joblib_puts_a_large_argument_into_the_store_once_for_as_long_as_somebody_has_it(cluster, wait_until):
    joblib = pytest.importorskip("joblib")
    numpy = pytest.importorskip("numpy")
    from shoal import _runtime
    from shoal.util.joblib import register_shoal

    def held() -> int:
        return int(_runtime.state.engine.stats()["arena_bytes"])

    def item(array, i, *, again, ref):
        assert isinstance(ref, shoal.ObjectRef)
        return array[i] + again[i], array.flags.writeable

    register_shoal()
    shared, ref, before = numpy.arange(2_000_000.0), shoal.put(1), held()
    most = 0

    def calls():
        nonlocal most
        for i in range(40):
            most = max(most, held() - before)
            yield joblib.delayed(item)(shared, i, again=shared, ref=ref)

    with joblib.parallel_backend("shoal", n_jobs=2, ray_remote_args={"num_cpus": 0.1}):
        results = joblib.Parallel(batch_size=1)(calls())
    assert results == [(2.0 * i, False) for i in range(40)]
    assert shared.nbytes // 2 < most < 2 * shared.nbytes
    wait_until(lambda: held() - before < shared.nbytes, what="its place in the store to be free again")
