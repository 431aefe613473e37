"""One vector of parameters, in numpy and in torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from shoal.rl.algorithms.es import Population
from shoal.rl.core.adam import Adam, clip_gradient
from shoal.rl.core.distributions import Categorical, Gaussian
from shoal.rl.core.networks import Actor, build_spec
from shoal.rl.core.policies import POLICIES
from shoal.rl.core.rl_module.default_model_config import DefaultModelConfig
from shoal.rl.core.torch_network import TorchNetwork, one_thread

MODELS = [
    DefaultModelConfig(fcnet_hiddens=[8, 6], vf_share_layers=False),
    DefaultModelConfig(fcnet_hiddens=[8], head_fcnet_hiddens=[5], fcnet_activation="relu"),
    DefaultModelConfig(fcnet_hiddens=[], free_log_std=True),
    DefaultModelConfig(fcnet_hiddens=[4], fcnet_activation="linear", free_log_std=True, vf_share_layers=False),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gaussian", [False, True])
def test_numpy_and_torch_say_the_same(model, gaussian) -> None:
    spec = build_spec(model, 3, 2, gaussian=gaussian, critic=True)
    theta = spec.initial(np.random.default_rng(0)) + np.float32(0.1)
    assert theta.shape == (spec.size,) and spec.actor_size < spec.size
    network = TorchNetwork(spec, theta)
    assert sum(parameter.numel() for parameter in network.parameters()) == spec.size
    rows = np.random.default_rng(1).standard_normal((7, 3), dtype=np.float32)
    actor = Actor(spec)
    actor.load(theta)
    expected = network.actor(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(actor(rows), expected, atol=1e-5)
    assert expected.shape == (7, spec.outputs)
    both, values = network.both(torch.from_numpy(rows))
    np.testing.assert_allclose(both.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(values.detach().numpy(), network.critic(torch.from_numpy(rows)).detach().numpy(), atol=1e-6)


def test_gradients_land_in_the_flat_vector() -> None:
    spec = build_spec(MODELS[0], 3, 2, critic=True)
    network = TorchNetwork(spec, spec.initial(np.random.default_rng(0)))
    outputs, values = network.both(torch.ones(4, 3))
    (outputs.sum() + values.sum()).backward()
    joined = torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])
    assert torch.equal(joined, network.gradient) and network.gradient.abs().sum() > 0


def test_initial_weights_are_orthogonal_and_the_policy_begins_almost_uniform() -> None:
    spec = build_spec(DefaultModelConfig(fcnet_hiddens=[16, 16]), 4, 2, critic=True)
    theta = spec.initial(np.random.default_rng(0))
    weight, bias = spec.actor[1].of(theta)
    np.testing.assert_allclose(weight @ weight.T, 2.0 * np.eye(16), atol=1e-4)
    assert not bias.any()
    assert np.abs(spec.actor[-1].of(theta)[0]).max() < 0.011


def test_a_population_is_its_members() -> None:
    spec = build_spec(DefaultModelConfig(fcnet_hiddens=[5], fcnet_activation="relu"), 3, 2)
    thetas = np.random.default_rng(0).standard_normal((4, spec.size), dtype=np.float32)
    rows = np.random.default_rng(1).standard_normal((4, 3), dtype=np.float32)
    actor = Actor(spec)
    for index, said in enumerate(Population(spec, thetas)(rows)):
        actor.load(thetas[index])
        np.testing.assert_allclose(actor(rows[index : index + 1])[0], said, atol=1e-5)


def test_adam_is_adam() -> None:
    theta = torch.tensor([1.0, -2.0])
    adam = Adam(theta, epsilon=1e-8)
    mean = square = np.zeros(2)
    expected = np.array([1.0, -2.0])
    for step in range(1, 6):
        gradient = np.array([0.5 * step, -1.0])
        adam.step(torch.tensor(gradient, dtype=torch.float32), lr=0.1)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected = expected - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-5)
    other = Adam(torch.zeros(2))
    other.set_state(adam.get_state())
    assert other.steps == 5 and torch.equal(other.square, adam.square)


@pytest.mark.parametrize("by", ["global_norm", "norm", "value"])
def test_gradients_are_bounded(by) -> None:
    spec = build_spec(MODELS[3], 3, 2, gaussian=True, critic=True)
    gradient = torch.full((spec.size,), 3.0)
    clip_gradient(gradient, spec, None, by)
    assert gradient[0] == 3.0
    clip_gradient(gradient, spec, 0.5, by)
    if by == "value":
        assert torch.equal(gradient, torch.full((spec.size,), 0.5))
    elif by == "global_norm":
        assert gradient.norm().item() == pytest.approx(0.5, rel=1e-4)
    else:
        assert spec.critic[0].of(gradient)[0].norm().item() == pytest.approx(0.5, rel=1e-4)
        assert gradient[spec.log_std_offset : spec.actor_size].norm().item() == pytest.approx(0.5, rel=1e-4)


def test_distributions_are_torchs() -> None:
    torch.manual_seed(0)
    numbers, old, actions = torch.randn(6, 3), torch.randn(6, 3), torch.randint(3, (6, 1))
    ours, theirs = Categorical(numbers), torch.distributions.Categorical(logits=numbers)
    torch.testing.assert_close(ours.logp(actions.float()), theirs.log_prob(actions[:, 0]))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.divergence_from(old), torch.distributions.kl_divergence(torch.distributions.Categorical(logits=old), theirs))
    numbers, old, actions = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 2)

    def normal(outputs: torch.Tensor) -> torch.distributions.Independent:
        return torch.distributions.Independent(torch.distributions.Normal(outputs[:, :2], outputs[:, 2:].exp()), 1)

    gaussian = Gaussian(numbers, 20.0)
    torch.testing.assert_close(gaussian.logp(actions), normal(numbers).log_prob(actions))
    torch.testing.assert_close(gaussian.entropy(), normal(numbers).entropy())
    torch.testing.assert_close(gaussian.divergence_from(old), torch.distributions.kl_divergence(normal(old), normal(numbers)))
    assert math.isfinite(Gaussian(torch.tensor([[0.0, 1e6]]), 20.0).entropy().item())


def test_policies_draw_what_they_should() -> None:
    rng = np.random.default_rng(0)
    spec = build_spec(DefaultModelConfig(fcnet_hiddens=[]), 1, 2)
    theta = np.array([0, 0, math.log(0.8), math.log(0.2)], np.float32)
    rows = np.zeros((5000, 1), np.float32)

    def draw(name: str, explore: bool, epsilon: float = 0.0) -> np.ndarray:
        policy = POLICIES[name](spec)
        policy.actor.load(theta)
        policy.begin(rng, 1, 5000, explore, epsilon)
        return policy.act(0, rows)[0]

    assert draw("categorical", True).mean() == pytest.approx(0.2, abs=0.02)
    assert draw("categorical", False).mean() == 0
    assert draw("epsilon_greedy", True, 0.5).mean() == pytest.approx(0.25, abs=0.02)
    assert draw("epsilon_greedy", False, 0.5).mean() == 0
    spec = build_spec(DefaultModelConfig(fcnet_hiddens=[]), 1, 1, gaussian=True)
    theta = np.array([0, 0, 3.0, math.log(2.0)], np.float32)
    drawn = draw("gaussian", True)
    assert (drawn.mean(), drawn.std()) == (pytest.approx(3.0, abs=0.15), pytest.approx(2.0, abs=0.1))
    assert (draw("gaussian", False) == 3.0).all()


def test_learning_leaves_the_users_threads_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
