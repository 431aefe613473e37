"""Calling deployments from Python."""

import asyncio
import os
import threading
import time

import numpy as np
import pytest
import shoal
from shoal import serve
from shoal.serve.exceptions import BackPressureError, DeploymentFailedError, RequestCancelledError, ServeConfigError

pytestmark = pytest.mark.usefixtures("applications")


@serve.deployment
class Arithmetic:
    def __init__(self, offset=0):
        self.offset = offset

    def __call__(self, x):
        return x + self.offset

    async def double(self, x, *, plus=0):
        return 2 * x + plus

    def count(self, n):
        yield from range(n)

    async def count_async(self, n, fail=False):
        for i in range(n):
            yield i
        if fail:
            raise KeyError("at the end")

    def fail(self):
        raise ZeroDivisionError("on purpose")

    def pid(self):
        return os.getpid()

    async def where(self):
        return serve.get_replica_context()


@serve.deployment
class Gate:
    """Answers when a file appears."""

    async def __call__(self, path):
        while not os.path.exists(path):
            await asyncio.sleep(0.005)
        return "open"

    async def until_cancelled(self, path):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            open(path, "w").close()
            raise


def test_call_methods_options_and_context():
    handle = serve.run(Arithmetic.bind(10), route_prefix=None)
    assert handle.remote(1).result() == 11
    assert handle.double.remote(4, plus=1).result() == 9
    assert handle.options(method_name="double").remote(3).result(timeout_s=20) == 6
    context = handle.where.remote().result()
    assert (context.app_name, context.deployment) == ("default", "Arithmetic")
    assert serve.get_app_handle("default").remote(5).result() == 15
    assert serve.get_deployment_handle("Arithmetic", "default").remote(5).result() == 15


def test_a_function_is_a_deployment_too():
    @serve.deployment
    def square(x):
        return x * x

    assert serve.run(square.bind(), route_prefix=None).remote(7).result() == 49
    with pytest.raises(TypeError, match="takes no arguments here"):
        square.bind(3)


def test_what_the_deployment_raises_is_raised_as_it_is():
    handle = serve.run(Arithmetic.bind(), route_prefix=None)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        handle.fail.remote().result()
    with pytest.raises(AttributeError, match="no method 'tripel'; its public methods are: count"):
        handle.tripel.remote().result()
    with pytest.raises(TypeError, match="is a generator: call it with"):
        handle.count.remote(3).result()
    with pytest.raises(TypeError, match="is no generator"):
        list(handle.options(stream=True).double.remote(3))


def test_streams_of_plain_and_async_generators():
    handle = serve.run(Arithmetic.bind(), route_prefix=None).options(stream=True)
    assert list(handle.count.remote(5)) == [0, 1, 2, 3, 4]
    assert list(handle.count_async.remote(500)) == list(range(500))
    items = handle.count_async.remote(2, fail=True)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="at the end"):
        next(items)
    with pytest.raises(TypeError, match="no single result"):
        handle.count.remote(1).result()


def test_async_drivers_await_and_iterate():
    handle = serve.run(Arithmetic.bind(1), route_prefix=None)

    async def drive():
        results = await asyncio.gather(*(handle.remote(i) for i in range(50)))
        items = [item async for item in handle.options(stream=True).count.remote(4)]
        return results, items

    results, items = asyncio.run(drive())
    assert results == list(range(1, 51))
    assert items == [0, 1, 2, 3]


def test_a_thousand_calls_at_once_respect_the_limit_of_each_replica():
    @serve.deployment(num_replicas=2, max_ongoing_requests=3)
    class Crowd:
        def __init__(self):
            self.now = self.most = 0

        async def __call__(self, x):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return x

        async def peak(self):
            return self.most

    handle = serve.run(Crowd.bind(), route_prefix=None)
    assert [response.result() for response in [handle.remote(i) for i in range(1000)]] == list(range(1000))
    assert max(handle.peak.remote().result() for _ in range(10)) <= 3


def test_calls_that_nobody_waits_for_are_carried_out(tmp_path, wait_until):
    @serve.deployment(max_ongoing_requests=1)
    class Toucher:
        def __call__(self, path):
            open(path, "w").close()

    handle = serve.run(Toucher.bind(), route_prefix=None)
    for i in range(20):
        handle.remote(str(tmp_path / str(i)))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 20, what="20 files")


def test_three_deployments_are_composed_and_responses_are_arguments():
    @serve.deployment
    class Adder:
        def __init__(self, increment):
            self.increment = increment

        async def __call__(self, x):
            return x + self.increment

    @serve.deployment
    class Combiner:
        async def __call__(self, one, two=0):
            return [one, two]

    @serve.deployment
    class Front:
        def __init__(self, adders, combiner):
            self.adders, self.combiner = adders, combiner

        async def __call__(self, x):
            one = self.adders["one"].remote(x)
            return await self.combiner.remote(one, two=self.adders["ten"].remote(one))

        def in_plain_code(self, x):
            return self.adders["one"].remote(x).result(timeout_s=20)

        async def blocking(self, x):
            return self.adders["one"].remote(x).result()

    app = Front.bind({"one": Adder.bind(1), "ten": Adder.options(name="Ten").bind(10)}, Combiner.bind())
    handle = serve.run(app, route_prefix=None)
    assert handle.remote(5).result() == [6, 16]
    assert handle.in_plain_code.remote(1).result() == 2
    with pytest.raises(RuntimeError, match="use `await response`"):
        handle.blocking.remote(1).result()
    combiner = serve.get_deployment_handle("Combiner", "default")
    ten = serve.get_deployment_handle("Ten", "default")
    assert combiner.remote(ten.remote(1), two=ten.remote(2)).result() == [11, 12]
    assert set(serve.status().applications["default"].deployments) == {"Front", "Adder", "Ten", "Combiner"}


def test_an_error_of_an_argument_is_the_error_of_the_call():
    handle = serve.run(Arithmetic.bind(), route_prefix=None)
    with pytest.raises(ZeroDivisionError):
        handle.remote(handle.fail.remote()).result(timeout_s=20)


def test_arrays_travel():
    handle = serve.run(Arithmetic.bind(1), route_prefix=None)
    array = np.arange(1 << 18)
    assert (handle.remote(array).result() == array + 1).all()
    assert (handle.remote(handle.remote(array)).result() == array + 2).all()


def test_timeouts_name_the_replica_and_the_request_goes_on(tmp_path):
    handle = serve.run(Gate.bind(), route_prefix=None)
    response = handle.remote(str(tmp_path / "gate"))
    with pytest.raises(TimeoutError, match="was not answered within 0.05 s; replica default#Gate"):
        response.result(timeout_s=0.05)
    (tmp_path / "gate").touch()
    assert response.result(timeout_s=20) == "open"
    with pytest.raises(ValueError, match="timeout_s"):
        response.result(timeout_s=-1)


def test_cancelling_reaches_the_replica(tmp_path, wait_until):
    handle = serve.run(Gate.bind(), route_prefix=None)
    flag = tmp_path / "cancelled"
    response = handle.until_cancelled.remote(str(flag))
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.2)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=20)
    assert response.cancelled()
    wait_until(flag.exists, what="the CancelledError in the replica")


def test_a_full_queue_refuses_at_the_call(tmp_path):
    handle = serve.run(Gate.options(max_ongoing_requests=1, max_queued_requests=2).bind(), route_prefix=None)
    gate = tmp_path / "gate"
    responses = [handle.remote(str(gate)) for _ in range(3)]
    with pytest.raises(BackPressureError, match="max_queued_requests=2"):
        handle.remote(str(gate))
    waiting = responses.pop()
    waiting.cancel()
    with pytest.raises(RequestCancelledError):
        waiting.result(timeout_s=20)
    gate.touch()
    assert [response.result(timeout_s=20) for response in responses] == ["open", "open"]


def test_threads_share_a_handle():
    handle = serve.run(Arithmetic.options(num_replicas=2).bind(1), route_prefix=None)
    wrong = []

    def work():
        wrong.extend(i for i in range(100) if handle.remote(i).result(timeout_s=30) != i + 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_handles_travel_to_tasks():
    handle = serve.run(Arithmetic.bind(1), route_prefix=None)

    @shoal.remote
    def use(handle):
        return handle.remote(1).result(timeout_s=30)

    assert shoal.get(use.remote(handle), timeout=60) == 2


def test_a_closed_stream_makes_room():
    handle = serve.run(Arithmetic.options(max_ongoing_requests=1).bind(), route_prefix=None)
    endless = handle.options(stream=True).count_async.remote(10**9)
    assert next(endless) == 0
    endless.cancel()
    assert list(endless) == []
    assert handle.remote(1).result(timeout_s=20) == 1


def test_models_are_multiplexed():
    @serve.deployment(num_replicas=2)
    class Models:
        def __init__(self):
            self.loads = []

        @serve.multiplexed(max_num_models_per_replica=2)
        async def get(self, model_id):
            self.loads.append(model_id)
            await asyncio.sleep(0.001)
            return model_id.upper()

        async def __call__(self, x):
            return await self.get(serve.get_multiplexed_model_id()), x, os.getpid()

        async def loaded(self):
            return self.loads

    handle = serve.run(Models.bind(), route_prefix=None)
    answers = [handle.options(multiplexed_model_id="a").remote(i).result() for i in range(10)]
    assert {(name, pid) for name, _, pid in answers} == {("A", answers[0][2])}
    for model in "bcd":
        assert handle.options(multiplexed_model_id=model).remote(0).result()[0] == model.upper()
    with pytest.raises(ValueError, match="names no model"):
        handle.remote(0).result()


def test_batches_form_across_requests():
    @serve.deployment(max_ongoing_requests=100)
    class Batcher:
        def __init__(self):
            self.sizes = []

        @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
        async def __call__(self, numbers):
            self.sizes.append(len(numbers))
            return [n * 2 for n in numbers]

        async def seen(self):
            return self.sizes

    handle = serve.run(Batcher.bind(), route_prefix=None)
    assert [r.result() for r in [handle.remote(i) for i in range(64)]] == [2 * i for i in range(64)]
    sizes = handle.seen.remote().result()
    assert max(sizes) == 8
    assert sum(sizes) == 64
    assert len(sizes) <= 20


def test_bad_input_is_refused_where_it_is_given():
    with pytest.raises(ServeConfigError, match="num_replicas must be at least 0"):
        Arithmetic.options(num_replicas=-1)
    with pytest.raises(ServeConfigError, match="max_ongoing_requests must be a whole number"):
        serve.deployment(max_ongoing_requests=1.5)
    with pytest.raises(ServeConfigError, match="no key 'num_cpu'; did you mean 'num_cpus'"):
        Arithmetic.options(ray_actor_options={"num_cpu": 1})
    with pytest.raises(ServeConfigError, match="no field 'max_replica'"):
        Arithmetic.options(autoscaling_config={"max_replica": 3})
    with pytest.raises(TypeError, match="too many positional arguments"):
        Arithmetic.bind(1, 2)
    with pytest.raises(TypeError, match="bind it first"):
        serve.run(Arithmetic)
    with pytest.raises(ServeConfigError, match="route_prefix must start with"):
        serve.run(Arithmetic.bind(), route_prefix="here")
    with pytest.raises(TypeError, match="deployment 'Arithmetic' cannot be pickled"):
        serve.run(Arithmetic.bind(threading.Lock()))
    with pytest.raises(RuntimeError, match="cannot be constructed directly"):
        Arithmetic(1)
    with pytest.raises(serve.RayServeException, match="only be called from within a replica"):
        serve.get_replica_context()
    with pytest.raises(serve.RayServeException, match="there is no application 'nothere'"):
        serve.get_app_handle("nothere")


def test_a_constructor_that_raises_fails_the_deploy_with_its_error():
    @serve.deployment
    class Broken:
        def __init__(self):
            raise ValueError("no such model")

    start = time.monotonic()
    with pytest.raises(DeploymentFailedError, match=r"(?s)'Broken'.*ValueError: no such model"):
        serve.run(Broken.bind(), route_prefix=None)
    assert time.monotonic() - start < 20
    assert serve.status().applications["default"].status == "DEPLOY_FAILED"
