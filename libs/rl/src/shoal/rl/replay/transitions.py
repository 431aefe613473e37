"""Rows of experience for off-policy learning, also over several steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.networks import Floats
from ..env.fragment import Fragment


@dataclass
class Transitions:
    """`B` transitions.

    Attributes:
        observations, next_observations: `[B, D]`.
        actions: `[B]`.
        rewards: `[B]`, discounted sums over the steps in between.
        discounts: `[B]`, gamma to the number of those steps, 0 where the episode was terminated: what the next value counts.
    """

    observations: Floats
    actions: NDArray[Any]
    rewards: Floats
    next_observations: Floats
    discounts: Floats

    def __len__(self) -> int:
        return len(self.rewards)

    def columns(self) -> list[NDArray[Any]]:
        return [getattr(self, field.name) for field in fields(self)]

    def rows(self, chosen: Any) -> Transitions:
        return Transitions(*(column[chosen] for column in self.columns()))


class NStep:
    """Turns fragments of one runner into transitions over `n` steps (Sutton 1988; in DQN as in Hessel et al. 2018, arXiv:1710.02298).

    The last n - 1 steps of a fragment wait for the next one. None leads past an episode's end: there they are shorter.
    """

    def __init__(self, n: int, gamma: float) -> None:
        self.n, self.gamma = n, gamma
        self._waiting: list[list[tuple[Floats, Any, float]]] = []

    def take(self, fragment: Fragment) -> Transitions:
        following = fragment.next_observations()
        if self.n == 1:
            played = fragment.played
            discounts = np.where(fragment.terminated, 0.0, self.gamma).astype(np.float32)
            return Transitions(fragment.observations[played], fragment.actions[played], fragment.rewards[played], following[played], discounts[played])
        steps, envs = fragment.rewards.shape
        if not self._waiting or not fragment.continues:
            self._waiting = [[] for _ in range(envs)]
        rows: list[tuple[Floats, Any, float, Floats, float]] = []
        for env in range(envs):
            waiting = self._waiting[env]
            for step in range(steps):
                if not fragment.played[step, env]:
                    continue
                waiting.append((fragment.observations[step, env], fragment.actions[step, env], float(fragment.rewards[step, env])))
                reached: Any = following[step, env]
                terminated = bool(fragment.terminated[step, env])
                if terminated or fragment.truncated[step, env]:
                    while waiting:
                        rows.append(self._row(waiting, reached, terminated))
                elif len(waiting) == self.n:
                    rows.append(self._row(waiting, reached, False))
        if not rows:
            return Transitions(
                np.zeros((0, fragment.observations.shape[2]), np.float32), fragment.actions[:0, 0], np.zeros(0, np.float32),
                np.zeros((0, fragment.observations.shape[2]), np.float32), np.zeros(0, np.float32),
            )  # fmt: skip
        columns: tuple[Any, ...] = tuple(zip(*rows, strict=True))
        observations, actions, rewards, reached_rows, discounts = columns
        return Transitions(np.stack(observations), np.array(actions), np.array(rewards, np.float32), np.stack(reached_rows), np.array(discounts, np.float32))

    def _row(self, waiting: list[tuple[Floats, Any, float]], reached: Floats, terminated: bool) -> tuple[Floats, Any, float, Floats, float]:
        """The transition of the first that waits, over all that wait."""
        reward = sum(self.gamma**index * step[2] for index, step in enumerate(waiting))
        discount = 0.0 if terminated else self.gamma ** len(waiting)
        observation, action, _ = waiting.pop(0)
        return observation, action, reward, reached, discount
