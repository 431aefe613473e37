"""The gradients that numpy is told are those that torch finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shoal.rl.algorithms.dqn import DQNConfig
from shoal.rl.algorithms.dqn_learner import NumpyDQNLearner, WeightedBatch
from shoal.rl.algorithms.dqn_torch import TorchDQNLearner
from shoal.rl.algorithms.ppo import PPOConfig
from shoal.rl.algorithms.ppo_learner import NumpyPPOLearner
from shoal.rl.algorithms.ppo_torch import TorchPPOLearner
from shoal.rl.algorithms.sac import SACConfig
from shoal.rl.algorithms.sac_learner import SACLearner, SACPlan
from shoal.rl.core.adam import Adam
from shoal.rl.core.adam import clip_gradient as clip_torch
from shoal.rl.core.learner import LearnerPlan
from shoal.rl.core.networks import build_spec
from shoal.rl.core.numpy_network import NumpyAdam
from shoal.rl.core.numpy_network import clip_gradient as clip_numpy
from shoal.rl.core.rl_module.default_model_config import DefaultModelConfig
from shoal.rl.core.torch_network import TorchNetwork
from shoal.rl.replay.transitions import Transitions

MODELS = [
    {"fcnet_hiddens": [8, 6], "vf_share_layers": False},
    {"fcnet_hiddens": [8], "head_fcnet_hiddens": [5], "fcnet_activation": "relu"},
    {"fcnet_hiddens": [7], "free_log_std": True, "vf_share_layers": False, "fcnet_activation": "linear"},
    {"fcnet_hiddens": [], "free_log_std": True, "head_fcnet_hiddens": [6], "head_fcnet_activation": "tanh"},
]


def plan(config, model: dict, discrete: bool, critic: bool = True) -> LearnerPlan:
    spec = build_spec(DefaultModelConfig(**model), 3, 2, gaussian=not discrete, critic=critic, actor_gain=1.0)
    return LearnerPlan(config.to_dict(), spec, spec.initial(np.random.default_rng(0)) + np.float32(0.05), discrete, False, 0)


def ppo_rows(spec, discrete: bool, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(1)
    actions = rng.integers(2, size=(count, 1)) if discrete else rng.standard_normal((count, 2))
    # Old log-probabilities near enough that some ratios are within the bounds and some are not.
    columns = [
        rng.standard_normal((count, 3)),
        rng.standard_normal((count, spec.outputs)),
        actions,
        rng.uniform(-3, 0, (count, 1)),
        rng.standard_normal((count, 2)),
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("settings", [{}, {"use_kl_loss": False}, {"vf_clip_param": 0.5, "clip_param": 0.1, "vf_loss_coeff": 0.3}])
def test_ppos_gradient_in_numpy_is_torchs(model, discrete, settings) -> None:
    planned = plan(PPOConfig().update_from_dict(settings), model, discrete)
    rows = ppo_rows(planned.spec, discrete)
    ours, theirs = NumpyPPOLearner(planned), TorchPPOLearner(planned)
    terms, expected = ours.add_gradient(rows, 0.02, True), theirs.add_gradient(rows, 0.02, True)
    np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-5)
    gradient = theirs.network.gradient.numpy()
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(ours.network.gradient, gradient, atol=2e-4 * max(1.0, np.abs(gradient).max()))
    np.testing.assert_allclose(ours.values_of(rows[:, :3]), theirs.values_of(rows[:, :3]), atol=1e-5)


def test_ppos_gradient_without_a_critic() -> None:
    planned = plan(PPOConfig().training(use_critic=False), MODELS[0], True, critic=False)
    rows = ppo_rows(planned.spec, True)
    ours, theirs = NumpyPPOLearner(planned), TorchPPOLearner(planned)
    np.testing.assert_allclose(ours.add_gradient(rows, 0.0, True), theirs.add_gradient(rows, 0.0, True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.network.gradient, theirs.network.gradient.numpy(), atol=1e-4)


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("settings", [{}, {"double_q": False, "td_error_loss_fn": "mse", "tau": 0.5}, {"grad_clip": 0.01}])
def test_dqns_steps_in_numpy_are_torchs(model, dueling, settings) -> None:
    planned = plan(DQNConfig().training(lr=1e-2).update_from_dict(settings), model, True, critic=dueling)
    rng = np.random.default_rng(2)
    columns = [rng.standard_normal((40, 3)), rng.integers(2, size=40), 3 * rng.standard_normal(40), rng.standard_normal((40, 3)), rng.random(40)]
    rows = Transitions(*(column if column.dtype == np.int64 else column.astype(np.float32) for column in columns))
    ours, theirs = NumpyDQNLearner(planned), TorchDQNLearner(planned)
    for step in range(6):
        batch = WeightedBatch(rows, rng.random(40, dtype=np.float32), renew_target=step == 2)
        (theta, stats, errors), (other, expected, other_errors) = ours.update(batch, 0), theirs.update(batch, 0)
        np.testing.assert_allclose(errors, other_errors, atol=2e-3)
        np.testing.assert_allclose([stats[name] for name in expected], list(expected.values()), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(theta, other, atol=5e-3)
    np.testing.assert_allclose(ours.target.get(), theirs.target.get(), atol=5e-3)


def test_adam_and_the_bounds_are_torchs() -> None:
    spec = build_spec(DefaultModelConfig(**MODELS[2]), 3, 2, gaussian=True, critic=True)
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(spec.size, dtype=np.float32)
    ours, theirs = NumpyAdam(theta.copy()), Adam(torch.from_numpy(theta.copy()))
    for step in range(5):
        gradient = rng.standard_normal(spec.size, dtype=np.float32)
        other = torch.from_numpy(gradient.copy())
        by = ("global_norm", "norm", "value")[step % 3]
        clip_numpy(gradient, spec, 0.3, by)
        clip_torch(other, spec, 0.3, by)
        np.testing.assert_allclose(gradient, other.numpy(), atol=1e-5)
        ours.step(gradient, 0.01)
        theirs.step(other, 0.01)
    np.testing.assert_allclose(ours.theta, theirs.theta.numpy(), atol=1e-5)
    ours.set_state(theirs.get_state())
    assert ours.steps == 5


def sac_learner(twin_q: bool) -> SACLearner:
    config = SACConfig().training(twin_q=twin_q, initial_alpha=0.3)
    model = DefaultModelConfig(fcnet_hiddens=[8, 6], fcnet_activation="tanh")
    spec = build_spec(model, 3, 2, gaussian=True, actor_gain=1.0)
    settings = {**config.to_dict(), "sac": SACPlan(model, 3, 2)}
    return SACLearner(LearnerPlan(settings, spec, spec.initial(np.random.default_rng(0)), False, False, 0))


@pytest.mark.parametrize("twin_q", [True, False])
def test_sacs_policy_gradient_in_numpy_is_torchs(twin_q) -> None:
    learner = sac_learner(twin_q)
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((50, 3), dtype=np.float32)
    drawn = learner.draw(observations)
    slopes, loss = learner.policy_slopes(observations, drawn)
    learner.network.backward(drawn.tapes, slopes, None)
    network = TorchNetwork(learner.plan.spec, learner.network.theta)
    critics = [TorchNetwork(critic.spec, critic.theta) for critic in learner.critics]
    mean, log_std = network.actor(torch.from_numpy(observations)).chunk(2, dim=1)
    before = mean + log_std.exp() * torch.from_numpy(drawn.noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    actions = torch.tanh(before)
    logp = (normal.log_prob(before) - torch.log(1 - actions**2 + 1e-6)).sum(dim=1)
    values = torch.stack([critic.actor(torch.cat([torch.from_numpy(observations), actions], dim=1))[:, 0] for critic in critics]).min(dim=0).values
    expected = (learner.alpha * logp - values).mean()
    expected.backward()
    np.testing.assert_allclose(drawn.logp, logp.detach().numpy(), atol=1e-4)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    np.testing.assert_allclose(learner.network.gradient, network.gradient.numpy(), atol=1e-4)
    assert np.abs(network.gradient.numpy()).max() > 1e-3
    assert not any(critic.gradient.any() for critic in learner.critics)


def test_sacs_temperature_holds_the_entropy_and_critics_learn_the_rewards() -> None:
    learner = sac_learner(True)
    rng = np.random.default_rng(1)
    columns = [rng.standard_normal((200, 3)), rng.uniform(-1, 1, (200, 2)), rng.standard_normal(200), rng.standard_normal((200, 3)), np.zeros(200)]
    rows = Transitions(*(column.astype(np.float32) for column in columns))
    rows.rewards = rows.actions[:, 0] * 2
    first = learner.update((rows, np.ones(200, np.float32)), 0)[1]
    learner.settings.update(critic_lr=1e-2, actor_lr=1e-2, alpha_lr=1e-2)
    for _ in range(400):
        last = learner.update((rows, np.ones(200, np.float32)), 0)[1]
    assert last["qf_loss"] < 0.05 * first["qf_loss"]
    assert last["entropy"] == pytest.approx(learner.target_entropy, abs=0.7)
    assert np.tanh(learner.network.both(rows.observations)[0][:, 0]).mean() > 0.5
    other = sac_learner(True)
    other.settings.update(learner.settings)
    other.set_state(learner.get_state())
    assert np.array_equal(other.update((rows, np.ones(200, np.float32)), 0)[0], learner.update((rows, np.ones(200, np.float32)), 0)[0])
