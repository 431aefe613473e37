"""What this library raises.

::

    shoal.exceptions.RayError
    └── DataError
        ├── ColumnNotFoundError       also a ValueError and a KeyError: a column that the data does not have
        ├── SchemaMismatchError       also a ValueError: data that does not fit together (union, zip, join, columns of unequal length)
        ├── BatchTypeError            also a TypeError and a ValueError: a user's function returned what no block can be made of
        ├── FileFormatError           also a ValueError: a file that cannot be read; names the file
        └── NotEnoughResourcesError   also a ValueError: stages that could never run side by side on this cluster

A missing path raises Python's own FileNotFoundError. What a user's function raises keeps its class; notes say in which operator and batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from shoal.exceptions import RayError

__all__ = ["BatchTypeError", "ColumnNotFoundError", "DataError", "FileFormatError", "NotEnoughResourcesError", "SchemaMismatchError"]

# Limit: how many columns or files a message lists.
SHOWN = 20


class DataError(RayError):
    """Whatever this library itself raises."""


class ColumnNotFoundError(DataError, ValueError, KeyError):
    """A column that the data does not have."""

    def __str__(self) -> str:  # KeyError would show the text's repr
        return str(self.args[0]) if self.args else ""


class SchemaMismatchError(DataError, ValueError):
    """Data that does not fit together."""


class BatchTypeError(DataError, TypeError, ValueError):
    """A user's function returned what no block can be made of."""


class FileFormatError(DataError, ValueError):
    """A file that cannot be read."""


class NotEnoughResourcesError(DataError, ValueError):
    """Stages that could never run side by side on this cluster."""


def near(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def listed(names: Iterable[str]) -> str:
    shown = list(names)
    return repr(shown) if len(shown) <= SHOWN else f"{shown[:SHOWN]!r} and {len(shown) - SHOWN} more"


def column_not_found(name: str, names: Iterable[str], where: str) -> ColumnNotFoundError:
    names = list(names)
    return ColumnNotFoundError(f"{where}: there is no column {name!r}.{near(str(name), names)} The columns are {listed(names)}.")


def check_columns(wanted: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raises ColumnNotFoundError for the first of `wanted` that is not among `names`."""
    names = list(names)
    for name in wanted:
        if name not in names:
            raise column_not_found(name, names, where)
