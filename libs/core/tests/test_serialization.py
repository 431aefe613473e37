"""Values out and back, references noted, and what cannot be pickled named."""

import dataclasses
import io
import pickle
import sys
import threading
import types

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal import _serialization
from shoal._core.engine import KIND_BYTES, KIND_ERROR, KIND_NONE, KIND_PICKLE, Payload
from shoal._serialization import is_flat, load_error, pickle_value, serialize, serialize_error
from shoal.exceptions import RayTaskError


class Arrived:
    """A value as the engine hands it out: the same bytes, read-only."""

    def __init__(self, payload: Payload) -> None:
        self.kind = payload.kind
        self.inband = payload.inband
        self.buffers = [memoryview(bytes(b)) for b in payload.buffers]


def there_and_back(value):
    return _serialization.load(Arrived(serialize(value)))


atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
values = st.recursive(atoms, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=30)


@given(values)
def test_plain_values_come_back_equal(value):
    assert there_and_back(value) == value


def test_none_and_bytes_have_kinds_of_their_own():
    assert serialize(None).kind == KIND_NONE
    assert serialize(b"x").kind == KIND_BYTES
    assert serialize([1]).kind == KIND_PICKLE
    assert there_and_back(b"x" * 100) == b"x" * 100


def test_only_small_containers_of_atoms_take_the_cheap_way():
    assert is_flat([1, "a", None], list) and is_flat({"a": 1.5}, dict) and is_flat((), tuple)
    assert is_flat([[1], {"a": (2,)}], list) and not is_flat([[[[[1]]]]], list) and not is_flat([[object()]], list)
    assert not is_flat({"a": object()}, dict) and not is_flat([1] * 1000, list)
    assert not is_flat(type("L", (list,), {})(), object)


def test_lambdas_local_classes_and_closures_travel():
    factor = 3

    class Local:
        def times(self, x):
            return x * factor

    assert there_and_back(lambda x: x * factor)(2) == 6
    assert there_and_back(Local)().times(2) == 6
    assert there_and_back(Local()).times(2) == 6


def test_numpy_arrays_are_views_and_read_only():
    array = np.arange(1000.0).reshape(10, 100)
    payload = serialize({"a": array})
    assert len(payload.buffers) == 1 and len(payload.inband) < 1000
    back = _serialization.load(Arrived(payload))["a"]
    np.testing.assert_array_equal(back, array)
    assert not back.flags.writeable and not back.flags.owndata


@pytest.mark.parametrize("array", [
    np.asfortranarray(np.arange(12).reshape(3, 4)), np.arange(20)[::2], np.array(3), np.zeros(0), np.array(["a", None], dtype=object),
    np.zeros(3, dtype=[("x", "i4"), ("y", "f8")]), np.array(["2020-01-01"], dtype="M8[D]"),
])  # fmt: skip
def test_arrays_of_every_layout_come_back(array):
    back = there_and_back(array)
    assert back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_pandas_and_arrow_come_back():
    pandas = pytest.importorskip("pandas")
    arrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    pandas.testing.assert_frame_equal(there_and_back(frame), frame)
    table = arrow.table({"a": list(range(1000))})
    payload = serialize(table)
    assert payload.buffers
    assert _serialization.load(Arrived(payload)).equals(table)


def test_a_tensor_is_a_copy_that_may_be_written():
    torch = pytest.importorskip("torch")
    for tensor in (torch.arange(6.0).reshape(2, 3), torch.zeros(3, dtype=torch.bfloat16), torch.ones(2, requires_grad=True)):
        back = there_and_back(tensor)
        assert torch.equal(back, tensor) and back.dtype == tensor.dtype and back.requires_grad == tensor.requires_grad
        with torch.no_grad():
            back += 1


def test_a_registered_serializer_is_used_for_its_class_alone_and_can_be_taken_back():
    class Handle:
        def __init__(self, name):
            self.name = name
            self.lock = threading.Lock()

    _serialization.register_serializer(Handle, serializer=lambda h: h.name, deserializer=Handle)
    try:
        back = there_and_back([Handle("a")])
        assert back[0].name == "a" and back[0].lock is not None
    finally:
        _serialization.deregister_serializer(Handle)
    with pytest.raises(TypeError):
        serialize(Handle("a"))


class Box:
    def __init__(self, content):
        self.content = content


@dataclasses.dataclass
class Pair:
    left: object
    right: object


@pytest.mark.parametrize(("value", "path"), [
    (threading.Lock(), r"args\[0\] cannot"),
    ([1, threading.Lock()], r"args\[0\]\[1\] cannot"),
    ({"x": Box(threading.Lock())}, r"args\[0\]\['x'\]\.content cannot"),
    ((1, {"y": [Pair(1, threading.Lock())]}), r"args\[0\]\[1\]\['y'\]\[0\]\.right cannot"),
    ({"file": io.BufferedReader(io.FileIO("/dev/null"))}, r"args\[0\]\['file'\] cannot"),
])  # fmt: skip
def test_what_cannot_be_pickled_is_named_by_its_path(value, path):
    with pytest.raises(TypeError, match=path):
        serialize(value, "args[0]")


def test_a_closure_names_its_variable():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="closure variable 'lock'"):
        serialize(lambda: lock, "f")


def test_a_structure_that_refers_to_itself_does_not_hang_the_search():
    loop: list = [threading.Lock()]
    loop.append(loop)
    with pytest.raises(TypeError, match=r"value\[0\]"):
        serialize(loop)


def test_a_nested_serialisation_keeps_its_references_apart():
    class Nests:
        def __reduce__(self):
            pickle_value([1, 2])
            return list, ()

    assert pickle_value([Nests()])[2] == []
    assert _serialization._recording.refs is None


def test_an_error_travels_as_kind_3_and_one_that_cannot_as_its_text():
    payload = serialize_error(ValueError("no"))
    assert payload.kind == KIND_ERROR and isinstance(load_error(Arrived(payload)), ValueError)

    class Bad(Exception):
        def __init__(self):
            super().__init__("bad luck")
            self.lock = threading.Lock()

    assert "bad luck" in str(load_error(Arrived(serialize_error(Bad()))))


def test_loading_an_error_raises_it_as_the_users_class():
    payload = serialize_error(RayTaskError("f", "Traceback\nKeyError: 'k'", KeyError("k")))
    with pytest.raises(KeyError) as caught:
        _serialization.load(Arrived(payload))
    assert isinstance(caught.value, RayTaskError)


def test_bytes_that_are_no_error_become_one():
    garbage = Payload(KIND_ERROR, b"not a pickle")
    assert "cannot be read" in str(load_error(Arrived(garbage)))
    assert "no exception" in str(load_error(Arrived(Payload(KIND_ERROR, cloudpickle.dumps(3)))))


def test_an_exception_class_with_a_wrong_module_name_is_itself_on_the_other_side(monkeypatch):
    """As of extensions in C and Rust: `__module__` names what cannot be imported, and another module holds the class."""
    wrong = type("WrongError", (ValueError,), {"__module__": "no_such_extension"})
    holder = types.ModuleType("holds_wrong_error")
    holder.WrongError = wrong
    monkeypatch.setitem(sys.modules, "holds_wrong_error", holder)
    inband, _, _ = pickle_value(wrong("what happened"))
    back = pickle.loads(inband)
    assert type(back) is wrong and back.args == ("what happened",)
    nowhere = type("NowhereError", (ValueError,), {"__module__": "no_such_extension"})
    assert isinstance(pickle.loads(pickle_value(nowhere("x"))[0]), ValueError)
