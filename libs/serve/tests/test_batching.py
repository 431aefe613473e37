"""Batches, on an event loop alone."""

import asyncio

import pytest
from shoal import serve
from shoal.serve.exceptions import ServeConfigError


def run(calls, **options):
    sizes = []

    @serve.batch(**options)
    async def double(numbers):
        sizes.append(len(numbers))
        await asyncio.sleep(0)
        return [n * 2 for n in numbers]

    async def drive():
        return await asyncio.gather(*(double(n) for n in range(calls)))

    return asyncio.run(drive()), sizes


def test_full_batches_start_at_once_and_the_rest_after_its_time():
    results, sizes = run(23, max_batch_size=10, batch_wait_timeout_s=0.01)
    assert results == [n * 2 for n in range(23)]
    assert sizes == [10, 10, 3]


def test_a_single_call_waits_only_its_time():
    results, sizes = run(1, max_batch_size=10, batch_wait_timeout_s=0)
    assert (results, sizes) == ([0], [1])


def test_methods_have_a_queue_for_each_instance_and_setters():
    class Model:
        @serve.batch(max_batch_size=2, batch_wait_timeout_s=5)
        async def __call__(self, numbers, scale):
            return [(self, n * s) for n, s in zip(numbers, scale, strict=True)]

        @serve.batch
        async def plain(self, numbers):
            return numbers

    async def drive():
        one, two = Model(), Model()
        pairs = await asyncio.gather(one.__call__(1, scale=1), two.__call__(2, scale=10), one.__call__(3, scale=2), two.__call__(4, scale=20))
        assert pairs == [(one, 1), (two, 20), (one, 6), (two, 80)]
        one.plain.set_max_batch_size(1)
        one.plain.set_batch_wait_timeout_s(0)
        return await one.plain(5)

    assert asyncio.run(drive()) == 5


def test_an_error_and_a_wrong_length_fail_every_call_of_the_batch():
    @serve.batch(max_batch_size=2)
    async def broken(numbers):
        raise KeyError("all of them")

    @serve.batch(max_batch_size=2)
    async def short(numbers):
        return numbers[:1]

    async def drive(function):
        return await asyncio.gather(function(1), function(2), return_exceptions=True)

    assert [type(error) for error in asyncio.run(drive(broken))] == [KeyError, KeyError]
    assert all("given a batch of 2, and must return as many results; it returned 1" in str(error) for error in asyncio.run(drive(short)))


def test_at_most_so_many_batches_run_at_a_time():
    now = most = 0

    @serve.batch(max_batch_size=1, max_concurrent_batches=2)
    async def work(numbers):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return numbers

    async def drive():
        await asyncio.gather(*(work(n) for n in range(10)))

    asyncio.run(drive())
    assert most == 2


def test_sizes_of_a_function_of_ones_own():
    sizes = []

    @serve.batch(max_batch_size=10, batch_wait_timeout_s=0.01, batch_size_fn=lambda texts: sum(map(len, texts)))
    async def shout(texts):
        sizes.append([len(text) for text in texts])
        return [text.upper() for text in texts]

    async def drive():
        return await asyncio.gather(*(shout("x" * n) for n in (4, 4, 4, 20, 1)))

    asyncio.run(drive())
    assert sizes == [[4, 4], [4], [20], [1]]


def test_a_caller_that_leaves_takes_no_place():
    seen = []

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=0.01)
    async def keep(numbers):
        seen.extend(numbers)
        return numbers

    async def drive():
        leaving = asyncio.ensure_future(keep(1))
        staying = asyncio.ensure_future(keep(2))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(drive()) == 2
    assert seen == [2]


def test_wrong_use_is_refused():
    with pytest.raises(ServeConfigError, match="max_batch_size"):
        serve.batch(max_batch_size=0)
    with pytest.raises(ServeConfigError, match="batch_wait_timeout_s"):
        serve.batch(batch_wait_timeout_s=-1)
    with pytest.raises(TypeError, match="takes an async function"):
        serve.batch(lambda numbers: numbers)
    with pytest.raises(ServeConfigError, match="max_num_models_per_replica"):
        serve.multiplexed(max_num_models_per_replica=0)
    with pytest.raises(TypeError, match="takes an async method"):
        serve.multiplexed(lambda self, model_id: None)
    with pytest.raises(TypeError, match="goes on a class"):
        serve.ingress(lambda: None)(lambda: None)
