"""The vocabulary of search spaces: what a parameter may be, and how one value of it is drawn.

A space is a dict, nested as you like, whose leaves are values, domains (`uniform(0, 1)`) or axes of a grid (`grid_search([1, 2])`)::

    space = {"lr": loguniform(1e-4, 1e-1), "layers": grid_search([1, 2]), "width": sample_from(lambda config: 32 * config["layers"])}
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Categorical", "Domain", "Float", "Function", "Integer", "choice", "grid_search", "lograndint", "loguniform", "qlograndint", "qloguniform", "qrandint",
    "qrandn", "quniform", "randint", "randn", "sample_from", "uniform",
]  # fmt: skip

GRID = "grid_search"


class Domain:
    """What a parameter may be. `draw` gives one value."""

    def draw(self, rng: random.Random, config: Any = None) -> Any:
        """One value. `config`: what is known of the configuration so far, for `sample_from`."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(rng, config)")

    def sample(self, config: Any = None, size: int = 1, random_state: random.Random | int | None = None) -> Any:
        """A value, or a list of them when `size` is more than 1.

        >>> 0 <= uniform(0, 1).sample(random_state=1) < 1
        True
        """
        rng = random_state if isinstance(random_state, random.Random) else random.Random(random_state)
        drawn = [self.draw(rng, config) for _ in range(size)]
        return drawn if size > 1 else drawn[0]

    def is_valid(self, value: Any) -> bool:
        """Whether the value lies in the domain."""
        raise NotImplementedError(f"{type(self).__name__} must define is_valid(value)")

    def is_function(self) -> bool:
        return False

    @property
    def domain_str(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class Float(Domain):
    """Numbers between `lower` and `upper`; or normally distributed around `mean` when `sd` is given. `q`: rounded to its multiples."""

    lower: float = -math.inf
    upper: float = math.inf
    log: bool = False
    q: float | None = None
    mean: float = 0.0
    sd: float | None = None

    def draw(self, rng: random.Random, config: Any = None) -> float:
        if self.sd is not None:
            value = rng.gauss(self.mean, self.sd)
        elif self.log:
            value = math.exp(rng.uniform(math.log(self.lower), math.log(self.upper)))
        else:
            value = rng.uniform(self.lower, self.upper)
        if self.q is not None:
            value = _multiple(value, self.q)
        return min(max(value, self.lower), self.upper)

    def is_valid(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.lower <= value <= self.upper


@dataclass(frozen=True)
class Integer(Domain):
    """Whole numbers from `lower` to `last`, both included. `q`: rounded to its multiples."""

    lower: int
    last: int
    log: bool = False
    q: int = 1

    @property
    def upper(self) -> int:
        """The first number that is too large."""
        return self.last + 1

    def draw(self, rng: random.Random, config: Any = None) -> int:
        if self.log:
            value = int(math.exp(rng.uniform(math.log(self.lower), math.log(self.last + 1))))
        else:
            value = rng.randint(self.lower, self.last)
        if self.q != 1:
            value = round(_multiple(value, self.q))
        return min(max(value, self.lower), self.last)

    def is_valid(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.lower <= value <= self.last


@dataclass(frozen=True)
class Categorical(Domain):
    """One of some values, each as likely. A category may hold domains of its own: a conditional space."""

    categories: tuple[Any, ...]

    def draw(self, rng: random.Random, config: Any = None) -> Any:
        return rng.choice(self.categories)

    def is_valid(self, value: Any) -> bool:
        return value in self.categories

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Any:
        return self.categories[index]


@dataclass(frozen=True)
class Function(Domain):
    """What a function of the rest of the configuration says."""

    func: Callable[[Any], Any]

    def draw(self, rng: random.Random, config: Any = None) -> Any:
        return self.func(config)

    def is_valid(self, value: Any) -> bool:
        return True

    def is_function(self) -> bool:
        return True


def _multiple(value: float, q: float) -> float:
    # Divided first: 3 * 0.1 is not 0.3, but 3 / 10 is.
    steps = round(value / q)
    return steps / round(1 / q) if 0 < q < 1 and math.isclose(round(1 / q), 1 / q) else steps * q


def _range(name: str, lower: Any, upper: Any, log: bool = False, whole: bool = False) -> None:
    for what, value in (("lower", lower), ("upper", upper)):
        if isinstance(value, bool) or not hasattr(value, "__float__") or math.isnan(float(value)) or math.isinf(float(value)):
            raise ValueError(f"{name}: {what} must be a finite number, got {value!r}")
        if whole and int(value) != value:
            raise ValueError(f"{name}: {what} must be a whole number, got {value!r}")
    if lower >= upper:
        raise ValueError(f"{name}: lower must be less than upper, got {lower} and {upper}")
    if log and lower <= 0:
        raise ValueError(f"{name}: lower must be greater than 0 on a logarithmic scale, got {lower}")


def _quantum(name: str, q: Any, lower: float | None = None, upper: float | None = None) -> None:
    if isinstance(q, bool) or not hasattr(q, "__float__") or not q > 0:
        raise ValueError(f"{name}: q must be greater than 0, got {q!r}")
    for what, bound in (("lower", lower), ("upper", upper)):
        if bound is not None and not math.isclose(bound / q, round(bound / q), rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"{name}: {what}={bound} must be a multiple of q={q}")


def _base(name: str, base: Any) -> None:
    if isinstance(base, bool) or not hasattr(base, "__float__") or base <= 1:
        raise ValueError(f"{name}: base must be greater than 1, got {base!r}")


def uniform(lower: float, upper: float) -> Float:
    """Numbers from `lower` to `upper`, each as likely."""
    _range("uniform", lower, upper)
    return Float(float(lower), float(upper))


def quniform(lower: float, upper: float, q: float) -> Float:
    """As `uniform`, rounded to multiples of `q`; the upper end is included."""
    _range("quniform", lower, upper)
    _quantum("quniform", q, lower, upper)
    return Float(float(lower), float(upper), q=float(q))


def loguniform(lower: float, upper: float, base: float = 10) -> Float:
    """Numbers from `lower` to `upper`, each order of magnitude as likely. The base changes nothing in what is drawn."""
    _range("loguniform", lower, upper, log=True)
    _base("loguniform", base)
    return Float(float(lower), float(upper), log=True)


def qloguniform(lower: float, upper: float, q: float, base: float = 10) -> Float:
    """As `loguniform`, rounded to multiples of `q`."""
    _range("qloguniform", lower, upper, log=True)
    _quantum("qloguniform", q, lower, upper)
    _base("qloguniform", base)
    return Float(float(lower), float(upper), log=True, q=float(q))


def randint(lower: int, upper: int) -> Integer:
    """Whole numbers from `lower` up to, not including, `upper`."""
    _range("randint", lower, upper, whole=True)
    return Integer(int(lower), int(upper) - 1)


def qrandint(lower: int, upper: int, q: int = 1) -> Integer:
    """Multiples of `q` from `lower` to `upper`, which is included."""
    _range("qrandint", lower, upper, whole=True)
    _quantum("qrandint", q, lower, upper)
    return Integer(int(lower), int(upper), q=int(q))


def lograndint(lower: int, upper: int, base: float = 10) -> Integer:
    """Whole numbers from `lower` up to, not including, `upper`, each order of magnitude as likely."""
    _range("lograndint", lower, upper, log=True, whole=True)
    _base("lograndint", base)
    return Integer(int(lower), int(upper) - 1, log=True)


def qlograndint(lower: int, upper: int, q: int, base: float = 10) -> Integer:
    """As `lograndint`, rounded to multiples of `q`; the upper end is included."""
    _range("qlograndint", lower, upper, log=True, whole=True)
    _quantum("qlograndint", q, lower, upper)
    _base("qlograndint", base)
    return Integer(int(lower), int(upper), log=True, q=int(q))


def randn(mean: float = 0.0, sd: float = 1.0) -> Float:
    """Normally distributed numbers."""
    if not sd > 0:
        raise ValueError(f"randn: sd must be greater than 0, got {sd!r}")
    return Float(mean=float(mean), sd=float(sd))


def qrandn(mean: float, sd: float, q: float) -> Float:
    """Normally distributed numbers, rounded to multiples of `q`."""
    _quantum("qrandn", q)
    if not sd > 0:
        raise ValueError(f"qrandn: sd must be greater than 0, got {sd!r}")
    return Float(mean=float(mean), sd=float(sd), q=float(q))


def choice(categories: Sequence[Any]) -> Categorical:
    """One of the values. Values may hold domains: ``choice([{"kind": "sgd", "lr": uniform(0, 1)}, {"kind": "lbfgs"}])``."""
    values = tuple(categories)
    if not values:
        raise ValueError("choice: at least one category is needed, got none")
    return Categorical(values)


def grid_search(values: Iterable[Any]) -> dict[str, list[Any]]:
    """Every value is tried, together with every value of all other grids."""
    found = list(values)
    if not found:
        raise ValueError("grid_search: at least one value is needed, got none")
    return {GRID: found}


def sample_from(func: Callable[[Any], Any]) -> Function:
    """What `func(config)` returns, when the rest of the configuration is drawn. `config["a"]`, `config.a` and `spec.config.a` all work in it."""
    if not callable(func):
        raise TypeError(f"sample_from: a function of the configuration is needed, got {type(func).__name__}")
    return Function(func)
