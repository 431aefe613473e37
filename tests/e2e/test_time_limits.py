"""`timeout_s`: a task that runs longer is stopped, whatever it does."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

import pytest
import shoal
from shoal.exceptions import TaskTimeoutError, WorkerCrashedError

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("cluster")]


@shoal.remote(timeout_s=0.5, num_cpus=4)
def spin(end: float) -> int:
    while time.monotonic() < end:
        pass
    return os.getpid()


def test_a_task_over_its_time_is_stopped_and_says_its_limit_and_where_it_was():
    first = shoal.get(spin.remote(0), timeout=30)
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError, match=r"spin .* ran longer than its timeout_s=0.5 and was stopped(?s:.)*while time.monotonic") as caught:
        shoal.get(spin.remote(began + 80), timeout=60)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout_s == 0.5
    assert shoal.get(spin.remote(0), timeout=30) == first, "the worker lives on"


def test_a_task_that_ends_in_time_knows_nothing_of_its_limit():
    @shoal.remote(timeout_s=30)
    def numbers():
        yield from range(3)

    assert [shoal.get(ref) for ref in numbers.remote()] == [0, 1, 2]
    assert shoal.get(spin.options(timeout_s=30).remote(0), timeout=30)


def test_a_stream_over_its_time_ends_with_the_error():
    @shoal.remote(timeout_s=0.5)
    def numbers():
        for i in range(1000):
            yield i
            time.sleep(0.2)

    refs = list(numbers.remote())
    assert shoal.get(refs[0]) == 0
    with pytest.raises(TaskTimeoutError):
        shoal.get(refs[-1])


def test_a_task_that_will_not_hear_is_ended_with_its_worker_and_not_tried_again(tmp_path):
    @shoal.remote(timeout_s=0.3)
    def deaf(path):
        with open(path, "a") as file:
            file.write("x")
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    path = tmp_path / "runs"
    with pytest.raises(TaskTimeoutError, match=r"timeout_s=0\.3"):
        shoal.get(deaf.remote(path), timeout=60)
    assert path.read_text() == "x"
    assert shoal.get(spin.remote(0), timeout=30)


def test_c_code_that_keeps_the_interpreters_lock_is_killed_and_the_limit_is_among_its_last_words():
    @shoal.remote(timeout_s=0.3, max_retries=0)
    def stuck():
        ctypes.PyDLL(None).sleep(80)

    with pytest.raises(WorkerCrashedError, match=r"ran longer than its timeout_s=0\.3"):
        shoal.get(stuck.remote(), timeout=60)


def test_the_tasks_that_it_has_started_are_cancelled(flag, wait_until):
    @shoal.remote(num_cpus=1)
    def child(started, ended):
        try:
            started.touch()
            time.sleep(60)
        except KeyboardInterrupt:
            ended.touch()
            raise

    @shoal.remote(timeout_s=1, num_cpus=1)
    def parent(started, ended):
        return shoal.get(child.remote(started, ended))

    with pytest.raises(TaskTimeoutError):
        shoal.get(parent.remote(flag("started"), flag("ended")), timeout=60)
    wait_until(lambda: flag("ended").exists() or not flag("started").exists(), what="the child hears of it")


@pytest.mark.parametrize("worth", [True, [TaskTimeoutError]])
def test_it_is_tried_again_where_that_is_asked_for(tmp_path, worth):
    @shoal.remote(timeout_s=1, retry_exceptions=worth, max_retries=2)
    def slow_at_first(path):
        with open(path, "a") as file:
            file.write("x")
        if len(path.read_text()) < 2:
            time.sleep(60)
        return "done"

    path = tmp_path / "runs"
    assert shoal.get(slow_at_first.remote(path), timeout=60) == "done"
    assert path.read_text() == "xx"


@pytest.mark.parametrize("given", [0, -1, float("inf"), float("nan"), True, "2"])
def test_a_limit_that_is_none_is_refused_by_name(given):
    with pytest.raises((ValueError, TypeError), match="timeout_s"):
        shoal.remote(timeout_s=given)(lambda: None)


def test_actors_are_refused_by_name():
    with pytest.raises(ValueError, match="timeout_s for actors"):
        shoal.remote(timeout_s=1)(type("Slow", (), {}))


class Slow:
    """Methods that never end, each in its own way."""

    @shoal.method(timeout_s=0.5)
    def spin(self, forever=True):
        while forever:
            time.sleep(0.01)
        return os.getpid()

    def quick(self):
        return os.getpid()

    @shoal.method(timeout_s=0.3, num_returns="streaming")
    def numbers(self):
        for i in range(1000):
            yield i
            time.sleep(0.05)

    @shoal.method(timeout_s=0.3)
    def deaf(self):
        while True:
            try:
                time.sleep(30)
            except KeyboardInterrupt:
                continue


class AsyncSlow(Slow):
    @shoal.method(timeout_s=0.5)
    async def spin(self, forever=True):
        while forever:
            await asyncio.sleep(0.01)
        return os.getpid()

    @shoal.method(timeout_s=0.3, num_returns="streaming")
    async def numbers(self):
        for i in range(1000):
            yield i
            await asyncio.sleep(0.05)

    def quick(self):
        return os.getpid()


KINDS = [pytest.param(Slow, {}, id="plain"), pytest.param(Slow, {"max_concurrency": 3}, id="threaded"), pytest.param(AsyncSlow, {}, id="async")]


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_a_call_of_an_actor_over_its_time_is_stopped_and_the_actor_goes_on(cls, options):
    slow = shoal.remote(cls).options(num_cpus=0, **options).remote()
    first = shoal.get(slow.quick.remote(), timeout=30)
    with pytest.raises(TaskTimeoutError, match=r"spin .* ran longer than its timeout_s=0.5(?s:.)*sleep\(0\.01\)"):
        shoal.get(slow.spin.remote(), timeout=30)
    assert shoal.get([slow.quick.remote(), slow.spin.options(timeout_s=30).remote(False)], timeout=30) == [first, first]
    with pytest.raises(TaskTimeoutError, match=r"timeout_s=0\.25"):
        shoal.get(slow.spin.options(timeout_s=0.25).remote(), timeout=30)
    refs = list(slow.numbers.remote())
    assert shoal.get(refs[0]) == 0
    with pytest.raises(TaskTimeoutError):
        shoal.get(refs[-1])
    assert shoal.get(slow.quick.remote(), timeout=30) == first


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_an_actor_that_will_not_hear_ends_and_starts_anew(cls, options, wait_until):
    slow = shoal.remote(cls).options(num_cpus=0, max_restarts=1, **options).remote()
    first = shoal.get(slow.quick.remote(), timeout=30)
    with pytest.raises(TaskTimeoutError, match=r"timeout_s=0\.3"):
        shoal.get(slow.deaf.remote(), timeout=30)

    def anew():
        try:
            return shoal.get(slow.quick.remote(), timeout=30) != first
        except shoal.exceptions.ActorUnavailableError:
            return False  # asked while it ended

    wait_until(anew, what="another process")


def test_interrupts_of_threads_hit_the_call_that_is_late_and_no_other():
    slow = shoal.remote(Slow).options(num_cpus=0, max_concurrency=2).remote()
    late = [slow.spin.options(timeout_s=0.05).remote() for _ in range(20)]
    on_time = [slow.quick.options(timeout_s=20).remote() for _ in range(200)]
    assert len(set(shoal.get(on_time, timeout=60))) == 1
    for ref in late:
        with pytest.raises(TaskTimeoutError):
            shoal.get(ref, timeout=60)
