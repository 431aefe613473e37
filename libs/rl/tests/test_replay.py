"""Replay: rings, priorities, several steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.rl.errors import ConfigError
from shoal.rl.replay.buffers import PrioritizedReplayBuffer, ReplayBuffer, make_buffer
from shoal.rl.replay.sum_tree import SumTree
from shoal.rl.replay.transitions import NStep, Transitions
from test_advantages import random_fragment


def rows(numbers) -> Transitions:
    column = np.asarray(numbers, np.float32)
    return Transitions(column[:, None], np.asarray(numbers, np.int64), column, column[:, None] + 1, np.ones_like(column))


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.floats(0, 100)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_sum_tree_finds_what_a_running_sum_finds(capacity, entries) -> None:
    tree, plain = SumTree(capacity), np.zeros(capacity)
    for index, priority in entries:
        tree.set(np.array([index % capacity]), np.array([priority]))
        plain[index % capacity] = priority
    assert tree.total == pytest.approx(plain.sum())
    np.testing.assert_allclose(tree.get(np.arange(capacity)), plain)
    if plain.sum() > 0:
        found = tree.find(np.linspace(0, plain.sum(), 50) * (1 - 1e-9))
        assert (plain[found] > 0).all()
        running = np.cumsum(plain)
        expected = np.searchsorted(running, np.linspace(0, plain.sum(), 50) * (1 - 1e-9), side="right")
        off_by_rounding = np.abs(running[np.minimum(found, expected)] - np.linspace(0, plain.sum(), 50)) < 1e-6 * max(1.0, plain.sum())
        assert ((found == expected) | off_by_rounding).all()


def test_setting_many_at_once_is_setting_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    one, many = SumTree(13), SumTree(13)
    places, priorities = rng.permutation(13)[:9], rng.random(9)
    many.set(places, priorities)
    for place, priority in zip(places, priorities, strict=True):
        one.set(np.array([place]), np.array([priority]))
    np.testing.assert_allclose(one.get(np.arange(13)), many.get(np.arange(13)))
    assert one.total == pytest.approx(many.total)


def test_a_ring_keeps_the_last_ones() -> None:
    buffer = ReplayBuffer(capacity=5)
    buffer.add(rows(range(3)))
    assert len(buffer) == 3
    buffer.add(rows(range(3, 15)))
    drawn, weights, _ = buffer.sample(200, np.random.default_rng(0))
    assert set(drawn.actions.tolist()) == {10, 11, 12, 13, 14}
    assert (weights == 1).all()
    np.testing.assert_array_equal(drawn.next_observations, drawn.observations + 1)


def test_draws_follow_the_priorities_and_weights_undo_them() -> None:
    buffer = PrioritizedReplayBuffer(capacity=4, alpha=1.0, beta=1.0)
    buffer.add(rows(range(4)))
    buffer.update_priorities(np.arange(4), np.array([1.0, 2.0, 3.0, 4.0]))
    rng = np.random.default_rng(0)
    drawn = [buffer.sample(100, rng) for _ in range(100)]
    share = np.bincount(np.concatenate([places for _, _, places in drawn]), minlength=4) / 10_000
    np.testing.assert_allclose(share, [0.1, 0.2, 0.3, 0.4], atol=0.01)
    weight_of = dict(zip(drawn[0][2].tolist(), drawn[0][1].tolist(), strict=True))
    np.testing.assert_allclose([weight_of[place] for place in range(4)], [1.0, 1 / 2, 1 / 3, 1 / 4], rtol=1e-4)


def test_new_rows_have_the_greatest_priority() -> None:
    buffer = PrioritizedReplayBuffer(capacity=10)
    buffer.add(rows(range(5)))
    buffer.update_priorities(np.arange(5), np.full(5, 7.0))
    buffer.add(rows([5]))
    assert buffer.tree.get(np.array([5]))[0] == pytest.approx(buffer.tree.get(np.array([0]))[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["ReplayBuffer", "PrioritizedReplayBuffer"])
def test_a_state_draws_the_same(kind) -> None:
    buffer, other = (make_buffer({"type": kind, "capacity": 8}) for _ in range(2))
    buffer.add(rows(range(11)))
    buffer.update_priorities(np.arange(8), np.arange(8.0))
    other.set_state(buffer.get_state())
    one, two = (b.sample(20, np.random.default_rng(5)) for b in (buffer, other))
    np.testing.assert_array_equal(one[0].actions, two[0].actions)
    np.testing.assert_array_equal(one[1], two[1])
    with pytest.raises(ConfigError, match="capacity of 8, replay_buffer_config says 9"):
        make_buffer({"type": kind, "capacity": 9}).set_state(buffer.get_state())


@pytest.mark.parametrize(
    ("config", "said"),
    [({"type": "Bag"}, "has type 'Bag'"), ({"capacity": 0}, "capacity=0"), ({"size": 3}, "has 'size'"), ({"alpha": -1}, "alpha=-1")],
)
def test_a_wrong_buffer_is_refused(config, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make_buffer(config)


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("next_step", [False, True])
def test_several_steps_sum_up_within_episodes_and_across_fragments(n, next_step) -> None:
    gamma = 0.9
    whole = random_fragment(np.random.default_rng(2), 60, 4, next_step)
    expected = sorted(_by_hand(whole, n, gamma))
    steps = NStep(n, gamma)
    found = []
    following = whole.next_observations()
    for start in range(0, 60, 6):
        part = slice(start, start + 6)
        inside = (whole.final_index[:, 0] >= start) & (whole.final_index[:, 0] < start + 6)
        fragment = type(whole)(
            whole.observations[part], whole.actions[part], None, whole.rewards[part], whole.terminated[part], whole.truncated[part], whole.played[part],
            whole.observations[start + 6] if start + 6 < 60 else whole.last_observations, whole.final_index[inside] - np.array([start, 0]),
            whole.final_observations[inside], [], continues=start > 0,
        )  # fmt: skip
        np.testing.assert_array_equal(fragment.next_observations(), following[part])
        taken = steps.take(fragment)
        found += [tuple(map(float, row)) for row in zip(taken.observations[:, 0], taken.rewards, taken.next_observations[:, 0], taken.discounts, strict=True)]
    np.testing.assert_allclose(sorted(found), expected, atol=1e-5)


def _by_hand(fragment, n: int, gamma: float) -> list[tuple[float, float, float, float]]:
    following = fragment.next_observations()
    made = []
    for env in range(fragment.rewards.shape[1]):
        for start in np.flatnonzero(fragment.played[:, env]):
            reward, over = 0.0, False
            for taken in range(1, n + 1):
                step = start + taken - 1
                if step >= len(fragment.rewards):
                    break
                reward += gamma ** (taken - 1) * float(fragment.rewards[step, env])
                over = bool(fragment.terminated[step, env] or fragment.truncated[step, env])
                if over or taken == n:
                    discount = 0.0 if fragment.terminated[step, env] else gamma**taken
                    made.append((float(fragment.observations[start, env, 0]), reward, float(following[step, env, 0]), discount))
                    break
    return made


def test_waiting_steps_are_forgotten_where_a_runner_begins_anew() -> None:
    fragment = random_fragment(np.random.default_rng(3), 2, 1, False)
    fragment.terminated[:] = fragment.truncated[:] = False
    fragment.final_index, fragment.final_observations = np.zeros((0, 2), np.int64), np.zeros((0, 1), np.float32)
    steps = NStep(3, 0.9)
    assert len(steps.take(fragment)) == 0
    fragment.continues = False
    assert len(steps.take(fragment)) == 0
    fragment.continues = True
    assert len(steps.take(fragment)) == 2
