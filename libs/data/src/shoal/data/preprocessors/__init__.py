"""Preprocessors: what a model wants columns to look like, learnt from a dataset and applied to others and to single batches.

Example::

    from shoal.data.preprocessors import Chain, Concatenator, StandardScaler

    scale = Chain(StandardScaler(["x", "y"]), Concatenator(["x", "y"], output_column_name="features"))
    train = scale.fit_transform(train)
    test = scale.transform(test)
"""

from .base import Chain, Preprocessor, PreprocessorNotFittedException
from .encoders import LabelEncoder, OneHotEncoder, OrdinalEncoder
from .features import Concatenator, SimpleImputer
from .scalers import MaxAbsScaler, MinMaxScaler, StandardScaler

__all__ = [
    "Chain", "Concatenator", "LabelEncoder", "MaxAbsScaler", "MinMaxScaler", "OneHotEncoder", "OrdinalEncoder", "Preprocessor",
    "PreprocessorNotFittedException",     "SimpleImputer", "StandardScaler",
]  # fmt: skip
