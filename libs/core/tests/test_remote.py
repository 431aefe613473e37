"""Decorators and handles, as far as they go without a cluster."""

import asyncio

import pytest
import shoal
from shoal import _runtime
from shoal.actor import ActorClassInheritanceException
from shoal.exceptions import NotConnectedError


def test_a_remote_function_is_not_called_directly():
    @shoal.remote
    def f():
        pass

    with pytest.raises(TypeError, match=r"try 'f\.remote\(\)'"):
        f()


def test_an_actor_class_is_not_instantiated_directly_and_not_inherited_from():
    @shoal.remote
    class A:
        pass

    with pytest.raises(TypeError, match=r"use 'A\.remote\(\)'"):
        A()
    with pytest.raises(ActorClassInheritanceException, match="A"):

        class B(A):
            pass


def test_the_decorator_wants_keywords_or_nothing():
    with pytest.raises(TypeError, match="only keyword arguments"):
        shoal.remote(1)
    with pytest.raises(TypeError, match="keyword arguments"):
        shoal.remote()
    with pytest.raises(TypeError, match="remote already"):
        shoal.remote(shoal.remote(lambda: 1))
    with pytest.raises(ValueError, match="num_cpu"):
        shoal.remote(num_cpu=1)(lambda: 1)


def test_a_coroutine_function_is_no_task():
    with pytest.raises(ValueError, match="async def"):

        @shoal.remote
        async def f():
            await asyncio.sleep(0)


def test_options_are_checked_where_they_are_given_and_leave_the_original_alone():
    @shoal.remote(num_cpus=2)
    def f():
        pass

    with pytest.raises(ValueError, match="nun_cpus"):
        f.options(nun_cpus=1)
    changed = f.options(name="g", num_cpus=1)
    assert changed._name == "g" and changed._options == {"num_cpus": 1, "name": "g"} and f._options == {"num_cpus": 2}


def test_a_method_in_an_undefined_concurrency_group_is_refused():
    @shoal.remote(concurrency_groups={"io": 1})
    class A:
        @shoal.method(concurrency_group="oi")
        def f(self):
            pass

    with pytest.raises(ValueError, match="concurrency group 'oi'"):
        from shoal._actor_meta import check_groups

        check_groups(A._methods, A._options["concurrency_groups"], "A")


def test_method_takes_a_method_or_keywords():
    class A(shoal.actor.TypedActor):
        @shoal.method
        def plain(self, x):
            return x

    made = shoal.remote(A)
    assert A().plain(2) == 2 and made._methods["plain"].num_returns is None and made._methods["plain"].arity.high == 1
    for wrong in ((3,), (len, len)):
        with pytest.raises(ValueError, match="takes a method, or keyword arguments"):
            shoal.method(*wrong)


def test_what_needs_a_connection_says_so():
    assert not shoal.is_initialized()
    for call in (shoal.nodes, shoal.cluster_resources, shoal.available_resources):
        with pytest.raises(NotConnectedError, match=r"call init\(\)"):
            call()


def test_wait_and_get_refuse_what_is_no_reference():
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        shoal.get(3)
    with pytest.raises(TypeError, match="which is not an ObjectRef"):
        shoal.get([3])
    with pytest.raises(TypeError, match="expected a list"):
        shoal.wait(3)
    with pytest.raises(TypeError, match="containing"):
        shoal.wait([3])
    with pytest.raises(ValueError, match="nonnegative"):
        shoal.wait([], timeout=-1)
    with pytest.raises(TypeError, match="only supported for object refs"):
        shoal.cancel(3)
    with pytest.raises(ValueError, match="only supported for actors"):
        shoal.kill(3)


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"num_cpus": -1}, ValueError, "num_cpus"), ({"resources": {"CPU": 1}}, ValueError, "num_cpus"), ({"namespace": ""}, ValueError, "namespace"),
    ({"nun_cpus": 1}, RuntimeError, "nun_cpus"), ({"runtime_env": {"pip": ["x"]}}, ValueError, "pip"), ({"logging_level": "loud"}, ValueError, "loud"),
])  # fmt: skip
def test_init_refuses_wrong_options_by_name_before_anything_starts(options, error, text):
    with pytest.raises(error, match=text):
        shoal.init(**options)
    assert not shoal.is_initialized()


def test_a_forked_driver_is_told_apart_from_one_that_never_connected():
    state = _runtime.State()
    state.forked = True
    original, _runtime.state = _runtime.state, state
    try:
        with pytest.raises(shoal.exceptions.ForkedProcessError, match="spawn"):
            _runtime.connected("get()")
    finally:
        _runtime.state = original
