"""What a Ray program may rely on, and what is easily got wrong: the same assertions hold under Ray 2.60.0 and, by `python -m shoal.compat.ray`, here.

    python facts_of_ray.py [name…]
"""

import asyncio
import contextlib
import gc
import os
import pickle
import sys
import tempfile
import threading
import time

import ray

BOUND_S = 60
# Long enough for what would be wrong to happen.
WHILE_S = 0.7


def raises(kind, call, *args, **kwargs):
    """The error, which is exactly what is documented or a subclass of it."""
    try:
        call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{call} raised no {kind}")


def until(condition, what):
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came true: {what}"
        time.sleep(0.02)


def waits_for(path):
    deadline = time.monotonic() + BOUND_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.path.basename(path)


@ray.remote
def one():
    return 1


@ray.remote(num_cpus=0)
def blocked(path):
    return waits_for(path)


# -- tasks ------------------------------------------------------------------------------------------


def num_returns_none_is_one_and_a_stream_of_a_generator_function(folder):
    @ray.remote
    def pair():
        return 1, 2

    @ray.remote
    def items():
        for n in range(3):  # noqa: UP028  Ray 2.60 fails at `yield from` of what is no generator; Shoal does not
            yield n

    for function in (pair, pair.options(num_returns=None), pair.options(num_returns=1)):
        assert ray.get(function.remote()) == (1, 2)
    assert ray.get(pair.options(num_returns=2).remote()) == [1, 2]
    for function in (items, items.options(num_returns=None), items.options(num_returns="streaming")):
        assert [ray.get(ref) for ref in function.remote()] == [0, 1, 2]


def a_stream_ends_for_good_after_its_error_and_is_not_pickled(folder):
    @ray.remote(max_retries=0)
    def breaks():
        yield 1
        raise KeyError("in the middle")

    stream = breaks.remote()
    assert ray.get(next(stream)) == 1
    raises(KeyError, ray.get, next(stream))
    for _ in range(2):
        raises(StopIteration, next, stream)
    raises(TypeError, pickle.dumps, breaks.remote())


def a_stream_tells_whether_an_item_is_there_and_is_got_as_it_is(folder):
    @ray.remote
    def items(path):
        yield 1
        waits_for(path)
        yield 2

    go = os.path.join(folder, "go")
    stream = items.remote(go)
    assert ray.get(stream) is stream
    until(stream.next_ready, "the first item")
    assert ray.get(next(stream)) == 1 and not stream.next_ready() and not stream.is_finished()
    assert ray.wait([stream], timeout=0.05) == ([], [stream])
    open(go, "w").close()
    ray.get(stream.completed(), timeout=BOUND_S)
    assert ray.wait([stream], timeout=BOUND_S) == ([stream], [])
    taken = []
    while stream.next_ready():
        taken.append(ray.get(next(stream)))
    assert taken == [2] and stream.is_finished() and not stream.next_ready()


def errors_of_the_user_are_tried_again_where_that_is_asked_for_alone(folder):
    @ray.remote(max_retries=3)
    def flaky(path, kind):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise kind("not yet")
        return "done"

    def runs(name, kind, **options):
        path = os.path.join(folder, name)
        try:
            result = ray.get(flaky.options(**options).remote(path, kind))
        except kind:
            result = "failed"
        return result, os.path.getsize(path)

    assert runs("plain", ValueError) == ("failed", 1)
    assert runs("all", ValueError, retry_exceptions=True) == ("done", 3)
    assert runs("listed", ValueError, retry_exceptions=[ValueError]) == ("done", 3)
    assert runs("another", KeyError, retry_exceptions=[ValueError]) == ("failed", 1)


def a_remote_function_or_class_is_not_called_directly_and_an_actor_not_inherited_from(folder):
    @ray.remote
    class Actor:
        def method(self):
            return 1

    raises(TypeError, one)
    raises(TypeError, Actor)
    raises(TypeError, Actor.remote().method)
    raises(TypeError, type, "Derived", (Actor,), {})


def cpus_and_gpus_have_options_of_their_own(folder):
    for name in ("CPU", "GPU"):
        raises(ValueError, one.options, resources={name: 1})
    raises(ValueError, one.options, spoons=1)


# -- references -------------------------------------------------------------------------------------


def a_reference_that_was_pickled_out_of_band_keeps_its_object(folder):
    data = ray.cloudpickle.dumps(ray.put(b"x" * 1_000_000))
    gc.collect()
    others = [ray.put(b"y" * 1_000_000) for _ in range(5)]
    time.sleep(WHILE_S)
    assert len(ray.get(ray.cloudpickle.loads(data), timeout=BOUND_S)) == 1_000_000
    del others


def references_are_awaited_and_have_futures(folder):
    async def gathered():
        return await asyncio.gather(one.remote(), one.remote())

    assert asyncio.run(gathered()) == [1, 1]
    assert one.remote().future().result(timeout=BOUND_S) == 1


def top_level_arguments_are_values_and_nested_ones_references(folder):
    @ray.remote
    def kinds(top, nested, *, named):
        return top, isinstance(nested[0], ray.ObjectRef), named

    ref = ray.put(7)
    assert ray.get(kinds.remote(ref, [ref], named=ref)) == (7, True, 7)


# -- get, wait, cancel ------------------------------------------------------------------------------


def get_and_wait_refuse_what_is_wrong_and_take_every_timeout(folder):
    go = os.path.join(folder, "go")
    ready, late = ray.put(1), blocked.remote(go)
    assert ray.get([ready, ready]) == [1, 1]
    assert ray.get([]) == []
    for timeout in (0, 0.05):
        assert isinstance(raises(ray.exceptions.GetTimeoutError, ray.get, late, timeout=timeout), TimeoutError)
    raises(ValueError, ray.get, 1)
    raises(TypeError, ray.wait, ready)
    raises(ValueError, ray.wait, [ready, ready])
    for bad in ({"num_returns": 0}, {"num_returns": -1}, {"num_returns": 2}, {"timeout": -1}):
        raises(ValueError, ray.wait, [ready], **bad)
    assert ray.wait([]) == ([], [])
    assert ray.wait([late, ready], timeout=0) == ([ready], [late])
    assert ray.wait([late, ready], num_returns=2, timeout=0.05) == ([ready], [late])
    assert ray.wait([late, ready], fetch_local=False) == ([ready], [late])
    open(go, "w").close()
    assert ray.wait([late, ready], num_returns=2, timeout=None) == ([late, ready], [])


def what_is_queued_or_waits_or_has_ended_is_cancelled_without_harm(folder):
    go = os.path.join(folder, "go")
    late = blocked.remote(go)

    @ray.remote(num_cpus=0)
    def uses(value, path):
        open(path, "w").close()

    started = os.path.join(folder, "started")
    waiting, ended = uses.remote(late, started), one.remote()
    ray.get(ended)
    ray.cancel(waiting)
    raises(ray.exceptions.TaskCancelledError, ray.get, waiting, timeout=BOUND_S)
    ray.cancel(ended)
    ray.cancel(ended, force=True)
    assert ray.get(ended) == 1
    open(go, "w").close()
    assert ray.get(late) == "go"
    assert not os.path.exists(started)


@ray.remote(num_cpus=0)
def parent(path, go):
    child = blocked_child.remote(path, go)
    return ray.get(child)


@ray.remote(num_cpus=0, max_retries=0)
def blocked_child(path, go):
    open(path, "w").close()
    waits_for(go)
    open(path + "-ended", "w").close()


def cancelling_is_recursive_unless_it_is_not(folder):
    for recursive, how in ((True, {}), (False, {"recursive": False})):
        path, go = (os.path.join(folder, f"{name}-{recursive}") for name in ("child", "go"))
        ref = parent.remote(path, go)
        until(lambda path=path: os.path.exists(path), "the child to run")
        ray.cancel(ref, **how)
        raises(ray.exceptions.TaskCancelledError, ray.get, ref, timeout=BOUND_S)
        time.sleep(WHILE_S)  # a word to the child is under way
        open(go, "w").close()
        if recursive:
            time.sleep(WHILE_S)
            assert not os.path.exists(path + "-ended")
        else:
            until(lambda path=path: os.path.exists(path + "-ended"), "the child to go on")


def a_running_task_is_interrupted_and_never_tried_again(folder):
    @ray.remote(max_retries=5, retry_exceptions=True)
    def catches(path):
        try:
            with open(path, "a") as file:
                file.write("x")
            for _ in range(50 * BOUND_S):  # Ray's interrupt comes after a sleep, and does not end it
                time.sleep(0.02)
        except KeyboardInterrupt:
            open(path + "-interrupted", "w").close()
            raise

    path = os.path.join(folder, "runs")
    ref = catches.remote(path)
    until(lambda: os.path.exists(path), "the task to run")
    time.sleep(0.1)
    ray.cancel(ref)
    raises(ray.exceptions.TaskCancelledError, ray.get, ref, timeout=BOUND_S)
    until(lambda: os.path.exists(path + "-interrupted"), "the interrupt")
    time.sleep(WHILE_S)
    assert os.path.getsize(path) == 1


def force_ends_the_worker_and_it_is_not_tried_again_either(folder):
    @ray.remote(max_retries=5)
    def stubborn(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        while True:
            try:
                waits_for(path + "-never")
            except KeyboardInterrupt:
                continue

    path = os.path.join(folder, "pids")
    ref = stubborn.remote(path)
    until(lambda: os.path.exists(path) and os.path.getsize(path), "the task to run")
    ray.cancel(ref, force=True)
    raises((ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError), ray.get, ref, timeout=BOUND_S)
    with open(path) as file:
        (pid,) = map(int, file.read().split())
    until(lambda: not running(pid), "the worker to end")
    time.sleep(WHILE_S)
    assert os.path.getsize(path) == len(f"{pid}\n")


def only_async_actors_are_interrupted_others_see_a_flag(folder):
    class Plain:
        def work(self, path):
            open(path, "w").close()
            deadline = time.monotonic() + BOUND_S
            while not ray.get_runtime_context().is_canceled():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            open(path + "-seen", "w").close()

    class Async:
        async def work(self, path):
            open(path, "w").close()
            try:
                await asyncio.sleep(BOUND_S)
            except asyncio.CancelledError:
                open(path + "-seen", "w").close()
                raise

    for name, cls, options in (("plain", Plain, {}), ("threaded", Plain, {"max_concurrency": 2}), ("async", Async, {})):
        path = os.path.join(folder, name)
        actor = ray.remote(cls).options(num_cpus=0, **options).remote()
        ref = actor.work.remote(path)
        until(lambda path=path: os.path.exists(path), "the call to run")
        raises(ValueError, ray.cancel, ref, force=True)
        ray.cancel(ref)
        until(lambda path=path: os.path.exists(path + "-seen"), f"the {name} actor to see it")
        with contextlib.suppress(ray.exceptions.TaskCancelledError):
            ray.get(ref, timeout=BOUND_S)


# -- actors -----------------------------------------------------------------------------------------


@ray.remote
class Default:
    def ping(self):
        return 1


def an_actor_holds_no_cpu_unless_it_asks_and_then_for_life(folder):
    free = ray.cluster_resources()["CPU"]
    holder = Default.options(num_cpus=free).remote()
    ray.get(holder.ping.remote())
    until(lambda: ray.available_resources().get("CPU", 0) == 0, "all CPUs to be held")
    default = Default.remote()
    call = default.ping.remote()
    # The CPU chooses the node; where all are busy, the actor lives there all the same.
    assert ray.get(call, timeout=BOUND_S) == 1
    explicit = Default.options(num_cpus=1).remote()
    call = explicit.ping.remote()
    raises(ray.exceptions.GetTimeoutError, ray.get, call, timeout=WHILE_S)
    ray.kill(holder)
    assert ray.get(call, timeout=BOUND_S) == 1
    until(lambda: ray.available_resources().get("CPU", 0) == free - 1, "the default actor to hold nothing, and the other one CPU")


def an_async_actor_runs_a_thousand_calls_at_once_and_no_more(folder):
    @ray.remote(num_cpus=0)
    class Room:
        def __init__(self):
            self.inside = 0

        async def enter(self, path):
            self.inside += 1
            while not os.path.exists(path):
                await asyncio.sleep(0.05)

        async def count(self):
            return self.inside

    go = os.path.join(folder, "go")
    room = Room.remote()
    inside = [room.enter.remote(go) for _ in range(999)]
    until(lambda: ray.get(room.count.remote(), timeout=BOUND_S) == 999, "999 to be inside")
    inside.append(room.enter.remote(go))
    time.sleep(0.1)
    question = room.count.remote()
    raises(ray.exceptions.GetTimeoutError, ray.get, question, timeout=WHILE_S)
    open(go, "w").close()
    assert ray.get(question, timeout=BOUND_S) == 1000
    ray.get(inside, timeout=BOUND_S)


def calls_of_a_plain_actor_are_in_order_and_those_of_async_and_threaded_ones_are_not(folder):
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, text):
            self.seen.append(text)

        def read(self):
            return self.seen

    class AsyncLog(Log):
        async def note(self, text):
            self.seen.append(text)

    for name, cls, options, wanted in (
        ("plain", Log, {}, ["go-plain", "early"]), ("threaded", Log, {"max_concurrency": 2}, ["early", "go-threaded"]),
        ("async", AsyncLog, {}, ["early", "go-async"]), ("loose", Log, {"allow_out_of_order_execution": True}, ["early", "go-loose"]),
    ):  # fmt: skip
        go = os.path.join(folder, f"go-{name}")
        log = ray.remote(cls).options(num_cpus=0, **options).remote()
        ray.get(log.read.remote())
        calls = [log.note.remote(blocked.remote(go)), log.note.remote("early")]
        if name == "plain":
            raises(ray.exceptions.GetTimeoutError, ray.get, calls[1], timeout=WHILE_S)
        else:
            ray.get(calls[1], timeout=BOUND_S)
        open(go, "w").close()
        ray.get(calls, timeout=BOUND_S)
        assert ray.get(log.read.remote()) == wanted, name


def a_plain_actor_runs_one_call_at_a_time(folder):
    @ray.remote(num_cpus=0)
    class Alone:
        def __init__(self):
            self.lock = threading.Lock()

        def work(self):
            with_nobody = self.lock.acquire(blocking=False)
            time.sleep(0.01)
            self.lock.release()
            return with_nobody

    alone = Alone.remote()
    assert all(ray.get([alone.work.remote() for _ in range(20)]))


def a_call_in_flight_at_a_crash_is_tried_again_as_often_as_it_may_be(folder):
    @ray.remote(num_cpus=0, max_restarts=-1)
    class Fragile:
        @ray.method()
        def crash(self, path, times):
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) <= times:
                os._exit(1)
            return os.path.getsize(path)

        @ray.method(max_task_retries=2, retry_exceptions=True)
        def fails(self, path):
            with open(path, "a") as file:
                file.write("x")
            raise KeyError(os.path.getsize(path))

    path = os.path.join(folder, "crashes")
    plain, retried = Fragile.remote(), Fragile.options(max_task_retries=2).remote()
    raises(ray.exceptions.RayActorError, ray.get, plain.crash.remote(path + "-plain", 1), timeout=BOUND_S)
    assert ray.get(retried.crash.remote(path, 2), timeout=BOUND_S) == 3
    raises(ray.exceptions.RayActorError, ray.get, retried.crash.remote(path + "-more", 3), timeout=BOUND_S)
    raises(KeyError, ray.get, retried.fails.remote(path + "-raised"), timeout=BOUND_S)
    assert [os.path.getsize(path + name) for name in ("-plain", "-more", "-raised")] == [1, 3, 3]


def concurrency_groups_have_limits_of_their_own(folder):
    class Groups:
        def __init__(self):
            self.inside, self.most, self.lock = {}, {}, threading.Lock()

        def count(self, name, step):
            with self.lock:
                self.inside[name] = self.inside.get(name, 0) + step
                self.most[name] = max(self.most.get(name, 0), self.inside[name])

        def seen(self):
            return self.most

    class Threads(Groups):
        @ray.method(concurrency_group="two")
        def two(self, name):
            self.count(name, 1)
            time.sleep(0.05)
            self.count(name, -1)

        @ray.method(concurrency_group="one")
        def one(self, name, go=None):
            self.count(name, 1)
            waits_for(go) if go else time.sleep(0.02)
            self.count(name, -1)

        def free(self):
            return "free"

    class Loops(Groups):
        @ray.method(concurrency_group="two")
        async def two(self, name):
            self.count(name, 1)
            await asyncio.sleep(0.05)
            self.count(name, -1)

        @ray.method(concurrency_group="one")
        async def one(self, name, go=None):
            self.count(name, 1)
            while go and not os.path.exists(go):
                await asyncio.sleep(0.01)
            self.count(name, -1)

        async def free(self):
            return "free"

    for cls in (Threads, Loops):
        go = os.path.join(folder, cls.__name__)
        actor = ray.remote(num_cpus=0, concurrency_groups={"one": 1, "two": 2})(cls).remote()
        held = [actor.one.remote("one", go)]
        until(lambda actor=actor: ray.get(actor.seen.remote(), timeout=BOUND_S), "the first to be inside")
        held.append(actor.one.remote("one"))
        ray.get([actor.two.remote("two") for _ in range(6)], timeout=BOUND_S)
        assert ray.get(actor.free.remote(), timeout=BOUND_S) == "free"
        assert ray.wait(held, timeout=WHILE_S) == ([], held)
        moved = actor.one.options(concurrency_group="two").remote("moved")
        ray.get(moved, timeout=BOUND_S)
        open(go, "w").close()
        ray.get(held, timeout=BOUND_S)
        assert ray.get(actor.seen.remote(), timeout=BOUND_S) == {"one": 1, "two": 2, "moved": 1}, cls


def names_are_taken_once_in_their_namespace(folder):
    actor = Default.options(name="taken", num_cpus=0).remote()
    ray.get(actor.ping.remote())
    raises(ValueError, Default.options(name="taken").remote)
    assert ray.get(Default.options(name="taken", get_if_exists=True).remote().ping.remote()) == 1
    assert ray.get(ray.get_actor("taken").ping.remote()) == 1
    other = Default.options(name="taken", namespace="elsewhere", num_cpus=0).remote()
    assert ray.get(other.ping.remote()) == 1
    raises(ValueError, ray.get_actor, "taken", namespace="nowhere")
    ray.kill(actor)
    until(lambda: gone("taken"), "the name to be free")


def gone(name):
    try:
        ray.get_actor(name)
    except ValueError:
        return True
    return False


def pending_calls_are_limited(folder):
    go = os.path.join(folder, "go")

    @ray.remote(num_cpus=0)
    class Busy:
        def work(self, path):
            waits_for(path)

    busy = Busy.options(max_pending_calls=3).remote()
    refs = []

    def submit():
        for _ in range(10):
            refs.append(busy.work.remote(go))

    raises(ray.exceptions.PendingCallsLimitExceeded, submit)
    assert len(refs) == 3
    open(go, "w").close()
    ray.get(refs)


@ray.remote(num_cpus=0)
class Handles:
    def register(self, path):
        import atexit

        atexit.register(lambda: open(path, "w").close())
        return os.getpid()


def kill_runs_no_exit_handlers_and_terminate_is_queued_and_does(folder):
    for how in ("kill", "terminate"):
        path = os.path.join(folder, how)
        actor = Handles.remote()
        pid = ray.get(actor.register.remote(path))
        if how == "kill":
            ray.kill(actor)
        else:
            before = [actor.register.remote(f"{path}-{i}") for i in range(5)]
            actor.__ray_terminate__.remote()
            assert ray.get(before, timeout=BOUND_S) == [pid] * 5
        until(lambda pid=pid: not running(pid), "the process to end")
        assert os.path.exists(path) is (how == "terminate")
        raises(ray.exceptions.RayActorError, ray.get, actor.register.remote(path), timeout=BOUND_S)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- errors -----------------------------------------------------------------------------------------


class Mine(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Basic(BaseException):
    pass


def an_error_is_of_the_users_class_too_and_passes_through_dependents(folder):
    @ray.remote(max_retries=0)
    def fails():
        raise Mine(7)

    @ray.remote
    def uses(value):
        return value

    @ray.remote
    def nested():
        return ray.get(fails.remote())

    for ref in (fails.remote(), uses.remote(fails.remote()), nested.remote()):
        error = raises(Mine, ray.get, ref)
        assert isinstance(error, ray.exceptions.RayTaskError)
        assert "fails" in str(error)
    assert raises(Mine, ray.get, fails.remote()).cause.code == 7

    @ray.remote(max_retries=0)
    def fails_at_the_base():
        raise Basic(8)

    assert isinstance(raises(Basic, ray.get, fails_at_the_base.remote()), ray.exceptions.RayTaskError)


def a_worker_that_dies_and_an_actor_that_dies_have_errors_of_their_own(folder):
    @ray.remote(max_retries=0)
    def dies():
        os._exit(1)

    @ray.remote(num_cpus=0)
    class Dies:
        def die(self):
            os._exit(1)

        def __init__(self, broken=False):
            if broken:
                raise ValueError("cannot start")

    raises(ray.exceptions.WorkerCrashedError, ray.get, dies.remote(), timeout=BOUND_S)
    actor = Dies.remote()
    raises(ray.exceptions.ActorDiedError, ray.get, actor.die.remote(), timeout=BOUND_S)
    raises(ray.exceptions.ActorDiedError, ray.get, actor.die.remote(), timeout=BOUND_S)
    assert "cannot start" in str(raises(ray.exceptions.ActorDiedError, ray.get, Dies.remote(True).die.remote(), timeout=BOUND_S))


# -- utilities and graphs ---------------------------------------------------------------------------


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, start=0):
        self.value = start

    def double(self, x):
        if x == "dies":
            os._exit(1)
        if x == "fails":
            raise KeyError(x)
        return 2 * x

    def add(self, x):
        self.value += x
        return self.value


def a_pool_of_actors_gives_results_in_order_and_no_work_to_the_dead(folder):
    def double(actor, x):
        return actor.double.remote(x)

    pool = ray.util.ActorPool([Worker.remote(), Worker.remote()])
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
    assert sorted(pool.map_unordered(double, range(5))) == [0, 2, 4, 6, 8]
    assert raises(StopIteration, pool.get_next)
    results = pool.map(double, [1, "fails"])
    assert next(results) == 2
    raises(KeyError, next, results)
    pool.submit(double, "dies")
    raises(ray.exceptions.ActorDiedError, pool.get_next, timeout=BOUND_S)
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
    pool.submit(double, "dies")
    pool.submit(double, 4)
    raises(ray.exceptions.ActorDiedError, pool.get_next)
    assert not pool.has_next() and not pool.has_free() and pool.pop_idle() is None
    raises(StopIteration, pool.get_next)
    new = Worker.remote()
    pool.push(new)
    raises(ValueError, pool.push, new)
    assert pool.get_next(timeout=BOUND_S) == 8
    pool.submit(lambda actor, path: blocked.remote(path), os.path.join(folder, "go"))
    raises(TimeoutError, pool.get_next, timeout=0.05)
    raises(TimeoutError, pool.get_next, timeout=0.05, ignore_if_timedout=True)
    assert not pool.has_next() and pool.has_free()
    open(os.path.join(folder, "go"), "w").close()


def a_queue_takes_batches_whole_or_not_at_all_and_times_only_what_waits(folder):
    from ray.util.queue import Empty, Full, Queue

    queue = Queue(maxsize=2)
    queue.put_nowait_batch([1, 2])
    assert (queue.full(), queue.empty(), queue.qsize(), queue.size(), len(queue)) == (True, False, 2, 2, 2)
    for call in (lambda: queue.put(3, timeout=0), lambda: queue.put_nowait(3), lambda: queue.put(3, False, -1), lambda: queue.put_nowait_batch([3])):
        raises(Full, call)
    raises(Empty, queue.get_nowait_batch, 3)
    assert (queue.get(), queue.get_nowait_batch(1)) == (1, [2])
    for call in (lambda: queue.get(timeout=0), queue.get_nowait, lambda: queue.get(block=False, timeout=-1)):
        raises(Empty, call)
    for call in (lambda: queue.get(timeout=-1), lambda: queue.put(1, timeout=-1), lambda: queue.get_nowait_batch(-1)):
        raises(ValueError, call)
    raises(TypeError, queue.put_nowait_batch, 5)
    raises(TypeError, queue.get_nowait_batch, "1")
    queue.shutdown()


def a_pool_of_processes_is_the_standard_librarys(folder):
    from ray.util.multiprocessing import Pool, TimeoutError

    heard = []
    with Pool(2) as pool:
        assert pool.map(abs, [-1, -2, -3]) == pool.map(abs, iter([-1, -2, -3]), chunksize=2) == [1, 2, 3]
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert pool.apply(int, ("11",), {"base": 2}) == 3
        assert list(pool.imap(abs, [-1, -2, -3])) == sorted(pool.imap_unordered(abs, [-1, -2, -3])) == [1, 2, 3]
        assert pool.starmap_async(pow, [(2, 3)], heard.append).get(timeout=BOUND_S) == [8]
        assert pool.apply_async(abs, (-5,), callback=heard.append).get(timeout=BOUND_S) == 5
        failed = pool.map_async(int, ["1", "x"], error_callback=heard.append)
        raises(ValueError, failed.get, timeout=BOUND_S)
        late = pool.apply_async(waits_for, (os.path.join(folder, "go"),))
        raises(TimeoutError, late.get, timeout=0.05)
        assert not late.ready()
        raises(ValueError, late.successful)
        open(os.path.join(folder, "go"), "w").close()
        assert late.get(timeout=BOUND_S) == "go" and late.successful() and not failed.successful()
        raises(ValueError, pool.join)
    raises(ValueError, pool.map, abs, [1])
    until(lambda: len(heard) == 3, "all callbacks")
    assert heard[:2] == [[8], 5] and type(getattr(heard[2], "underlying", heard[2])) is ValueError  # Ray wraps it in an error of its own
    raises(ValueError, Pool, 0)
    raises(ValueError, Pool, 100)
    pool = Pool(1, maxtasksperchild=2)
    assert len(set(pool.map(getpid, range(8), chunksize=2))) == 2
    pool.close()
    pool.join()


def getpid(_):
    return os.getpid()


def graphs_run_when_they_are_executed_with_parts_of_their_input(folder):
    from ray.dag import InputNode, MultiOutputNode

    @ray.remote
    def add(a, b):
        return a + b

    with InputNode() as given:
        total = add.bind(add.bind(given, 1), 2)
        both = MultiOutputNode([total, add.bind(total, total)])
    assert ray.get(total.execute(5)) == 8
    assert ray.get(both.execute(5)) == [8, 16]
    with InputNode() as given:
        parts = add.bind(given[0], given.y)
    assert ray.get(parts.execute(2, y=3)) == 5
    with InputNode() as given:
        anew = Worker.bind(10).add.bind(given)
    assert [ray.get(anew.execute(n)) for n in (1, 5)] == [11, 15]
    living = Worker.remote(10)
    node = living.add.bind(1)
    assert [ray.get(node.execute()), ray.get(node.execute())] == [11, 12]
    raises(KeyError, lambda: ray.get(Worker.bind().double.bind("fails").execute()))


# -- connecting -------------------------------------------------------------------------------------


def what_needs_a_cluster_connects_by_itself_and_what_tells_of_one_does_not(folder):
    # kill and cancel do, too, in Ray; what they take is of a connection already, and what they refuse starts no cluster here.
    calls = {ray.get: ([],), ray.put: (1,), ray.wait: ([],), ray.get_actor: ("nobody",), ray.get_gpu_ids: (), ray.get_runtime_context: (), one.remote: ()}
    for call, arguments in calls.items():
        ray.shutdown()
        with contextlib.suppress(ValueError):  # there is no such actor
            call(*arguments)
        assert ray.is_initialized(), call
    ray.shutdown()
    raises(ValueError, ray.kill, None)
    raises(TypeError, ray.cancel, None)
    ray.shutdown()
    for call in (ray.nodes, ray.cluster_resources, ray.available_resources, ray.timeline):
        raises(Exception, call)
        assert not ray.is_initialized(), call
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)


def resource_options_are_for_a_cluster_that_init_starts(folder):
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    for option in ({"num_cpus": 1}, {"num_gpus": 1}, {"resources": {"a": 1}}, {"object_store_memory": 10**8}, {"labels": {"a": "b"}}):
        raises(ValueError, ray.init, address=address, **option)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    raises(RuntimeError, ray.init, num_cpus=2)
    ray.init(num_cpus=2, ignore_reinit_error=True)


FACTS = [value for value in list(globals().values()) if getattr(getattr(value, "__code__", None), "co_varnames", ())[:1] == ("folder",)]


def main():
    wanted = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    for fact in FACTS:
        if wanted and fact.__name__ not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            try:
                fact(folder)
            except Exception as error:
                import traceback

                line = next((frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.filename == __file__), 0)
                print(f"FAILED {fact.__name__} at line {line}: {type(error).__name__}: {str(error)[-1500:]}", flush=True)
            else:
                print(f"holds {fact.__name__} ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
