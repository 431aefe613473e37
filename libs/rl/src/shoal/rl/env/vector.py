"""Several environments stepped together, with one meaning for all of Gymnasium's autoreset modes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EnvError
from .context import EnvContext
from .registry import Creator, find
from .spaces import require_contains

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

Array = NDArray[Any]


@dataclass(frozen=True)
class Step:
    """What one step of N environments gave.

    Attributes:
        observations: what the policy sees next; where an episode ended, the first of the next one if it is known yet.
        finals: what the action led to; differs from `observations` only where an episode ended.
        rewards, terminated, truncated: of the action; `[N]`.
        played: False where the environment only began anew and took no action: no transition, whatever the row says.
    """

    observations: Array
    finals: Array
    rewards: Array
    terminated: Array
    truncated: Array
    played: Array


class EpisodeStream:
    """Steps a vector environment so that no transition leads across a reset.

    Gymnasium's modes: SAME_STEP gives the last observation aside (`final_obs`), NEXT_STEP spends one more step on the reset, DISABLED wants to be reset.
    """

    def __init__(self, env: VectorEnv, name: str) -> None:
        mode = env.metadata.get("autoreset_mode", "NextStep")
        self.mode = str(getattr(mode, "value", mode))
        self.env = env
        self.name = name
        self.num_envs = int(env.num_envs)
        self._all = np.ones(self.num_envs, bool)
        self._resetting = np.zeros(self.num_envs, bool)

    def reset(self, seed: int | None = None) -> Array:
        self._resetting = np.zeros(self.num_envs, bool)
        try:
            return np.asarray(self.env.reset(seed=seed)[0])
        except Exception as error:
            raise EnvError(f"environment {self.name}: reset(seed={seed}) raised {type(error).__name__}: {error}") from error

    def step(self, actions: Array) -> Step:
        try:
            observations, rewards, terminated, truncated, infos = self.env.step(actions)
        except Exception as error:
            raise EnvError(f"environment {self.name}: step({actions!r}) raised {type(error).__name__}: {error}") from error
        done = terminated | truncated
        any_done = done.any()
        finals = observations
        played = self._all
        if self.mode == "NextStep":
            if self._resetting.any():
                played = ~self._resetting
            self._resetting = done
        elif any_done:
            if self.mode == "SameStep":
                finals = observations.copy()
                rows = np.flatnonzero(done)
                finals[rows] = np.stack([np.asarray(infos["final_obs"][row]) for row in rows])
            else:
                finals = observations.copy()
                observations = np.asarray(self.env.reset(options={"reset_mask": done})[0])
        return Step(observations, finals, rewards, terminated, truncated, played)

    @property
    def resetting(self) -> Array:
        """Which environments will take no action in the next step."""
        return self._resetting

    def restore(self, resetting: Array) -> None:
        """Goes on where another stream over a copy of the environment was."""
        self._resetting = resetting

    def close(self) -> None:
        self.env.close()


def env_name(env: Any) -> str:
    return repr(env) if isinstance(env, str) else getattr(env, "__qualname__", repr(env))


def make_stream(
    env: Any, env_config: dict[str, Any], num_envs: int, mode: str, check: bool, worker_index: int = 0, num_workers: int = 0, remote: bool = False
) -> EpisodeStream:
    """`num_envs` environments named by `env` (a name, a class or a function).

    Raises:
        EnvError: it cannot be made.
        SpaceError: it does not give what its own spaces say.
    """
    name = env_name(env)
    creator = find(env)
    try:
        vector = _make(creator, env_config, num_envs, mode, check, name, worker_index, num_workers, remote)
    except (EnvError, ValueError) as error:
        if isinstance(error, EnvError) or type(error).__module__.startswith("shoal."):
            raise
        raise EnvError(f"environment {name} cannot be made with {env_config}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise EnvError(f"environment {name} cannot be made with {env_config}: {type(error).__name__}: {error}") from error
    if vector.num_envs != num_envs:
        raise EnvError(f"environment {name} is a vector of {vector.num_envs}, but num_envs_per_env_runner={num_envs}")
    return EpisodeStream(vector, name)


def _make(
    creator: Creator | str, env_config: dict[str, Any], num_envs: int, mode: str, check: bool, name: str, worker_index: int, num_workers: int, remote: bool
) -> VectorEnv:
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

    if isinstance(creator, str):
        registered = creator  # for the closure below
        own_form = ":" not in creator and gymnasium.spec(creator).vector_entry_point is not None
        if mode == "vector_entry_point" or (mode == "auto" and own_form):
            return gymnasium.make_vec(creator, num_envs=num_envs, vectorization_mode="vector_entry_point", **env_config)

        def make(index: int) -> Any:
            return gymnasium.make(registered, **env_config)
    else:
        if mode == "vector_entry_point":
            raise EnvError(f"gym_env_vectorize_mode='vector_entry_point' is for environments registered with Gymnasium; {name} is not")
        function = creator

        def make(index: int) -> Any:
            return function(EnvContext(env_config, worker_index=worker_index, vector_index=index, remote=remote, num_workers=num_workers))

    first = make(0)
    if isinstance(first, VectorEnv):
        return first
    if not isinstance(first, gymnasium.Env):
        raise EnvError(f"{name} gave {type(first).__name__}, which is no gymnasium.Env")
    if check:
        check_env(first, name)
    if mode == "async":
        first.close()
        # Each process makes its own, so that an environment need not be picklable.
        return AsyncVectorEnv([partial(make, index) for index in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)
    made = [first, *(make(index) for index in range(1, num_envs))]
    return SyncVectorEnv([partial(_same, env) for env in made], autoreset_mode=AutoresetMode.SAME_STEP)


def _same(env: Any) -> Any:
    return env


def check_env(env: Any, name: str) -> None:
    """One reset and one step, compared with the environment's spaces."""
    observation, _ = env.reset(seed=0)
    require_contains(f"environment {name}", "reset()", env.observation_space, observation)
    env.action_space.seed(0)
    answer = env.step(env.action_space.sample())
    if len(answer) != 5:
        raise EnvError(f"environment {name}: step() returned {len(answer)} values; Gymnasium wants (observation, reward, terminated, truncated, info)")
    require_contains(f"environment {name}", "step()", env.observation_space, answer[0])
