"""One setting of an algorithm: its default, its group, and what values it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Returns what is wrong with the value ("must be > 0"), or None.
Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Setting:
    """`group`: the method of `AlgorithmConfig` that sets it."""

    group: str
    default: Any
    check: Check


class NotProvidedType:
    """The default of every parameter of the fluent methods: the setting stays as it is. None is a value like any other."""

    def __repr__(self) -> str:
        return "<not provided>"


NotProvided: Any = NotProvidedType()


def is_search_space(value: Any) -> bool:
    """Whether `value` stands for many (`tune.uniform(…)`, `{"grid_search": […]}`): it is checked when one has been chosen."""
    if isinstance(value, Mapping):
        return set(value) == {"grid_search"} or any(map(is_search_space, value.values()))
    return type(value).__module__.startswith("shoal.tune")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError):
        return False


def number(low: float = -math.inf, high: float = math.inf, *, above: float | None = None, optional: bool = False) -> Check:
    """A finite number in [low, high]; `above`: and greater than that."""

    def check(value: Any) -> str | None:
        if optional and value is None:
            return None
        if not _is_number(value):
            return "must be a finite number" + (" or None" if optional else "")
        if above is not None and not value > above:
            return f"must be > {above:g}"
        if value < low:
            return f"must be >= {low:g}"
        return f"must be <= {high:g}" if value > high else None

    return check


def integer(low: int, *, optional: bool = False, also: Sequence[str] = ()) -> Check:
    """A whole number >= low, or one of the words `also`."""

    def check(value: Any) -> str | None:
        if (optional and value is None) or (isinstance(value, str) and value in also):
            return None
        whole = _is_number(value) and float(value) == int(value)
        alternatives = "".join(f" or {word!r}" for word in also) + (" or None" if optional else "")
        if not whole:
            return f"must be a whole number{alternatives}"
        return None if value >= low else f"must be >= {low}{alternatives}"

    return check


def flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def one_of(*choices: Any) -> Check:
    return lambda value: None if value in choices else "must be one of " + ", ".join(map(repr, choices))


def anything(_value: Any) -> str | None:
    return None


def mapping(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "must be a dict"


def function(value: Any) -> str | None:
    return None if value is None or callable(value) else "must be callable or None"


def resources(value: Any) -> str | None:
    wrong = mapping(value)
    return wrong or (None if all(isinstance(k, str) and _is_number(v) and v >= 0 for k, v in value.items()) else "must map names to numbers >= 0")


def schedule(check: Check) -> Check:
    """A number, or `[[0, value], [timestep, value], …]`, linear in between and constant after the last."""

    def wrong(value: Any) -> str | None:
        if not isinstance(value, (list, tuple)):
            return check(value)
        points = list(value)
        if not points or not all(isinstance(point, (list, tuple)) and len(point) == 2 and _is_number(point[0]) for point in points):
            return "must be a number or [[0, value], [timestep, value], ...]"
        steps = [point[0] for point in points]
        if steps[0] != 0 or steps != sorted(set(steps)):
            return "as a schedule must begin at timestep 0, with growing timesteps"
        return next((f"at timestep {step} {said}" for step, point in points if (said := check(point))), None)

    return wrong


def value_at(setting: Any, timestep: int) -> float:
    """The value of a schedule after `timestep` environment steps.

    >>> value_at([[0, 1.0], [100, 0.0]], 25), value_at(0.5, 25)
    (0.75, 0.5)
    """
    if not isinstance(setting, (list, tuple)):
        return float(setting)
    before_step, before = setting[0]
    for step, value in setting[1:]:
        if timestep < step:
            return float(before + (value - before) * (timestep - before_step) / (step - before_step))
        before_step, before = step, value
    return float(before)
