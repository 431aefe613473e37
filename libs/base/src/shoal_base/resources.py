"""Resources in fixed point: integers of 1/10,000, so that fractions add up exactly."""

from __future__ import annotations

from collections.abc import Mapping

UNIT = 10_000

Resources = dict[str, int]


def to_units(amount: float, name: str = "resource") -> int:
    """Raises ValueError for what is negative or finer than 1/10,000.

    >>> to_units(0.5)
    5000
    """
    units = round(amount * UNIT)
    if amount < 0:
        raise ValueError(f"{name}={amount}: a resource cannot be negative")
    if amount and abs(units - amount * UNIT) > 1e-6:
        raise ValueError(f"{name}={amount}: resources are counted in steps of 1/{UNIT}")
    return units


def from_units(units: int) -> float:
    """
    >>> from_units(5000), from_units(20000)
    (0.5, 2.0)
    """
    return units / UNIT


def fits(need: Mapping[str, int], have: Mapping[str, int]) -> bool:
    """Whether `need` can be taken from `have`.

    >>> fits({"CPU": 10000}, {"CPU": 20000}), fits({"GPU": 1}, {})
    (True, False)
    """
    for name, units in need.items():  # noqa: SIM110 - a generator takes twice as long, and this is asked of many nodes for each decision
        if units and units > have.get(name, 0):
            return False
    return True


def add(into: Resources, what: Mapping[str, int]) -> None:
    for name, units in what.items():
        into[name] = into.get(name, 0) + units


def subtract(into: Resources, what: Mapping[str, int]) -> None:
    for name, units in what.items():
        into[name] = into.get(name, 0) - units


def show(what: Mapping[str, int]) -> str:
    """For people.

    >>> show({"CPU": 10000, "GPU": 5000})
    'CPU 1, GPU 0.5'
    """
    return ", ".join(f"{name} {from_units(units):g}" for name, units in sorted(what.items()) if units) or "nothing"
