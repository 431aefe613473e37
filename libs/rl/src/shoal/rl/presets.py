"""Settings that are known to learn an environment, with how they were found out: each on three seeds, by `tests/learn`."""

from __future__ import annotations

from collections.abc import Callable

from .algorithms.algorithm_config import AlgorithmConfig
from .algorithms.dqn import DQNConfig
from .algorithms.es import ESConfig
from .algorithms.ppo import PPOConfig
from .algorithms.sac import SACConfig
from .errors import ConfigError, nearest

ALGORITHMS: dict[str, Callable[[], AlgorithmConfig]] = {"ppo": PPOConfig, "dqn": DQNConfig, "es": ESConfig, "sac": SACConfig}


def config_of(algorithm: str, env: str) -> tuple[AlgorithmConfig, bool]:
    """The settings for an environment, and whether they are tuned for it; else they are the algorithm's defaults.

    Raises:
        ConfigError: there is no such algorithm.

    >>> config_of("ppo", "CartPole-v1")[1], config_of("ppo", "Acrobot-v1")[1]
    (True, False)
    """
    name = algorithm.lower()
    if name not in ALGORITHMS:
        raise ConfigError(f"there is no algorithm {algorithm!r}{nearest(name, ALGORITHMS)}")
    tuned = _TUNED.get((name, env))
    return (tuned() if tuned is not None else ALGORITHMS[name]()).environment(env), tuned is not None


def _ppo_cart_pole() -> AlgorithmConfig:
    return (
        PPOConfig()
        .env_runners(num_envs_per_env_runner=8)
        .training(lr=2e-3, gamma=0.98, lambda_=0.9, train_batch_size_per_learner=512, minibatch_size=128, num_epochs=10)
        .training(clip_param=0.2, vf_clip_param=10_000.0, vf_loss_coeff=0.5, use_kl_loss=False, grad_clip=0.5)
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .reporting(metrics_num_episodes_for_smoothing=20)
    )


def _dqn_cart_pole() -> AlgorithmConfig:
    # Rewards are far away here: over ten steps a value learns of an end tenfold sooner, which is what keeps the policy from forgetting.
    return (
        DQNConfig()
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=2)
        .training(lr=[[0, 1e-3], [60_000, 1e-4]], n_step=10, train_batch_size_per_learner=64, training_intensity=16.0, target_network_update_freq=500)
        .training(epsilon=[[0, 1.0], [10_000, 0.04]], replay_buffer_config={"type": "ReplayBuffer", "capacity": 100_000})
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh"})
        .reporting(metrics_num_episodes_for_smoothing=20, min_sample_timesteps_per_iteration=1000)
    )


def _es_cart_pole() -> AlgorithmConfig:
    return (
        ESConfig()
        .env_runners(num_envs_per_env_runner=32)
        .training(noise_stdev=0.1, stepsize=0.1, episodes_per_batch=64)
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .reporting(metrics_num_episodes_for_smoothing=64)
    )


def _sac_pendulum() -> AlgorithmConfig:
    return (
        SACConfig()
        .env_runners(num_envs_per_env_runner=4)
        .training(actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3, train_batch_size_per_learner=128, training_intensity=128.0)
        .training(num_steps_sampled_before_learning_starts=1000, replay_buffer_config={"type": "ReplayBuffer", "capacity": 100_000})
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .reporting(metrics_num_episodes_for_smoothing=10, min_sample_timesteps_per_iteration=1000)
    )


_TUNED: dict[tuple[str, str], Callable[[], AlgorithmConfig]] = {
    ("ppo", "CartPole-v1"): _ppo_cart_pole,
    ("dqn", "CartPole-v1"): _dqn_cart_pole,
    ("es", "CartPole-v1"): _es_cart_pole,
    ("sac", "Pendulum-v1"): _sac_pendulum,
}
