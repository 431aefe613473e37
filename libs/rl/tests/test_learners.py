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
from shoal.rl.core.adam import Adam
from shoal.rl.core.adam import clip_gradient as clip_torch
from shoal.rl.core.learner import LearnerPlan
from shoal.rl.core.networks import build_spec
from shoal.rl.core.numpy_network import NumpyAdam
from shoal.rl.core.numpy_network import clip_gradient as clip_numpy
from shoal.rl.core.rl_module.default_model_config import DefaultModelConfig
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
