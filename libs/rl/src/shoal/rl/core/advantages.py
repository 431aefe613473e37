"""Advantages and returns of fragments."""

from __future__ import annotations

import numpy as np

from ..env.fragment import Fragment
from .networks import Floats


def next_values(fragment: Fragment, values: Floats, last_values: Floats, final_values: Floats) -> Floats:
    """`[T, N]`: the value of what each action led to: 0 after a termination, the last observation's where the episode was truncated.

    `values`: `[T, N]` of the observations; `last_values`: `[N]`; `final_values`: `[E]` of `fragment.final_observations`.
    """
    following = np.concatenate([values[1:], last_values[None]])
    following[fragment.final_index[:, 0], fragment.final_index[:, 1]] = final_values
    following[fragment.terminated] = 0.0
    return following


def generalized_advantages(rewards: Floats, values: Floats, following: Floats, done: np.ndarray, gamma: float, lambda_: float) -> Floats:
    """`[T, N]`: generalised advantage estimation, equation 16 of Schulman et al. 2015 (arXiv:1506.02438).

    `done`: where an episode ended, for whichever reason: nothing of the next episode flows back across it.

    >>> one = np.ones((2, 1), np.float32)
    >>> generalized_advantages(one, 0 * one, 0 * one, np.array([[False], [True]]), gamma=0.5, lambda_=1.0).ravel().tolist()
    [1.5, 1.0]
    """
    advantages = rewards + gamma * following - values
    decay = (gamma * lambda_) * ~done
    for t in range(len(rewards) - 2, -1, -1):
        advantages[t] += decay[t] * advantages[t + 1]
    return advantages.astype(np.float32, copy=False)
