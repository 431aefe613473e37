"""Trainables as functions, and what may be bound to a trainable before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .trainable import Trainable

__all__ = ["Wrapped", "check_trainable", "trainable_name", "with_parameters"]


class Wrapped:
    """A function with parameters bound to it, and with notes for the tuner."""

    def __init__(self, function: Callable[..., Any], parameters: dict[str, Any] | None = None) -> None:
        if isinstance(function, Wrapped):
            parameters = {**function.parameters, **(parameters or {})}
            function = function.function
        self.function: Callable[..., Any] = function
        self.parameters: dict[str, Any] = parameters or {}
        self.__name__ = _name(function)
        self.__doc__ = getattr(function, "__doc__", None)

    def __call__(self, config: dict[str, Any]) -> Any:
        return self.function(config, **self.parameters)

    def with_attribute(self, name: str, value: Any) -> Wrapped:
        made = Wrapped(self.function, self.parameters)
        made.__dict__.update({key: kept for key, kept in self.__dict__.items() if key.startswith("_shoal")})
        setattr(made, name, value)
        return made


def with_parameters(trainable: Any, **kwargs: Any) -> Any:
    """The trainable, with large objects bound to it: they lie once in the object store, and not in each configuration.

    A function gets them as keyword arguments beside `config`, a class in `setup(config, ...)`.

    Raises:
        TypeError: the trainable takes no such argument.

    >>> with_parameters(lambda config, data: len(data) + config["x"], data=[1, 2])({"x": 1})
    3
    """
    if isinstance(trainable, type):
        if not issubclass(trainable, Trainable):
            raise TypeError(f"with_parameters: {trainable.__name__} is a class, but no subclass of shoal.tune.Trainable")
        _check_arguments(trainable.setup, kwargs, f"{trainable.__name__}.setup", skip=2)

        def setup(self: Any, config: dict[str, Any]) -> None:
            trainable.setup(self, config, **kwargs)

        return type(trainable.__name__, (trainable,), {"setup": setup, "__module__": trainable.__module__, "__doc__": trainable.__doc__})
    target = trainable.function if isinstance(trainable, Wrapped) else trainable
    _check_arguments(target, kwargs, _name(target), skip=1)
    made = Wrapped(trainable, kwargs)
    if isinstance(trainable, Wrapped):
        made.__dict__.update({key: kept for key, kept in trainable.__dict__.items() if key.startswith("_shoal")})
    return made


def _check_arguments(function: Callable[..., Any], given: dict[str, Any], name: str, skip: int) -> None:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for key in given:
        if key not in known:
            raise TypeError(f"with_parameters: {name} has no argument {key!r} beside the configuration; it has {', '.join(known) or 'none'}")


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    if name is None and hasattr(function, "func"):  # functools.partial
        return _name(function.func)
    return str(name or type(function).__name__)


def trainable_name(trainable: Any) -> str:
    """For folders and tables."""
    name = _name(trainable)
    return "lambda" if name == "<lambda>" else name


def check_trainable(trainable: Any) -> None:
    """That it is a function of the configuration, or a subclass of Trainable. Raises TypeError."""
    if isinstance(trainable, type):
        if not issubclass(trainable, Trainable):
            raise TypeError(f"{trainable.__name__} is a class, but no subclass of shoal.tune.Trainable")
        return
    if not callable(trainable):
        if hasattr(trainable, "fit"):
            kind = type(trainable).__name__
            raise TypeError(f"a {kind} is no trainable: call it in a function, `def train(config): {kind}(...).fit()`, and give the function to Tuner")
        raise TypeError(f"a trainable is a function of the configuration or a subclass of Trainable, got {type(trainable).__name__}")
    function = trainable.function if isinstance(trainable, Wrapped) else trainable
    bound = trainable.parameters if isinstance(trainable, Wrapped) else {}
    try:
        inspect.signature(function).bind({}, **bound)
    except TypeError as error:
        raise TypeError(f"{trainable_name(trainable)} must take the configuration as its one argument: {error}") from None
    except ValueError:  # a builtin without a signature
        return
