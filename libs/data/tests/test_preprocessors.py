"""What preprocessors learn and do, compared with scikit-learn's definitions."""

import numpy as np
import pandas as pd
import pytest
import shoal.data
from shoal.data.preprocessors import (
    Chain,
    Concatenator,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PreprocessorNotFittedException,
    SimpleImputer,
    StandardScaler,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("cluster")
FRAME = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": [-10, 0, 10, 20], "same": [3, 3, 3, 3], "s": ["b", "a", "b", "c"]})


@pytest.fixture(scope="module")
def ds(cluster):
    return shoal.data.from_pandas([FRAME.iloc[:2], FRAME.iloc[2:]])


def column(ds, name):
    return np.stack([np.asarray(row[name]) for row in ds.take_all()])


def test_scalers(ds):
    x = FRAME["x"].to_numpy()
    np.testing.assert_allclose(column(StandardScaler(["x"]).fit_transform(ds), "x"), (x - x.mean()) / x.std())
    np.testing.assert_allclose(column(MinMaxScaler(["x", "y"]).fit_transform(ds), "y"), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(column(MaxAbsScaler(["y"], ["z"]).fit_transform(ds), "z"), [-0.5, 0, 0.5, 1])
    np.testing.assert_allclose(column(StandardScaler(["same"]).fit_transform(ds), "same"), 0)


def test_encoders(ds):
    assert column(OrdinalEncoder(["s"]).fit_transform(ds), "s").tolist() == [1, 0, 1, 2]
    labels = LabelEncoder("s", output_column="label")
    assert column(labels.fit_transform(ds), "label").tolist() == [1, 0, 1, 2]
    hot = OneHotEncoder(["s"]).fit(ds)
    assert column(hot.transform(ds), "s").tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert hot.transform_batch({"s": np.array(["c", "new"])})["s"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert column(OneHotEncoder(["s"], max_categories={"s": 1}).fit_transform(ds), "s").tolist() == [[1], [0], [1], [0]]
    back = LabelEncoder("s")
    assert column(back.inverse_transform(back.fit_transform(ds)), "s").tolist() == FRAME["s"].tolist()


def test_imputers_and_vectors():
    holes = shoal.data.from_items([{"x": 1.0, "s": "a"}, {"x": None, "s": "a"}, {"x": 3.0, "s": None}])
    assert column(SimpleImputer(["x"]).fit_transform(holes), "x").tolist() == [1, 2, 3]
    assert column(SimpleImputer(["s"], "most_frequent").fit_transform(holes), "s").tolist() == ["a", "a", "a"]
    assert column(SimpleImputer(["x"], "constant", 9.0).transform(holes), "x").tolist() == [1, 9, 3]


def test_a_chain_learns_step_by_step_and_works_on_batches(ds):
    chain = Chain(StandardScaler(["x", "y"]), Concatenator(["x", "y"], output_column_name="features", dtype=np.float32))
    made = chain.fit_transform(ds)
    assert made.columns() == ["same", "s", "features"]
    features = column(made, "features")
    assert features.shape == (4, 2) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    batch = chain.transform_batch(FRAME.iloc[:1])
    np.testing.assert_allclose(batch["features"].iloc[0], features[0])


def test_what_is_not_fitted_or_not_there_says_so(ds):
    with pytest.raises(PreprocessorNotFittedException, match="has to be fitted first"):
        StandardScaler(["x"]).transform(ds)
    with pytest.raises(ValueError, match="no column 'xx'. Did you mean 'x'"):
        StandardScaler(["xx"]).fit(ds)
    with pytest.raises(ValueError, match="list of columns"):
        StandardScaler("x")
    with pytest.raises(ValueError, match="strategy must be"):
        SimpleImputer(["x"], "median")
