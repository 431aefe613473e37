"""PPO on CartPole-v1, 8 environments: how soon it is ready, how fast it goes, how soon it holds the pole for 450 steps on average.

    python benchmarks/rl.py                                     # ours: one env runner as an actor, and all in one process
    python benchmarks/rl.py --peer PYTHON                       # beside Ray's RLlib in PYTHON's environment
    python benchmarks/rl.py --peer PYTHON --peer-single PYTHON  # and beside Stable-Baselines3 (one process)

Every row is a fresh process with the same settings (batch 512, minibatch 128, 10 epochs, two layers of 64). `ready` is from the first import until the
algorithm is built: importing, starting the runtime, building. `steps/s` is sampling and learning together, without the first iteration. `to 450` is
training time until the last 20 episodes have a mean return of 450. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

ENVS, BATCH, MINIBATCH, EPOCHS, LR, GAMMA, LAMBDA, CLIP = 8, 512, 128, 10, 2e-3, 0.98, 0.9, 0.2
GOAL, MAX_STEPS, MIN_STEPS = 450.0, 100_000, 20_000
# Limit: of one row.
TIMEOUT_S = 900.0


def configured(config: Any, runners: int, seed: int) -> Any:
    """The same calls for both libraries, since the names are."""
    return (
        config.environment("CartPole-v1")
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=ENVS)
        .training(lr=LR, gamma=GAMMA, lambda_=LAMBDA, train_batch_size_per_learner=BATCH, minibatch_size=MINIBATCH, num_epochs=EPOCHS)
        .training(clip_param=CLIP, vf_clip_param=10_000.0, vf_loss_coeff=0.5, use_kl_loss=False, grad_clip=0.5)
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .reporting(metrics_num_episodes_for_smoothing=20)
        .debugging(seed=seed)
    )


def trained(train: Callable[[], tuple[int, float]], ready_s: float) -> dict[str, float | None]:
    """`train()` does one iteration and gives all steps so far and the mean return."""
    started = time.perf_counter()
    first_steps, mean = train()
    first_s = time.perf_counter() - started
    steps, reached_s, reached_steps = first_steps, None, None
    while steps < MIN_STEPS or (reached_s is None and steps < MAX_STEPS):
        steps, mean = train()
        if reached_s is None and mean >= GOAL:
            reached_s, reached_steps = time.perf_counter() - started, steps
    rate = (steps - first_steps) / (time.perf_counter() - started - first_s)
    return {"ready_s": ready_s, "first_s": first_s, "steps_per_s": rate, "to_goal_s": reached_s, "to_goal_steps": reached_steps}


def of_result(algorithm: Any) -> Callable[[], tuple[int, float]]:
    def train() -> tuple[int, float]:
        result = algorithm.train()
        return int(result["num_env_steps_sampled_lifetime"]), float(result["env_runners"].get("episode_return_mean", 0.0))

    return train


def ours(runners: int, seed: int) -> dict[str, float | None]:
    started = time.perf_counter()
    import shoal
    from shoal.rl import PPOConfig

    if runners:
        shoal.init(address="local", num_cpus=2)
    algorithm = configured(PPOConfig(), runners, seed).build_algo()
    figures = trained(of_result(algorithm), time.perf_counter() - started)
    algorithm.stop()
    if runners:
        shoal.shutdown()
    return figures


def peers(runners: int, seed: int) -> dict[str, float | None]:
    started = time.perf_counter()
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    algorithm = configured(PPOConfig(), runners, seed).build_algo()
    figures = trained(of_result(algorithm), time.perf_counter() - started)
    algorithm.stop()
    ray.shutdown()
    return figures


def single(_runners: int, seed: int) -> dict[str, float | None]:
    started = time.perf_counter()
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=ENVS, seed=seed), n_steps=BATCH // ENVS, batch_size=MINIBATCH, n_epochs=EPOCHS, learning_rate=LR,
        gamma=GAMMA, gae_lambda=LAMBDA, clip_range=CLIP, max_grad_norm=0.5, vf_coef=0.5, policy_kwargs={"net_arch": [64, 64]}, seed=seed, device="cpu",
    )  # fmt: skip
    ready_s = time.perf_counter() - started
    last: deque[float] = deque(maxlen=20)

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            last.extend(float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info)
            return True

    def train() -> tuple[int, float]:
        model.learn(BATCH, callback=Watch(), reset_num_timesteps=False)
        return int(model.num_timesteps), sum(last) / len(last) if len(last) == last.maxlen else 0.0

    return trained(train, ready_s)


ROWS: dict[str, Callable[[int, int], dict[str, float | None]]] = {"shoal": ours, "ray": peers, "sb3": single}


def measured(python: str, row: str, runners: int, seed: int) -> dict[str, Any]:
    command = [python, os.path.abspath(__file__), "--row", row, "--runners", str(runners), "--seed", str(seed)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    for line in reversed(ran.stdout.splitlines()):
        if line.startswith("{"):
            figures: dict[str, Any] = json.loads(line)
            return figures
    raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")


def line(name: str, figures: dict[str, Any], base: dict[str, Any] | None) -> str:
    def times(key: str, less_is_better: bool) -> str:
        if base is None or not figures[key] or not base[key]:
            return f"{'':>7}"
        return f"{figures[key] / base[key] if less_is_better else base[key] / figures[key]:>6.1f}x"

    to = f"{figures['to_goal_s']:>6.1f} s" if figures["to_goal_s"] else "   never"
    steps = f"{figures['to_goal_steps']:>6}" if figures["to_goal_steps"] else f"{'':>6}"
    ready, rate = f"{figures['ready_s']:>6.2f} s {times('ready_s', True)}", f"{figures['steps_per_s']:>7.0f} {times('steps_per_s', False)}"
    return f"{name:<44}{ready}  {rate}  {to} {times('to_goal_s', True)} {steps}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with ray[rllib]: its rows, and how many times theirs ours are")
    parser.add_argument("--peer-single", metavar="PYTHON", help="a Python with stable-baselines3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--runners", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(ROWS[given.row](given.runners, given.seed)), flush=True)
        return 0
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; 'x': so many times ours")
    print(f"{'':<44}{'ready':>8} {'':>7}  {'steps/s':>7} {'':>7}  {'to 450':>8} {'':>7} {'steps':>6}")
    base: dict[int, dict[str, Any]] = {}
    for runners, name in ((1, "shoal, 1 env runner as an actor"), (0, "shoal, one process")):
        base[runners] = measured(sys.executable, "shoal", runners, given.seed)
        print(line(name, base[runners], None), flush=True)
    if given.peer:
        for runners, name in ((1, "ray rllib, 1 env runner as an actor"), (0, "ray rllib, sampling in the driver")):
            print(line(name, measured(given.peer, "ray", runners, given.seed), base[runners]), flush=True)
    if given.peer_single:
        print(line("stable-baselines3, one process", measured(given.peer_single, "sb3", 0, given.seed), base[0]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
