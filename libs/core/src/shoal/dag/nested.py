"""Nodes inside the arguments of other nodes: in lists, tuples, sets, dicts, and in the attributes of plain objects."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def find(value: Any, kind: type) -> Iterator[Any]:
    """Every instance of `kind` in a value, in order; those found are not looked into."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, kind):
            yield one
        elif not isinstance(one, _LEAVES) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(reversed(_parts(one)))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if _is_plain(value) else []


def _is_plain(value: Any) -> bool:
    """Whether its attributes are all there is to it: not where a class says itself how it is copied or pickled."""
    kind: Any = type(value)
    return hasattr(value, "__dict__") and all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))


def replace(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """The value with every instance of `kind` replaced. What holds none is the same object, not a copy."""
    return _replaced(value, kind, by) if next(find(value, kind), None) is not None else value


def _replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, _LEAVES) or not (parts := _parts(value)):
        return value
    made = [_replaced(part, kind, by) for part in parts]
    if all(new is old for new, old in zip(made, parts, strict=True)):
        return value
    if isinstance(value, dict):
        return type(value)(zip(made[: len(value)], made[len(value) :], strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*made)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(made)
    twin = copy.copy(value)
    twin.__dict__.update(zip(vars(value), made, strict=True))
    return twin
