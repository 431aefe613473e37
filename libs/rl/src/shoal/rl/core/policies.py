"""How an env runner chooses actions from what the network says, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .networks import Actor, Floats, NetworkSpec

Array = NDArray[Any]


class Policy(Protocol):
    """`begin` draws what a fragment of `steps` needs at once; `act` then takes one step's observations `[N, D]`.

    `outputs`: what the network says, kept with the fragment where learning needs it."""

    actor: Actor
    keeps_outputs: bool

    def begin(self, rng: np.random.Generator, steps: int, envs: int, explore: bool, epsilon: float) -> None: ...
    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]: ...


class Categorical:
    """Draws from a softmax by the Gumbel-max trick: the largest of logits plus Gumbel noise is distributed by the softmax."""

    keeps_outputs = True

    def __init__(self, spec: NetworkSpec) -> None:
        self.actor = Actor(spec)
        self._noise: Floats | None = None

    def begin(self, rng: np.random.Generator, steps: int, envs: int, explore: bool, epsilon: float) -> None:
        self._noise = rng.gumbel(size=(steps, envs, self.actor.spec.outputs)).astype(np.float32) if explore else None

    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]:
        logits = self.actor(observations)
        return (logits if self._noise is None else logits + self._noise[step]).argmax(axis=1), logits


class _Normal:
    """The network's outputs are the mean and the log deviation of a normal distribution."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.actor = Actor(spec)
        self._noise: Floats | None = None

    def begin(self, rng: np.random.Generator, steps: int, envs: int, explore: bool, epsilon: float) -> None:
        self._noise = rng.standard_normal((steps, envs, self.actor.spec.outputs // 2), dtype=np.float32) if explore else None


class Gaussian(_Normal):
    """Draws from a normal distribution."""

    keeps_outputs = True

    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]:
        outputs = self.actor(observations)
        mean, log_std = np.split(outputs, 2, axis=1)
        if self._noise is None:
            return mean, outputs
        clip = self.actor.spec.log_std_clip
        return mean + np.exp(np.clip(log_std, -clip, clip)) * self._noise[step], outputs


class EpsilonGreedy:
    """The best action, or, with probability epsilon, any. The best by advantage is the best by value: a duelling network's critic is not needed."""

    keeps_outputs = False

    def __init__(self, spec: NetworkSpec) -> None:
        self.actor = Actor(spec)
        self._random: Array | None = None
        self._actions: Array | None = None

    def begin(self, rng: np.random.Generator, steps: int, envs: int, explore: bool, epsilon: float) -> None:
        if not explore:
            self._random = None
            return
        self._random = rng.random((steps, envs)) < epsilon
        self._actions = rng.integers(self.actor.spec.outputs, size=(steps, envs))

    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]:
        values = self.actor(observations)
        best = values.argmax(axis=1)
        if self._random is None or self._actions is None:
            return best, values
        return np.where(self._random[step], self._actions[step], best), values


class Deterministic:
    """The network's numbers are the action."""

    keeps_outputs = False

    def __init__(self, spec: NetworkSpec) -> None:
        self.actor = Actor(spec)

    def begin(self, rng: np.random.Generator, steps: int, envs: int, explore: bool, epsilon: float) -> None:
        """Nothing is drawn."""

    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]:
        outputs = self.actor(observations)
        return outputs, outputs


# Between these SAC's log deviations are held.
SQUASHED_LOG_STD = (-20.0, 2.0)


class Squashed(_Normal):
    """The hyperbolic tangent of a normal draw: actions within [-1, 1]."""

    keeps_outputs = False

    def act(self, step: int, observations: Floats) -> tuple[Array, Floats]:
        outputs = self.actor(observations)
        mean, log_std = np.split(outputs, 2, axis=1)
        if self._noise is not None:
            mean = mean + np.exp(np.clip(log_std, *SQUASHED_LOG_STD)) * self._noise[step]
        return np.tanh(mean), outputs


POLICIES: dict[str, Callable[[NetworkSpec], Policy]] = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "epsilon_greedy": EpsilonGreedy,
    "deterministic": Deterministic,
    "squashed": Squashed,
}
