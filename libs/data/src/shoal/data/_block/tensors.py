"""Columns of tensors and of Python objects, as Arrow extension types.

Tensors of one shape are Arrow's own `fixed_shape_tensor`; of several shapes, a struct of the flat values and the shape; what Arrow has no type for is pickled.
"""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np
import pyarrow as pa


class VariableShapeTensorType(pa.ExtensionType):
    """Tensors of one element type whose shapes differ from row to row."""

    def __init__(self, value_type: pa.DataType) -> None:
        self.value_type = value_type
        super().__init__(pa.struct([("data", pa.large_list(value_type)), ("shape", pa.list_(pa.int32()))]), "shoal.variable_shape_tensor")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> VariableShapeTensorType:
        return cls(storage_type.field("data").type.value_type)

    def __reduce__(self) -> Any:
        return VariableShapeTensorType, (self.value_type,)


class PythonObjectType(pa.ExtensionType):
    """Python objects, each pickled."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "shoal.python_object")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> PythonObjectType:
        return cls()

    def __reduce__(self) -> Any:
        return PythonObjectType, ()


def _register(extension: pa.ExtensionType) -> None:
    with contextlib.suppress(pa.ArrowKeyError):  # a second import of this module, by another loader
        pa.register_extension_type(extension)


_register(VariableShapeTensorType(pa.float64()))
_register(PythonObjectType())


def is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, (pa.FixedShapeTensorType, VariableShapeTensorType))


def from_ndarray(array: np.ndarray) -> pa.Array:
    """A column of `len(array)` tensors of the shape `array.shape[1:]`; shares memory where the array is contiguous."""
    shape = array.shape[1:]
    size = int(np.prod(shape))
    if array.dtype.kind in "OUS" or size == 0:
        return pa.array(array.tolist()) if array.dtype.kind in "OUS" else from_ragged(list(array))
    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    kind = pa.fixed_shape_tensor(values.type, list(shape))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, size))


def from_ragged(arrays: list[Any]) -> pa.Array:
    """A column of arrays whose shapes differ; None stays null."""
    present = [None if array is None else np.asarray(array) for array in arrays]
    dtype = np.result_type(*(array for array in present if array is not None))
    value_type = pa.from_numpy_dtype(dtype)
    sizes = [0 if array is None else array.size for array in present]
    flat = np.concatenate([array.reshape(-1).astype(dtype, copy=False) for array in present if array is not None])
    data = pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)), pa.array(flat, type=value_type))
    shapes = pa.array([[] if array is None else list(array.shape) for array in present], type=pa.list_(pa.int32()))
    mask = pa.array([array is None for array in present])
    return pa.ExtensionArray.from_storage(VariableShapeTensorType(value_type), pa.StructArray.from_arrays([data, shapes], names=["data", "shape"], mask=mask))


def from_objects(values: list[Any]) -> pa.Array:
    """A column of any Python objects."""
    import cloudpickle

    pickled = [None if value is None else cloudpickle.dumps(value, protocol=5) for value in values]
    return pa.ExtensionArray.from_storage(PythonObjectType(), pa.array(pickled, type=pa.large_binary()))


def to_ndarray(column: pa.ChunkedArray) -> np.ndarray:
    """Of an extension column: one array with the rows as first axis; an object array where shapes differ, rows are null, or for objects."""
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType) and column.null_count == 0:
        parts = [_fixed_chunk(chunk, kind) for chunk in column.chunks]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *kind.shape), dtype=kind.value_type.to_pandas_dtype())
    values = to_list(column)
    result = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        result[i] = value
    return result


def to_list(column: pa.ChunkedArray) -> list[Any]:
    """Of an extension column: one array or object for each row."""
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        if column.null_count == 0:
            return list(to_ndarray(column))
        size = int(np.prod(kind.shape))
        dtype = kind.value_type.to_pandas_dtype()
        return [
            None if row is None else np.array(row, dtype=dtype).reshape(kind.shape if size else -1)
            for chunk in column.chunks
            for row in chunk.storage.to_pylist()
        ]
    if isinstance(kind, VariableShapeTensorType):
        return [array for chunk in column.chunks for array in _ragged_chunk(chunk, kind)]
    if isinstance(kind, PythonObjectType):
        return [None if raw is None else pickle.loads(raw) for chunk in column.chunks for raw in chunk.storage.to_pylist()]
    return column.to_pylist()


def _fixed_chunk(chunk: Any, kind: pa.FixedShapeTensorType) -> np.ndarray:
    return chunk.storage.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), *kind.shape)


def _ragged_chunk(chunk: Any, kind: VariableShapeTensorType) -> list[Any]:
    storage = chunk.storage
    data, shapes = storage.field("data"), storage.field("shape").to_pylist()
    flat = data.values.to_numpy(zero_copy_only=False)
    offsets = data.offsets.to_numpy()
    valid = storage.is_valid().to_pylist()
    return [flat[offsets[i] : offsets[i + 1]].reshape(shapes[i]) if valid[i] else None for i in range(len(chunk))]
