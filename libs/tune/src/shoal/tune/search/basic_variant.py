"""Random and grid search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .searcher import Searcher
from .variants import Path, SpaceError, count_points, draw, grid_points, is_grid, leaves, point_values

__all__ = ["BasicVariantGenerator"]


class BasicVariantGenerator(Searcher):
    """Draws each sample at random, and for each goes through all points of the grid. What `Tuner` uses when it is given no other.

    Args:
        points_to_evaluate: configurations, or parts of them, that come first; they count as samples. What a point leaves open is drawn, and grids it does not
            fix are gone through.
        max_concurrent: at most so many trials at once; 0: no limit.
        constant_grid_search: what is random is drawn once for each sample, and stays the same over the grid. Default: drawn anew at each grid point.
        random_state: a seed, or a generator to draw the seed from. Default: another one each time.
    """

    def __init__(self, points_to_evaluate: Sequence[dict[str, Any]] | None = None, max_concurrent: int = 0, constant_grid_search: bool = False,
                 random_state: Any = None) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(max_concurrent, int) or max_concurrent < 0:
            raise ValueError(f"max_concurrent must be 0 (no limit) or more, got {max_concurrent!r}")
        self.points = [dict(point) for point in points_to_evaluate or []]
        self.max_concurrent = max_concurrent
        self.constant_grid_search = constant_grid_search
        self.seed = _seed(random_state)
        self.space: dict[str, Any] = {}
        self.num_samples = 1
        self.given = 0
        self.live: set[str] = set()
        self._variants: Iterator[dict[str, Any]] | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        self.space = config
        self.num_samples = spec.get("num_samples", 1)
        self._metric, self._mode = metric, mode
        for point in self.points:
            point_values(config, point)
        return True

    def total_samples(self, num_samples: int) -> int:
        if num_samples < 0:
            return -1
        return sum(self._points_of(sample) for sample in range(num_samples))

    def _points_of(self, sample: int) -> int:
        return count_points(self._space_of(sample)[0])

    def _space_of(self, sample: int) -> tuple[dict[str, Any], dict[Path, Any]]:
        """The space of one sample: where a point fixes a grid, that axis is gone."""
        if sample >= len(self.points):
            return self.space, {}
        fixed = point_values(self.space, self.points[sample])
        return _without(self.space, set(fixed)), fixed

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.max_concurrent and len(self.live) >= self.max_concurrent:
            return None
        if self._variants is None:
            self._variants = self._generate(self.given)
        config = next(self._variants, None)
        if config is None:
            return Searcher.FINISHED
        self.given += 1
        self.live.add(trial_id)
        return config

    def _generate(self, skip: int) -> Iterator[dict[str, Any]]:
        # Each sample has a generator of its own, so that a restored searcher goes on at the same values without drawing all that came before.
        sample = 0
        while self.num_samples < 0 or sample < self.num_samples:
            count = self._points_of(sample)
            if skip >= count:
                skip -= count
            else:
                space, fixed = self._space_of(sample)
                rng = random.Random(f"{self.seed}/{sample}")
                for index, point in enumerate(grid_points(space)):
                    if self.constant_grid_search:
                        rng = random.Random(f"{self.seed}/{sample}")
                    config = draw(space, rng, {**fixed, **point})
                    if index >= skip:
                        yield config
                skip = 0
            sample += 1

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.live.discard(trial_id)

    def on_trial_restore(self, trial_id: str, config: dict[str, Any]) -> None:
        self.given += 1
        self.live.add(trial_id)
        self._variants = None

    def get_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "given": self.given, "live": sorted(self.live)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.given = state["given"]
        self.live = set(state["live"])
        self._variants = None


def _seed(random_state: Any) -> int:
    if random_state is None:
        return random.SystemRandom().getrandbits(63)
    if isinstance(random_state, int):
        return random_state
    if isinstance(random_state, random.Random):
        return random_state.getrandbits(63)
    if hasattr(random_state, "integers"):  # numpy.random.Generator
        return int(random_state.integers(2**31))
    if hasattr(random_state, "randint"):  # numpy.random.RandomState
        return int(random_state.randint(2**31 - 1))
    raise TypeError(f"random_state must be a seed, random.Random, or a generator of numpy, got {type(random_state).__name__}")


def _without(space: Any, fixed: set[Path], path: Path = ()) -> Any:
    if path in fixed:
        return None
    if isinstance(space, Mapping) and not is_grid(space):
        return {key: _without(value, fixed, (*path, key)) for key, value in space.items()}
    return space


def check_space(space: Mapping[str, Any]) -> None:
    """That the top is a dict with text for keys. Raises SpaceError."""
    if not isinstance(space, Mapping):
        raise SpaceError(f"param_space must be a dict of names to values and domains, got {type(space).__name__}")
    for key in space:
        if not isinstance(key, str):
            raise SpaceError(f"param_space: the key {key!r} is no text")
    for path, leaf in leaves(space):
        if is_grid(leaf) and not leaf["grid_search"]:
            raise SpaceError(f"param_space: the grid at {'/'.join(map(str, path))} is empty")
