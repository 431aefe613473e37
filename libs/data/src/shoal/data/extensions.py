"""The Arrow types of columns that hold tensors or Python objects, and columns made of them.

    >>> import numpy, pyarrow
    >>> table = pyarrow.table({"image": ArrowTensorArray.from_numpy(numpy.zeros((4, 2, 3)))})
    >>> table.schema.field("image").type == ArrowTensorType(pyarrow.float64(), [2, 3])
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ._block import tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ArrowPythonObjectArray",
    "ArrowPythonObjectType",
    "ArrowTensorArray",
    "ArrowTensorType",
    "ArrowVariableShapedTensorArray",
    "ArrowVariableShapedTensorType",
]

ArrowVariableShapedTensorType = tensors.VariableShapeTensorType
ArrowPythonObjectType = tensors.PythonObjectType


def ArrowTensorType(value_type: pa.DataType, shape: Sequence[int]) -> pa.FixedShapeTensorType:
    """Of tensors that all have one shape: Arrow's own `fixed_shape_tensor`, which other programs read, too."""
    return pa.fixed_shape_tensor(value_type, list(shape))


class ArrowTensorArray:
    """Columns of tensors."""

    @staticmethod
    def from_numpy(array: np.ndarray | Iterable[np.ndarray]) -> pa.Array:
        """A column with a tensor for each item along the first axis; tensors of one shape, or of several."""
        import numpy as np

        if isinstance(array, np.ndarray) and array.dtype != object:
            return tensors.from_ndarray(array)
        items = list(array)
        same = all(item is not None and item.shape == items[0].shape for item in items)
        return tensors.from_ndarray(np.stack(items)) if items and same else tensors.from_ragged(items)


class ArrowVariableShapedTensorArray:
    """Columns of tensors whose shapes differ."""

    @staticmethod
    def from_numpy(array: Iterable[np.ndarray]) -> pa.Array:
        return tensors.from_ragged(list(array))


class ArrowPythonObjectArray:
    """Columns of Python objects, each pickled."""

    @staticmethod
    def from_objects(objects: Iterable[Any]) -> pa.Array:
        return tensors.from_objects(list(objects))
