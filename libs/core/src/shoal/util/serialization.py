"""What can be pickled, and how."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from .._serialization import deregister_serializer, failure_of, parts, register_serializer

__all__ = ["FailureTuple", "deregister_serializer", "inspect_serializability", "register_serializer"]


@dataclass(frozen=True)
class FailureTuple:
    """A part that cannot be pickled: the object, the names that lead to it, and the object that holds it."""

    obj: Any
    path: tuple[str, ...]
    parent: Any

    @property
    def name(self) -> str:
        return self.path[-1]

    def __hash__(self) -> int:
        return hash((id(self.obj), self.path))

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [path={' -> '.join(self.path)}, obj={self.obj}, parent={self.parent}])"


def inspect_serializability(base_obj: Any, name: str | None = None, depth: int = 3, print_file: Any = None) -> tuple[bool, set[FailureTuple]]:
    """Whether an object can be pickled, and if not, because of which of its parts; the search is printed.

    Args:
        depth: how many levels of parts are searched.
        print_file: where to print; None: standard output.
    """
    out = print_file or sys.stdout
    name = name or getattr(base_obj, "__qualname__", None) or str(base_obj)
    print(f"{'=' * 60}\nChecking Serializability of {name}\n{'=' * 60}", file=out)
    failures: set[FailureTuple] = set()
    fine = _inspect(base_obj, (name,), None, depth, failures, out)
    if not fine:
        print(f"{'=' * 60}\nVariables that cannot be pickled:", file=out)
        for failure in failures:
            print(f"    {failure}", file=out)
    return fine, failures


def _name(step: str) -> str:
    """Of a variable or an attribute its own name; of an item its place."""
    return re.sub(r"^(closure|global) variable '(.*)'$", r"\2", step.strip()).removeprefix(".")


def _inspect(value: Any, path: tuple[str, ...], parent: Any, depth: int, failures: set[FailureTuple], out: Any) -> bool:
    error = failure_of(value)
    if error is None:
        return True
    print(f"{'    ' * (len(path) - 1)}!!! FAIL serialization of {path[-1]}: {error}", file=out)
    if depth <= 0:
        failures.add(FailureTuple(value, path, parent))
        return False
    found = False
    for step, part in parts(value):
        if not _inspect(part, (*path, _name(step)), value, depth - 1, failures, out):
            found = True
    if not found:
        failures.add(FailureTuple(value, path, parent))
    return False
