"""PPO balances a pole: every setting in one typed place, training, a checkpoint, and a look at the policy that came out.

python examples/rl_ppo_cartpole.py                              # in this process, until a mean return of 475
python examples/rl_ppo_cartpole.py --num-env-runners 2          # two actors play, this process learns
python examples/rl_ppo_cartpole.py --env-id Acrobot-v1 --target-return -100 --total-timesteps 500000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from shoal.rl import PPO, PPOConfig


@dataclass
class Settings:
    """Each field is also an argument of the program: `learning_rate` is `--learning-rate`."""

    env_id: str = "CartPole-v1"
    seed: int = 1
    total_timesteps: int = 100_000
    target_return: float = 475.0
    num_env_runners: int = 0
    num_envs: int = 8
    batch_size: int = 512
    minibatch_size: int = 128
    update_epochs: int = 10
    learning_rate: float = 2e-3
    gamma: float = 0.98
    gae_lambda: float = 0.9
    clip_coef: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    hidden: int = 64
    checkpoint_dir: str = ""


def read_settings() -> Settings:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    types = get_type_hints(Settings)
    for field in fields(Settings):
        arguments.add_argument("--" + field.name.replace("_", "-"), type=types[field.name], default=field.default, help=f"default: {field.default}")
    return Settings(**vars(arguments.parse_args()))


def configure(settings: Settings) -> PPOConfig:
    return (
        PPOConfig()
        .environment(settings.env_id)
        .env_runners(num_env_runners=settings.num_env_runners, num_envs_per_env_runner=settings.num_envs)
        .training(
            lr=[[0, settings.learning_rate], [settings.total_timesteps, settings.learning_rate / 20]],
            gamma=settings.gamma,
            lambda_=settings.gae_lambda,
            train_batch_size_per_learner=settings.batch_size,
            minibatch_size=settings.minibatch_size,
            num_epochs=settings.update_epochs,
            clip_param=settings.clip_coef,
            entropy_coeff=settings.ent_coef,
            vf_loss_coeff=settings.vf_coef,
            vf_clip_param=1e6,
            use_kl_loss=False,
            grad_clip=settings.max_grad_norm,
        )
        .rl_module(model_config={"fcnet_hiddens": [settings.hidden, settings.hidden]})
        .reporting(metrics_num_episodes_for_smoothing=20)
        .evaluation(evaluation_duration=20)
        .debugging(seed=settings.seed)
    )


def main() -> None:
    settings = read_settings()
    algorithm = configure(settings).build_algo()
    started, shown = time.perf_counter(), 0.0
    steps, mean = 0, float("-inf")
    while steps < settings.total_timesteps and not mean >= settings.target_return:
        result = algorithm.train()
        steps, mean = result["num_env_steps_sampled_lifetime"], result["env_runners"]["episode_return_mean"]
        if (now := time.perf_counter()) - shown > 0.5:
            shown = now
            entropy = result["learners"]["default_policy"]["entropy"]
            print(f"{steps:>7} steps  mean return {mean:6.1f}  entropy {entropy:.3f}  {steps / (now - started):6.0f} steps/s")
    print(f"{steps:>7} steps  mean return {mean:6.1f}  after {time.perf_counter() - started:.1f} s")

    folder = Path(settings.checkpoint_dir or tempfile.mkdtemp(prefix="rl_ppo_"))
    algorithm.save_to_path(folder)
    algorithm.stop()
    restored = PPO.from_checkpoint(folder)
    judged = restored.evaluate()["env_runners"]
    print(f"from the checkpoint {folder}: {judged['num_episodes']} episodes, mean return {judged['episode_return_mean']:.1f}")
    restored.stop()


if __name__ == "__main__":
    main()
