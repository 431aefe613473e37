"""What preprocessors learn and do, compared with scikit-learn's definitions."""

import base64
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shoal.data
from shoal.data.exceptions import DataError
from shoal.data.preprocessors import (
    Categorizer,
    Chain,
    Concatenator,
    CountVectorizer,
    CustomKBinsDiscretizer,
    FeatureHasher,
    HashingVectorizer,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    MultiHotEncoder,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    Preprocessor,
    PreprocessorNotFittedException,
    RobustScaler,
    SimpleImputer,
    StandardScaler,
    Tokenizer,
    UniformKBinsDiscretizer,
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


def test_robust_scaling_and_powers(ds):
    x = FRAME["x"].to_numpy()
    np.testing.assert_allclose(column(RobustScaler(["x"]).fit_transform(ds), "x"), (x - 2.5) / (3.25 - 1.75))
    np.testing.assert_allclose(column(RobustScaler(["y"], (0.0, 1.0), ["z"]).fit_transform(ds), "z"), (FRAME["y"] - 5) / 30)
    np.testing.assert_allclose(column(PowerTransformer(["x"], 0.5, "box-cox").transform(ds), "x"), 2 * (np.sqrt(x) - 1))
    np.testing.assert_allclose(column(PowerTransformer(["x"], 0, "box-cox").transform(ds), "x"), np.log(x))
    np.testing.assert_allclose(column(PowerTransformer(["y"], 2).transform(ds), "y"), [-np.log(11), 0, 60, 220])
    np.testing.assert_allclose(column(PowerTransformer(["y"], 0).transform(ds), "y"), [-60, 0, np.log(11), np.log(21)])
    with pytest.raises(DataError, match=r"box-cox is for positive numbers, and there is -10.0; use yeo-johnson"):
        PowerTransformer(["y"], 2, "box-cox").transform(ds).take_all()
    with pytest.raises(ValueError, match=r"quantile_range must be \(low, high\)"):
        RobustScaler(["x"], (0.5, 0.5))


def test_normalizing_rows(ds):
    rows = FRAME[["x", "y"]].to_numpy(dtype=float)
    for norm, lengths in [("l2", np.linalg.norm(rows, axis=1)), ("l1", np.abs(rows).sum(axis=1)), ("max", np.abs(rows).max(axis=1))]:
        made = Normalizer(["x", "y"], norm, output_columns=["a", "b"]).transform(ds)
        np.testing.assert_allclose(column(made, "a"), rows[:, 0] / lengths)
        np.testing.assert_allclose(column(made, "b"), rows[:, 1] / lengths)
    assert Normalizer(["x"]).transform_batch({"x": np.array([0.0, -3.0])})["x"].tolist() == [0, -1]


def test_bins_are_those_of_pandas(ds):
    for right in (True, False):
        edges = [-10, 0, 15, 20]
        expected = pd.cut(FRAME["y"], edges, right=right, labels=False)
        made = CustomKBinsDiscretizer(["y"], edges, right=right).transform(ds).to_pandas()["y"]
        pd.testing.assert_series_equal(made.astype(float), expected, check_names=False)
        for bins in (1, 3):
            uniform = UniformKBinsDiscretizer(["y"], bins, right=right, output_columns=["bin"]).fit_transform(ds)
            assert column(uniform, "bin").tolist() == pd.cut(FRAME["y"], bins, right=right, labels=False).tolist()
    lowest = CustomKBinsDiscretizer(["y", "x"], {"y": [-10, 0, 20], "x": [0, 9]}, include_lowest=True)
    assert column(lowest.transform(ds), "y").tolist() == [0, 0, 1, 1]
    assert lowest.transform_batch({"x": np.array([np.nan, 1.0]), "y": np.array([21, 20])}).keys() == {"x", "y"}
    with pytest.raises(ValueError, match="the edges of column 'x' must be two or more ascending numbers, and are"):
        CustomKBinsDiscretizer(["x"], [3, 1])
    with pytest.raises(ValueError, match=r"bins has nothing for the columns \['y'\]"):
        UniformKBinsDiscretizer(["x", "y"], {"x": 3})


TEXTS = ["the cat", "the dog the", None, "bird"]


@pytest.fixture(scope="module")
def texts(cluster):
    return shoal.data.from_items([{"text": text, "tags": None if text is None else text.split()} for text in TEXTS], override_num_blocks=2)


def test_text_as_tokens_and_counts(texts):
    assert [row["text"] for row in Tokenizer(["text"]).transform(texts).take_all()] == [["the", "cat"], ["the", "dog", "the"], None, ["bird"]]
    counts = CountVectorizer(["text"]).fit(texts)
    assert counts.stats_ == {"token_counts(text)": {"the": 3, "bird": 1, "cat": 1, "dog": 1}}
    assert column(counts.transform(texts), "text").tolist() == [[1, 0, 1, 0], [2, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    letters = CountVectorizer(["text"], tokenization_fn=list, max_features=2, output_columns=["n"]).fit_transform(texts)
    assert column(letters, "n").tolist() == [[2, 1], [2, 2], [0, 0], [0, 0]]  # of "t", which is there four times, and of the space, three times
    hashed = column(HashingVectorizer(["text"], 7).transform(texts), "text")
    assert hashed.sum(axis=1).tolist() == [2, 3, 0, 1]
    assert hashed[1].max() >= 2


def test_columns_hashed_into_one_vector(ds):
    made = FeatureHasher(["x", "y"], 64, "hashed").transform(ds)
    rows = column(made, "hashed")
    np.testing.assert_allclose(rows.sum(axis=1), FRAME["x"] + FRAME["y"])
    assert rows.shape == (4, 64)
    assert made.columns() == ["same", "s", "hashed"]


def test_lists_of_values_and_categories(texts, ds):
    hot = MultiHotEncoder(["tags"]).fit(texts)
    assert column(hot.transform(texts), "tags").tolist() == [[0, 1, 0, 1], [0, 0, 1, 2], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert column(MultiHotEncoder(["tags"], max_categories={"tags": 1}).fit_transform(texts), "tags").tolist() == [[1], [2], [0], [0]]
    categories = Categorizer(["s"]).fit(ds)
    frame = categories.transform(ds).to_pandas()
    assert frame["s"].tolist() == FRAME["s"].tolist()
    assert frame["s"].cat.categories.tolist() == ["a", "b", "c"]
    assert categories.transform_batch(pa.table({"s": ["c", "new"]}))["s"].to_pylist() == ["c", None]


def test_what_was_learnt_travels_as_text(ds):
    scale = StandardScaler(["x"])
    chain = Chain(scale, Concatenator(["x", "y"], output_column_name="v"))
    assert chain.fit_status() is Preprocessor.FitStatus.NOT_FITTED
    assert not chain.has_stats()
    chain.fit(ds)
    assert chain.fit_status() is Preprocessor.FitStatus.FITTED
    assert Chain(scale, StandardScaler(["y"])).fit_status() is Preprocessor.FitStatus.PARTIALLY_FITTED
    assert Concatenator(["x"]).fit_status() is Preprocessor.FitStatus.NOT_FITTABLE
    assert chain.get_input_columns() == ["x", "y"]
    assert chain.get_output_columns() == ["x", "v"]
    again = Preprocessor.deserialize(chain.serialize())
    np.testing.assert_allclose(column(again.transform(ds), "v"), column(chain.transform(ds), "v"))
    with pytest.raises(ValueError, match="this is no serialized preprocessor"):
        Preprocessor.deserialize("what?")
    with pytest.raises(ValueError, match="this is a serialized dict, and no preprocessor"):
        Preprocessor.deserialize(base64.b64encode(pickle.dumps({})).decode())
