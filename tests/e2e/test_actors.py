"""Actors: state, order, concurrency, names, lives and deaths."""

import asyncio
import gc
import os
import threading
import time

import pytest
import shoal
from shoal.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote(num_cpus=0)
class Counter:
    """Counts."""

    def __init__(self, start=0):
        self.value = start

    def add(self, n=1):
        self.value += n
        return self.value

    def pid(self):
        return os.getpid()

    def fail(self):
        raise KeyError("from the actor")

    def leave(self):
        shoal.actor.exit_actor()

    @shoal.method(num_returns=2)
    def two(self):
        return self.value, self.value + 1

    @staticmethod
    def static(x):
        return x * 2

    @classmethod
    def kind(cls):
        return cls.__name__


def test_state_and_order():
    counter = Counter.remote(10)
    assert shoal.get([counter.add.remote() for _ in range(200)]) == list(range(11, 211))


def test_a_handle_that_is_dropped_at_once_still_answers():
    assert shoal.get(Counter.remote().add.remote(5), timeout=30) == 5


def test_several_returns_static_and_class_methods():
    counter = Counter.remote(3)
    assert shoal.get(counter.two.remote()) == [3, 4]
    assert shoal.get(counter.two.options(num_returns=1).remote()) == (3, 4)
    assert shoal.get(counter.static.remote(4)) == 8
    assert shoal.get(counter.kind.remote()) == "Counter"


def test_an_error_leaves_the_actor_alive():
    counter = Counter.remote()
    with pytest.raises(KeyError):
        shoal.get(counter.fail.remote())
    assert shoal.get(counter.add.remote()) == 1


def test_wrong_names_and_wrong_calls_fail_at_the_caller():
    counter = Counter.remote()
    with pytest.raises(AttributeError, match="no method 'sub'"):
        counter.sub.remote()
    with pytest.raises(TypeError, match="too many positional"):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError, match="cannot be called directly"):
        counter.add(1)
    with pytest.raises(TypeError, match="__init__"):
        Counter.remote(1, 2)
    with pytest.raises(ValueError, match="concurrency group"):
        counter.add.options(concurrency_group="io")


def test_arguments_are_references_too_and_calls_wait_for_them():
    @shoal.remote
    def late():
        time.sleep(0.2)
        return 5

    counter = Counter.remote()
    first, second = counter.add.remote(late.remote()), counter.add.remote(1)
    assert shoal.get([first, second]) == [5, 6]


def test_handles_travel():
    @shoal.remote
    def use(handle, nested):
        return shoal.get(handle.add.remote()), shoal.get(nested["c"].add.remote())

    counter = Counter.remote()
    assert shoal.get(use.remote(counter, {"c": counter})) == (1, 2)
    again = shoal.get(shoal.put([counter]))[0]
    assert again == counter and shoal.get(again.add.remote()) == 3


def test_an_actor_ends_with_its_last_handle(wait_until):
    counter = Counter.remote()
    pid = shoal.get(counter.pid.remote())
    del counter
    gc.collect()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the worker's end")


def test_init_that_raises_says_so_at_each_call():
    @shoal.remote
    class Broken:
        def __init__(self):
            raise ValueError("cannot start")

        def f(self):
            pass

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="cannot start") as caught:
            shoal.get(broken.f.remote(), timeout=30)
        assert caught.value.actor_init_failed


def test_kill_ends_it_and_calls_fail():
    counter = Counter.remote()
    shoal.get(counter.add.remote())
    shoal.kill(counter)
    with pytest.raises(ActorDiedError):
        shoal.get(counter.add.remote(), timeout=30)
    with pytest.raises(RayActorError):
        shoal.get(counter.add.remote(), timeout=30)


def test_exit_actor_and_terminate_end_it():
    one, two = Counter.remote(), Counter.remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        shoal.get(one.leave.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        shoal.get(one.add.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        shoal.get(two.__ray_terminate__.remote(), timeout=30)
    with pytest.raises(TypeError, match="outside of an actor"):
        shoal.actor.exit_actor()


def test_a_kill_that_lets_it_restart_costs_one_of_its_restarts(cluster):
    @shoal.remote(max_restarts=1, max_task_retries=1, num_cpus=0)
    class Process:
        def pid(self):
            return os.getpid()

    process = Process.remote()
    first = shoal.get(process.pid.remote(), timeout=30)
    shoal.kill(process, no_restart=False)
    assert shoal.get(process.pid.remote(), timeout=30) != first
    shoal.kill(process, no_restart=False)
    with pytest.raises(ActorDiedError, match=r"kill\(\) was called on it"):
        shoal.get(process.pid.remote(), timeout=30)


def test_restarts_make_a_new_life_and_then_no_more(wait_until):
    @shoal.remote(max_restarts=1, max_task_retries=-1, num_cpus=0)
    class Phoenix:
        def pid(self):
            return os.getpid()

        def reborn(self):
            return shoal.get_runtime_context().was_current_actor_reconstructed

    phoenix = Phoenix.remote()
    first = shoal.get(phoenix.pid.remote())
    assert shoal.get(phoenix.reborn.remote()) is False
    os.kill(first, 9)
    second = shoal.get(phoenix.pid.remote(), timeout=30)
    assert second != first and shoal.get(phoenix.reborn.remote()) is True
    os.kill(second, 9)
    with pytest.raises(ActorDiedError):
        shoal.get(phoenix.pid.remote(), timeout=30)


def test_a_call_in_flight_at_a_crash_fails_unless_it_may_be_retried():
    @shoal.remote(max_restarts=-1, num_cpus=0)
    class Fragile:
        def crash(self):
            os._exit(1)

        def fine(self):
            return True

    fragile = Fragile.remote()
    shoal.get(fragile.fine.remote())
    with pytest.raises((ActorUnavailableError, ActorDiedError)):
        shoal.get(fragile.crash.remote(), timeout=30)
    deadline = time.monotonic() + 30
    while True:
        try:
            assert shoal.get(fragile.fine.remote(), timeout=30)
            break
        except ActorUnavailableError:
            assert time.monotonic() < deadline


def test_named_actors_are_found_and_names_are_taken_once():
    counter = Counter.options(name="the-counter").remote(5)
    assert shoal.get(shoal.get_actor("the-counter").add.remote()) == 6
    assert "the-counter" in shoal.util.list_named_actors()
    with pytest.raises(ValueError, match="already taken"):
        Counter.options(name="the-counter").remote()
    same = Counter.options(name="the-counter", get_if_exists=True).remote()
    assert same == counter and shoal.get(same.add.remote()) == 7
    with pytest.raises(ValueError, match="Failed to look up actor"):
        shoal.get_actor("nobody")
    with pytest.raises(ValueError, match="Failed to look up actor"):
        shoal.get_actor("the-counter", namespace="elsewhere")
    shoal.kill(counter)


def test_a_name_is_free_again_after_its_actors_death(wait_until):
    first = Counter.options(name="again").remote()
    shoal.get(first.add.remote())
    shoal.kill(first)

    def taken():
        try:
            return Counter.options(name="again").remote()
        except ValueError:
            return None

    second = wait_until(taken, what="the name to be free")
    assert shoal.get(second.add.remote()) == 1


def test_a_detached_actor_outlives_its_handles():
    Counter.options(name="detached", lifetime="detached").remote(1)
    gc.collect()
    assert shoal.get(shoal.get_actor("detached").add.remote(), timeout=30) == 2
    shoal.kill(shoal.get_actor("detached"))


def test_async_actors_run_many_calls_at_once():
    @shoal.remote(num_cpus=0)
    class Gate:
        def __init__(self):
            self.open = asyncio.Event()
            self.inside = 0

        async def enter(self):
            self.inside += 1
            await self.open.wait()
            return self.inside

        async def unlock(self):
            self.open.set()

        def plain(self):
            return threading.current_thread() is threading.main_thread()

    gate = Gate.remote()
    waiting = [gate.enter.remote() for _ in range(100)]
    shoal.get(gate.unlock.remote(), timeout=30)
    assert shoal.get(waiting, timeout=30) == [100] * 100
    assert shoal.get(gate.plain.remote())


def test_an_async_actor_awaits_references():
    @shoal.remote
    def seven():
        return 7

    @shoal.remote(num_cpus=0)
    class Waits:
        async def get(self):
            return await seven.remote()

        async def both(self, refs):
            return sum(await asyncio.gather(*refs))

    waits = Waits.remote()
    assert shoal.get(waits.get.remote(), timeout=30) == 7
    assert shoal.get(waits.both.remote([seven.remote(), seven.remote()]), timeout=30) == 14


def test_max_concurrency_bounds_an_async_actor():
    @shoal.remote(num_cpus=0, max_concurrency=3)
    class Bounded:
        def __init__(self):
            self.now = self.most = 0

        async def work(self):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1

        async def peak(self):
            return self.most

    bounded = Bounded.remote()
    shoal.get([bounded.work.remote() for _ in range(20)], timeout=30)
    assert shoal.get(bounded.peak.remote()) == 3


def test_threaded_actors_run_calls_at_once():
    @shoal.remote(num_cpus=0, max_concurrency=4)
    class Threads:
        def __init__(self):
            self.barrier = threading.Barrier(4)

        def meet(self):
            self.barrier.wait(20)
            return threading.get_ident()

    threads = Threads.remote()
    assert len(set(shoal.get([threads.meet.remote() for _ in range(4)], timeout=30))) == 4


def test_concurrency_groups_do_not_hold_each_other_up():
    @shoal.remote(num_cpus=0, concurrency_groups={"io": 1})
    class Grouped:
        def __init__(self):
            self.event = threading.Event()

        def waits(self):
            return self.event.wait(20)

        @shoal.method(concurrency_group="io")
        def release(self):
            self.event.set()

        def name(self):
            return threading.current_thread().name

    grouped = Grouped.remote()
    waiting = grouped.waits.remote()
    shoal.get(grouped.release.remote(), timeout=30)
    assert shoal.get(waiting, timeout=30) is True
    assert shoal.get(grouped.name.options(concurrency_group="io").remote()).startswith("io")


def test_pending_calls_are_limited():
    @shoal.remote(num_cpus=0)
    class Busy:
        def work(self):
            time.sleep(0.3)

    busy = Busy.options(max_pending_calls=2).remote()
    refs = []
    with pytest.raises(shoal.exceptions.PendingCallsLimitExceeded, match="max_pending_calls"):
        for _ in range(5):
            refs.append(busy.work.remote())
    shoal.get(refs, timeout=30)


def test_actors_inherit_from_plain_classes_and_call_themselves():
    class Base:
        def who(self):
            return "base"

    @shoal.remote(num_cpus=0)
    class Derived(Base):
        def who(self):
            return "derived of " + super().who()

        async def through_myself(self):
            return await shoal.get_runtime_context().current_actor.who.remote()

    derived = Derived.remote()
    assert shoal.get(derived.who.remote()) == "derived of base"
    assert shoal.get(derived.through_myself.remote(), timeout=30) == "derived of base"


def test_an_actor_without_cpus_holds_none_while_it_lives(wait_until):
    @shoal.remote
    class Idle:
        def f(self):
            return 1

    idle = [Idle.remote() for _ in range(8)]
    assert shoal.get([a.f.remote() for a in idle], timeout=60) == [1] * 8


def test_two_actors_call_each_other():
    @shoal.remote(num_cpus=0)
    class Peer:
        def meet(self, other):
            self.other = other

        def ask(self, depth):
            return 0 if depth == 0 else 1 + shoal.get(self.other.answer.remote(depth))

        def answer(self, depth):
            return depth

    a, b = Peer.remote(), Peer.remote()
    shoal.get([a.meet.remote(b), b.meet.remote(a)])
    assert [shoal.get(a.ask.remote(3), timeout=30), shoal.get(b.ask.remote(4), timeout=30)] == [4, 5]
