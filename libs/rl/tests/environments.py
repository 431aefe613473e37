"""Small environments whose observations tell where they come from."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Counter(gymnasium.Env):
    """Observes (episode, step). Episodes last `length` steps, and end by termination or by truncation; the reward of a step is its number from 1."""

    def __init__(self, length: int = 3, truncate: bool = False) -> None:
        self.observation_space = Box(-1.0, 1e6, (2,), np.float32)
        self.action_space = Discrete(2)
        self.length, self.truncate = length, truncate
        self.episode, self.steps = -1, 0

    def _seen(self) -> np.ndarray:
        return np.array([self.episode, self.steps], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        over = self.steps == self.length
        return self._seen(), float(self.steps), over and not self.truncate, over and self.truncate, {}


class Failing(Counter):
    """Raises in its fifth step."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(length=100)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.steps == 4:
            raise ZeroDivisionError("the wheel came off")
        return super().step(action)


class Liar(Counter):
    """Observes something else than its space says."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.observation_space = Box(-1.0, 1.0, (3,), np.float32)


class Reach(gymnasium.Env):
    """One step: the reward is the less, the further the action is from the observation."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1, (1,)).astype(np.float32)
        return self.goal, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.goal, -float(np.abs(action - self.goal)[0]), True, False, {}
