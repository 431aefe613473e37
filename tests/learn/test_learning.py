"""The algorithms of shoal.rl learn, each on three seeds, with their preset. `make learn`, not part of `make test`:
about two minutes on an idle machine of two cores, and never more than an hour, since each of the twelve has five minutes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from shoal.rl.presets import config_of


@dataclass(frozen=True)
class Task:
    """A mean return of 20 episodes, to be reached within so many environment steps; `look`: steps between two looks."""

    algorithm: str
    env: str
    goal: float
    steps: int
    look: int


TASKS = [
    Task("ppo", "CartPole-v1", 450.0, 100_000, 2_000),
    Task("dqn", "CartPole-v1", 450.0, 100_000, 4_000),
    # Plays whole generations, of which none is learnt from step by step.
    Task("es", "CartPole-v1", 450.0, 500_000, 1),
    Task("sac", "Pendulum-v1", -200.0, 20_000, 1_000),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.algorithm}-{task.env}")
def test_the_goal_is_reached(task: Task, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    config, tuned = config_of(task.algorithm, task.env)
    assert tuned
    config.debugging(seed=seed).evaluation(evaluation_duration=20).reporting(min_sample_timesteps_per_iteration=task.look)
    algorithm = config.build_algo()
    best = float("-inf")
    try:
        while best < task.goal:
            result = algorithm.train()
            steps = result["num_env_steps_sampled_lifetime"]
            best = max(best, algorithm.evaluate()["env_runners"]["episode_return_mean"])
            assert steps <= task.steps + task.look, f"the best mean return of 20 episodes was {best} within {steps} steps"
    finally:
        algorithm.stop()
    with capsys.disabled():
        print(f"\n{task.algorithm} on {task.env}, seed {seed}: {best:.0f} after {steps} steps, {result['time_total_s']:.1f} s of training", end="")
