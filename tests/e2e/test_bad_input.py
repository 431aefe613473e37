"""Mistakes: each is a clear error that names the thing, where the user called, in bounded time."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings

import pytest
import shoal

pytestmark = pytest.mark.usefixtures("cluster")
# What no node can run is given up after it; 10 s where nobody says so, which each such test would wait for.
SYSTEM_CONFIG = {service: {"infeasible_timeout_s": 1.0} for service in ("raylet", "gcs")}


def test_init_twice_is_an_error_unless_ignored():
    with pytest.raises(RuntimeError, match="init twice"):
        shoal.init()
    assert shoal.init(ignore_reinit_error=True).address_info


def test_put_of_a_reference_is_refused():
    with pytest.raises(TypeError, match="not allowed"):
        shoal.put(shoal.put(1))


def test_get_of_what_is_no_reference():
    with pytest.raises(ValueError, match="Invalid type"):
        shoal.get("x")
    with pytest.raises(TypeError, match="'x' of type str, which is not an ObjectRef"):
        shoal.get([shoal.put(1), "x"])
    with pytest.raises(TypeError, match="class 'str'"):
        shoal.wait([shoal.put(1), "x"])
    with pytest.raises(TypeError, match=r"actors, try kill\(\)"):
        shoal.cancel("x")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["task", "plain", "threaded", "async", "stream"])
def test_a_result_that_cannot_be_pickled_is_named_by_its_path(kind):
    def make():
        return {"model": [0, threading.Lock()]}

    class Plain:
        def run(self):
            return make()

    class Async:
        async def run(self):
            return make()

    @shoal.remote
    def stream():
        yield make()

    if kind == "task":
        ref = shoal.remote(make).remote()
    elif kind == "stream":
        ref = next(stream.remote())
    else:
        actor = shoal.remote(Async if kind == "async" else Plain).options(num_cpus=0, max_concurrency=2 if kind == "threaded" else None).remote()
        ref = actor.run.remote()
    where = "item 1" if kind == "stream" else "return value"
    with pytest.raises(TypeError, match=rf"{where}\['model'\]\[1\] cannot be pickled: .*_thread.lock.*Make it inside the task"):
        shoal.get(ref, timeout=15)


@pytest.mark.timeout(20)
def test_arguments_that_cannot_be_pickled_fail_at_the_call():
    @shoal.remote
    def f(*args, **kwargs):
        pass

    @shoal.remote(num_cpus=0)
    class A:
        def __init__(self, *args):
            pass

        def f(self, *args):
            pass

    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"args\[1\]\[0\] cannot be pickled: .*_thread.lock"):
        f.remote(1, [lock])
    with pytest.raises(TypeError, match=r"\['deep'\]\.lock cannot be pickled"):
        f.remote(named={"deep": types.SimpleNamespace(lock=lock)})
    with pytest.raises(TypeError, match=r"args\[0\] cannot be pickled"):
        A.remote(lock)
    with pytest.raises(TypeError, match=r"args\[0\]\['x'\] cannot be pickled"):
        A.remote().f.remote({"x": lock})
    with pytest.raises(TypeError, match=r"value\[2\] cannot be pickled"):
        shoal.put([1, 2, lock])
    with pytest.raises(TypeError, match="closure variable 'lock' cannot be pickled"):
        shoal.remote(lambda: lock).remote()


@pytest.mark.timeout(20)
def test_a_wrong_number_of_returns_names_both_numbers_and_what_to_do():
    @shoal.remote(num_returns=2)
    def one():
        return 1

    @shoal.remote(num_returns=2)
    def three():
        return 1, 2, 3

    @shoal.remote(num_cpus=0)
    class A:
        @shoal.method(num_returns=3)
        def pair(self):
            return [1, 2]

        @shoal.method(num_returns=3)
        async def later(self):
            return [1, 2]

    later = A.remote().later.remote()
    for refs, text in ((one.remote(), "one value of type int"), (three.remote(), "num_returns=2, but returned 3"), (later, "num_returns=3, but returned 2")):
        for ref in refs:
            with pytest.raises(ValueError, match=text + ".*change num_returns") as caught:
                shoal.get(ref, timeout=15)
            assert isinstance(caught.value, shoal.exceptions.RayTaskError)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("options", "error", "text"), [
    ({"num_cpus": -1}, ValueError, "num_cpus=-1"), ({"num_gpus": 1.5}, ValueError, "num_gpus=1.5"), ({"resources": {"thing": -1}}, ValueError, r"\['thing'\]"),
    ({"num_cpu": 1}, ValueError, "Did you mean num_cpus"), ({"memory": "1G"}, TypeError, "memory"), ({"num_returns": -1}, ValueError, "num_returns.*-1"),
    ({"resources": {"CPU": 1}}, ValueError, "Use the 'num_cpus'"), ({"scheduling_strategy": "PACKED"}, ValueError, "PACKED"),
])  # fmt: skip
def test_wrong_options_are_refused_where_they_are_given(options, error, text):
    @shoal.remote
    def f():
        pass

    with pytest.raises(error, match=text):
        f.options(**options)
    with pytest.raises(error, match=text):
        shoal.remote(**options)(lambda: 1)


def test_wrong_arguments_are_refused_at_the_call():
    @shoal.remote
    def f(x, *, y):
        pass

    @shoal.remote(num_cpus=0)
    class A:
        def f(self):
            pass

    with pytest.raises(TypeError, match=r"f\(\): missing a required argument: 'y'"):
        f.remote(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        f.remote(1, y=1, z=1)
    with pytest.raises(TypeError, match="too many positional"):
        A.remote().f.remote(1)
    with pytest.raises(AttributeError, match="no method 'g'; its methods are f"):
        _ = A.remote().g
    for call in (f, A, A.remote().f):
        with pytest.raises(TypeError, match=r"remote\(\)"):
            call()


def test_a_task_that_no_node_can_run_fails_in_bounded_time():
    @shoal.remote(num_cpus=1000)
    def huge():
        pass

    with pytest.raises(shoal.exceptions.TaskUnschedulableError, match=r"huge needs CPU 1000.*CPU 4"):
        shoal.get(huge.remote(), timeout=40)


def test_an_actor_that_no_node_can_hold_fails_in_bounded_time():
    @shoal.remote(resources={"unicorn": 1})
    class Rare:
        def f(self):
            pass

    with pytest.raises(shoal.exceptions.ActorUnschedulableError, match="unicorn"):
        shoal.get(Rare.remote().f.remote(), timeout=60)


def test_a_large_closure_is_warned_of_by_name():
    blob = bytes(2 << 20)

    @shoal.remote
    def heavy():
        return len(blob)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert shoal.get(heavy.remote()) == 2 << 20
    (told,) = [str(w.message) for w in caught if "'blob'" in str(w.message)]
    assert re.search(r"heavy takes 2\.0 MiB.*put\(\) large values", told)


def _use_in_fork(queue):
    try:
        shoal.put(1)
        queue.put("no error")
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_a_forked_driver_is_told_so():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_use_in_fork, args=(queue,))
    process.start()
    text = queue.get(timeout=30)
    process.join(30)
    assert text.startswith("ForkedProcessError") and "spawn" in text
    assert shoal.get(shoal.put(2)) == 2


def _run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, env={**os.environ, **env}, check=False)


def test_use_after_shutdown_says_so():
    code = """
import shoal
shoal.init("local", num_cpus=1, log_to_driver=False)
ref = shoal.put(1)
@shoal.remote
class A:
    def f(self): pass
a = A.remote()
f = a.f
shoal.shutdown()
for call in (lambda: shoal.get(ref), lambda: shoal.wait([ref]), lambda: shoal.cancel(ref), lambda: f.remote(), lambda: shoal.kill(a), shoal.nodes):
    try:
        call()
        print("no error")
    except shoal.exceptions.NotConnectedError as error:
        print("shutdown()" in str(error))
"""
    done = _run(code)
    assert done.stdout.split() == ["True"] * 6, done.stderr


@pytest.mark.parametrize(("address", "text"), [
    ("127.0.0.1:1", "nobody answers"), ("nonsense", "HOST:PORT"), ("127.0.0.1:99999", "HOST:PORT"), ("ray://127.0.0.1:10001", "not supported"),
    ("auto", "shoal start --head"),
])  # fmt: skip
def test_a_wrong_address_is_refused_in_bounded_time(address, text):
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="e2e-") as folder:
        done = _run(f"import shoal\ntry:\n    shoal.init({address!r})\nexcept ConnectionError as e:\n    print('refused', e)", SHOAL_TMPDIR=folder)
    assert time.monotonic() - began < 10
    assert re.match(f"refused address=.*{re.escape(address)}.*{text}", done.stdout), done.stdout + done.stderr


def test_a_port_where_someone_else_listens_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = _run(f"import shoal\ntry:\n    shoal.init({address!r})\nexcept ConnectionError as e:\n    print('refused', e)")
    assert re.match(f"refused .*{address}.*no node of that cluster.*shoal start --address", done.stdout), done.stdout + done.stderr


def test_resource_options_while_connecting_are_refused(cluster):
    done = _run(f"import shoal\ntry:\n    shoal.init({cluster['gcs_address']!r}, num_cpus=2)\nexcept ValueError as e:\n    print('refused', e)")
    assert "num_cpus" in done.stdout, done.stderr

