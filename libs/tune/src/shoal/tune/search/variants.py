"""Spaces taken apart and put together: where the domains and grids are, and configurations drawn from them."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from .sample import GRID, Categorical, Domain, Function

# Keys of dicts and indices of lists, from the top.
Path = tuple[Any, ...]
# Limit: how often what a grid or choice gave may hold domains itself.
_MAX_DEPTH = 32


class SpaceError(ValueError):
    """A search space that cannot be drawn from; names the parameter."""


class _NotDrawn(Exception):
    """A function asked for a parameter that is not known yet."""


class ConfigView:
    """What `sample_from` functions see: the configuration, by key or attribute; also as `.config`, as in specs."""

    def __init__(self, values: Any, top: ConfigView | None = None) -> None:
        self._values = values
        self._top = top

    @property
    def config(self) -> ConfigView:
        return self._top or self

    def __getitem__(self, key: Any) -> Any:
        value = self._values[key]
        if isinstance(value, Domain) or is_grid(value):
            raise _NotDrawn(str(key))
        return ConfigView(value, self.config) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}; it has {list(self._values)}") from None

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self._values else default

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> Any:
        return self._values.keys()


def is_grid(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(GRID), list)


def leaves(space: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every domain and grid of a space, with its place. What lies inside of them comes later, when they are drawn."""
    if isinstance(space, Domain) or is_grid(space):
        yield path, space
    elif isinstance(space, Mapping):
        for key, value in space.items():
            yield from leaves(value, (*path, key))
    elif isinstance(space, list | tuple):
        for index, value in enumerate(space):
            yield from leaves(value, (*path, index))


def set_at(config: Any, path: Path, value: Any) -> None:
    """Sets one place of a configuration made by `plain`."""
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


def get_at(config: Any, path: Path) -> Any:
    for key in path:
        config = config[key]
    return config


def plain(space: Any) -> Any:
    """A copy of dicts and lists; what lies in them is shared. Tuples that hold domains become lists."""
    if isinstance(space, Domain):
        return space
    if is_grid(space):
        return dict(space)
    if isinstance(space, Mapping):
        return {key: plain(value) for key, value in space.items()}
    if isinstance(space, list) or (isinstance(space, tuple) and any(True for _ in leaves(space))):
        return [plain(value) for value in space]
    return space


def grid_axes(space: Any) -> list[tuple[Path, list[Any]]]:
    return [(path, leaf[GRID]) for path, leaf in leaves(space) if is_grid(leaf)]


def grid_points(space: Any) -> Iterator[dict[Path, Any]]:
    """Every combination of the grids' values, last axis fastest."""
    axes = grid_axes(space)
    for values in itertools.product(*(axis for _, axis in axes)):
        yield dict(zip((path for path, _ in axes), values, strict=True))


def count_points(space: Any) -> int:
    """How many combinations one sample has. Grids inside of choices or grids count once."""
    count = 1
    for _, axis in grid_axes(space):
        count *= len(axis)
    return count


def draw(space: Any, rng: random.Random, fixed: Mapping[Path, Any] | None = None) -> dict[str, Any]:
    """A configuration: `fixed` values where given, all domains drawn, functions last.

    Raises:
        SpaceError: functions that wait for each other, or one that raised.
    """
    config = plain(space)
    for path, value in (fixed or {}).items():
        set_at(config, path, plain(value))
    for _ in range(_MAX_DEPTH):
        found = list(leaves(config))
        if not found:
            result: dict[str, Any] = config
            return result
        simple = [(path, leaf) for path, leaf in found if not isinstance(leaf, Function)]
        for path, leaf in simple:
            # A grid that only now appeared, in a category: there is no axis for it any more.
            value = rng.choice(leaf[GRID]) if is_grid(leaf) else leaf.draw(rng)
            set_at(config, path, plain(value))
        if not simple:
            _call_functions(config, found, rng)
    raise SpaceError(f"the search space holds itself: after {_MAX_DEPTH} rounds there still is {dotted(found[0][0])}")


def _call_functions(config: Any, found: list[tuple[Path, Any]], rng: random.Random) -> None:
    """Those that can be called now; at least one."""
    waiting: list[str] = []
    done = 0
    for path, leaf in found:
        try:
            value = leaf.draw(rng, ConfigView(config))
        except _NotDrawn as missing:
            waiting.append(f"{dotted(path)} for {missing}")
            continue
        except Exception as error:
            raise SpaceError(f"the function of {dotted(path)} raised {type(error).__name__}: {error}") from error
        set_at(config, path, plain(value))
        done += 1
    if not done:
        raise SpaceError(f"functions of the search space wait for each other: {'; '.join(waiting)}")


def dotted(path: Path) -> str:
    """
    >>> dotted(("model", "layers", 0))
    'model/layers/0'
    """
    return "/".join(str(step) for step in path)


def flat_params(config: Any, prefix: Path = ()) -> dict[str, Any]:
    """Nested configurations with one key for each value.

    >>> flat_params({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flat_params(value, (*prefix, key)))
        else:
            flat[dotted((*prefix, key))] = value
    return flat


def evaluated(space: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What was drawn, by dotted name: the trial's own parameters, without the constants."""
    found: dict[str, Any] = {}
    for path, _ in leaves(space):
        try:
            found[dotted(path)] = get_at(config, path)
        except (KeyError, IndexError, TypeError):
            continue
    return found


def point_values(space: Any, point: Mapping[str, Any]) -> dict[Path, Any]:
    """The places of a point that a user wants evaluated: nested, or with dotted keys.

    Raises:
        SpaceError: a key that the space does not have.
    """
    found: dict[Path, Any] = {}

    def walk(space: Any, value: Any, path: Path) -> None:
        if isinstance(space, Mapping) and not is_grid(space) and isinstance(value, Mapping):
            for key, inner in value.items():
                if key in space:
                    walk(space[key], inner, (*path, key))
                elif isinstance(key, str) and "/" in key and key.split("/")[0] in space:
                    first, _, rest = key.partition("/")
                    walk(space[first], {rest: inner}, (*path, first))
                else:
                    raise SpaceError(f"points_to_evaluate: {dotted((*path, key))} is not in the search space, which has {', '.join(map(str, space))}")
        else:
            found[path] = value

    walk(space, point, ())
    return found


def has_conditions(space: Any) -> bool:
    """Whether there are domains inside of categories."""
    return any(isinstance(leaf, Categorical) and any(True for _ in leaves(list(leaf.categories))) for _, leaf in leaves(space))


def copy_config(config: Any) -> Any:
    """A copy that the trial may change."""
    try:
        return copy.deepcopy(config)
    except Exception:  # what cannot be copied (a lock, a handle) is shared
        return plain(config)
