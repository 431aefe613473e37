"""Plays environments with a policy. A plain class: in the algorithm's process as it is, elsewhere as an actor."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..callbacks.hooks import Hooks
from ..connectors.env_to_module import filter_of
from ..connectors.running_stats import RunningStats
from ..core.blas import one_blas_thread
from ..core.networks import Floats, NetworkSpec
from ..core.policies import POLICIES, Policy
from ..errors import ConfigError, EnvError
from .fragment import Episode, Fragment
from .spaces import ActionCodec, ObservationCodec, require_same
from .vector import EpisodeStream, env_name, make_stream

Array = NDArray[Any]


@dataclass(frozen=True)
class RunnerPlan:
    """What a runner needs of the algorithm's settings: everything here can be pickled, nothing needs torch.

    `network`: the spec for these spaces; a function of the module of an algorithm, since the spaces are known only when the environment has been made.
    """

    env: Any
    env_config: dict[str, Any]
    num_envs: int
    vectorize_mode: str
    check: bool
    normalize_actions: bool
    clip_actions: bool
    clip_rewards: bool | float | None
    observation_space: Any
    action_space: Any
    observation_filter: bool
    explore: bool
    seed: int | None
    num_workers: int
    callbacks: Any
    network: Any
    policy: Any

    @classmethod
    def of(cls, config: Any, network: Any, policy: Any) -> RunnerPlan:
        return cls(
            config.env, dict(config.env_config), int(config.num_envs_per_env_runner), config.gym_env_vectorize_mode, not config.disable_env_checking,
            config.normalize_actions, config.clip_actions, config.clip_rewards, config.observation_space, config.action_space,
            filter_of(config.observation_filter, config.env_to_module_connector), config.explore, config.seed, int(config.num_env_runners),
            Hooks.of(config), network, policy,
        )  # fmt: skip


@dataclass(frozen=True)
class Spaces:
    """The spaces of one environment, and how they become vectors."""

    observation: Any
    action: Any
    observations: ObservationCodec
    actions: ActionCodec


@dataclass
class RunnerState:
    """All that the continuation depends on. `env`: the pickled environments, or None where they cannot be."""

    rng: Mapping[str, Any]
    env: bytes | None
    observations: Array | None
    resetting: Array
    returns: Array
    lengths: Array
    filter: RunningStats | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


class EnvRunner:
    """Environments, a policy, and where each episode stands."""

    def __init__(self, plan: RunnerPlan, worker_index: int = 0, remote: bool = False, generation: int = 0) -> None:
        self.plan = plan
        self.worker_index = worker_index
        self.hooks: Hooks = plan.callbacks
        self.name = env_name(plan.env)
        # A runner that replaces a dead one (generation > 0) must not play the same episodes again.
        self._seeds = np.random.SeedSequence(plan.seed, spawn_key=(worker_index, generation))
        self.rng = np.random.Generator(np.random.PCG64(self._seeds.spawn(1)[0]))
        self.stream: EpisodeStream = make_stream(
            plan.env, plan.env_config, plan.num_envs, plan.vectorize_mode, plan.check, worker_index, plan.num_workers, remote
        )
        observation_space, action_space = self.stream.env.single_observation_space, self.stream.env.single_action_space
        require_same("observation_space", plan.observation_space, observation_space, f"environment {self.name}")
        require_same("action_space", plan.action_space, action_space, f"environment {self.name}")
        self.spaces = Spaces(
            observation_space, action_space, ObservationCodec.of(observation_space), ActionCodec.of(action_space, plan.normalize_actions, plan.clip_actions)
        )
        self.spec: NetworkSpec = plan.network(self.spaces)
        self.policy: Policy = POLICIES[plan.policy(self.spaces)](self.spec)
        self.filter = RunningStats.empty(self.spaces.observations.size) if plan.observation_filter else None
        self._fresh: RunningStats | None = RunningStats.empty(self.spaces.observations.size) if plan.observation_filter else None
        self._largest_product = plan.num_envs * max(layer.inputs * layer.outputs for layer in self.spec.actor)
        self._raw: Floats | None = None  # what the policy sees next, not normalised
        self._returns = np.zeros(plan.num_envs)
        self._lengths = np.zeros(plan.num_envs, np.int64)
        self._continues = False
        self.hooks.call("on_environment_created", env_runner=self, env=self.stream.env, env_context=plan.env_config, metrics_logger=self.hooks.logger)

    # -- playing ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Every environment begins a new episode."""
        seed = int(self._seeds.generate_state(1)[0]) if self.plan.seed is not None else None
        self._raw = self.spaces.observations.encode(self.stream.reset(seed))
        self._continues = False
        self._returns[:] = 0
        self._lengths[:] = 0
        for index in range(self.plan.num_envs if self.hooks.has("on_episode_start") else 0):
            self._tell_start(index)

    def sample(
        self, steps: int, theta: Floats | None = None, epsilon: float = 0.0, statistics: RunningStats | None = None
    ) -> tuple[Fragment, RunningStats | None]:
        """Plays `steps` steps of every environment, from where the last fragment ended; the fragment, and the statistics of its observations.

        `theta`: new parameters first; `statistics`: what to normalise with from now on.
        """
        if theta is not None:
            self.policy.actor.load(theta)
        if statistics is not None:
            self.filter = statistics
        if self._raw is None:
            self.reset()
        with one_blas_thread(self._largest_product):
            fragment = self._play(steps, epsilon)
        fresh, self._fresh = self._fresh, RunningStats.empty(self.spaces.observations.size) if self._fresh is not None else None
        self.hooks.call("on_sample_end", env_runner=self, samples=fragment.episodes, metrics_logger=self.hooks.logger)
        return fragment, fresh

    def _play(self, steps: int, epsilon: float) -> Fragment:
        envs, size = self.plan.num_envs, self.spaces.observations.size
        encode, to_env, act, step = self.spaces.observations.encode, self.spaces.actions.to_env, self.policy.act, self.stream.step
        self.policy.begin(self.rng, steps, envs, self.plan.explore, epsilon)
        observations = np.empty((steps, envs, size), np.float32)
        rewards = np.empty((steps, envs), np.float32)
        terminated, truncated = np.empty((steps, envs), bool), np.empty((steps, envs), bool)
        played = np.empty((steps, envs), bool)
        discrete = self.spaces.actions.discrete
        actions = np.empty((steps, envs) if discrete else (steps, envs, self.spaces.actions.size), np.int64 if discrete else np.float32)
        outputs = np.empty((steps, envs, self.spec.outputs), np.float32) if self.policy.keeps_outputs else None
        final_index: list[tuple[int, int]] = []
        final_rows: list[Floats] = []
        episodes: list[Episode] = []
        raw = self._raw
        assert raw is not None
        normalize = self.filter.normalize if self.filter is not None else None
        for t in range(steps):
            if self._fresh is not None:
                self._fresh.add(raw)
            seen = raw if normalize is None else normalize(raw)
            observations[t] = seen
            chosen, said = act(t, seen)
            actions[t] = chosen
            if outputs is not None:
                outputs[t] = said
            result = step(to_env(chosen))
            rewards[t], terminated[t], truncated[t], played[t] = result.rewards, result.terminated, result.truncated, result.played
            raw = encode(result.observations)
            self._returns += result.rewards
            self._lengths += result.played
            if terminated[t].any() or truncated[t].any():
                ended = np.flatnonzero(terminated[t] | truncated[t])
                finals = encode(result.finals[ended])
                final_rows.append(finals if normalize is None else normalize(finals))
                final_index.extend((t, int(index)) for index in ended)
                episodes.extend(self._end(ended))
        self._raw = raw
        continues, self._continues = self._continues, True
        return Fragment(
            observations, actions, outputs, self._clipped(rewards), terminated, truncated, played, raw if normalize is None else normalize(raw),
            np.array(final_index, np.int64).reshape(-1, 2), np.concatenate(final_rows) if final_rows else np.zeros((0, size), np.float32), episodes,
            self.worker_index, continues,
        )  # fmt: skip

    def _clipped(self, rewards: Floats) -> Floats:
        clip = self.plan.clip_rewards
        if clip is None or clip is False:
            return rewards
        return np.sign(rewards) if clip is True else np.clip(rewards, -clip, clip)

    def _end(self, ended: Array) -> list[Episode]:
        episodes = [Episode(int(index), float(self._returns[index]), int(self._lengths[index])) for index in ended]
        self._returns[ended] = 0
        self._lengths[ended] = 0
        if self.hooks.has("on_episode_end"):
            for episode in episodes:
                self.hooks.call(
                    "on_episode_end", episode=episode, env_runner=self, metrics_logger=self.hooks.logger, env=self.stream.env, env_index=episode.env_index,
                    rl_module=self.policy.actor,
                )  # fmt: skip
        if self.hooks.has("on_episode_start"):
            for index in ended:
                self._tell_start(int(index))
        return episodes

    def _tell_start(self, index: int) -> None:
        self.hooks.call(
            "on_episode_start", episode=Episode(index, 0.0, 0), env_runner=self, metrics_logger=self.hooks.logger, env=self.stream.env, env_index=index,
            rl_module=self.policy.actor,
        )  # fmt: skip

    def play_episodes(self, quota: Array, theta: Floats, statistics: RunningStats | None, timeout_s: float) -> list[Episode]:
        """New episodes: `quota[i]` of environment i, so that short ones do not crowd out long ones as they would if the first to end were taken.

        Raises:
            EnvError: they did not end within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self.filter = statistics if statistics is not None else self.filter
        self.policy.actor.load(theta)
        self.reset()
        left = np.array(quota, np.int64)
        episodes: list[Episode] = []
        while (left > 0).any():
            self.require_time(deadline, timeout_s, int(self._lengths.max()))
            for episode in self._play(_EVALUATION_STRIDE, 0.0).episodes:
                if left[episode.env_index] > 0:
                    left[episode.env_index] -= 1
                    episodes.append(episode)
        return episodes

    def require_time(self, deadline: float, timeout_s: float, length: int) -> None:
        """Raises EnvError when it is later than `deadline`: an environment without a limit might never end an episode."""
        if time.monotonic() > deadline:
            raise EnvError(
                f"environment {self.name}: its episodes did not end within {timeout_s:g} s, one is {length} steps long; give it a limit "
                "(gymnasium.wrappers.TimeLimit), or raise evaluation_sample_timeout_s (in evaluation) or sample_timeout_s"
            )

    def play_steps(self, steps: int, theta: Floats, statistics: RunningStats | None) -> list[Episode]:
        """The episodes that ended within `steps` steps of every environment."""
        self.filter = statistics if statistics is not None else self.filter
        self.policy.actor.load(theta)
        if self._raw is None:
            self.reset()
        return self._play(steps, 0.0).episodes

    # -- what others ask -------------------------------------------------------------------------------------

    def get_spaces(self) -> tuple[Any, Any]:
        return self.spaces.observation, self.spaces.action

    def get_metrics(self) -> dict[str, Any]:
        """What callbacks have logged here since the last call."""
        return self.hooks.logger.take()

    def pid(self) -> int:
        return os.getpid()

    def get_state(self) -> RunnerState:
        try:
            env = pickle.dumps(self.stream.env, protocol=5) if self._raw is not None else None
        except Exception:
            # Processes, windows and the like. The continuation then begins with new episodes, which `set_state` tells.
            env = None
        return RunnerState(self.rng.bit_generator.state, env, self._raw, self.stream.resetting.copy(), self._returns.copy(), self._lengths.copy(), self.filter)

    def set_state(self, state: RunnerState) -> bool:
        """Whether the episodes go on where they were; else new ones begin.

        Raises:
            ConfigError: another number of environments.
        """
        if len(state.returns) != self.plan.num_envs:
            raise ConfigError(f"the checkpoint's runner has {len(state.returns)} environments, num_envs_per_env_runner={self.plan.num_envs}")
        self.rng.bit_generator.state = state.rng
        if state.filter is not None and self.filter is not None:
            self.filter = state.filter.copy()
        if state.env is None:
            self._raw = None
            return state.observations is None
        self.stream.close()
        self.stream = EpisodeStream(pickle.loads(state.env), self.name)
        self.stream.restore(state.resetting.copy())
        self._raw = state.observations
        self._returns, self._lengths = state.returns.copy(), state.lengths.copy()
        self._continues = True
        return True

    def stop(self) -> None:
        self.stream.close()


# Steps between two looks at whether evaluation is done.
_EVALUATION_STRIDE = 64
