"""One meaning for all of Gymnasium's ways to reset."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from environments import Counter, Failing, Liar
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from shoal.rl.env.context import EnvContext
from shoal.rl.env.registry import register_env
from shoal.rl.env.vector import EpisodeStream, make_stream
from shoal.rl.errors import EnvError, SpaceError

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def stream_of(mode: AutoresetMode, lengths: list[int], truncate: bool = False) -> EpisodeStream:
    return EpisodeStream(SyncVectorEnv([partial(Counter, length, truncate) for length in lengths], autoreset_mode=mode), "counter")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("truncate", [False, True])
def test_no_transition_leads_across_a_reset_and_none_is_lost(mode, truncate) -> None:
    lengths = [3, 1, 4]
    stream = stream_of(mode, lengths, truncate)
    seen = stream.reset(seed=0)
    found: list[list[tuple]] = [[] for _ in lengths]
    for _ in range(24):
        step = stream.step(np.zeros(3, np.int64))
        for env in np.flatnonzero(step.played):
            found[env].append((*seen[env], *step.finals[env], step.rewards[env], step.terminated[env], step.truncated[env]))
        seen = step.observations
    for length, transitions in zip(lengths, found, strict=True):
        assert len(transitions) >= 24 * length // (length + 1)
        for number, (episode, at, next_episode, next_at, reward, terminated, truncated) in enumerate(transitions):
            assert (episode, at) == divmod(number, length)
            assert (next_episode, next_at, reward) == (episode, at + 1, at + 1)
            assert (terminated, truncated) == ((at + 1 == length) and not truncate, (at + 1 == length) and truncate)


def test_cart_poles_own_vector_form_gives_whole_episodes() -> None:
    stream = make_stream("CartPole-v1", {}, 4, "auto", check=True)
    assert type(stream.env).__name__ == "CartPoleVectorEnv"
    rng = np.random.default_rng(0)
    seen = stream.reset(seed=1)
    begins = np.ones(4, bool)
    for _ in range(200):
        assert (np.abs(seen[begins]) <= 0.05).all()
        step = stream.step(rng.integers(2, size=4))
        moved = step.finals[step.played] - seen[step.played]
        # Position changes by 0.02 s of the velocity: of one and the same episode.
        np.testing.assert_allclose(moved[:, 0], 0.02 * seen[step.played][:, 1], atol=1e-5)
        assert (step.rewards[step.played] == 1.0).all() and (step.rewards[~step.played] == 0.0).all()
        begins = ~step.played
        seen = step.observations


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_functions_are_vectorised_and_told_whose_environment_it_is(mode) -> None:
    told: list[tuple] = []

    def make(context: EnvContext) -> gymnasium.Env:
        told.append((context["length"], context.worker_index, context.vector_index, context.remote))
        return Counter(context["length"])

    stream = make_stream(make, {"length": 2}, 3, mode, check=True, worker_index=5)
    stream.reset(seed=0)
    assert stream.step(np.zeros(3, np.int64)).finals[:, 1].tolist() == [1.0] * 3
    assert told[:1] == [(2, 5, 0, False)]
    if mode == "sync":
        assert [vector_index for _, _, vector_index, _ in told] == [0, 1, 2]
    stream.close()


def test_a_registered_name_is_found_and_an_unknown_one_named_with_the_nearest() -> None:
    register_env("counter_for_vector_tests", lambda context: Counter(2))
    assert make_stream("counter_for_vector_tests", {}, 1, "auto", check=True).num_envs == 1
    with pytest.raises(EnvError, match=r"no environment is named 'CartPole-v11'; did you mean 'CartPole-v1'\?"):
        make_stream("CartPole-v11", {}, 1, "auto", check=True)
    with pytest.raises(TypeError, match="is not callable"):
        register_env("x", 3)  # type: ignore[arg-type]


def test_errors_of_environments_name_them() -> None:
    stream = make_stream(Failing, {}, 2, "auto", check=True)
    stream.reset(seed=0)
    with pytest.raises(EnvError, match=r"environment Failing: step\(.*\) raised ZeroDivisionError: the wheel came off"):
        for _ in range(9):
            stream.step(np.zeros(2, np.int64))
    with pytest.raises(EnvError, match=r"environment 'CartPole-v1' cannot be made with \{'gravity': 3\}: TypeError"):
        make_stream("CartPole-v1", {"gravity": 3}, 1, "sync", check=True)
    with pytest.raises(EnvError, match=r"gave int, which is no gymnasium.Env"):
        make_stream(lambda context: 3, {}, 1, "auto", check=True)
    with pytest.raises(EnvError, match=r"is a vector of 2, but num_envs_per_env_runner=3"):
        make_stream(lambda context: SyncVectorEnv([Counter, Counter]), {}, 3, "auto", check=True)


def test_an_observation_outside_of_the_space_is_named_with_the_space() -> None:
    with pytest.raises(
        SpaceError, match=r"environment Liar: its observation_space is Box\(-1.0, 1.0, \(3,\), float32\), but reset\(\) returned an array of shape \(2,\)"
    ):
        make_stream(Liar, {}, 1, "auto", check=True)
