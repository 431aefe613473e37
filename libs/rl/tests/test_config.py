"""Settings: names, checks, copies."""

from __future__ import annotations

import pickle

import pytest
from shoal.rl.algorithms.algorithm_config import AlgorithmConfig
from shoal.rl.algorithms.dqn import DQNConfig
from shoal.rl.algorithms.es import ESConfig
from shoal.rl.algorithms.ppo import PPO, PPOConfig
from shoal.rl.errors import ConfigError, UnknownSettingError
from shoal.rl.settings import value_at


def test_the_groups_set_what_they_name_and_chain() -> None:
    config = (
        PPOConfig()
        .environment("CartPole-v1", env_config={"sutton_barto_reward": True})
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, rollout_fragment_length=50)
        .training(lr=1e-3, gamma=0.9, train_batch_size_per_learner=800, lambda_=0.95)
        .learners(num_learners=2)
        .evaluation(evaluation_interval=3, evaluation_duration=5)
        .rl_module(model_config={"fcnet_hiddens": [32]})
        .resources(num_cpus_for_main_process=2)
        .reporting(min_sample_timesteps_per_iteration=10)
        .fault_tolerance(restart_failed_env_runners=False)
        .framework("torch")
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .debugging(seed=7)
    )
    assert (config.env, config.lr, config["gamma"], config.get("seed"), config.lambda_) == ("CartPole-v1", 1e-3, 0.9, 7, 0.95)
    assert config.total_train_batch_size == 1600
    assert config.algo_class is PPO


def test_the_defaults_are_rays() -> None:
    ppo, dqn = PPOConfig(), DQNConfig()
    assert (ppo.lr, ppo.train_batch_size_per_learner, ppo.minibatch_size, ppo.num_epochs) == (5e-5, 4000, 128, 30)
    assert (ppo.clip_param, ppo.vf_clip_param, ppo.lambda_, ppo.kl_coeff, ppo.kl_target) == (0.3, 10.0, 1.0, 0.2, 0.01)
    assert (ppo.num_env_runners, ppo.num_envs_per_env_runner, ppo.gamma, ppo.restart_failed_env_runners) == (0, 1, 0.99, True)
    assert (dqn.lr, dqn.n_step, dqn.double_q, dqn.dueling, dqn.target_network_update_freq, dqn.grad_clip) == (5e-4, 1, True, True, 500, 40.0)
    assert dqn.epsilon == [(0, 1.0), (10_000, 0.05)]
    assert ppo.get_model_config().vf_share_layers is False
    assert dqn.get_model_config().fcnet_hiddens == [256, 256]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda config: config.training(lrr=1), "PPOConfig.training() has no 'lrr'; did you mean 'lr'?"),
        (lambda config: config.training(train_batch_size=1), "did you mean 'train_batch_size_per_learner'?"),
        (lambda config: config.env_runners(num_env_runers=1), "did you mean 'num_env_runners'?"),
        (lambda config: config.env_runners(lr=1), "it is set by .training()"),
        (lambda config: config.update_from_dict({"gama": 1}), "PPOConfig has no 'gama'; did you mean 'gamma'?"),
        (lambda config: setattr(config, "sede", 1), "did you mean 'seed'?"),
        (lambda config: config.callbacks(on_train_results=print), "did you mean 'on_train_result'?"),
        (lambda config: config.rl_module(model_config={"fcnet_hidden": [1]}), "model_config has no 'fcnet_hidden'; did you mean 'fcnet_hiddens'?"),
        (lambda config: config.evaluation(evaluation_config={"explor": False}).environment("x").validate(), "did you mean 'explore'?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(call, said) -> None:
    with pytest.raises(UnknownSettingError) as caught:
        call(PPOConfig())
    assert said in str(caught.value)
    assert isinstance(caught.value, (TypeError, ValueError))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1}, "lr=-1 must be > 0"),
        ({"lr": "fast"}, "must be a finite number"),
        ({"lr": [[5, 1.0]]}, "must begin at timestep 0"),
        ({"lr": [[0, 1.0], [10, 0.0]]}, "at timestep 10 must be > 0"),
        ({"gamma": 1.5}, "gamma=1.5 must be <= 1"),
        ({"gamma": float("nan")}, "must be a finite number"),
        ({"num_env_runners": -1}, "must be >= 0"),
        ({"num_envs_per_env_runner": 1.5}, "must be a whole number"),
        ({"rollout_fragment_length": "long"}, "must be a whole number or 'auto'"),
        ({"evaluation_duration_unit": "hours"}, "must be one of 'episodes', 'timesteps'"),
        ({"framework": "tf2"}, "must be one of 'torch'"),
        ({"explore": 1}, "must be True or False"),
        ({"model_config": {"fcnet_activation": "swish"}}, "must be one of tanh, relu, linear"),
        ({"model_config": {"fcnet_hiddens": [0]}}, "must be a list of widths > 0"),
        ({"env": 3}, "must be a name, a class or a function"),
        ({"env_config": [1]}, "must be a dict"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_once(settings, said) -> None:
    with pytest.raises(ConfigError) as caught:
        PPOConfig().update_from_dict(settings)
    assert said in str(caught.value)


def test_what_must_fit_together_is_checked_at_the_build() -> None:
    with pytest.raises(ConfigError, match="no environment; set it with"):
        PPOConfig().build_algo()
    with pytest.raises(ConfigError, match=r"minibatch_size=128 is greater than train_batch_size_per_learner=64"):
        PPOConfig().environment("CartPole-v1").training(train_batch_size_per_learner=64).build_algo()
    with pytest.raises(ConfigError, match="needs evaluation_num_env_runners > 0"):
        PPOConfig().environment("CartPole-v1").evaluation(evaluation_parallel_to_training=True).build_algo()
    with pytest.raises(ConfigError, match="num_learners=4 share 1 environments"):
        PPOConfig().environment("CartPole-v1").learners(num_learners=4).build_algo()
    with pytest.raises(ConfigError, match="is of no algorithm"):
        AlgorithmConfig().environment("CartPole-v1").build_algo()
    with pytest.raises(ConfigError, match="no old API stack"):
        PPOConfig().api_stack(enable_rl_module_and_learner=False)


def test_a_frozen_configuration_does_not_change_and_its_copy_does() -> None:
    config = PPOConfig().training(lr=1e-3)
    config.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        config.training(lr=1)
    copy = config.copy(copy_frozen=False)
    copy.lr = 1.0
    assert (config.lr, copy.lr) == (1e-3, 1.0)
    with pytest.raises(AttributeError, match="frozen"):
        config.copy().lr = 2.0


def test_copies_share_no_containers() -> None:
    config = PPOConfig().environment("CartPole-v1", env_config={"a": 1})
    config.copy().env_config["a"] = 2
    assert config.env_config == {"a": 1}
    assert PPOConfig().env_config == {}


def test_dicts_and_pickles_come_back_equal() -> None:
    config = PPOConfig().environment("CartPole-v1").training(lr=[[0, 1e-3], [100, 1e-4]]).debugging(seed=1)
    assert PPOConfig.from_dict(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert "lr=" in repr(config) and "gamma" not in repr(config)
    assert PPOConfig.overrides(explore=False) == {"explore": False}


def test_settings_without_a_use_are_refused_rather_than_ignored() -> None:
    with pytest.raises(UnknownSettingError, match="ESConfig.training.* has no 'lr': its step is `stepsize`"):
        ESConfig().training(lr=0.1)
    with pytest.raises(UnknownSettingError, match="add env runners"):
        ESConfig().learners(num_learners=2)
    with pytest.raises(UnknownSettingError, match="minibatch_size"):
        DQNConfig().training(minibatch_size=2)
    with pytest.raises(ConfigError, match="ReplayBuffer knows capacity, type"):
        DQNConfig().training(replay_buffer_config={"type": "ReplayBuffer", "alpha": 1})


def test_schedules_are_linear_between_their_points() -> None:
    schedule = [[0, 1.0], [10, 0.0], [20, 5.0]]
    assert [value_at(schedule, step) for step in (0, 5, 10, 15, 20, 1000)] == [1.0, 0.5, 0.0, 2.5, 5.0, 5.0]


def test_evaluation_has_its_own_settings() -> None:
    config = PPOConfig().environment("CartPole-v1").evaluation(evaluation_config={"env_config": {"x": 1}}, evaluation_sample_timeout_s=3)
    own = config.get_evaluation_config_object()
    assert (own.explore, own.env_config, own.sample_timeout_s, config.explore) == (False, {"x": 1}, 3, True)
