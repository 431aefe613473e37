"""Whoever waits hears of it at once: in get(), on an event loop, on a side thread, by a callback."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import time

import pytest
import shoal

pytestmark = pytest.mark.timeout(90)


@shoal.remote(num_cpus=0)
class Worker:
    async def pid(self) -> int:
        return os.getpid()

    async def work(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return 1


@shoal.remote(num_cpus=0)
class Caller:
    async def call_one_that_dies(self, worker, pid: int) -> tuple[list[str], float]:
        refs = [worker.work.remote(60) for _ in range(3)]
        await worker.pid.remote()
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        errors = await asyncio.gather(*refs, return_exceptions=True)
        return [type(error).__name__ for error in errors], time.monotonic() - killed

    async def get_on_a_side_thread(self, worker, count: int) -> list[float]:
        def times() -> list[float]:
            found = []
            for _ in range(count):
                start = time.monotonic()
                shoal.get(worker.work.remote(0.001))
                found.append(time.monotonic() - start)
            return found

        return await asyncio.get_running_loop().run_in_executor(None, times)


def test_calls_of_an_async_actor_to_one_that_dies_fail_though_nothing_else_comes(cluster):
    worker = Worker.remote()
    errors, seconds = shoal.get(Caller.remote().call_one_that_dies.remote(worker, shoal.get(worker.pid.remote())), timeout=60)
    assert errors == ["ActorDiedError"] * 3
    assert seconds < 20


def test_get_on_a_side_thread_of_an_async_actor_misses_no_wake_up(cluster):
    times = shoal.get(Caller.remote().get_on_a_side_thread.remote(Worker.remote(), 50), timeout=60)
    # A wake-up that is lost costs a whole slice of 100 ms; one or two may be the machine's.
    assert sum(seconds > 0.09 for seconds in times) <= 5, times


def test_a_threaded_actor_answers_at_once_while_its_other_threads_wait(cluster):
    @shoal.remote(num_cpus=0, max_concurrency=4)
    class Inbox:
        def __init__(self) -> None:
            self.items: queue.SimpleQueue[int] = queue.SimpleQueue()

        def take(self) -> int:
            return self.items.get()

        def put(self, item: int) -> None:
            self.items.put(item)

        def put_later(self, seconds: float) -> None:
            threading.Timer(seconds, self.items.put, (1,)).start()

    inbox = Inbox.remote()
    waiting = inbox.take.remote()
    inbox.put_later.remote(1.0)  # long enough for everybody to have gone to sleep
    assert shoal.get(waiting, timeout=30) == 1
    waiting = inbox.take.remote()
    start = time.monotonic()
    shoal.get(inbox.put_later.remote(0.0), timeout=30)
    assert time.monotonic() - start < 2, "the answer lay in an out-queue while the thread with the token slept"
    assert shoal.get(waiting, timeout=30) == 1


def test_a_callback_comes_without_anybody_in_get(cluster):
    @shoal.remote
    def one() -> int:
        return 1

    shoal.get(one.remote())
    times = []
    for _ in range(100):
        start = time.monotonic()
        assert one.remote().future().result(timeout=30) == 1
        times.append(time.monotonic() - start)
    # Without it, every one of them takes the millisecond that the background leaves to those in get().
    assert min(times) < 0.0008, sorted(times)[:5]


def test_a_task_that_a_call_starts_and_cancels_at_once_leaves_no_coroutine_behind(cluster):
    @shoal.remote(num_cpus=0)
    class Caller:
        async def cancel_before_the_first_step(self) -> list[str]:
            import gc
            import warnings

            async def part() -> None:
                await asyncio.sleep(60)

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                task = asyncio.create_task(part())
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del task
                gc.collect()
            return [str(warning.message) for warning in caught]

    assert shoal.get(Caller.remote().cancel_before_the_first_step.remote(), timeout=30) == []


def test_the_cpu_of_an_actor_whose_last_handle_goes_is_free_at_once(cluster):
    cpus = shoal.cluster_resources()["CPU"]

    @shoal.remote(num_cpus=cpus)
    class Whole:
        def plain(self) -> int:
            return 1

    times = []
    for _ in range(6):
        start = time.monotonic()
        actor = Whole.remote()
        assert shoal.get(actor.plain.remote(), timeout=60) == 1
        del actor
        times.append(time.monotonic() - start)
    # An idle worker that misses the word to end sleeps for 5 s.
    assert sum(seconds > 3 for seconds in times) == 0, times
