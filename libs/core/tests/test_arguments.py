"""Calls against signatures, without a cluster."""

import pickle
import threading

import pytest
from shoal._arguments import Arity, pack


def checks(function, *args, **kwargs):
    arity = Arity(function, function.__name__)
    arity = pickle.loads(pickle.dumps(arity))
    if kwargs or not arity.low <= len(args) <= arity.high:
        arity.check(args, kwargs)


def plain(a, b=1):
    pass


def keyword_only(a, *, k):
    pass


def anything(*args, **kwargs):
    pass


def test_right_calls_pass():
    checks(plain, 1)
    checks(plain, 1, 2)
    checks(plain, a=1, b=2)
    checks(keyword_only, 1, k=2)
    checks(anything, 1, 2, 3, x=4)


@pytest.mark.parametrize(("function", "args", "kwargs", "text"), [
    (plain, (), {}, "plain.*missing a required argument: 'a'"),
    (plain, (1, 2, 3), {}, "too many positional arguments"),
    (plain, (1,), {"c": 2}, "unexpected keyword argument 'c'"),
    (keyword_only, (1,), {}, "missing a required.*'k'"),
])  # fmt: skip
def test_a_wrong_call_is_a_type_error_that_names_the_function_and_the_argument(function, args, kwargs, text):
    with pytest.raises(TypeError, match=text):
        checks(function, *args, **kwargs)


def test_a_method_is_checked_without_self():
    class A:
        def f(self, x):
            pass

    arity = Arity(A.f, "f", skip_first=True)
    assert (arity.low, arity.high) == (1, 1)


def test_a_default_that_cannot_be_pickled_does_not_matter():
    def f(a, lock=threading.Lock()):  # noqa: B008
        pass

    checks(f, 1)


def test_an_argument_that_cannot_be_pickled_is_named():
    with pytest.raises(TypeError, match=r"calling f: kwargs\['x'\]\[0\] cannot be pickled"):
        pack((1,), {"x": [threading.Lock()]}, "f")
    with pytest.raises(TypeError, match=r"calling f: args\[1\] cannot be pickled"):
        pack((1, threading.Lock()), {}, "f")


def test_arguments_come_back():
    payload, deps = pack((1, "a"), {"k": [1, {"x": 2}]}, "f")
    assert pickle.loads(payload.inband) == ((1, "a"), {"k": [1, {"x": 2}]}) and not deps
