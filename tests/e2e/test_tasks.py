"""Tasks: results, options, nesting, retries."""

import gc
import os
import signal
import time
from pathlib import Path

import pytest
import shoal
from shoal import _runtime

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote
def add(a, b=1):
    return a + b


def test_a_task_returns_its_value():
    assert shoal.get(add.remote(1, 2)) == 3
    assert shoal.get(add.remote(1)) == 2
    assert shoal.get(add.remote(a=1, b=5)) == 6


def test_many_at_once():
    assert shoal.get([add.remote(i, i) for i in range(500)]) == [2 * i for i in range(500)]


def test_ten_thousand_references_as_arguments_three_thousand_returns_and_a_get_of_ten_thousand():
    @shoal.remote
    def total(*numbers):
        return sum(numbers)

    @shoal.remote(num_returns=3_000)
    def squares():
        return [n * n for n in range(3_000)]

    refs = [shoal.put(n) for n in range(10_000)]
    assert shoal.get(total.remote(*refs), timeout=60) == sum(range(10_000))
    assert shoal.get(squares.remote(), timeout=60) == [n * n for n in range(3_000)]
    assert shoal.get(refs, timeout=60) == list(range(10_000))


def test_a_top_level_reference_becomes_its_value_and_a_nested_one_stays():
    @shoal.remote
    def kinds(top, nested, *, named):
        return type(top).__name__, type(nested[0]).__name__, named, shoal.get(nested[0])

    ref = shoal.put(7)
    assert shoal.get(kinds.remote(ref, [ref], named=ref)) == ("int", "ObjectRef", 7, 7)


def test_a_chain_of_dependent_tasks():
    ref = add.remote(0)
    for _ in range(50):
        ref = add.remote(ref)
    assert shoal.get(ref) == 51


def test_several_returns():
    @shoal.remote(num_returns=3)
    def three():
        return 1, "b", None

    assert shoal.get(three.remote()) == [1, "b", None]
    assert shoal.get(three.options(num_returns=1).remote()) == (1, "b", None)
    assert three.options(num_returns=0).remote() is None


@pytest.mark.parametrize(("returned", "text"), [((1, 2), "num_returns=3, but returned 2 values"), (5, "num_returns=3, but returned one value of type int")])
def test_a_wrong_number_of_returns_names_both(returned, text):
    @shoal.remote(num_returns=3)
    def wrong():
        return returned

    with pytest.raises(ValueError, match=text):
        shoal.get(wrong.remote())


def test_dynamic_returns_are_references():
    @shoal.remote(num_returns="dynamic")
    def dynamic(n):
        yield from range(n)

    assert shoal.get(list(shoal.get(dynamic.remote(4)))) == [0, 1, 2, 3]


def test_recursion_does_not_deadlock():
    @shoal.remote
    def fib(n):
        return n if n < 2 else sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert shoal.get(fib.remote(8), timeout=60) == 21


def test_nested_tasks_deeper_than_the_cpus():
    @shoal.remote
    def down(n):
        return 0 if n == 0 else 1 + shoal.get(down.remote(n - 1))

    assert shoal.get(down.remote(10), timeout=60) == 10


def test_tasks_run_at_the_same_time():
    @shoal.remote
    def meet(path, count):
        Path(path, str(os.getpid())).touch()
        deadline = time.monotonic() + 20
        while len(os.listdir(path)) < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    import tempfile

    with tempfile.TemporaryDirectory() as path:
        assert all(shoal.get([meet.remote(path, 4) for _ in range(4)], timeout=40))


def test_resources_limit_how_many_run_at_once(tmp_path):
    @shoal.remote(num_cpus=0, resources={"thing": 1})
    def count(path):
        mine = Path(path, f"{os.getpid()}-{time.monotonic_ns()}")
        mine.touch()
        seen = len(os.listdir(path))
        time.sleep(0.02)
        mine.unlink()
        return seen

    assert max(shoal.get([count.remote(str(tmp_path)) for _ in range(12)], timeout=30)) <= 2


def test_closures_and_default_arguments_travel():
    base = {"x": 10}

    @shoal.remote
    def uses(y, z=base):
        return base["x"] + y + z["x"]

    assert shoal.get(uses.remote(1)) == 21


def test_a_lambda_and_a_builtin_can_be_remote():
    assert shoal.get(shoal.remote(lambda x: x * 2).remote(4)) == 8


def test_a_remote_function_passes_itself_on():
    @shoal.remote
    def apply(f, x):
        return shoal.get(f.remote(x))

    assert shoal.get(apply.remote(add, 41)) == 42


def test_a_reference_captured_in_a_closure_stays_alive():
    ref = shoal.put("captured")

    @shoal.remote
    def reads():
        return shoal.get(ref)

    assert shoal.get(reads.remote()) == "captured"


def arena_bytes():
    return _runtime.state.engine.stats()["arena_bytes"]


def test_what_a_function_captured_is_freed_when_the_function_goes(wait_until):
    def run():
        ref = shoal.put(bytes(500_000))

        @shoal.remote
        def size(n):
            return len(shoal.get(ref)) + n

        @shoal.remote
        def through(f):
            return shoal.get([f.remote(1), f.options(name="other").remote(2)])

        assert shoal.get([size.remote(0), size.remote(0)]) == [500_000] * 2
        assert shoal.get(through.remote(size)) == [500_001, 500_002]
        assert arena_bytes() >= 500_000

    run()
    wait_until(lambda: gc.collect() >= 0 and arena_bytes() == 0, what="no object of this process in shared memory")


def test_what_a_function_captured_outlives_the_function_while_tasks_of_it_are_under_way(flag, wait_until):
    go = flag("go")

    @shoal.remote
    def late():
        while not go.exists():
            time.sleep(0.01)
        return 1

    def submit():
        ref = shoal.put(bytes(500_000))

        @shoal.remote(num_cpus=0)
        class Reader:
            def size(self, n):
                return len(shoal.get(ref)) + n

        return shoal.remote(lambda n: len(shoal.get(ref)) + n).remote(late.remote()), Reader.remote()

    waiting, actor = submit()
    gc.collect()
    assert arena_bytes() >= 500_000
    go.touch()
    assert shoal.get([waiting, actor.size.remote(2)]) == [500_001, 500_002]
    del waiting, actor
    wait_until(lambda: gc.collect() >= 0 and arena_bytes() == 0, what="no object of this process in shared memory")


def test_retry_exceptions_tries_again_and_others_do_not(tmp_path):
    @shoal.remote(max_retries=3)
    def flaky(path, error):
        with open(path, "a") as f:
            f.write("x")
        if os.path.getsize(path) < 3:
            raise error
        return "done"

    assert shoal.get(flaky.options(retry_exceptions=True).remote(str(tmp_path / "a"), ValueError())) == "done"
    assert shoal.get(flaky.options(retry_exceptions=[ValueError]).remote(str(tmp_path / "b"), ValueError())) == "done"
    with pytest.raises(KeyError):
        shoal.get(flaky.options(retry_exceptions=[ValueError]).remote(str(tmp_path / "c"), KeyError("k")))
    with pytest.raises(ValueError):
        shoal.get(flaky.remote(str(tmp_path / "d"), ValueError()))
    assert (tmp_path / "c").stat().st_size == (tmp_path / "d").stat().st_size == 1


def test_a_task_whose_worker_dies_is_tried_again(tmp_path):
    @shoal.remote(max_retries=2)
    def dies_once(path):
        if not os.path.exists(path):
            Path(path).touch()
            os.kill(os.getpid(), 9)
        return "alive"

    assert shoal.get(dies_once.remote(str(tmp_path / "x")), timeout=30) == "alive"


def test_a_task_whose_worker_dies_without_retries_says_how():
    @shoal.remote(max_retries=0)
    def dies():
        os._exit(3)

    with pytest.raises(shoal.exceptions.WorkerCrashedError, match="3"):
        shoal.get(dies.remote(), timeout=30)


def test_a_task_that_kills_its_worker_takes_none_of_those_behind_it_along():
    @shoal.remote(max_retries=0)
    def work(n, poison):
        if poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    # Short ones, as the driver has measured: many are sent ahead to each worker.
    assert shoal.get([work.remote(n, False) for n in range(200)], timeout=60) == list(range(200))
    refs = [work.remote(n, n % 50 == 25) for n in range(200)]
    for n, ref in enumerate(refs):
        if n % 50 == 25:
            with pytest.raises(shoal.exceptions.WorkerCrashedError, match=r"pid \d+: .*SIGKILL"):
                shoal.get(ref, timeout=60)
        else:
            assert shoal.get(ref, timeout=60) == n


def test_max_calls_ends_the_worker():
    @shoal.remote(max_calls=1)
    def pid():
        return os.getpid()

    assert len({shoal.get(pid.remote(), timeout=30) for _ in range(3)}) == 3


def test_a_wrong_call_fails_at_the_caller():
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        add.remote()
    with pytest.raises(TypeError, match="too many positional"):
        add.remote(1, 2, 3)


def test_large_arguments_and_results():
    np = pytest.importorskip("numpy")

    @shoal.remote
    def double(x, *, y):
        assert not x.flags.writeable
        return x * 2 + y

    array = np.arange(500_000.0)
    result = shoal.get(double.remote(array, y=array))
    np.testing.assert_array_equal(result, array * 3)
    assert not result.flags.writeable


def test_a_task_of_a_thousand_references():
    @shoal.remote
    def total(*xs):
        return sum(xs)

    refs = [shoal.put(i) for i in range(1000)]
    assert shoal.get(total.remote(*refs)) == 499500


def test_run_time_environment_variables_reach_the_task():
    @shoal.remote(runtime_env={"env_vars": {"SHOAL_TEST_COLOUR": "green"}})
    def colour():
        return os.environ.get("SHOAL_TEST_COLOUR")

    @shoal.remote
    def plain():
        return os.environ.get("SHOAL_TEST_COLOUR")

    assert shoal.get([colour.remote(), plain.remote()], timeout=40) == ["green", None]


def test_working_dir_and_py_modules_reach_the_task(tmp_path):
    (tmp_path / "data.txt").write_text("content")
    module = tmp_path / "mod" / "shoal_test_module"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("value = 5\n")

    @shoal.remote(runtime_env={"working_dir": str(tmp_path), "py_modules": [str(module)]})
    def reads():
        import shoal_test_module

        return Path("data.txt").read_text(), shoal_test_module.value

    assert shoal.get(reads.remote(), timeout=40) == ("content", 5)
