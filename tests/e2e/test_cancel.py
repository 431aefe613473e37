"""Cancellation of what is queued, waits, runs, or has ended."""

import asyncio
import contextlib
import os
import time

import pytest
import shoal
from shoal.exceptions import TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote
def sleeps(path, seconds=30):
    open(path, "w").close()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return "slept"


def test_a_running_task_gets_a_keyboard_interrupt(flag, wait_until):
    @shoal.remote
    def catches(started, seen):
        try:
            open(started, "w").close()  # the interrupt may come as soon as it is seen
            time.sleep(30)
        except KeyboardInterrupt:
            open(seen, "w").close()
            raise

    ref = catches.remote(str(flag("started")), str(flag("seen")))
    wait_until(flag("started").exists)
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        shoal.get(ref, timeout=30)
    wait_until(flag("seen").exists)


def test_the_next_task_on_the_same_worker_is_not_hit(flag, wait_until):
    for i in range(10):
        ref = sleeps.remote(str(flag(f"s{i}")))
        wait_until(flag(f"s{i}").exists)
        shoal.cancel(ref)
        after = [shoal.remote(lambda: 1).remote() for _ in range(4)]
        with pytest.raises(TaskCancelledError):
            shoal.get(ref, timeout=30)
        assert shoal.get(after, timeout=30) == [1] * 4


def test_a_queued_task_never_starts(flag, wait_until):
    busy = [sleeps.options(num_cpus=4).remote(str(flag("busy")), 1)]
    wait_until(flag("busy").exists)
    queued = sleeps.options(num_cpus=4).remote(str(flag("never")))
    shoal.cancel(queued)
    with pytest.raises(TaskCancelledError):
        shoal.get(queued, timeout=30)
    shoal.get(busy, timeout=30)
    assert not flag("never").exists()


def test_a_task_that_waits_for_its_argument(flag):
    @shoal.remote
    def uses(x):
        return x

    first = sleeps.remote(str(flag("x")))
    second = uses.remote(first)
    shoal.cancel(second)
    with pytest.raises(TaskCancelledError):
        shoal.get(second, timeout=30)
    shoal.cancel(first)


def test_a_finished_task_keeps_its_value():
    ref = shoal.remote(lambda: 5).remote()
    assert shoal.get(ref) == 5
    shoal.cancel(ref)
    assert shoal.get(ref) == 5


def test_force_ends_the_worker(flag, wait_until):
    @shoal.remote(max_retries=3)
    def stubborn(path):
        with open(path, "w") as f:
            f.write(str(os.getpid()))
        while True:
            try:
                time.sleep(30)
            except KeyboardInterrupt:
                continue

    ref = stubborn.remote(str(flag("pid")))
    wait_until(lambda: flag("pid").exists() and flag("pid").read_text())
    shoal.cancel(ref, force=True)
    with pytest.raises((WorkerCrashedError, TaskCancelledError)):
        shoal.get(ref, timeout=30)
    wait_until(lambda: not os.path.exists(f"/proc/{flag('pid').read_text()}"))


def test_children_are_cancelled_too(flag, wait_until):
    @shoal.remote
    def parent(path):
        return shoal.get(sleeps.remote(path))

    ref = parent.remote(str(flag("child")))
    wait_until(flag("child").exists)
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        shoal.get(ref, timeout=30)
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, what="the child's CPU is free")


def test_an_async_actors_call_is_cancelled_by_asyncio(flag, wait_until):
    @shoal.remote(num_cpus=0)
    class Sleeper:
        async def sleep(self, started, seen):
            open(started, "w").close()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                open(seen, "w").close()
                raise

        async def alive(self):
            return True

    actor = Sleeper.remote()
    ref = actor.sleep.remote(str(flag("started")), str(flag("seen")))
    wait_until(flag("started").exists)
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        shoal.get(ref, timeout=30)
    wait_until(flag("seen").exists)
    assert shoal.get(actor.alive.remote(), timeout=30)


def test_cancelling_an_async_actors_call_cancels_the_tasks_of_that_call_only(flag, wait_until):
    @shoal.remote(num_cpus=0)
    class Parent:
        async def direct(self, path):
            await asyncio.sleep(0)
            return await sleeps.remote(path)

        async def gathered(self, *paths):
            async def one(path):
                await asyncio.sleep(0)
                return await sleeps.remote(path)

            return await asyncio.gather(*[one(path) for path in paths])

        async def short(self, path):
            await asyncio.sleep(0)
            return await sleeps.remote(path, 0.5)

    parent = Parent.remote()
    direct = parent.direct.remote(str(flag("direct")))
    gathered = parent.gathered.remote(str(flag("g1")), str(flag("g2")))
    kept = parent.short.remote(str(flag("kept")))
    for name in ("direct", "g1", "g2", "kept"):
        wait_until(flag(name).exists, what=name)
    shoal.cancel(direct)
    shoal.cancel(gathered)
    for ref in (direct, gathered):
        with pytest.raises(TaskCancelledError):
            shoal.get(ref, timeout=30)
    assert shoal.get(kept, timeout=30) == "slept"
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, bound_s=10, what="the children's CPUs are free")


def test_a_plain_actor_sees_the_flag(flag, wait_until):
    @shoal.remote(num_cpus=0)
    class Worker:
        def work(self, path):
            open(path, "w").close()
            deadline = time.monotonic() + 20
            while not shoal.get_runtime_context().is_canceled():
                if time.monotonic() > deadline:
                    return "never told"
                time.sleep(0.005)
            return "told"

        def alive(self):
            return True

    actor = Worker.remote()
    ref = actor.work.remote(str(flag("started")))
    wait_until(flag("started").exists)
    with pytest.raises(ValueError, match="force"):
        shoal.cancel(ref, force=True)
    shoal.cancel(ref)
    with contextlib.suppress(TaskCancelledError):
        assert shoal.get(ref, timeout=30) == "told"
    assert shoal.get(actor.alive.remote(), timeout=30)


def test_a_cancel_that_strikes_an_import_waits_for_its_end(flag, wait_until, tmp_path):
    """A module that was imported half could not be imported again by the worker's later tasks."""
    importing = flag("importing")
    source = f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\nfor _ in range(100):\n    time.sleep(0.01)\nWHOLE = True\n"
    (tmp_path / "slow_module.py").write_text(source)

    @shoal.remote(max_retries=0)
    def imports():
        import sys

        sys.path.insert(0, str(tmp_path))
        import slow_module

        for _ in range(3000):
            time.sleep(0.01)
        return slow_module.WHOLE

    @shoal.remote
    def look():
        import sys

        module = sys.modules.get("slow_module")
        return os.getpid(), module is None or getattr(module, "WHOLE", False)

    ref = imports.remote()
    wait_until(importing.exists)
    shoal.cancel(ref)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(ref, timeout=30)
    assert all(whole for _, whole in shoal.get([look.remote() for _ in range(20)], timeout=30))
