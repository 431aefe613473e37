"""Functions and classes on their way to workers: pickled once, stored once at the raylet under their hash, read once by each worker."""

from __future__ import annotations

import hashlib
import importlib.machinery
import logging
import pickle
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _runtime
from ._serialization import captured, explain_failure, pickle_value

if TYPE_CHECKING:
    from ._core.engine import Engine, ObjectRef

_log = logging.getLogger(__name__)

WARN_BYTES = 1 << 20
# Limit: a function record travels in one frame of at most 256 MiB, together with others' fields.
MAX_BYTES = 128 << 20
# Limit: functions that a worker keeps unpickled.
CACHE_FUNCTIONS = 2048
FETCH_TIMEOUT_S = 60.0


class Exported:
    """A function that this cluster's workers can fetch. Keeps the references that the function captured alive."""

    __slots__ = ("function_id", "refs", "size")

    def __init__(self, function_id: bytes, size: int, refs: list[ObjectRef[Any]]) -> None:
        self.function_id = function_id
        self.size = size
        self.refs = refs


def export(engine: Engine, job_id: bytes, function: Any, name: str, outlives_job: bool = False) -> Exported:
    """Pickles and stores. Raises TypeError naming the captured variable that cannot be pickled, ValueError for one that is too large."""
    from shoal_raylet.v1 import raylet_pb2

    pickled, refs = _pickle(function, name)
    if len(pickled) > WARN_BYTES:
        _tell_large(function, name, len(pickled))
    function_id = hashlib.blake2b(pickled, digest_size=16).digest()
    record = raylet_pb2.FunctionRecord(job_id=job_id, function_id=function_id, pickled=pickled, name=name, outlives_job=outlives_job)
    engine.call_async("raylet/FunctionPut", record.SerializeToString())
    return Exported(function_id, len(pickled), refs)


def _pickle(function: Any, name: str) -> tuple[bytes, list[ObjectRef[Any]]]:
    _by_value_if_not_importable(getattr(function, "__module__", None))
    try:
        inband, buffers, refs = pickle_value(function)
    except Exception as error:
        raise explain_failure(function, name, error) from error
    if not buffers and not refs:
        return inband, refs
    # A record is one run of bytes, so captured arrays go along.
    return pickle.dumps(_Wrapped(inband, [bytes(b) for b in buffers], bool(refs)), 5), refs


class _Wrapped:
    """A pickled function that captured arrays or references."""

    def __init__(self, inband: bytes, buffers: list[bytes], has_refs: bool) -> None:
        self.inband = inband
        self.buffers = buffers
        self.has_refs = has_refs
        self.name = ""

    def make(self) -> Any:
        return pickle.loads(self.inband, buffers=self.buffers)


def _tell_large(function: Any, name: str, size: int) -> None:
    sizes = []
    target = function if hasattr(function, "__code__") else getattr(function, "__init__", None)
    for what, value in captured(target) if hasattr(target, "__code__") else ():
        if isinstance(value, types.ModuleType):
            continue
        try:
            inband, buffers, _ = pickle_value(value)
        except Exception:
            continue
        sizes.append((len(inband) + sum(b.nbytes for b in buffers), what.strip()))
    largest = max(sizes, default=None)
    named = f" The largest part is the {largest[1]} with {largest[0] / 2**20:.1f} MiB." if largest and largest[0] > size // 4 else ""
    text = f"{name} takes {size / 2**20:.1f} MiB when pickled, and every worker that runs it gets a copy.{named} put() large values and pass the reference."
    if size > MAX_BYTES:
        raise ValueError(f"{text} The limit is {MAX_BYTES >> 20} MiB.")
    import warnings

    warnings.warn(text, UserWarning, stacklevel=6)


_checked_modules: set[str] = set()


def _by_value_if_not_importable(module_name: str | None) -> None:
    """A module that a worker could not import by its name (a test file, a script run by path) is pickled by value."""
    if not module_name or module_name == "__main__" or module_name in _checked_modules:
        return
    _checked_modules.add(module_name)
    module = sys.modules.get(module_name)
    if module is None or _importable(module_name, module):
        return
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)


def _importable(module_name: str, module: types.ModuleType) -> bool:
    origin = getattr(module, "__file__", None)
    if origin is None:
        return True
    path: Any = None
    spec = None
    for i in range(module_name.count(".") + 1):
        part = ".".join(module_name.split(".")[: i + 1])
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        if spec is None:
            # Editable installs and frozen modules have finders of their own; they work in a worker as well.
            return any(_finds(finder, part, path) for finder in sys.meta_path if finder is not importlib.machinery.PathFinder)
        # Of an imported package its own path: `shoal` and others extend theirs over several distributions.
        path = getattr(sys.modules.get(part), "__path__", None) or spec.submodule_search_locations
    return spec is not None and (spec.origin is None or spec.origin == origin)


def _finds(finder: Any, name: str, path: Any) -> bool:
    # pytest's rewriting hook finds test files that no worker could; it only takes what PathFinder finds, or what pytest named.
    if type(finder).__module__.startswith("_pytest"):
        return False
    find_spec = getattr(finder, "find_spec", None)
    try:
        return find_spec is not None and find_spec(name, path) is not None
    except (ImportError, AttributeError, ValueError):
        return False


# -- at the executor ---------------------------------------------------------------------------------------------------

_loaded: OrderedDict[bytes, Any] = OrderedDict()
# What captured references is made anew for each task: kept, it would hold the objects in memory long after its function went at the driver.
_wrapped: OrderedDict[bytes, _Wrapped] = OrderedDict()
_loading = threading.Lock()


def load(engine: Engine, job_id: bytes, function_id: bytes) -> Any:
    """The function or class. Raises RaySystemError when it cannot be had or read."""
    found = _loaded.get(function_id)
    if found is not None:
        return found
    wrapped = _wrapped.get(function_id)
    if wrapped is not None:
        return _read(wrapped.make, wrapped.name or function_id.hex())
    from shoal_raylet.v1 import raylet_pb2

    query = raylet_pb2.FunctionRecord(job_id=job_id, function_id=function_id)
    reply = engine.call("raylet/FunctionGet", query.SerializeToString(), FETCH_TIMEOUT_S)
    record = raylet_pb2.FunctionRecord.FromString(reply)
    name = record.name or function_id.hex()
    function = _read(lambda: pickle.loads(record.pickled), name)
    if type(function) is not _Wrapped:
        _keep(_loaded, function_id, function)
        return function
    wrapped, wrapped.name = function, record.name
    made = _read(wrapped.make, name)
    if wrapped.has_refs:
        _keep(_wrapped, function_id, wrapped)
    else:
        _keep(_loaded, function_id, made)
    return made


def _read(unpickle: Callable[[], Any], name: str) -> Any:
    try:
        return unpickle()
    except Exception as error:
        from .exceptions import RaySystemError

        raise RaySystemError(
            f"{name} cannot be unpickled on this node: {type(error).__name__}: {error}. "
            "A module that the driver has may be missing here: install it, or send it with runtime_env={'py_modules': [...]}."
        ) from error


def _keep(cache: OrderedDict[bytes, Any], function_id: bytes, value: Any) -> None:
    with _loading:
        cache[function_id] = value
        while len(cache) > CACHE_FUNCTIONS:
            cache.popitem(last=False)


def name_of(function_id: bytes) -> str:
    """ "module.function" of what this worker has loaded; empty for what it has not."""
    if function_id in _wrapped:
        return _wrapped[function_id].name
    function = _loaded.get(function_id)
    name = getattr(function, "__name__", "")
    return f"{getattr(function, '__module__', '')}.{name}" if name else ""


def forget() -> None:
    _loaded.clear()
    _wrapped.clear()


def job_and_scope() -> tuple[bytes, _runtime.Scope]:
    """For submitting: the caller's job, and what its children inherit."""
    now = _runtime.current()
    if now is None:
        return _runtime.state.job_id, _runtime.state.default_scope
    return now.job_id, now.scope
