"""Text as tokens, and tokens as numbers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._block import tables, tensors
from .base import Preprocessor

Tokens = Callable[[str], Sequence[str]]


def split_at_spaces(text: str) -> list[str]:
    return text.split(" ")


def hashed(value: object, buckets: int) -> int:
    """The same in every process, which Python's own `hash` of a text is not."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "little") % buckets


class Tokenizer(Preprocessor):
    """Text becomes a list of tokens.

    Args:
        tokenization_fn: gives the tokens of a text; by default it is split at spaces.
    """

    is_fittable = False

    def __init__(self, columns: Sequence[str], tokenization_fn: Tokens | None = None, output_columns: Sequence[str] | None = None) -> None:
        super().__init__(columns, output_columns)
        self.tokenization_fn = tokenization_fn or split_at_spaces

    def _tokens(self, table: pa.Table, name: str) -> list[list[str] | None]:
        return [None if text is None else list(self.tokenization_fn(text)) for text in tables.values_of(table[name])]

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {output: pa.array(self._tokens(table, name), type=pa.list_(pa.string())) for name, output in zip(self.columns, self.output_columns, strict=True)}
        return self._replaced(table, made)


class CountVectorizer(Tokenizer):
    """Text becomes a vector of how often each token of a vocabulary occurs.

    Args:
        max_features: the vocabulary are so many of the most frequent tokens; None: all of them. Its order is from frequent to rare.
    """

    is_fittable = True

    def __init__(
        self, columns: Sequence[str], tokenization_fn: Tokens | None = None, max_features: int | None = None, *, output_columns: Sequence[str] | None = None
    ) -> None:
        super().__init__(columns, tokenization_fn, output_columns)
        if max_features is not None and max_features < 1:
            raise ValueError(f"CountVectorizer: max_features must be a positive number or None, and is {max_features!r}")
        self.max_features = max_features

    def _fit_statistics(self, ds: Any) -> dict[str, Any]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in self.columns}
        for table in ds.map_batches(self._counted, batch_size=None, batch_format="pyarrow").iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in tables.to_rows(table):
                counts[row["column"]][row["token"]] += row["count"]
        # Equally frequent tokens stand in alphabetical order, so that the vocabulary does not depend on the order of blocks.
        found = {}
        for name, counted in counts.items():
            ordered = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
            found[f"token_counts({name})"] = dict(ordered[: self.max_features])
        return found

    def _counted(self, table: pa.Table) -> pa.Table:
        self._check(table)
        rows = []
        for name in self.columns:
            counted = Counter(token for tokens in self._tokens(table, name) for token in tokens or ())
            rows += [(name, token, count) for token, count in counted.items()]
        names, found, counts = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table({
            "column": pa.array(names, type=pa.string()), "token": pa.array(found, type=pa.string()), "count": pa.array(counts, type=pa.int64()),
        })  # fmt: skip

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        assert self.stats_ is not None
        made = {}
        for name, output in zip(self.columns, self.output_columns, strict=True):
            places = {token: place for place, token in enumerate(self.stats_[f"token_counts({name})"])}
            made[output] = vectors(self._tokens(table, name), places.get, len(places))
        return self._replaced(table, made)


class HashingVectorizer(Tokenizer):
    """Text becomes a vector of how often tokens occur whose hashes are 0, 1, 2, …: no vocabulary has to be learnt or kept.

    Args:
        num_features: length of the vectors.
    """

    def __init__(
        self, columns: Sequence[str], num_features: int, tokenization_fn: Tokens | None = None, *, output_columns: Sequence[str] | None = None
    ) -> None:
        super().__init__(columns, tokenization_fn, output_columns)
        _check_features(num_features, "HashingVectorizer")
        self.num_features = num_features

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = {
            output: vectors(self._tokens(table, name), lambda token: hashed(token, self.num_features), self.num_features)
            for name, output in zip(self.columns, self.output_columns, strict=True)
        }
        return self._replaced(table, made)


class FeatureHasher(Preprocessor):
    """Columns of numbers become one column of vectors: each column adds to the place that its name's hash says. They themselves are left out.

    Args:
        num_features: length of the vectors.
        output_column: their name.
    """

    is_fittable = False

    def __init__(self, columns: Sequence[str], num_features: int, output_column: str) -> None:
        super().__init__(columns)
        self.output_columns = [output_column]
        _check_features(num_features, "FeatureHasher")
        self.num_features = num_features
        self.output_column = output_column

    def _transform_table(self, table: pa.Table) -> pa.Table:
        self._check(table)
        made = np.zeros((table.num_rows, self.num_features))
        for name in self.columns:
            made[:, hashed(name, self.num_features)] += np.asarray(pc.fill_null(pc.cast(table[name], pa.float64()), 0.0))
        return table.drop_columns(self.columns).append_column(self.output_column, tensors.from_ndarray(made))


def vectors(rows: list[list[str] | None], place: Callable[[str], int | None], length: int) -> pa.Array:
    made = np.zeros((len(rows), length), dtype=np.int64)
    for row, tokens in enumerate(rows):
        for token in tokens or ():
            at = place(token)
            if at is not None:
                made[row, at] += 1
    return tensors.from_ndarray(made)


def _check_features(number: Any, where: str) -> None:
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{where}: num_features must be a positive number, and is {number!r}")
