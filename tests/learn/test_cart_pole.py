"""The algorithms of shoal.rl learn CartPole-v1, each on three seeds, with their preset. Minutes: `make learn`, not part of `make test`."""

from __future__ import annotations

import pytest
from shoal.rl.presets import config_of

# A mean return of 450 must be reached within so many environment steps; ES plays whole generations, of which none is learnt from step by step.
STEPS = {"ppo": 100_000, "dqn": 100_000, "es": 500_000}
LOOKS = {"ppo": 2_000, "dqn": 4_000, "es": 1}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["ppo", "dqn", "es"])
def test_cart_pole_is_held_for_450_steps_on_average(name: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    config, tuned = config_of(name, "CartPole-v1")
    assert tuned
    config.debugging(seed=seed).evaluation(evaluation_duration=20).reporting(min_sample_timesteps_per_iteration=LOOKS[name])
    algorithm = config.build_algo()
    best = 0.0
    try:
        while best < 450.0:
            result = algorithm.train()
            steps = result["num_env_steps_sampled_lifetime"]
            best = max(best, algorithm.evaluate()["env_runners"]["episode_return_mean"])
            assert steps <= STEPS[name], f"{name}, seed {seed}: the best mean return of 20 episodes was {best} within {steps} steps"
    finally:
        algorithm.stop()
    with capsys.disabled():
        print(f"\n{name}, seed {seed}: {best:.0f} after {steps} steps, {result['time_total_s']:.1f} s of training", end="")
