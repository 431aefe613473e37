"""Generalised advantages, against episodes taken one by one."""

from __future__ import annotations

import numpy as np
import pytest
from shoal.rl.core.advantages import generalized_advantages, next_values
from shoal.rl.env.fragment import Fragment


def random_fragment(rng: np.random.Generator, steps: int, envs: int, next_step: bool) -> Fragment:
    ends = rng.random((steps, envs)) < 0.15
    played = np.ones((steps, envs), bool)
    if next_step:  # an environment that begins anew in the step after an end
        for env in range(envs):
            for step in range(1, steps):
                if ends[step - 1, env] and played[step - 1, env]:
                    played[step, env], ends[step, env] = False, False
    truncated = ends & (rng.random((steps, envs)) < 0.5)
    index = np.argwhere(ends)
    return Fragment(
        rng.standard_normal((steps, envs, 1), dtype=np.float32), np.zeros((steps, envs), np.int64), None, rng.standard_normal((steps, envs), dtype=np.float32),
        ends & ~truncated, truncated, played, rng.standard_normal((envs, 1), dtype=np.float32), index,
        rng.standard_normal((len(index), 1), dtype=np.float32), [],
    )  # fmt: skip


def one_by_one(fragment: Fragment, gamma: float, lambda_: float) -> np.ndarray:
    """Sums over each step's future, value of an observation being its only number."""
    steps, envs = fragment.rewards.shape
    finals = {tuple(place): value for place, value in zip(fragment.final_index.tolist(), fragment.final_observations[:, 0], strict=True)}
    advantages = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            weight = 1.0
            for step in range(start, steps):
                over = fragment.terminated[step, env] or fragment.truncated[step, env]
                after = fragment.observations[step + 1, env, 0] if step + 1 < steps else fragment.last_observations[env, 0]
                if over:
                    after = 0.0 if fragment.terminated[step, env] else finals[step, env]
                advantages[start, env] += weight * (fragment.rewards[step, env] + gamma * after - fragment.observations[step, env, 0])
                weight *= gamma * lambda_
                if over:
                    break
    return advantages


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("lambda_", [0.0, 0.9, 1.0])
def test_advantages_are_those_of_episodes_taken_one_by_one(lambda_, next_step) -> None:
    fragment = random_fragment(np.random.default_rng(1), 40, 6, next_step)
    values = fragment.observations[..., 0]
    following = next_values(fragment, values, fragment.last_observations[:, 0], fragment.final_observations[:, 0])
    found = generalized_advantages(fragment.rewards, values, following, fragment.terminated | fragment.truncated, 0.97, lambda_)
    np.testing.assert_allclose(found[fragment.played], one_by_one(fragment, 0.97, lambda_)[fragment.played], atol=1e-4)
