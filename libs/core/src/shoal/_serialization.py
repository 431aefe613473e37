"""Values to bytes and back: pickle 5 with buffers beside it, and the references inside a value noted on the way.

Three ways out, cheapest first: None and bytes as they are; atoms and small flat containers of atoms by the C pickler; everything else by cloudpickle.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _runtime
from ._core.engine import KIND_BYTES, KIND_ERROR, KIND_NONE, KIND_PICKLE, ObjectRef, Payload

if TYPE_CHECKING:
    from ._core.engine import Value

# Containers up to this length are looked through for the cheap way; beyond it cloudpickle's fixed cost no longer shows.
_FLAT_ITEMS = 24
_FLAT_DEPTH = 2
_ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None)})

_dumps = pickle.dumps
_loads = pickle.loads
NONE = Payload(KIND_NONE, b"")


class _Recording(threading.local):
    """The references met by the serialisation that runs in this thread; None: none runs."""

    refs: list[ObjectRef[Any]] | None = None


_recording = _Recording()
_out_of_band: list[ObjectRef[Any]] = []


def record_ref(ref: ObjectRef[Any]) -> None:
    """Called for each reference that is pickled. One pickled outside of the runtime is kept alive: nobody can tell when its copy goes."""
    refs = _recording.refs
    if refs is None:
        _out_of_band.append(ref)
    else:
        refs.append(ref)


def forget_out_of_band() -> None:
    _out_of_band.clear()


def rebuild_ref(object_id: bytes, owner: bytes) -> ObjectRef[Any]:
    """The other end of `ObjectRef.__reduce__`."""
    engine = _runtime.state.engine
    if engine is None:
        engine = _runtime.ensure("unpickling an ObjectRef")
    ref: ObjectRef[Any] = engine.ref_from_binary(object_id, owner)
    return ref


# -- custom serializers ------------------------------------------------------------------------------------------------

_custom: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Values of exactly this class travel as `serializer(value)` and come back through `deserializer`."""
    _custom[cls] = (serializer, deserializer)


def deregister_serializer(cls: type) -> None:
    """Takes `register_serializer` back; a class that is not registered is ignored."""
    _custom.pop(cls, None)


def _rebuild_custom(deserializer: Callable[[Any], Any], state: Any) -> Any:
    return deserializer(state)


# -- tensors -----------------------------------------------------------------------------------------------------------


# From so many bytes on a tensor is a private view of the object: below, a copy costs less than a mapping and its first faults.
_PRIVATE_BYTES = 1 << 20


def _own_view(array: Any) -> Any:
    """An array that may be written and that nobody else sees: torch has no read-only tensors, and a write must not change the object for others. Large ones are
    views, copied by the page when it is written to; their number is limited by the kernel's (vm.max_map_count), beyond which they are copies, too."""
    engine = _runtime.state.engine
    if array.nbytes < _PRIVATE_BYTES or engine is None:
        return array.copy()
    private = engine.private(array)
    return array.copy() if private is None else _numpy().frombuffer(private, array.dtype).reshape(array.shape)


def _rebuild_tensor(array: Any, dtype: str, requires_grad: bool) -> Any:
    import torch

    tensor = torch.from_numpy(_own_view(array))
    wanted = getattr(torch, dtype)
    if tensor.dtype is not wanted:
        tensor = tensor.view(wanted)
    return tensor.requires_grad_(requires_grad) if requires_grad else tensor


def _reduce_tensor(tensor: Any) -> Any:
    import torch

    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return NotImplemented
    if tensor.requires_grad and not tensor.is_leaf:
        return NotImplemented
    plain = tensor.detach().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not hasattr(_numpy(), dtype) and dtype not in ("bool", "complex64", "complex128"):
        width = {1: torch.uint8, 2: torch.int16}.get(plain.element_size())
        if width is None:
            return NotImplemented
        plain = plain.view(width)
    return _rebuild_tensor, (plain.numpy(), dtype, tensor.requires_grad)


def _numpy() -> Any:
    import numpy

    return numpy


# -- out ---------------------------------------------------------------------------------------------------------------

_pickler_type: type[pickle.Pickler] | None = None


def _make_pickler() -> type[pickle.Pickler]:
    """The class, made on first use: importing cloudpickle costs as much as the whole of `import shoal` may."""
    global _pickler_type
    import cloudpickle

    base = cloudpickle.Pickler
    ref_type = ObjectRef
    record = record_ref
    rebuild = rebuild_ref
    custom = _custom

    class ShoalPickler(base):  # type: ignore[misc, valid-type]
        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is ref_type:
                record(obj)
                return rebuild, (obj.binary(), obj.owner())
            if custom and kind in custom:
                serializer, deserializer = custom[kind]
                return _rebuild_custom, (deserializer, serializer(obj))
            if issubclass(kind, type) and issubclass(obj, BaseException) and obj.__module__ not in sys.modules and (place := _place_of(obj)) is not None:
                return _class_at, place
            torch = sys.modules.get("torch")
            if torch is not None and kind is getattr(torch, "Tensor", None):
                reduced = _reduce_tensor(obj)
                if reduced is not NotImplemented:
                    return reduced
            return base.reducer_override(self, obj)

    _pickler_type = ShoalPickler
    return ShoalPickler


def _place_of(cls: type) -> tuple[str, str] | None:
    """Where a class can be imported from whose `__module__` is none: extensions in C and Rust often give a wrong name. By value it would be another class to
    whoever catches it."""
    for name, module in list(sys.modules.items()):
        if name not in ("__main__", "__mp_main__") and getattr(module, "__dict__", {}).get(cls.__name__) is cls:
            return name, cls.__name__
    return None


def _class_at(module: str, name: str) -> type:
    found: type = getattr(importlib.import_module(module), name)
    return found


def pickle_value(value: Any) -> tuple[bytes, list[Any], list[ObjectRef[Any]]]:
    """In-band bytes, buffers, references. Raises what pickling raises."""
    pickler_type = _pickler_type or _make_pickler()
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    refs: list[ObjectRef[Any]] = []
    before = _recording.refs
    _recording.refs = refs
    try:
        pickler_type(file, 5, buffer_callback=buffers.append).dump(value)
    finally:
        _recording.refs = before
    return file.getvalue(), [_contiguous(b) for b in buffers] if buffers else buffers, refs


def _contiguous(buffer: pickle.PickleBuffer) -> memoryview:
    try:
        return buffer.raw()
    except BufferError:
        return memoryview(memoryview(buffer).tobytes())


def is_flat(value: Any, kind: type, depth: int = _FLAT_DEPTH) -> bool:
    """Whether the C pickler alone does the same as cloudpickle: small lists, tuples and dicts of atoms, a few levels deep."""
    atoms = _ATOMS
    if kind is list or kind is tuple:
        items = value
    elif kind is dict:
        for key in value:
            if type(key) not in atoms:
                return False
        items = value.values()
    else:
        return False
    if len(value) > _FLAT_ITEMS:
        return False
    for item in items:
        kind = type(item)
        if kind not in atoms and not (depth and is_flat(item, kind, depth - 1)):
            return False
    return True


def is_plain_array(value: Any, kind: type) -> bool:
    """Whether it is an array of numbers or the like, which the C pickler does as well as cloudpickle: that need not even be imported for it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or kind is not getattr(numpy, "ndarray", None) or kind in _custom:
        return False
    return value.dtype.isbuiltin == 1 and not value.dtype.hasobject


def serialize(value: Any, where: str = "value") -> Payload:
    """A value to a Payload. Raises TypeError naming the part, by its path from `where`, that cannot be pickled."""
    if value is None:
        return NONE
    kind = type(value)
    if kind is bytes:
        return Payload(KIND_BYTES, value)
    if kind in _ATOMS or is_flat(value, kind):
        return Payload(KIND_PICKLE, _dumps(value, 5))
    if is_plain_array(value, kind):
        arrays: list[pickle.PickleBuffer] = []
        return Payload(KIND_PICKLE, _dumps(value, 5, buffer_callback=arrays.append), [_contiguous(b) for b in arrays])
    try:
        inband, buffers, refs = pickle_value(value)
    except Exception as error:
        raise explain_failure(value, where, error) from error
    return Payload(KIND_PICKLE, inband, buffers, refs)


def serialize_error(error: BaseException) -> Payload:
    """An exception to a Payload; one that cannot be pickled travels as its text."""
    from .exceptions import RaySystemError

    try:
        inband, buffers, refs = pickle_value(error)
    except Exception as failure:
        inband, buffers, refs = pickle_value(RaySystemError(f"{type(error).__name__}: {error} (the exception itself cannot be pickled: {failure})"))
    return Payload(KIND_ERROR, inband, buffers, refs)


# -- in ----------------------------------------------------------------------------------------------------------------


def load(value: Value) -> Any:
    """A value that arrived. Raises the error if it is one."""
    kind = value.kind
    if kind == KIND_PICKLE:
        buffers = value.buffers
        return _loads(value.inband, buffers=buffers) if buffers else _loads(value.inband)
    if kind == KIND_NONE:
        return None
    if kind == KIND_BYTES:
        inband = value.inband
        return inband if type(inband) is bytes else bytes(inband)
    raise load_error(value)


def load_error(value: Value) -> BaseException:
    """The exception that a value of kind 3 carries, as it is to be raised."""
    from .exceptions import RaySystemError, RayTaskError

    try:
        error = _loads(value.inband, buffers=value.buffers)
    except Exception as failure:
        return RaySystemError(f"a task failed, and its error cannot be read here: {type(failure).__name__}: {failure}")
    if isinstance(error, RayTaskError):
        return error.as_instanceof_cause()
    if isinstance(error, BaseException):
        return error
    return RaySystemError(f"a task failed with something that is no exception: {error!r}")


# -- what cannot be pickled --------------------------------------------------------------------------------------------

# Limits of the search: how deep, and how many parts are tried.
_SEARCH_DEPTH = 16
_SEARCH_PARTS = 2000


def explain_failure(value: Any, where: str, error: Exception) -> TypeError:
    """A TypeError that names the innermost part that cannot be pickled."""
    path, culprit, why = _Search().find(value, where, error)
    shown = _short_repr(culprit)
    return TypeError(
        f"{path} cannot be pickled: {shown} of type {type(culprit).__module__}.{type(culprit).__qualname__} ({type(why).__name__}: {why}). "
        "Make it inside the task, leave it out with __getstate__, or give its class a serializer with util.register_serializer."
    )


def _short_repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        return f"<repr failed: {type(error).__name__}>"
    return text if len(text) <= 120 else text[:117] + "..."


def parts(value: Any) -> list[tuple[str, Any]]:
    """What a value is made of, each with its way of access."""
    kind = type(value)
    if kind is dict:
        return [(f"[{key!r}]", item) for key, item in value.items()] + [(f" key {key!r}", key) for key in value]
    if isinstance(value, list | tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [(f" item {_short_repr(item)}", item) for item in value]
    if callable(value) and hasattr(value, "__code__"):
        return captured(value)
    if isinstance(value, type):
        return [(f".{name}", item) for name, item in vars(value).items() if not name.startswith("__") or name == "__init__"]
    found = [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    for klass in kind.__mro__:
        slots = vars(klass).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [(f".{name}", getattr(value, name)) for name in names if name not in ("__dict__", "__weakref__") and hasattr(value, name)]
    bound = getattr(value, "__self__", None)
    if bound is not None and not isinstance(bound, type(sys)):
        found.append((".__self__", bound))
    return found


def captured(function: Any) -> list[tuple[str, Any]]:
    """The variables that a function takes with it: closure, globals it names, defaults."""
    code = function.__code__
    found: list[tuple[str, Any]] = []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            found.append((f" closure variable {name!r}", cell.cell_contents))
        except ValueError:
            continue
    namespace = function.__globals__
    names = set(code.co_names)
    for constant in code.co_consts:
        names.update(getattr(constant, "co_names", ()))
    found += [(f" global variable {name!r}", namespace[name]) for name in sorted(names) if name in namespace]
    found += [(f" default of argument {i}", item) for i, item in enumerate(function.__defaults__ or ())]
    return found


class _Search:
    def __init__(self) -> None:
        self.tried = 0
        self.seen: set[int] = set()

    def find(self, value: Any, path: str, error: Exception, depth: int = 0) -> tuple[str, Any, Exception]:
        if depth < _SEARCH_DEPTH and not _refuses_itself(value, error):
            for step, part in parts(value):
                if type(part) in _ATOMS or id(part) in self.seen:
                    continue
                self.seen.add(id(part))
                self.tried += 1
                if self.tried > _SEARCH_PARTS:
                    break
                failure = failure_of(part)
                if failure is not None:
                    return self.find(part, path + step, failure, depth + 1)
        return path, value, error


def _refuses_itself(value: Any, error: BaseException) -> bool:
    """Whether the object's own method said that it cannot be pickled: then it is the part to name, and not what it holds."""
    tb = error.__traceback__
    while tb is not None:
        frame = tb.tb_frame
        if frame.f_code.co_name in ("__reduce__", "__reduce_ex__", "__getstate__") and frame.f_locals.get("self") is value:
            return True
        tb = tb.tb_next
    return False


def failure_of(value: Any) -> Exception | None:
    """Why a value cannot be pickled; None if it can."""
    try:
        pickle_value(value)
    except Exception as error:
        return error
    return None
