"""PPO, DQN and ES in one process: they learn, continue exactly, and say what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from environments import Counter, Failing, Reach
from gymnasium.spaces import Box
from shoal.rl.algorithms.algorithm import Algorithm
from shoal.rl.algorithms.algorithm_config import AlgorithmConfig
from shoal.rl.algorithms.dqn import DQN, DQNConfig
from shoal.rl.algorithms.es import ESConfig, shaped
from shoal.rl.algorithms.ppo import PPO, PPOConfig
from shoal.rl.algorithms.sac import SACConfig
from shoal.rl.callbacks import RLlibCallback
from shoal.rl.connectors.env_to_module import MeanStdFilter
from shoal.rl.errors import CheckpointError, ConfigError, EnvError, SpaceError

SMALL = {"fcnet_hiddens": [16]}


def ppo(env="CartPole-v1", **settings) -> AlgorithmConfig:
    config = PPOConfig().environment(env).env_runners(num_envs_per_env_runner=4).rl_module(model_config=SMALL).debugging(seed=1)
    return config.training(lr=1e-3, train_batch_size_per_learner=128, minibatch_size=32, num_epochs=2).update_from_dict(settings)


def dqn(env="CartPole-v1", **settings) -> AlgorithmConfig:
    config = DQNConfig().environment(env).env_runners(num_envs_per_env_runner=2).rl_module(model_config=SMALL).debugging(seed=1)
    config.training(num_steps_sampled_before_learning_starts=50, store_buffer_in_checkpoints=True, target_network_update_freq=40, n_step=3)
    return config.reporting(min_sample_timesteps_per_iteration=150).update_from_dict(settings)


def es(env="CartPole-v1", **settings) -> AlgorithmConfig:
    config = ESConfig().environment(env).env_runners(num_envs_per_env_runner=8).rl_module(model_config=SMALL).debugging(seed=1)
    return config.training(noise_stdev=0.1, stepsize=0.1, episodes_per_batch=16).update_from_dict(settings)


def sac(env=Reach, **settings) -> AlgorithmConfig:
    config = SACConfig().environment(env).env_runners(num_envs_per_env_runner=2).rl_module(model_config=SMALL).debugging(seed=1)
    config.training(actor_lr=3e-3, critic_lr=3e-3, alpha_lr=3e-3, train_batch_size_per_learner=64, num_steps_sampled_before_learning_starts=100)
    config.training(store_buffer_in_checkpoints=True, replay_buffer_config={"type": "PrioritizedReplayBuffer", "capacity": 2000})
    return config.reporting(min_sample_timesteps_per_iteration=100).update_from_dict(settings)


def train(config: AlgorithmConfig, times: int) -> list[dict]:
    algorithm = config.build_algo()
    try:
        return [algorithm.train() for _ in range(times)]
    finally:
        algorithm.stop()


# -- learning ------------------------------------------------------------------------------------------------


def test_ppo_learns_cart_pole_in_seconds() -> None:
    config = ppo(env="CartPole-v1", train_batch_size_per_learner=512, minibatch_size=128, num_epochs=10, lr=2e-3, gamma=0.98, lambda_=0.9)
    config.training(clip_param=0.2, vf_clip_param=10_000.0, use_kl_loss=False, vf_loss_coeff=0.5, grad_clip=0.5).env_runners(num_envs_per_env_runner=8)
    config.rl_module(model_config={"fcnet_hiddens": [64, 64]}).reporting(metrics_num_episodes_for_smoothing=20)
    algorithm = config.build_algo()
    best = 0.0
    while best < 450.0:
        result = algorithm.train()
        best = result["env_runners"]["episode_return_mean"] if result["env_runners"]["num_episodes_lifetime"] >= 20 else 0.0
        assert result["num_env_steps_sampled_lifetime"] <= 60_000, f"a mean return of {best} after 60,000 steps"
    assert algorithm.evaluate()["env_runners"]["episode_return_mean"] >= 450.0
    algorithm.stop()


def test_es_learns_cart_pole_in_seconds() -> None:
    algorithm = es(episodes_per_batch=64, num_envs_per_env_runner=32).build_algo()
    best = 0.0
    while best < 450.0:
        algorithm.train()
        assert algorithm.training_iteration <= 25, f"a mean return of {best} after 25 generations"
        best = algorithm.evaluate()["env_runners"]["episode_return_mean"]
    algorithm.stop()


@pytest.mark.parametrize("free_log_std", [False, True])
def test_ppo_learns_actions_of_a_box(free_log_std) -> None:
    config = ppo(Reach, num_envs_per_env_runner=16, train_batch_size_per_learner=512, minibatch_size=128, num_epochs=8, lr=5e-3, vf_clip_param=100.0, gamma=0.0)
    config.rl_module(model_config={"fcnet_hiddens": [16], "free_log_std": free_log_std})
    algorithm = config.build_algo()
    before = algorithm.evaluate()["env_runners"]["episode_return_mean"]
    for _ in range(30):
        algorithm.train()
    after = algorithm.evaluate()["env_runners"]["episode_return_mean"]
    assert before < -0.2
    assert after > -0.12
    assert algorithm.compute_single_action(np.array([0.5], np.float32), explore=False)[0] == pytest.approx(0.5, abs=0.3)
    algorithm.stop()


def test_sac_learns_actions_of_a_box() -> None:
    algorithm = sac(gamma=0.0, training_intensity=64.0).build_algo()
    for _ in range(12):
        algorithm.train()
    assert algorithm.evaluate()["env_runners"]["episode_return_mean"] > -0.15
    algorithm.stop()
    with pytest.raises(SpaceError, match=r"SAC needs a Box action space with finite bounds; this environment's action_space is Discrete\(2\)"):
        sac("CartPole-v1").build_algo()
    with pytest.raises(ConfigError, match="normalize_actions=False cannot be"):
        sac(normalize_actions=False).build_algo()


@pytest.mark.parametrize("settings", [{"twin_q": False}, {"n_step": 3}, {"target_entropy": -0.5}, {"observation_filter": "MeanStdFilter"}])
def test_sac_runs_in_all_its_variants(settings) -> None:
    assert math.isfinite(train(sac("Pendulum-v1", **settings), 2)[-1]["learners"]["default_policy"]["qf_loss"])


def test_dqn_values_become_the_discounted_returns() -> None:
    config = dqn(lambda context: Counter(2), gamma=0.5, lr=5e-3, n_step=1, replay_buffer_config={"type": "ReplayBuffer", "capacity": 500})
    config.training(training_intensity=32.0).reporting(min_sample_timesteps_per_iteration=1500)
    config.environment(clip_rewards=None)
    algorithm = config.build_algo()
    algorithm.train()
    module = algorithm.get_module()
    episode = float(algorithm.env_runner.stream.env.envs[0].episode)
    values = module.forward_inference({"obs": np.array([[episode, 0], [episode, 1]], np.float32)})["qf_preds"].max(dim=1).values
    # Step 1 gives 1, step 2 gives 2 and is the last.
    assert values.tolist() == [pytest.approx(2.0, abs=0.5), pytest.approx(2.0, abs=0.5)]
    algorithm.stop()


# -- results -------------------------------------------------------------------------------------------------


def test_a_result_has_rays_names() -> None:
    first, second = train(ppo(evaluation_interval=2, evaluation_duration=3), 2)
    assert second["training_iteration"] == 2
    assert second["num_env_steps_sampled_lifetime"] == second["env_runners"]["num_env_steps_sampled_lifetime"]
    assert second["env_runners"].keys() >= {
        "episode_return_mean", "episode_return_min", "episode_return_max", "episode_len_mean", "num_episodes", "num_episodes_lifetime", "num_env_steps_sampled",
    }  # fmt: skip
    learner = second["learners"]["default_policy"]
    assert learner.keys() >= {"total_loss", "policy_loss", "vf_loss", "vf_explained_var", "entropy", "mean_kl_loss", "curr_kl_coeff"}
    assert all(math.isfinite(value) for value in learner.values())
    assert second["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] > 0
    assert second.keys() >= {"timers", "time_this_iter_s", "time_total_s", "fault_tolerance", "done", "date", "pid", "hostname", "iterations_since_restore"}
    assert "evaluation" not in first
    assert second["evaluation"]["env_runners"]["num_episodes"] == 3


@pytest.mark.parametrize("make", [ppo, dqn, es, sac])
def test_the_same_seed_gives_the_same_run(make) -> None:
    one, two, other = (train(make(seed=seed), 3)[-1] for seed in (5, 5, 6))
    assert one["env_runners"] == two["env_runners"]
    assert one["learners"] == two["learners"]
    assert one["learners"] != other["learners"]


@pytest.mark.parametrize(
    "settings",
    [{"double_q": False}, {"dueling": False}, {"n_step": 1}, {"td_error_loss_fn": "mse"}, {"replay_buffer_config": {"type": "ReplayBuffer", "capacity": 99}}],
)
def test_dqn_runs_in_all_its_variants(settings) -> None:
    result = train(dqn(**settings), 2)[-1]
    assert math.isfinite(result["learners"]["default_policy"]["qf_loss"])
    assert 0 < result["learners"]["default_policy"]["epsilon"] < 1


@pytest.mark.parametrize("settings", [{"use_critic": False}, {"use_gae": False}, {"use_kl_loss": False, "entropy_coeff": 0.01}, {"grad_clip": 0.1}])
def test_ppo_runs_in_all_its_variants(settings) -> None:
    assert math.isfinite(train(ppo(**settings), 2)[-1]["learners"]["default_policy"]["total_loss"])


@pytest.mark.parametrize("mode", ["centered_rank", "centered_sign_rank", "centered", "normalized"])
def test_es_runs_with_every_shaping(mode) -> None:
    assert train(es(return_proc_mode=mode, noise_stdev=0.05, stepsize=0.02), 2)[-1]["num_env_steps_sampled_lifetime"] > 0
    returns = np.array([[3.0, 1.0], [2.0, 2.0]])
    weights = shaped(returns, mode)
    assert weights.sum() == pytest.approx(0.0)
    assert weights[0, 0] > weights[0, 1] and weights[1, 0] == weights[1, 1]


def test_the_kl_coefficient_follows_the_divergence() -> None:
    far = train(ppo(lr=0.05, kl_target=1e-6), 2)[-1]["learners"]["default_policy"]
    near = train(ppo(lr=1e-7, kl_target=1.0), 2)[-1]["learners"]["default_policy"]
    assert far["curr_kl_coeff"] == pytest.approx(0.2 * 1.5**2)
    assert near["curr_kl_coeff"] == pytest.approx(0.2 * 0.5**2)


def test_iterations_last_as_long_as_they_should() -> None:
    result = train(ppo(min_sample_timesteps_per_iteration=300), 1)[0]
    assert result["num_training_step_calls_per_iteration"] == 3
    assert train(ppo(min_time_s_per_iteration=0.2), 1)[0]["time_this_iter_s"] >= 0.2


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ppo, dqn, es, sac])
@pytest.mark.parametrize("mode", ["auto", "sync"])
def test_the_continuation_from_a_checkpoint_is_that_of_the_uninterrupted_run(make, mode, tmp_path) -> None:
    config = make(gym_env_vectorize_mode=mode, observation_filter="MeanStdFilter")
    algorithm = config.build_algo()
    for _ in range(2):
        algorithm.train()
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    expected = [algorithm.train() for _ in range(2)]
    algorithm.stop()
    restored = Algorithm.from_checkpoint(path)
    assert type(restored) is type(algorithm) and restored.training_iteration == 2
    found = [restored.train() for _ in range(2)]
    restored.stop()
    for one, other in zip(expected, found, strict=True):
        for name in ("env_runners", "learners", "num_env_steps_sampled_lifetime", "training_iteration"):
            assert one[name] == other[name]
    assert found[-1]["iterations_since_restore"] == 2


def test_the_settings_of_an_algorithm_are_frozen_and_its_own() -> None:
    config = ppo()
    algorithm = config.build_algo()
    config.lr = 5.0
    assert algorithm.config.lr == algorithm.config["lr"] == 1e-3
    with pytest.raises(AttributeError, match="frozen"):
        algorithm.config.lr = 2.0
    algorithm.stop()


def test_a_checkpoint_may_be_overwritten_and_says_what_it_is(tmp_path) -> None:
    algorithm = ppo().build_algo()
    algorithm.save_to_path(tmp_path)
    algorithm.train()
    assert algorithm.save_to_path(tmp_path) == str(tmp_path)
    index = json.loads((tmp_path / "rl_checkpoint.json").read_text())
    assert (index["env"], index["training_iteration"], index["algorithm"]) == ("CartPole-v1", 1, "shoal.rl.algorithms.ppo:PPO")
    assert {entry["file"] for entry in index["files"].values()} == {path.name for path in tmp_path.iterdir()} - {"rl_checkpoint.json"}
    algorithm.restore_from_path(tmp_path)
    algorithm.stop()


def test_bad_checkpoints_are_named(tmp_path) -> None:
    algorithm = ppo().build_algo()
    good = Path(algorithm.save_to_path(tmp_path / "good"))
    with pytest.raises(CheckpointError, match="missing is not there"):
        algorithm.restore_from_path(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="it holds no checkpoint of an algorithm"):
        PPO.from_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is a checkpoint of .*PPO.*, not of DQN"):
        DQN.from_checkpoint(good)
    other = es().build_algo()
    with pytest.raises(CheckpointError, match="is a checkpoint of shoal.rl.algorithms.ppo:PPO, not of shoal.rl.algorithms.es:ES"):
        other.restore_from_path(good)
    other.stop()
    part = next(good.glob("state-*.pkl"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"state-.*\.pkl is damaged"):
        algorithm.restore_from_path(good)
    part.unlink()
    with pytest.raises(CheckpointError, match=r"state-.*\.pkl of the checkpoint cannot be read"):
        algorithm.restore_from_path(good)
    (good / "rl_checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        algorithm.restore_from_path(good)
    algorithm.stop()


def test_a_checkpoint_of_other_spaces_or_another_network_is_refused(tmp_path) -> None:
    algorithm, other, wide = ppo().build_algo(), ppo(Reach).build_algo(), ppo(model_config={"fcnet_hiddens": [17]}).build_algo()
    path = algorithm.save_to_path(tmp_path)
    with pytest.raises(SpaceError, match=r"observation_space: .* has Box\(-1.0, 1.0, \(1,\), float32\), but Box\(.*\(4,\), float32\) was expected"):
        other.restore_from_path(path)
    with pytest.raises(ConfigError, match="their model_config differ"):
        wide.restore_from_path(path)
    for one in (algorithm, other, wide):
        one.stop()


# -- acting, callbacks, modules ------------------------------------------------------------------------------


def test_single_actions_and_modules_agree() -> None:
    for config in (ppo(), dqn(), es(observation_filter="NoFilter")):
        algorithm = config.build_algo()
        algorithm.train()
        module = algorithm.get_module("default_policy")
        with pytest.raises(ConfigError, match="there is only 'default_policy'"):
            algorithm.get_module("other")
        for observation in np.random.default_rng(0).uniform(-0.1, 0.1, (5, 4)).astype(np.float32):
            said = module.forward_inference({"obs": torch.from_numpy(observation)[None]})
            expected = said["actions"][0] if "actions" in said else said["action_dist_inputs"][0].argmax()
            assert algorithm.compute_single_action(observation, explore=False) == int(expected)
        assert algorithm.compute_single_action(np.zeros(4, np.float32)) in (0, 1)
        with pytest.raises(SpaceError, match=r"compute_single_action\(\): its observation_space is Box.* but the argument returned an array of shape \(3,\)"):
            algorithm.compute_single_action(np.zeros(3))
        algorithm.stop()


def test_callbacks_see_events_and_log_metrics() -> None:
    class Watching(RLlibCallback):
        def on_algorithm_init(self, *, algorithm, metrics_logger, **kwargs) -> None:
            algorithm.seen = ["init"]

        def on_episode_end(self, *, episode, metrics_logger, env_index, **kwargs) -> None:
            metrics_logger.log_value("longest", len(episode), reduce="max")
            assert episode.get_return() == len(episode) and 0 <= env_index < 4

        def on_train_result(self, *, algorithm, metrics_logger, result, **kwargs) -> None:
            algorithm.seen.append("train")
            metrics_logger.log_value("mine", 4.0)
            result["added"] = True

        def on_evaluate_end(self, *, algorithm, metrics_logger, evaluation_metrics, **kwargs) -> None:
            algorithm.seen.append("evaluated")

    starts = []
    config = ppo(evaluation_interval=1, evaluation_duration=2).callbacks(Watching, on_sample_end=lambda *, samples, **kwargs: starts.append(len(samples)))
    algorithm = config.build_algo()
    result = algorithm.train()
    assert algorithm.seen == ["init", "evaluated", "train"]
    assert result["mine"] == 4.0 and result["added"] and result["env_runners"]["longest"] == result["env_runners"]["episode_len_max"]
    assert starts == [result["env_runners"]["num_episodes"]]
    algorithm.stop()
    with pytest.raises(ConfigError, match="must be a subclass of shoal.rl.callbacks.RLlibCallback"):
        ppo(callbacks_class=int).build_algo()


def test_observations_are_filtered_by_name_and_by_connector() -> None:
    algorithms = [
        ppo(observation_filter="MeanStdFilter").build_algo(),
        ppo().env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter()).build_algo(),
    ]
    for algorithm in algorithms:
        algorithm.train()
        assert algorithm.statistics is not None and algorithm.statistics.count == 128
        algorithm.stop()
    with pytest.raises(ConfigError, match="MeanStdFilter is the only connector"):
        ppo().env_runners(env_to_module_connector=lambda env, spaces, device: 3).build_algo()


def test_evaluation_by_ones_own_function_and_by_timesteps() -> None:
    algorithm = ppo(custom_evaluation_function=lambda algorithm, group: {"mine": group.plan.explore}).build_algo()
    assert algorithm.evaluate() == {"mine": False}
    algorithm.stop()
    algorithm = ppo(evaluation_duration=400, evaluation_duration_unit="timesteps").build_algo()
    assert 0 < algorithm.evaluate()["env_runners"]["num_env_steps_sampled"] <= 400
    algorithm.stop()


def test_episodes_that_never_end_are_an_error_rather_than_a_hang() -> None:
    algorithm = ppo(lambda context: Counter(10**9)).evaluation(evaluation_sample_timeout_s=0.2).build_algo()
    with pytest.raises(EnvError, match=r"its episodes did not end within 0.2 s, one is \d+ steps long; give it a limit"):
        algorithm.evaluate()
    algorithm.stop()
    algorithm = es(lambda context: Counter(10**9), sample_timeout_s=0.2).build_algo()
    with pytest.raises(EnvError, match=r"its episodes did not end within 0.2 s"):
        algorithm.train()
    algorithm.stop()


def test_what_cannot_be_learnt_is_said_at_the_build() -> None:
    with pytest.raises(SpaceError, match=r"DQN chooses among a Discrete action space's actions; this environment's action_space is Box\(-2.0, 2.0"):
        dqn(Reach).build_algo()
    with pytest.raises(SpaceError, match=r"action_space: environment 'CartPole-v1' has Discrete\(2\), but Box"):
        ppo(action_space=Box(0, 1, (1,), np.float32)).build_algo()
    algorithm = ppo(Failing).build_algo()
    with pytest.raises(EnvError, match="the wheel came off"):
        algorithm.train()
    algorithm.stop()
    algorithm.stop()
