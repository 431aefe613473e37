"""init(local_mode=True): the same programs, inside this process."""

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest
import shoal
from shoal.exceptions import ActorDiedError, GetTimeoutError, RayTaskError, TaskCancelledError
from shoal.util import ActorPool, list_named_actors
from shoal.util.queue import Queue


@pytest.fixture(scope="module", autouse=True)
def local():
    yield shoal.init(local_mode=True, num_cpus=3, resources={"thing": 1}, namespace="here", runtime_env={"env_vars": {"LOCAL_MODE_TEST": "1"}})
    shoal.shutdown()


@shoal.remote
def here(x=None):
    return os.getpid(), threading.get_ident(), x


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, n=1):
        self.n += n
        return self.n

    def fail(self):
        raise KeyError("no")

    def leave(self):
        shoal.actor.exit_actor()

    def both(self):
        yield from (self.n, self.n + 1)

    def me(self):
        c = shoal.get_runtime_context()
        return c.get_actor_id(), c.get_actor_name(), c.get_task_function_name(), c.get_assigned_resources()


@shoal.remote(num_cpus=0)
class Mailbox:
    def __init__(self):
        self.waiting = asyncio.Queue()

    async def take(self):
        return await self.waiting.get()

    async def put(self, item):
        await self.waiting.put(item)

    async def count(self, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i


def test_a_task_runs_in_this_thread_with_copies_of_its_arguments():
    array = np.ones(3)
    pid, thread, given = shoal.get(here.remote(array))
    assert (pid, thread) == (os.getpid(), threading.get_ident())
    assert given is not array
    with pytest.raises(ValueError, match="read-only"):
        given[0] = 2


def test_references_are_passed_and_nested_and_waited_for():
    @shoal.remote
    def add(a, b=0):
        return a + b

    @shoal.remote
    def inside(refs):
        return shoal.get(refs)

    one = shoal.put(1)
    two = add.remote(one, b=add.remote(1))
    assert shoal.get(two) == 2
    assert shoal.get(inside.remote([one, two])) == [1, 2]
    assert shoal.wait([one, two], num_returns=2) == ([one, two], [])
    assert shoal.get(shoal.get(add.remote([two], [one]))) == [2, 1]


def test_errors_are_of_the_classes_that_a_cluster_gives():
    @shoal.remote
    def bad():
        raise ValueError("seven")

    with pytest.raises(ValueError, match="seven") as caught:
        shoal.get(here.remote(bad.remote()))
    assert isinstance(caught.value, RayTaskError)
    with pytest.raises(TypeError, match="too many positional"):
        Counter.remote().fail.remote(1, 2)


def test_retries_happen():
    tries = []

    @shoal.remote(retry_exceptions=[OSError], max_retries=3)
    def flaky(path):
        with open(path, "a") as file:
            file.write("x")
        raise OSError("again")

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(OSError, match="again"):
            shoal.get(flaky.remote(f"{folder}/tries"))
        with open(f"{folder}/tries") as file:
            tries = file.read()
    assert tries == "xxxx"


def test_generators_run_as_they_are_consumed():
    seen = []

    @shoal.remote
    def numbers(n):
        for i in range(n):
            if i == 3:
                raise ValueError("three")
            yield i

    assert [shoal.get(ref) for ref in numbers.remote(3)] == [0, 1, 2]
    stream = numbers.remote(10)
    for ref in stream:
        try:
            seen.append(shoal.get(ref))
        except ValueError:
            seen.append("error")
    assert seen == [0, 1, 2, "error"]
    assert shoal.wait([stream.completed()], timeout=5)[0]
    with pytest.raises(StopIteration):
        next(stream)
    endless = numbers.options(num_returns="streaming").remote(2)
    next(endless)
    shoal.cancel(endless)


def test_actors_keep_state_names_and_errors():
    counter = Counter.options(name="visits").remote(5)
    assert shoal.get([counter.add.remote(), counter.add.remote(2)]) == [6, 8]
    assert shoal.get(shoal.get_actor("visits").add.remote()) == 9
    assert list_named_actors() == ["visits"]
    assert Counter.options(name="visits", get_if_exists=True).remote() == counter
    with pytest.raises(ValueError, match="already taken"):
        Counter.options(name="visits").remote()
    with pytest.raises(KeyError):
        shoal.get(counter.fail.remote())
    assert [shoal.get(r) for r in counter.both.options(num_returns="streaming").remote()] == [9, 10]
    actor_id, name, function, resources = shoal.get(counter.me.remote())
    assert (actor_id, name, function, resources) == (counter._actor_id.hex(), "visits", f"{__name__}.Counter.me", {})
    shoal.kill(counter)
    with pytest.raises(ActorDiedError, match=r"kill\(\) was called"):
        shoal.get(counter.add.remote())
    with pytest.raises(ValueError, match="Failed to look up"):
        shoal.get_actor("visits")


def test_an_actor_ends_by_itself_or_with_its_last_handle_or_is_restarted():
    counter = Counter.remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        shoal.get(counter.leave.remote())
    named = Counter.options(name="short").remote()
    del named
    gc.collect()
    deadline = time.monotonic() + 10
    while list_named_actors() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert list_named_actors() == []
    lasting = Counter.options(max_restarts=1).remote()
    shoal.get(lasting.add.remote())
    shoal.kill(lasting, no_restart=False)
    assert shoal.get(lasting.add.remote()) == 1


def test_an_actor_whose_init_fails_fails_its_calls():
    @shoal.remote
    class Broken:
        def __init__(self):
            raise ValueError("at birth")

        def call(self):
            return 1

    with pytest.raises(ActorDiedError, match="at birth"):
        shoal.get(Broken.remote().call.remote())


def test_async_actors_serve_many_calls_at_once():
    box = Mailbox.remote()
    taken = [box.take.remote() for _ in range(3)]
    with pytest.raises(GetTimeoutError):
        shoal.get(taken[0], timeout=0.01)
    shoal.get([box.put.remote(here.remote(i)) for i in range(3)])
    assert [found[2] for found in shoal.get(taken, timeout=10)] == [0, 1, 2]
    assert [shoal.get(ref) for ref in box.count.remote(3)] == [0, 1, 2]
    waits = box.take.remote()
    assert shoal.get(here.remote(), timeout=5)
    shoal.cancel(waits)
    with pytest.raises(TaskCancelledError):
        shoal.get(waits, timeout=10)
    pending = box.take.remote()
    shoal.kill(box)
    with pytest.raises(ActorDiedError):
        shoal.get(pending, timeout=10)


def test_references_are_awaited():
    box = Mailbox.remote()

    async def main():
        taken = box.take.remote()
        await box.put.remote("a")
        return await asyncio.gather(taken, here.remote(1))

    first, second = asyncio.run(main())
    assert (first, second[2]) == ("a", 1)
    assert here.remote(4).future().result(timeout=10)[2] == 4


def test_utilities_work():
    queue = Queue(maxsize=2)
    queue.put(1)
    queue.put({"a": 2})
    assert [queue.get(), queue.get(timeout=5)] == [1, {"a": 2}]
    queue.shutdown()
    pool = ActorPool([Counter.remote(), Counter.remote()])
    assert sorted(pool.map_unordered(lambda a, v: a.add.remote(v), [1, 2, 3, 4])) == [1, 2, 4, 6]
    group = shoal.util.placement_group([{"CPU": 1}])
    assert group.wait(5)
    shoal.util.remove_placement_group(group)


def test_the_context_and_the_cluster_tell_of_this_process():
    @shoal.remote(num_cpus=2)
    def look():
        c = shoal.get_runtime_context()
        return c.get_task_name(), c.get_assigned_resources(), c.get_actor_id(), os.environ["LOCAL_MODE_TEST"], len(c.get_task_id())

    assert shoal.get(look.remote()) == (look._name, {"CPU": 2}, None, "1", 32)
    assert "LOCAL_MODE_TEST" not in os.environ
    assert shoal.get_runtime_context().get_task_id() is None
    assert shoal.cluster_resources()["CPU"] == 3
    assert shoal.nodes()[0]["Alive"]


def test_recursion_needs_no_workers():
    @shoal.remote
    def fib(n):
        return n if n < 2 else sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert shoal.get(fib.remote(10)) == 55


def test_ctrl_c_goes_through_to_the_driver():
    @shoal.remote
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.remote()
    assert shoal.get(here.remote(1))[2] == 1


def test_an_async_actor_that_leaves_or_is_killed_at_once_leaves_no_call_without_an_answer():
    @shoal.remote
    class Leaver:
        async def leave(self):
            shoal.actor.exit_actor()

        async def hang(self):
            await asyncio.Event().wait()

    leaver = Leaver.remote()
    hangs = leaver.hang.remote()
    with pytest.raises(ActorDiedError):
        shoal.get(leaver.leave.remote(), timeout=20)
    with pytest.raises(ActorDiedError):
        shoal.get(hangs, timeout=20)
    for _ in range(20):
        victim = Leaver.remote()
        calls = [victim.hang.remote() for _ in range(3)]
        shoal.kill(victim)
        for call in calls:
            with pytest.raises(ActorDiedError):
                shoal.get(call, timeout=20)


def test_an_async_actor_that_is_ended_twice_ends_once_and_lets_its_calls_clean_up(tmp_path):
    cleaned = tmp_path / "cleaned"

    @shoal.remote
    class Slow:
        async def hang(self):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.2)
                cleaned.touch()

        async def ready(self):
            pass

    before = set(threading.enumerate())
    slow = Slow.remote()
    hangs = slow.hang.remote()
    shoal.get(slow.ready.remote(), timeout=20)
    (thread,) = set(threading.enumerate()) - before
    killer = threading.Thread(target=shoal.kill, args=[slow])
    killer.start()
    del slow  # its last handle, while it is being killed
    gc.collect()
    killer.join(20)
    with pytest.raises(ActorDiedError):
        shoal.get(hangs, timeout=20)
    thread.join(20)
    assert cleaned.exists() and not thread.is_alive()
    gc.collect()  # a coroutine that was left behind says so


def test_who_waits_for_an_item_of_an_async_actor_is_told_that_it_was_killed():
    @shoal.remote
    class Source:
        async def items(self):
            yield 1
            await asyncio.Event().wait()

    source = Source.remote()
    stream = source.items.options(num_returns="streaming").remote()
    assert shoal.get(next(stream), timeout=20) == 1
    killer = threading.Timer(0.2, shoal.kill, args=[source])
    killer.start()
    with pytest.raises(ActorDiedError):
        shoal.get(next(stream), timeout=20)
    killer.join(20)


def test_an_async_actor_that_restarts_itself_begins_anew():
    @shoal.remote(max_restarts=1)
    class Reborn:
        def __init__(self):
            self.calls = 0

        async def count(self):
            self.calls += 1
            return self.calls

        async def restart(self, me):
            shoal.kill(me, no_restart=False)
            await asyncio.sleep(60)

    reborn = Reborn.remote()
    assert shoal.get([reborn.count.remote(), reborn.count.remote()], timeout=20) == [1, 2]
    with pytest.raises((ActorDiedError, TaskCancelledError)):
        shoal.get(reborn.restart.remote(reborn), timeout=20)
    assert shoal.get(reborn.count.remote(), timeout=20) == 1
