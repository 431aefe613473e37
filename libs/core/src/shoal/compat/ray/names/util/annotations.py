"""`ray.util.annotations`: how stable a name is, for packages that mark their own."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class RayDeprecationWarning(DeprecationWarning):
    """A name that will go."""


def _marked(target: T, level: str, **more: Any) -> T:
    target._annotated = getattr(target, "__name__", str(target))  # type: ignore[attr-defined]
    target._annotated_type = level  # type: ignore[attr-defined]
    for name, value in more.items():
        setattr(target, f"_annotated_{name}", value)
    return target


def PublicAPI(*args: Any, stability: str = "stable", api_group: str = "Others") -> Any:
    """With or without arguments."""
    if args:
        return _marked(args[0], "PublicAPI", stability="stable")
    if stability not in ("alpha", "beta", "stable"):
        raise ValueError(f"stability={stability!r}: alpha, beta or stable is wanted")
    return lambda target: _marked(target, "PublicAPI", stability=stability)


def DeveloperAPI(*args: Any) -> Any:
    return _marked(args[0], "DeveloperAPI") if args else lambda target: _marked(target, "DeveloperAPI")


def Deprecated(*args: Any, message: str = "", warning: bool = False) -> Any:
    """`warning`: whether each use of a function says so."""
    if args:
        return _marked(args[0], "Deprecated")
    return lambda target: _marked(_warning(target, message) if warning and not isinstance(target, type) else target, "Deprecated")


def _warning(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def warned(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{function.__name__} is deprecated. {message}".rstrip(), RayDeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return warned
