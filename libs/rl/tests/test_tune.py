"""Algorithms as trainables of shoal.tune."""

from __future__ import annotations

import subprocess
import sys

import pytest
from environments import Counter
from shoal import tune
from shoal.rl.algorithms.ppo import PPO, PPOConfig
from shoal.rl.env.registry import register_env
from shoal.tune.schedulers import PopulationBasedTraining

pytestmark = pytest.mark.usefixtures("cluster")
SMALL = {"fcnet_hiddens": [8]}


def small() -> PPOConfig:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_envs_per_env_runner=2).rl_module(model_config=SMALL).debugging(seed=0)
    return config.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)


def run_config(tmp_path, iterations: int, **more) -> tune.RunConfig:
    return tune.RunConfig(name="rl", storage_path=str(tmp_path), stop={"training_iteration": iterations}, verbose=0, **more)


def test_a_configuration_is_a_search_space(tmp_path) -> None:
    register_env("counter_for_tune_tests", lambda context: Counter(context["length"], truncate=True))
    config = small().environment("counter_for_tune_tests", env_config={"length": tune.grid_search([3, 5])})
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5).training(lr=tune.loguniform(1e-4, 1e-2)).resources(num_cpus_for_main_process=0.5)
    results = tune.Tuner("PPO", param_space=config, run_config=run_config(tmp_path, 2)).fit()
    assert not results.errors
    assert sorted(result.metrics["env_runners"]["episode_len_mean"] for result in results) == [3.0, 5.0]
    best = results.get_best_result(metric="env_runners/episode_return_mean", mode="max")
    assert best.config["env_config"] == {"length": 5}
    assert all(result.metrics["training_iteration"] == 2 for result in results)


def test_trials_are_copied_and_go_on_with_other_settings(tmp_path) -> None:
    mutations = {"lr": [1e-3, 1e-4]}
    scheduler = PopulationBasedTraining(perturbation_interval=1, hyperparam_mutations=mutations, quantile_fraction=0.5, time_attr="training_iteration")
    results = tune.Tuner(
        PPO,
        param_space=small().training(lr=tune.choice([1e-3, 1e-4])),
        tune_config=tune.TuneConfig(num_samples=2, scheduler=scheduler, metric="env_runners/episode_return_mean", mode="max"),
        run_config=run_config(tmp_path, 4, checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1)),
    ).fit()
    assert not results.errors
    assert [result.metrics["training_iteration"] for result in results] == [4, 4]
    restored = PPO.from_checkpoint(results[0].checkpoint)
    assert restored.training_iteration == 4
    restored.stop()


def test_what_a_trial_asks_for() -> None:
    config = small().env_runners(num_env_runners=2, num_cpus_per_env_runner=3).learners(num_learners=1, num_gpus_per_learner=1)
    asked = PPO.default_resource_request(config.to_dict())
    assert asked.bundles == [{"CPU": 1}, {"CPU": 3}, {"CPU": 3}, {"CPU": 1, "GPU": 1}]


def test_save_and_restore_as_every_trainable(tmp_path) -> None:
    algorithm = small().build_algo()
    algorithm.train()
    path = algorithm.save(str(tmp_path / "saved"))
    other = small().build_algo()
    other.restore(path)
    assert other.training_iteration == 1 and (other.theta == algorithm.theta).all()
    algorithm.stop()
    other.stop()


def test_tune_knows_algorithms_by_name_and_imports_them_when_one_is_asked_for() -> None:
    code = "import sys; from shoal import tune; t = tune.Tuner; before = 'shoal.rl' in sys.modules; print(before, t('PPO')._trainable, t('SAC')._trainable)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False <class 'shoal.rl.algorithms.ppo.PPO'> <class 'shoal.rl.algorithms.sac.SAC'>\n"


def test_an_environment_may_be_registered_with_either_library() -> None:
    assert tune.register_env is register_env
