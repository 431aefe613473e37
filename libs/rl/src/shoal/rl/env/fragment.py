"""What an env runner hands to learning."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.networks import Floats


@dataclass
class Episode:
    """A finished episode, also what callbacks are given.

    Attributes:
        env_index: which of the runner's environments played it.
        total_reward: its return, undiscounted and unclipped.
        length: its steps.
    """

    env_index: int
    total_reward: float
    length: int

    def get_return(self) -> float:
        return self.total_reward

    def __len__(self) -> int:
        return self.length


@dataclass
class Fragment:
    """`T` steps of `N` environments.

    Attributes:
        observations: `[T, N, D]` float32, as the network saw them.
        actions: `[T, N]` int64 or `[T, N, A]` float32, as the policy gave them.
        outputs: `[T, N, K]` float32, what the network said, or None where it is not kept.
        rewards: `[T, N]` float32.
        terminated, truncated: `[T, N]` bool.
        played: `[T, N]` bool; rows that are False are no transitions (the environment only began anew).
        last_observations: `[N, D]` float32, what the network would see next.
        final_index: `[E, 2]` int64, the (step, environment) of the episodes' ends.
        final_observations: `[E, D]` float32, what the last actions led to.
        episodes: those that ended.
        runner: the number of the env runner that played it.
        continues: its first step follows the last one of this runner's fragment before it; False after a reset of all environments.
    """

    observations: Floats
    actions: NDArray[Any]
    outputs: Floats | None
    rewards: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    played: NDArray[np.bool_]
    last_observations: Floats
    final_index: NDArray[np.int64]
    final_observations: Floats
    episodes: list[Episode]
    runner: int = 0
    continues: bool = True

    @property
    def env_steps(self) -> int:
        return int(self.played.sum())

    def next_observations(self) -> Floats:
        """`[T, N, D]`: what each action led to."""
        following = np.concatenate([self.observations[1:], self.last_observations[None]])
        following[self.final_index[:, 0], self.final_index[:, 1]] = self.final_observations
        return following

    @staticmethod
    def join(fragments: list[Fragment]) -> Fragment:
        """One fragment of all environments; all must have the same number of steps."""
        if len(fragments) == 1:
            return fragments[0]
        widths = np.cumsum([0, *(fragment.rewards.shape[1] for fragment in fragments)])
        outputs = [fragment.outputs for fragment in fragments if fragment.outputs is not None]

        def columns(name: str) -> Any:
            return np.concatenate([getattr(fragment, name) for fragment in fragments], axis=1)

        return Fragment(
            columns("observations"), columns("actions"), np.concatenate(outputs, axis=1) if outputs else None,
            columns("rewards"), columns("terminated"), columns("truncated"), columns("played"),
            np.concatenate([f.last_observations for f in fragments]),
            np.concatenate([f.final_index + np.array([0, width]) for f, width in zip(fragments, widths, strict=False)]),
            np.concatenate([f.final_observations for f in fragments]),
            [episode for f in fragments for episode in f.episodes],
        )  # fmt: skip

    def split(self, parts: int) -> list[Fragment]:
        """By environments, as evenly as they divide."""
        bounds = np.linspace(0, self.rewards.shape[1], parts + 1).astype(int).tolist()
        return [self._columns(low, high) for low, high in pairwise(bounds)]

    def _columns(self, low: int, high: int) -> Fragment:
        inside = (self.final_index[:, 1] >= low) & (self.final_index[:, 1] < high)
        return Fragment(
            self.observations[:, low:high], self.actions[:, low:high], None if self.outputs is None else self.outputs[:, low:high], self.rewards[:, low:high],
            self.terminated[:, low:high], self.truncated[:, low:high], self.played[:, low:high], self.last_observations[low:high],
            self.final_index[inside] - np.array([0, low]), self.final_observations[inside], [],
        )  # fmt: skip
