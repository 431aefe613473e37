"""From spaces to vectors and back: observations as rows of float32, actions as a policy gives them.

Gymnasium is not imported here: its spaces are recognised by name, so that a configuration can be looked at without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpaceError

Array = NDArray[Any]


def is_discrete(space: Any) -> bool:
    return type(space).__name__ == "Discrete"


def is_box(space: Any) -> bool:
    return type(space).__name__ == "Box"


@dataclass(frozen=True)
class ObservationCodec:
    """Observations of a Box (any shape, flattened) or a Discrete space (one-hot) as rows of float32."""

    space: Any
    size: int

    @classmethod
    def of(cls, space: Any) -> ObservationCodec:
        if is_box(space):
            return cls(space, int(np.prod(space.shape, dtype=np.int64)))
        if is_discrete(space):
            return cls(space, int(space.n))
        raise SpaceError(f"observations of {space} are not supported, only Box and Discrete ones; gymnasium.wrappers.FlattenObservation makes a Box of it")

    def encode(self, observations: Array) -> NDArray[np.float32]:
        """`[N, …]` as `[N, size]`."""
        if is_discrete(self.space):
            return np.eye(self.size, dtype=np.float32)[np.asarray(observations, dtype=np.int64) - int(self.space.start)]
        return np.asarray(observations, dtype=np.float32).reshape(len(observations), self.size)


@dataclass(frozen=True)
class ActionCodec:
    """Actions of a policy, from 0 or around [-1, 1], as the environment takes them.

    `size`: how many actions there are (Discrete), or how many numbers make one (Box)."""

    space: Any
    size: int
    discrete: bool
    normalize: bool = True
    clip: bool = False

    @classmethod
    def of(cls, space: Any, normalize: bool = True, clip: bool = False) -> ActionCodec:
        if is_discrete(space):
            return cls(space, int(space.n), True)
        if is_box(space):
            return cls(space, int(np.prod(space.shape, dtype=np.int64)), False, normalize, clip)
        raise SpaceError(f"actions of {space} are not supported, only Discrete and Box ones; a gymnasium.ActionWrapper can make one of it")

    def to_env(self, actions: Array) -> Array:
        """`[N]` of int64 (Discrete) or `[N, size]` of float32 (Box)."""
        if self.discrete:
            start = int(self.space.start)
            return actions + start if start else actions
        low, high = self.space.low.reshape(-1), self.space.high.reshape(-1)
        bounded = np.isfinite(low) & np.isfinite(high)
        if self.normalize and bounded.any():
            with np.errstate(invalid="ignore", over="ignore"):
                stretched = low + (np.clip(actions, -1.0, 1.0) + 1.0) * 0.5 * (high - low)
            actions = np.where(bounded, stretched, actions)
        elif self.clip:
            actions = np.clip(actions, low, high)
        return actions.reshape(-1, *self.space.shape).astype(self.space.dtype, copy=False)


def require_same(what: str, expected: Any, found: Any, whose: str) -> None:
    """Raises SpaceError, which names both, unless they are equal."""
    if expected is not None and expected != found:
        raise SpaceError(f"{what}: {whose} has {found}, but {expected} was expected")


def require_contains(env: str, call: str, space: Any, value: Any) -> None:
    """Raises SpaceError, which names the space and what came instead."""
    if space.contains(value):
        return
    if isinstance(value, np.ndarray):
        came = f"an array of shape {value.shape} and dtype {value.dtype}"
        if value.shape == getattr(space, "shape", None) and value.size:
            came += f", values from {value.min()} to {value.max()}"
    else:
        came = f"{value!r} ({type(value).__name__})"
    raise SpaceError(f"{env}: its observation_space is {space}, but {call} returned {came}")
