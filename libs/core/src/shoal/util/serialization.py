"""What can be pickled, and how."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from .._serialization import deregister_serializer, failure_of, parts, register_serializer

__all__ = ["FailureTuple", "deregister_serializer", "inspect_serializability", "register_serializer"]


@dataclass(frozen=True)
class FailureTuple:
    """A part that cannot be pickled: the object, its name, and the object that holds it."""

    obj: Any
    name: str
    parent: Any

    def __hash__(self) -> int:
        return hash((id(self.obj), self.name))

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [obj={self.obj}, parent={self.parent}])"


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
    fine = _inspect(base_obj, name, None, depth, failures, 0, out)
    if not fine:
        print(f"{'=' * 60}\nVariables that cannot be pickled:", file=out)
        for failure in failures:
            print(f"    {failure}", file=out)
    return fine, failures


def _inspect(value: Any, name: str, parent: Any, depth: int, failures: set[FailureTuple], level: int, out: Any) -> bool:
    error = failure_of(value)
    if error is None:
        return True
    print(f"{'    ' * level}!!! FAIL serialization of {name}: {error}", file=out)
    if depth <= 0:
        failures.add(FailureTuple(value, name, parent))
        return False
    found = False
    for step, part in parts(value):
        if not _inspect(part, step.strip(), value, depth - 1, failures, level + 1, out):
            found = True
    if not found:
        failures.add(FailureTuple(value, name, parent))
    return False
