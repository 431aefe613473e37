"""What a task raised, at its caller."""

import os
import threading

import pytest
import shoal
from shoal.exceptions import RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")


class Custom(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self):
        return Custom, (self.code,)


def inner():
    raise Custom(7)


@shoal.remote
def fails():
    inner()


def test_the_error_is_the_users_with_its_attributes_and_says_where():
    with pytest.raises(Custom) as caught:
        shoal.get(fails.remote())
    error = caught.value
    assert isinstance(error, RayTaskError) and error.code == 7
    text = str(error)
    assert "fails" in text and "in inner" in text and f"pid={error.pid}" in text and "node=" in text and error.pid != os.getpid()
    assert "executor.py" not in text


def test_a_dependent_task_fails_with_the_same_error():
    @shoal.remote
    def uses(x):
        return x

    with pytest.raises(Custom):
        shoal.get(uses.remote(fails.remote()))


def test_an_error_through_a_nested_get_keeps_its_class_and_both_names():
    @shoal.remote
    def outer():
        return shoal.get(fails.remote())

    with pytest.raises(Custom) as caught:
        shoal.get(outer.remote())
    assert "outer" in str(caught.value) and "fails" in str(caught.value)


def test_an_error_that_cannot_be_pickled_comes_as_text():
    @shoal.remote
    def locked():
        error = ValueError("with a lock")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(RayTaskError, match="with a lock"):
        shoal.get(locked.remote())


def test_a_result_that_cannot_be_pickled_names_the_part():
    @shoal.remote
    def unpicklable():
        return {"a": [1, threading.Lock()]}

    with pytest.raises(TypeError, match=r"return value\['a'\]\[1\] cannot be pickled"):
        shoal.get(unpicklable.remote())


def test_an_argument_that_cannot_be_pickled_fails_where_it_was_called():
    with pytest.raises(TypeError, match=r"args\[0\]\['x'\] cannot be pickled"):
        fails.options(num_returns=1)
        shoal.remote(lambda x: x).remote({"x": threading.Lock()})


def test_get_of_a_list_raises_the_first_error():
    good = shoal.put(1)
    with pytest.raises(Custom):
        shoal.get([good, fails.remote()])


def test_sys_exit_in_a_task_is_an_error_at_the_caller():
    @shoal.remote(max_retries=0)
    def leaves():
        raise SystemExit(4)

    with pytest.raises(shoal.exceptions.WorkerCrashedError, match=r"sys\.exit"):
        shoal.get(leaves.remote(), timeout=30)


def test_an_error_object_can_be_a_plain_value():
    @shoal.remote
    def returns():
        return ValueError("a value")

    assert isinstance(shoal.get(returns.remote()), ValueError)


class TwoArguments(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")
        self.what = what


def test_an_error_whose_init_wants_other_arguments_is_still_the_users_own():
    @shoal.remote
    def raises():
        raise TwoArguments("disk", "full")

    with pytest.raises(TwoArguments, match="disk: full") as caught:
        shoal.get(raises.remote(), timeout=30)
    assert isinstance(caught.value, RayTaskError)
    assert caught.value.what == "disk"

    @shoal.remote
    def passes_on():
        return shoal.get(raises.remote())

    with pytest.raises(TwoArguments):
        shoal.get(passes_on.remote(), timeout=30)
