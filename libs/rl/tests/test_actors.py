"""Env runners and learners as actors: faults, equality, resources."""

from __future__ import annotations

import os
import signal

import numpy as np
import psutil
import pytest
import shoal
from environments import Counter, Failing
from shoal.rl.algorithms.dqn import DQNConfig
from shoal.rl.algorithms.es import ESConfig
from shoal.rl.algorithms.ppo import PPOConfig
from shoal.rl.callbacks import RLlibCallback
from shoal.rl.env.registry import register_env
from shoal.rl.env.runner_group import Fleet
from shoal.rl.errors import EnvError, EnvRunnersLostError, LearnerLostError

pytestmark = pytest.mark.usefixtures("cluster")
SMALL = {"fcnet_hiddens": [16]}


def ppo(runners: int, **settings) -> PPOConfig:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=runners, num_envs_per_env_runner=4).rl_module(model_config=SMALL)
    config.env_runners(num_cpus_per_env_runner=0.5).debugging(seed=1)
    return config.training(train_batch_size_per_learner=128, minibatch_size=32, num_epochs=2, lr=1e-3).update_from_dict(settings)


def dqn(runners: int) -> DQNConfig:
    config = DQNConfig().environment("CartPole-v1").env_runners(num_env_runners=runners, num_envs_per_env_runner=2, rollout_fragment_length=8)
    config.env_runners(num_cpus_per_env_runner=0.5).rl_module(model_config=SMALL).reporting(min_sample_timesteps_per_iteration=200)
    return config.training(n_step=3, num_steps_sampled_before_learning_starts=100)


def es(runners: int) -> ESConfig:
    config = ESConfig().environment("CartPole-v1").env_runners(num_env_runners=runners, num_envs_per_env_runner=8).rl_module(model_config=SMALL)
    return config.env_runners(num_cpus_per_env_runner=0.5).training(episodes_per_batch=32, noise_stdev=0.1).debugging(seed=1)


@pytest.mark.parametrize("make", [ppo, dqn, es])
def test_a_killed_env_runner_is_replaced_and_sampling_goes_on(make) -> None:
    algorithm = make(2).build_algo()
    before = algorithm.train()["num_env_steps_sampled_lifetime"]
    first = dict(algorithm.env_runner_group.pids)
    os.kill(first[1], signal.SIGKILL)
    results = [algorithm.train() for _ in range(2)]
    assert results[-1]["num_env_steps_sampled_lifetime"] > before
    assert results[-1]["fault_tolerance"] == {"num_healthy_workers": 2, "num_remote_worker_restarts": 1, "num_env_runners_dropped_lifetime": 0}
    assert algorithm.env_runner_group.pids[1] != first[1] and algorithm.env_runner_group.pids[2] == first[2]
    algorithm.stop()


def test_runners_lost_are_done_without_or_are_an_error_as_the_settings_say() -> None:
    algorithm = ppo(2, restart_failed_env_runners=False, ignore_env_runner_failures=True).build_algo()
    algorithm.train()
    os.kill(algorithm.env_runner_group.pids[2], signal.SIGKILL)
    result = algorithm.train()
    assert result["fault_tolerance"]["num_healthy_workers"] == 1 and result["fault_tolerance"]["num_env_runners_dropped_lifetime"] == 1
    os.kill(algorithm.env_runner_group.pids[1], signal.SIGKILL)
    with pytest.raises(EnvRunnersLostError, match=r"env runner 1 was lost \(.*\), and it was the last one"):
        algorithm.train()
    algorithm.stop()
    algorithm = ppo(1, restart_failed_env_runners=False).build_algo()
    os.kill(algorithm.env_runner_group.pids[1], signal.SIGKILL)
    with pytest.raises(EnvRunnersLostError, match="restart_failed_env_runners and ignore_env_runner_failures are both False"):
        algorithm.train()
    algorithm.stop()


def test_a_runner_whose_environment_ends_its_process_is_not_started_for_ever() -> None:
    with pytest.raises(EnvRunnersLostError, match="env runner 1 ended 3 times in a row while it made its environments"):
        ppo(1, env=deadly).build_algo()


def deadly(context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_restarts_have_a_limit() -> None:
    fleet = Fleet(3, restart=True, ignore=True, limit=1)
    assert [fleet.lost(2, "x"), fleet.lost(2, "x"), fleet.lost(1, "x")] == ["replace", "drop", "drop"]
    with pytest.raises(EnvRunnersLostError, match="1 of at most max_num_env_runner_restarts=1"):
        fleet.lost(3, "x")


def test_dropped_runners_part_of_a_generation_is_played_by_the_others() -> None:
    config = es(2)
    config.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True)
    algorithm = config.build_algo()
    os.kill(algorithm.env_runner_group.pids[1], signal.SIGKILL)
    result = algorithm.train()
    assert result["env_runners"]["num_episodes"] == 32
    algorithm.stop()


def test_what_an_environment_raises_in_an_actor_comes_back_as_it_is() -> None:
    algorithm = ppo(1, env=Failing).build_algo()
    with pytest.raises(EnvError, match="environment Failing: .* raised ZeroDivisionError: the wheel came off"):
        algorithm.train()
    algorithm.stop()
    with pytest.raises(EnvError, match=r"cannot be made with \{\}: RuntimeError: no such wheel"):
        ppo(1, env=no_wheel).build_algo()


def no_wheel(context) -> None:
    raise RuntimeError("no such wheel")


def test_registered_environments_reach_the_actors() -> None:
    register_env("counter_for_actor_tests", lambda context: Counter(context["length"], truncate=True))
    algorithm = ppo(1, env="counter_for_actor_tests", env_config={"length": 5}).build_algo()
    assert algorithm.train()["env_runners"]["episode_len_mean"] == 5.0
    algorithm.stop()


def test_a_runner_that_cannot_be_placed_is_an_error_that_says_what_it_asks_for() -> None:
    with pytest.raises((EnvRunnersLostError, shoal.exceptions.RayError), match="wheels"):
        ppo(1, custom_resources_per_env_runner={"wheels": 1}, env_runner_restore_timeout_s=2.0).build_algo()


def test_a_runner_that_takes_too_long_is_named() -> None:
    algorithm = ppo(1, sample_timeout_s=0.001, rollout_fragment_length=20_000).build_algo()
    with pytest.raises(EnvRunnersLostError, match=r"env runners \[1\] \(of 1\) have not returned 20000 steps"):
        algorithm.train()
    algorithm.stop()


def test_evaluation_runs_beside_training_and_callbacks_run_in_the_actors() -> None:
    class Recreated(RLlibCallback):
        def on_env_runners_recreated(self, *, algorithm, env_runner_indices, **kwargs) -> None:
            algorithm.recreated = env_runner_indices

        def on_episode_end(self, *, episode, metrics_logger, **kwargs) -> None:
            metrics_logger.log_value("pids", os.getpid(), reduce="max")

    config = ppo(1).evaluation(evaluation_interval=1, evaluation_num_env_runners=2, evaluation_parallel_to_training=True, evaluation_duration=5)
    algorithm = config.callbacks(Recreated).build_algo()
    result = algorithm.train()
    assert result["evaluation"]["env_runners"]["num_episodes"] == 5
    assert result["env_runners"]["pids"] == algorithm.env_runner_group.pids[1] != os.getpid()
    os.kill(algorithm.env_runner_group.pids[1], signal.SIGKILL)
    algorithm.train()
    assert algorithm.recreated == [1]
    assert algorithm.env_runner_group.foreach_env_runner(os_pid) == [algorithm.env_runner_group.pids[1]]
    algorithm.stop()


def test_environments_in_processes_of_their_own_end_with_their_runner() -> None:
    algorithm = ppo(1, gym_env_vectorize_mode="async").build_algo()
    algorithm.train()
    children = algorithm.env_runner_group.foreach_env_runner(environment_pids)[0]
    assert len(children) == 4
    algorithm.stop()
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in children if psutil.pid_exists(pid)], timeout=20.0)
    assert not left


def environment_pids(runner) -> list[int]:
    return [process.pid for process in runner.stream.env.processes]


def os_pid(runner) -> int:
    return os.getpid()


def test_two_learners_learn_what_one_learns() -> None:
    def thetas(learners: int) -> tuple[np.ndarray, dict]:
        # One minibatch of the whole batch, in order: nothing is left to how rows are dealt out. Advantages are standardised by each learner alone, and
        # rewards of 1 in equal numbers make those alike only for the values' part of the loss.
        config = ppo(0, num_epochs=1, minibatch_size=64, train_batch_size_per_learner=128 // max(1, learners), shuffle_batch_per_epoch=False)
        config.training(use_kl_loss=False).learners(num_learners=learners, num_cpus_per_learner=1).env_runners(rollout_fragment_length=32)
        algorithm = config.training(minibatch_size=128 // max(1, learners)).build_algo()
        result = algorithm.train()["learners"]["default_policy"]
        states = algorithm.learner_group.get_state()
        assert all(np.array_equal(states[0]["theta"], state["theta"]) for state in states)
        critic = algorithm.spec.critic[0].offset
        algorithm.stop()
        return states[0]["theta"][critic:], result

    (one, _), (two, _) = thetas(0), thetas(2)
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_learners_checkpoint_and_continue(tmp_path) -> None:
    config = ppo(1).learners(num_learners=2, num_cpus_per_learner=0)
    algorithm = config.build_algo()
    algorithm.train()
    path = algorithm.save_to_path(tmp_path)
    restored = config.build_algo()
    restored.restore_from_path(path)
    assert np.array_equal(restored.theta, algorithm.theta)
    assert restored.train()["training_iteration"] == 2
    os.kill(restored.learner_group.pids[1], signal.SIGKILL)
    with pytest.raises(LearnerLostError, match="restore from the last checkpoint"):
        restored.train()
    restored.stop()
    algorithm.stop()
