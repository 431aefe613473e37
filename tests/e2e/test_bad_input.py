"""Mistakes: each is a clear error that names the thing, where the user called, in bounded time."""

import multiprocessing
import os
import subprocess
import sys
import warnings

import pytest
import shoal

pytestmark = pytest.mark.usefixtures("cluster")


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
    with pytest.raises(TypeError, match="which is not an ObjectRef"):
        shoal.get([shoal.put(1), "x"])


def test_a_task_that_no_node_can_run_fails_in_bounded_time():
    @shoal.remote(num_cpus=1000)
    def huge():
        pass

    with pytest.raises(shoal.exceptions.TaskUnschedulableError, match="1000"):
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
    assert any("'blob'" in str(w.message) for w in caught)


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


def test_a_wrong_address_is_refused_in_bounded_time():
    done = _run("import shoal\ntry:\n    shoal.init('127.0.0.1:1')\nexcept ConnectionError as e:\n    print('refused', e)")
    assert "refused" in done.stdout and "127.0.0.1:1" in done.stdout, done.stderr


def test_resource_options_while_connecting_are_refused(cluster):
    done = _run(f"import shoal\ntry:\n    shoal.init({cluster['gcs_address']!r}, num_cpus=2)\nexcept ValueError as e:\n    print('refused', e)")
    assert "num_cpus" in done.stdout, done.stderr
