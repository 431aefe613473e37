"""put, get, wait, and the life of references."""

import asyncio
import gc
import pickle
import threading
import time

import pytest
import shoal
from shoal import _runtime
from shoal._calls import ask
from shoal_objectstore.v1 import objectstore_pb2

SIZE = 3_456_789

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote
def slow(seconds, value=None):
    time.sleep(seconds)
    return value


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", b"x" * 2_000_000, [1, [2, {"a": (3,)}]], {"k": {1, 2}}, 1.5, True])
def test_what_is_put_comes_back(value):
    assert shoal.get(shoal.put(value)) == value


def test_an_array_is_read_without_a_copy():
    np = pytest.importorskip("numpy")
    ref = shoal.put(np.arange(1_000_000))
    one, two = shoal.get(ref), shoal.get(ref)
    assert one.__array_interface__["data"][0] == two.__array_interface__["data"][0]
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1


@pytest.mark.parametrize("skip", [0, 7, 500, 509, 511])
def test_large_arrays_of_one_value_begin_where_a_copy_is_fast(skip):
    """Half a page from their source, modulo a page; see shoal_copy.h."""
    np = pytest.importorskip("numpy")
    source = np.arange(600_000)
    value = {"large": source[skip:], "small": source[:100], "other": source[skip + 1 : skip + 1 + (1 << 17)]}
    back = shoal.get(shoal.put(value))
    for name in ("large", "other"):
        assert 1984 < (back[name].ctypes.data - value[name].ctypes.data) % 4096 <= 2048
    for name, array in value.items():
        assert back[name].ctypes.data % 64 == 0
        np.testing.assert_array_equal(back[name], array)


def test_an_array_outlives_its_reference():
    np = pytest.importorskip("numpy")
    array = shoal.get(shoal.put(np.ones(300_000)))
    gc.collect()
    refs = [shoal.put(np.zeros(300_000)) for _ in range(5)]
    assert array.sum() == 300_000
    del refs


def test_get_of_a_list_keeps_its_order_and_its_duplicates():
    a, b = shoal.put("a"), shoal.put("b")
    assert shoal.get([b, a, b]) == ["b", "a", "b"]
    assert shoal.get([]) == []


def test_get_times_out_with_a_timeout_error_that_names_the_object():
    ref = slow.remote(5)
    with pytest.raises(shoal.exceptions.GetTimeoutError, match=ref.hex()):
        shoal.get(ref, timeout=0.05)
    with pytest.raises(TimeoutError):
        shoal.get([ref], timeout=0)
    shoal.cancel(ref, force=True)


def test_a_users_own_timeout_error_is_not_taken_for_ours():
    @shoal.remote
    def raises():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as caught:
        shoal.get(raises.remote(), timeout=30)
    assert isinstance(caught.value, shoal.exceptions.RayTaskError)


def test_wait_splits_ready_from_not_ready_in_the_given_order():
    fast, late = shoal.put(1), slow.remote(2)
    assert shoal.wait([late, fast], num_returns=1, timeout=10) == ([fast], [late])
    assert shoal.wait([late], timeout=0) == ([], [late])
    assert shoal.wait([late, fast], num_returns=2, timeout=20) == ([late, fast], [])
    assert shoal.wait([]) == ([], [])


def test_wait_returns_at_most_num_returns():
    refs = [shoal.put(i) for i in range(10)]
    ready, rest = shoal.wait(refs, num_returns=4)
    assert ready == refs[:4] and rest == refs[4:]


def test_wait_refuses_bad_counts_and_duplicates():
    ref = shoal.put(1)
    with pytest.raises(TypeError):
        shoal.wait(ref)
    with pytest.raises(ValueError, match="unique"):
        shoal.wait([ref, ref])
    with pytest.raises(ValueError, match="Invalid number"):
        shoal.wait([ref], num_returns=0)
    with pytest.raises(ValueError, match="greater than"):
        shoal.wait([ref], num_returns=2)
    with pytest.raises(ValueError, match="nonnegative"):
        shoal.wait([ref], timeout=-0.1)


def test_references_are_equal_by_their_object():
    ref = shoal.put(1)
    assert ref == pickle.loads(pickle.dumps(ref)) and len({ref, pickle.loads(pickle.dumps(ref))}) == 1
    assert ref != shoal.put(1)


def test_a_reference_inside_an_object_keeps_what_it_refers_to():
    outer = shoal.put([shoal.put("inner")])
    gc.collect()
    assert shoal.get(shoal.get(outer)[0]) == "inner"


def test_a_task_returns_references_that_it_owns():
    @shoal.remote
    def makes():
        return [shoal.put(i) for i in range(20)]

    assert shoal.get(shoal.get(makes.remote())) == list(range(20))


def test_a_borrower_keeps_an_object_alive():
    @shoal.remote
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def read(self):
            return shoal.get(self.refs[0])

    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote([shoal.put("kept")]))
    gc.collect()
    assert shoal.get(keeper.read.remote()) == "kept"


def test_freed_objects_leave_the_tables(wait_until):
    np = pytest.importorskip("numpy")
    gc.collect()
    before = _runtime.state.engine.stats()

    @shoal.remote
    def passes(x):
        return x

    refs = [shoal.put(np.ones(50_000)) for _ in range(20)]
    results = [passes.remote([r]) for r in refs] + [passes.remote(r) for r in refs]
    shoal.get(results)
    del refs, results
    gc.collect()
    wait_until(lambda: _runtime.state.engine.stats()["arena_bytes"] <= before["arena_bytes"], what="arena bytes as before")
    wait_until(lambda: _runtime.state.engine.stats()["owned"] <= before["owned"], what="owned objects as before")


def test_references_are_awaitable_and_have_futures():
    async def main():
        one = slow.remote(0.01, 1)
        two = asyncio.wrap_future(slow.remote(0.01, 2).future())
        return await asyncio.gather(one, two, slow.remote(0, 3))

    assert asyncio.run(main()) == [1, 2, 3]
    assert slow.remote(0, "f").future().result(timeout=20) == "f"


def test_awaiting_a_failed_task_raises_the_users_error():
    @shoal.remote
    def raises():
        raise KeyError("k")

    async def main():
        with pytest.raises(KeyError):
            await raises.remote()

    asyncio.run(main())
    with pytest.raises(KeyError):
        raises.remote().future().result(timeout=20)


def test_an_idle_worker_does_not_keep_the_arguments_of_its_last_task(wait_until):
    np = pytest.importorskip("numpy")

    @shoal.remote
    def length(value):
        return len(value)

    def stored():
        rows = objectstore_pb2.ObjectList.FromString(ask("the test", "store/List", objectstore_pb2.ListRequest(limit=10_000))).objects
        return [row for row in rows if row.size_bytes > SIZE]

    ref = shoal.put(np.zeros(SIZE, np.uint8))
    assert shoal.get(length.remote(ref)) == SIZE
    assert len(stored()) == 1
    del ref
    wait_until(lambda: not stored(), what="the object's place to be free again")


def test_a_class_with_a_serializer_of_its_own_travels_by_it():
    class Handle:
        def __init__(self, n):
            self.n = n
            self.lock = threading.Lock()

    shoal.util.register_serializer(Handle, serializer=lambda handle: handle.n, deserializer=lambda n: ("made anew", n))
    assert shoal.get(shoal.put(Handle(3))) == ("made anew", 3)
    assert shoal.get(shoal.remote(lambda handle: handle).remote(Handle(4)), timeout=60) == ("made anew", 4)
    shoal.util.deregister_serializer(Handle)
    with pytest.raises(TypeError, match="lock"):
        shoal.put(Handle(5))
