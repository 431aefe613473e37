"""Preprocessors: what a model wants columns to look like, learnt from a dataset and applied to others and to single batches.

Example::

    from shoal.data.preprocessors import Chain, Concatenator, StandardScaler

    scale = Chain(StandardScaler(["x", "y"]), Concatenator(["x", "y"], output_column_name="features"))
    train = scale.fit_transform(train)
    test = scale.transform(test)
"""

from .base import Chain, Preprocessor, PreprocessorNotFittedException
from .discretizers import CustomKBinsDiscretizer, UniformKBinsDiscretizer
from .encoders import Categorizer, LabelEncoder, MultiHotEncoder, OneHotEncoder, OrdinalEncoder
from .features import Concatenator, Normalizer, SimpleImputer
from .scalers import MaxAbsScaler, MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler
from .text import CountVectorizer, FeatureHasher, HashingVectorizer, Tokenizer

__all__ = [
    "Categorizer", "Chain", "Concatenator", "CountVectorizer", "CustomKBinsDiscretizer", "FeatureHasher", "HashingVectorizer", "LabelEncoder",
    "MaxAbsScaler", "MinMaxScaler", "MultiHotEncoder", "Normalizer", "OneHotEncoder", "OrdinalEncoder", "PowerTransformer", "Preprocessor",
    "PreprocessorNotFittedException", "RobustScaler", "SimpleImputer", "StandardScaler", "Tokenizer", "UniformKBinsDiscretizer",
]  # fmt: skip
