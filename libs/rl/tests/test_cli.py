"""`shoal rl`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from shoal.rl.cli import main

QUICK = ["--set", "train_batch_size_per_learner=64", "--set", "minibatch_size=32", "--set", "num_epochs=1", "--seed", "0"]


def shoal_rl(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_training_writes_a_checkpoint_that_can_be_evaluated_and_continued(tmp_path) -> None:
    folder = str(tmp_path / "checkpoint")
    trained = shoal_rl("train", "--algo", "ppo", "--env", "CartPole-v1", "--stop-iters", "3", "--checkpoint-dir", folder, "--checkpoint-freq", "2", *QUICK)
    assert trained.exit_code == 0, trained.output
    assert "PPO on CartPole-v1, with settings tuned for it" in trained.output and f"checkpoint: {folder}" in trained.output
    evaluated = shoal_rl("evaluate", folder, "--episodes", "3", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.output)["env_runners"]["num_episodes"] == 3
    assert "2 episodes: return mean" in shoal_rl("evaluate", folder, "--episodes", "2", "--seed", "7", "--explore").output
    again = shoal_rl("train", "--env", "CartPole-v1", "--restore", folder, "--stop-iters", "4", "--json", *QUICK)
    assert [json.loads(line)["training_iteration"] for line in again.output.splitlines()] == [4]


@pytest.mark.parametrize("algo", ["dqn", "es"])
def test_the_other_algorithms_train_too(algo) -> None:
    small = ["--seed", "1", "--set", 'model_config={"fcnet_hiddens": [8]}']
    trained = shoal_rl("train", "--algo", algo, "--env", "CartPole-v1", "--stop-timesteps", "500", *small)
    assert trained.exit_code == 0, trained.output
    assert "mean return" in trained.output


def test_a_reward_that_is_not_reached_is_an_error() -> None:
    trained = shoal_rl("train", "--env", "CartPole-v1", "--stop-reward", "450", "--stop-iters", "1", *QUICK)
    assert trained.exit_code == 1
    assert "a mean return of 450 was not reached" in trained.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--algo", "pppo", "--env", "CartPole-v1"], "there is no algorithm 'pppo'; did you mean 'ppo'?"),
        (["train", "--env", "CartPole-v11"], "no environment is named 'CartPole-v11'; did you mean 'CartPole-v1'?"),
        (["train", "--env", "CartPole-v1", "--set", "lrr=1"], "PPOConfig has no 'lrr'; did you mean 'lr'?"),
        (["train", "--env", "CartPole-v1", "--set", "lr=-1"], "lr=-1 must be > 0"),
        (["train", "--env", "CartPole-v1", "--set", "lr"], "'lr' is not NAME=VALUE"),
        (["train", "--env", "CartPole-v1", "--checkpoint-freq", "1"], "--checkpoint-freq needs --checkpoint-dir"),
        (["train", "--env", "Pendulum-v1", "--algo", "dqn"], "DQN chooses among a Discrete action space's actions"),
        (["evaluate", "no-such-folder"], "no-such-folder is not there"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, said) -> None:
    result = shoal_rl(*arguments)
    assert result.exit_code != 0
    assert said in result.output and "Traceback" not in result.output
