"""Streaming generators: tasks and actors, synchronous and not."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest
import shoal
from shoal import _runtime

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote
def numbers(n):
    yield from range(n)


def test_items_come_in_order_and_then_it_stops_for_good():
    stream = numbers.remote(5)
    assert [shoal.get(ref) for ref in stream] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    assert stream.is_finished()


def test_many_items():
    assert sum(shoal.get(ref) for ref in numbers.remote(2000)) == 1999000


def test_items_come_before_the_task_has_ended(flag):
    @shoal.remote
    def waits(path):
        yield 1
        while not os.path.exists(path):
            time.sleep(0.005)
        yield 2

    stream = waits.remote(str(flag("go")))
    assert shoal.get(next(stream), timeout=30) == 1
    assert not stream.next_ready() and not stream.is_finished()
    flag("go").touch()
    assert shoal.get(next(stream), timeout=30) == 2


def test_an_error_is_the_last_item():
    @shoal.remote
    def breaks():
        yield 1
        raise KeyError("in the middle")

    stream = breaks.remote()
    assert shoal.get(next(stream)) == 1
    last = next(stream)
    with pytest.raises(KeyError):
        shoal.get(last)
    with pytest.raises(StopIteration):
        next(stream)


def test_an_empty_stream():
    assert list(numbers.remote(0)) == []


def test_large_items():
    np = pytest.importorskip("numpy")

    @shoal.remote
    def arrays():
        for i in range(5):
            yield np.full(100_000, i)

    assert [shoal.get(ref)[0] for ref in arrays.remote()] == [0, 1, 2, 3, 4]


def test_back_pressure_holds_the_producer(flag, wait_until):
    @shoal.remote(_generator_backpressure_num_objects=2)
    def counts(path):
        for i in range(20):
            with open(path, "a") as f:
                f.write("x")
            yield i

    path = flag("made")
    stream = counts.remote(str(path))
    assert shoal.get(next(stream), timeout=30) == 0
    wait_until(lambda: path.stat().st_size >= 3, what="the producer runs ahead")
    time.sleep(0.2)
    assert path.stat().st_size <= 5
    assert [shoal.get(ref) for ref in stream] == list(range(1, 20))


def test_back_pressure_holds_the_producer_of_an_actor_too(flag, wait_until):
    class Counts:
        def items(self, path):
            for i in range(20):
                with open(path, "a") as f:
                    f.write("x")
                yield i

    class AsyncCounts(Counts):
        async def items(self, path):
            for i in super().items(path):
                yield i

    for cls in (Counts, AsyncCounts):
        path = flag(cls.__name__)
        actor = shoal.remote(num_cpus=0)(cls).remote()
        stream = actor.items.options(_generator_backpressure_num_objects=2).remote(str(path))
        assert shoal.get(next(stream), timeout=30) == 0
        wait_until(lambda path=path: path.stat().st_size >= 3, what="the producer runs ahead")
        time.sleep(0.2)
        assert path.stat().st_size <= 5
        assert [shoal.get(ref) for ref in stream] == list(range(1, 20))


def test_asynchronous_iteration():
    async def main():
        return [await ref async for ref in numbers.remote(10)]

    assert asyncio.run(main()) == list(range(10))


@shoal.remote(num_cpus=0, max_concurrency=2000)
class Held:
    """Streams that give one item when they are told to, and end."""

    def __init__(self):
        self.told = asyncio.Event()

    async def tell(self):
        self.told.set()

    async def items(self, n):
        await self.told.wait()
        yield n


def test_a_thousand_streams_that_wait_hold_no_thread():
    async def main():
        held = Held.remote()
        threads = threading.active_count()
        streams = [held.items.remote(n) for n in range(1000)]

        async def take(stream):
            return [await ref async for ref in stream]

        taken = [asyncio.ensure_future(take(stream)) for stream in streams]
        for _ in range(20):  # each begins to wait, and the loop goes on
            await asyncio.sleep(0.001)
        assert not any(one.done() for one in taken)
        # At most the engine's own, which calls the loop.
        assert threading.active_count() - threads <= 1, threading.enumerate()
        await held.tell.remote()
        assert await asyncio.gather(*taken) == [[n] for n in range(1000)]

    asyncio.run(asyncio.wait_for(main(), 100))


def test_who_stops_waiting_for_an_item_takes_it_later():
    async def main():
        held = Held.remote()
        stream = held.items.remote(7)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        both = [asyncio.ensure_future(anext(stream, None)) for _ in range(2)]  # two that wait for the same one
        await asyncio.sleep(0)
        await held.tell.remote()
        first, second = await asyncio.gather(*both)
        assert (first is None) != (second is None) and await (first or second) == 7

    asyncio.run(asyncio.wait_for(main(), 100))


def test_who_awaits_a_stream_that_is_closed_hears_its_end():
    async def main():
        stream = Held.remote().items.remote(1)
        waits = asyncio.ensure_future(anext(stream, "the end"))
        await asyncio.sleep(0.01)
        await stream.aclose()
        assert await waits == "the end"

    asyncio.run(asyncio.wait_for(main(), 100))


def test_a_stream_that_was_taken_to_its_end_is_forgotten():
    def streams():
        return _runtime.state.engine.stats()["streams"]

    before = streams()
    kept = [numbers.remote(3) for _ in range(50)]
    assert all(len(list(stream)) == 3 for stream in kept)
    assert streams() == before


def test_actors_stream_from_every_kind_of_method():
    @shoal.remote(num_cpus=0)
    class Plain:
        def items(self, n):
            yield from range(n)

    @shoal.remote(num_cpus=0)
    class Async:
        async def items(self, n):
            for i in range(n):
                await asyncio.sleep(0)
                yield i

    @shoal.remote(num_cpus=0, max_concurrency=2)
    class Threaded:
        def items(self, n):
            yield from range(n)

    for cls in (Plain, Async, Threaded):
        assert [shoal.get(ref) for ref in cls.remote().items.remote(10)] == list(range(10)), cls


def test_a_generator_is_not_pickled_and_got_as_it_is():
    stream = numbers.remote(3)
    with pytest.raises(TypeError, match=r"value\[0\] cannot be pickled.*serialization of ObjectRefGenerator"):
        shoal.put([stream])
    assert shoal.get(stream) is stream
    with pytest.raises(TypeError, match="not an ObjectRef"):
        shoal.get([stream])


def test_wait_takes_generators(flag):
    @shoal.remote
    def late(path):
        while not os.path.exists(path):
            time.sleep(0.005)
        yield 1

    stream, ref = late.remote(str(flag("go"))), shoal.put(1)
    assert shoal.wait([stream, ref], timeout=10) == ([ref], [stream])
    flag("go").touch()
    assert shoal.wait([stream], timeout=20) == ([stream], [])


def test_completed_is_ready_at_the_end():
    stream = numbers.remote(3)
    shoal.get(stream.completed(), timeout=30)
    taken = []
    while stream.next_ready():
        assert not stream.is_finished()
        taken.append(shoal.get(next(stream)))
    assert taken == [0, 1, 2] and stream.is_finished() and not stream.next_ready()
    assert shoal.wait([stream], timeout=10) == ([stream], [])


def test_a_dropped_generator_ends_its_task(flag, wait_until):
    @shoal.remote
    def endless(path):
        try:
            while True:
                yield 1
                time.sleep(0.01)
        finally:
            open(path, "w").close()

    stream = endless.remote(str(flag("ended")))
    next(stream)
    del stream
    wait_until(lambda: flag("ended").exists(), what="the producer's end")


def test_cancelling_a_stream(flag, wait_until):
    @shoal.remote(max_retries=3)
    def endless(path):
        try:
            while True:
                yield 1
                time.sleep(0.01)
        finally:
            with open(path, "a") as file:
                file.write("x")

    stream = endless.remote(str(flag("ended")))
    next(stream)
    shoal.cancel(stream)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        for ref in stream:
            shoal.get(ref)
    with pytest.raises(StopIteration):
        next(stream)
    wait_until(lambda: flag("ended").exists() and flag("ended").read_text() == "x", what="the producer's end")


def test_a_producer_killed_under_back_pressure_goes_on_in_its_retry(tmp_path):
    flag = tmp_path / "killed"

    @shoal.remote(num_returns="streaming", _generator_backpressure_num_objects=2, max_retries=2)
    def numbers():
        for i in range(12):
            if i == 7 and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), 9)
            yield i

    assert [shoal.get(ref, timeout=30) for ref in numbers.remote()] == list(range(12))


ENDS = """
import asyncio, time
import shoal
shoal.init("local", num_cpus=1, log_to_driver=False, include_dashboard=False)

@shoal.remote
def late():
    time.sleep(600)
    yield 1

async def waits(awaitable):
    try:
        await awaitable
    except ConnectionError as error:
        return str(error)

async def main():
    stream = late.remote()
    both = [asyncio.ensure_future(waits(one)) for one in (anext(stream), stream.completed().as_future())]
    await asyncio.sleep(0.05)
    shoal.shutdown()
    print(await asyncio.wait_for(asyncio.gather(*both), 20))

asyncio.run(main())
"""


def test_who_awaits_at_shutdown_hears_of_it():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "['Shoal was shut down', 'Shoal was shut down']", done.stdout + done.stderr
