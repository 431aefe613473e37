"""`shoal.data.block` and `shoal.data.extensions`: what sources and transformations of users see of blocks."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from shoal.data import block, extensions
from shoal.data.block import BlockAccessor
from shoal.data.exceptions import BatchTypeError

COLUMNS = {"x": [1, 2, 3], "y": ["a", "b", "c"]}
FORMS = [pa.table(COLUMNS), pd.DataFrame(COLUMNS), {"x": np.array([1, 2, 3]), "y": ["a", "b", "c"]}]


@pytest.mark.parametrize("form", FORMS, ids=["arrow", "pandas", "numpy"])
def test_an_accessor_gives_the_same_rows_for_every_form_of_a_block(form):
    rows = BlockAccessor.for_block(form)
    assert (rows.num_rows(), rows.column_names(), rows.schema().field("x").type) == (3, ["x", "y"], pa.int64())
    assert rows.size_bytes() >= 24 and rows.get_metadata(["f"]).num_rows == 3
    assert list(rows.iter_rows())[2] == {"x": 3, "y": "c"}
    assert rows.slice(1, 2, copy=True).to_pydict() == {"x": [2], "y": ["b"]}
    assert rows.take([2, 0]).column("y").to_pylist() == ["c", "a"]
    assert rows.select(["y"]).column_names == ["y"]
    assert rows.to_pandas()["x"].tolist() == rows.to_numpy("x").tolist() == rows.to_numpy(["x"])["x"].tolist() == [1, 2, 3]
    assert rows.to_batch_format("pyarrow") is rows.to_arrow()
    assert set(rows.to_batch_format("numpy")) == {"x", "y"}


def test_what_is_no_block_or_format_is_said():
    with pytest.raises(BatchTypeError, match="for_block"):
        BlockAccessor.for_block(5)
    with pytest.raises(ValueError, match="batch_format"):
        BlockAccessor.for_block(FORMS[0]).to_batch_format("spoon")


def test_columns_of_tensors_and_objects():
    ragged = extensions.ArrowTensorArray.from_numpy([np.zeros((2, 2)), np.zeros(3)])
    assert isinstance(ragged.type, extensions.ArrowVariableShapedTensorType)
    assert ragged.type == extensions.ArrowVariableShapedTensorArray.from_numpy([np.ones(3), np.ones(1)]).type
    even = extensions.ArrowTensorArray.from_numpy([np.zeros((2, 2)), np.ones((2, 2))])
    assert even.type == extensions.ArrowTensorType(pa.float64(), (2, 2))
    objects = extensions.ArrowPythonObjectArray.from_objects([{1, 2}, None])
    assert objects.type == extensions.ArrowPythonObjectType()
    back = BlockAccessor.for_block(pa.table({"r": ragged, "e": even, "o": objects})).to_numpy()
    assert back["r"][1].shape == (3,) and back["e"].shape == (2, 2, 2) and back["o"][0] == {1, 2}


@pytest.mark.parametrize("module", [block, extensions])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
