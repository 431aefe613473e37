"""What runners hand to learning."""

from __future__ import annotations

import numpy as np
import pytest
from environments import Counter, Reach
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from shoal.rl.algorithms.ppo import PPO, PPOConfig
from shoal.rl.env.fragment import Fragment
from shoal.rl.env.runner import EnvRunner
from shoal.rl.env.spaces import ActionCodec, ObservationCodec
from shoal.rl.errors import SpaceError


def runner_of(env, envs: int = 2, **settings) -> EnvRunner:
    config = PPOConfig().environment(env).env_runners(num_envs_per_env_runner=envs).debugging(seed=3).rl_module(model_config={"fcnet_hiddens": [8]})
    config.update_from_dict(settings)
    runner = EnvRunner(PPO._runner_plan(PPO.__new__(PPO), config))
    runner.policy.actor.load(runner.spec.initial(np.random.default_rng(0)))
    return runner


def counter(context) -> Counter:
    return Counter(3 + context.vector_index, truncate=True)


def test_fragments_follow_each_other_and_know_where_episodes_ended() -> None:
    runner = runner_of(counter)
    first, second = (runner.sample(4)[0] for _ in range(2))
    assert (first.continues, second.continues) == (False, True)
    assert first.observations.shape == (4, 2, 2) and first.outputs is not None and first.outputs.shape == (4, 2, 2)
    np.testing.assert_array_equal(first.last_observations, second.observations[0])
    assert first.final_index.tolist() == [[2, 0], [3, 1]]
    assert first.final_observations[:, 1].tolist() == [3.0, 4.0]
    np.testing.assert_array_equal(first.next_observations()[..., 1], [[1, 1], [2, 2], [3, 3], [1, 4]])
    assert [(e.env_index, e.total_reward, e.length) for e in first.episodes] == [(0, 6.0, 3), (1, 10.0, 4)]
    assert [(e.env_index, e.total_reward, e.length) for e in second.episodes] == [(0, 6.0, 3), (1, 10.0, 4)]
    assert first.env_steps == 8


def test_a_fragment_split_and_joined_is_the_same() -> None:
    fragment = runner_of(counter, envs=5).sample(6)[0]
    again = Fragment.join(fragment.split(3))
    np.testing.assert_array_equal(again.observations, fragment.observations)
    np.testing.assert_array_equal(again.rewards, fragment.rewards)
    np.testing.assert_array_equal(again.next_observations(), fragment.next_observations())


def test_the_same_seed_plays_the_same_and_another_runner_does_not() -> None:
    one, same = runner_of("CartPole-v1").sample(30)[0], runner_of("CartPole-v1").sample(30)[0]
    np.testing.assert_array_equal(one.observations, same.observations)
    np.testing.assert_array_equal(one.actions, same.actions)
    config = PPOConfig().environment("CartPole-v1").env_runners(num_envs_per_env_runner=2).debugging(seed=3)
    plan = PPO._runner_plan(PPO.__new__(PPO), config)
    runners = [EnvRunner(plan, worker_index=2), EnvRunner(plan, worker_index=2, generation=1)]
    first, replacing = (runner.sample(1, runner.spec.initial(np.random.default_rng(0)))[0].observations for runner in runners)
    assert not np.array_equal(first, replacing)


def test_a_state_continues_exactly() -> None:
    runner, other = runner_of("CartPole-v1"), runner_of("CartPole-v1", seed=99)
    runner.sample(25)
    assert other.set_state(runner.get_state())
    expected, found = runner.sample(50)[0], other.sample(50)[0]
    np.testing.assert_array_equal(expected.observations, found.observations)
    np.testing.assert_array_equal(expected.actions, found.actions)
    assert expected.episodes == found.episodes


def test_rewards_are_clipped_for_learning_only() -> None:
    fragment = runner_of(counter, clip_rewards=2.0).sample(4)[0]
    assert fragment.rewards.max() == 2.0
    assert fragment.episodes[0].total_reward == 6.0
    assert set(runner_of(counter, clip_rewards=True).sample(4)[0].rewards.ravel()) == {1.0}


def test_the_filter_brings_observations_to_mean_0_and_deviation_1() -> None:
    runner = runner_of("CartPole-v1", envs=8, observation_filter="MeanStdFilter")
    _, fresh = runner.sample(200)
    assert fresh is not None and fresh.count == 1600
    fragment, _ = runner.sample(200, statistics=fresh)
    assert np.abs(fragment.observations.reshape(-1, 4).mean(axis=0)).max() < 0.5
    assert 0.5 < fragment.observations.reshape(-1, 4).std(axis=0).min() < 2.0


def test_evaluation_plays_each_environments_share() -> None:
    runner = runner_of(lambda context: Counter(2 if context.vector_index == 0 else 30))
    episodes = runner.play_episodes(np.array([2, 2]), runner.policy.actor.theta, None, 60.0)
    # The first four to end would all have been short ones.
    assert sorted(episode.length for episode in episodes) == [2, 2, 30, 30]


def test_box_actions_are_stretched_to_their_bounds() -> None:
    codec = ActionCodec.of(Box(np.array([0.0, -np.inf], np.float32), np.array([10.0, np.inf], np.float32)))
    np.testing.assert_allclose(codec.to_env(np.array([[0.0, 7.0], [5.0, -7.0]], np.float32)), [[5.0, 7.0], [10.0, -7.0]])
    clipped = ActionCodec.of(Box(-2.0, 2.0, (1,), np.float32), normalize=False, clip=True)
    assert clipped.to_env(np.array([[5.0]], np.float32)).tolist() == [[2.0]]
    fragment = runner_of(Reach).sample(20)[0]
    assert fragment.actions.shape == (20, 2, 1) and fragment.actions.dtype == np.float32


def test_discrete_spaces_may_begin_anywhere() -> None:
    assert ActionCodec.of(Discrete(3, start=5)).to_env(np.array([0, 2])).tolist() == [5, 7]
    assert ObservationCodec.of(Discrete(3, start=-1)).encode(np.array([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert ObservationCodec.of(Box(0, 255, (2, 2), np.uint8)).encode(np.ones((3, 2, 2), np.uint8)).shape == (3, 4)


def test_spaces_that_are_not_supported_are_named() -> None:
    with pytest.raises(SpaceError, match=r"observations of MultiDiscrete\(\[2 2\]\) are not supported"):
        ObservationCodec.of(MultiDiscrete([2, 2]))
    with pytest.raises(SpaceError, match=r"actions of MultiDiscrete\(\[2 2\]\) are not supported"):
        ActionCodec.of(MultiDiscrete([2, 2]))


def test_a_space_that_is_not_the_environments_is_an_error_that_names_both() -> None:
    with pytest.raises(SpaceError, match=r"action_space: environment 'CartPole-v1' has Discrete\(2\), but Discrete\(3\) was expected"):
        runner_of("CartPole-v1", action_space=Discrete(3))
    with pytest.raises(SpaceError, match=r"observation_space: environment 'CartPole-v1' has Box\(.*\), but Discrete\(3\) was expected"):
        runner_of("CartPole-v1", observation_space=Discrete(3))
