"""`shoal rl`: trains and evaluates from the command line."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .algorithms.algorithm import Algorithm
    from .algorithms.algorithm_config import AlgorithmConfig

# Between two lines of the table.
_EVERY_S = 1.0
_HEAD = f"{'iteration':>9}  {'steps':>9}  {'episodes':>8}  {'mean return':>11}  {'least':>8}  {'greatest':>8}  {'steps/s':>8}  {'time':>7}"


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """What can go wrong is one sentence."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        from .errors import RLError

        try:
            return function(*arguments, **options)
        except RLError as error:
            raise click.ClickException(str(error)) from error

    return called


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Reinforcement learning: train, evaluate."""


def _setting(context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise click.BadParameter(f"{one!r} is not NAME=VALUE", ctx=context)
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value  # a word
    return settings


@main.command()
@click.option("--algo", default="ppo", show_default=True, help="ppo, dqn, sac or es")
@click.option("--env", "env", required=True, help="a name of Gymnasium; MODULE:NAME imports the module that registers it first")
@click.option("--stop-reward", type=float, help="stop at this mean return; exit status 1 if another stop comes first")
@click.option("--stop-timesteps", type=click.IntRange(1), help="stop after so many environment steps")
@click.option("--stop-iters", type=click.IntRange(1), help="stop after so many iterations")
@click.option("--checkpoint-dir", type=click.Path(file_okay=False, path_type=Path), help="write a checkpoint there at the end")
@click.option("--checkpoint-freq", type=click.IntRange(1), help="and after every so many iterations")
@click.option("--restore", type=click.Path(file_okay=False, path_type=Path), help="go on from this checkpoint's weights and counters")
@click.option("--seed", type=click.IntRange(0))
@click.option("--num-env-runners", type=click.IntRange(0), help="actors that play; 0: this process")
@click.option("--num-envs-per-env-runner", type=click.IntRange(1))
@click.option("--num-learners", type=click.IntRange(0), help="actors that learn; 0: this process")
@click.option("--set", "settings", multiple=True, callback=_setting, metavar="NAME=VALUE", help="any other setting, as JSON; may be given several times")
@click.option("--json", "as_json", is_flag=True, help="one JSON object for each iteration")
@_plainly
def train(
    algo: str, env: str, stop_reward: float | None, stop_timesteps: int | None, stop_iters: int | None, checkpoint_dir: Path | None,
    checkpoint_freq: int | None, restore: Path | None, settings: dict[str, Any], as_json: bool, **named: Any,
) -> None:  # fmt: skip
    """Trains until a stop, or Ctrl-C. Without a stop it ends only so."""
    from .presets import config_of

    if checkpoint_freq is not None and checkpoint_dir is None:
        raise click.UsageError("--checkpoint-freq needs --checkpoint-dir")
    config, tuned = config_of(algo, env)
    config.update_from_dict({name: value for name, value in named.items() if value is not None} | settings)
    if not as_json:
        click.echo(f"{algo.upper()} on {env}, " + ("with settings tuned for it" if tuned else "with the algorithm's defaults"))
    algorithm = _build(config)
    try:
        if restore is not None:
            algorithm.restore_from_path(restore)
        reached = _until(algorithm, stop_reward, stop_timesteps, stop_iters, checkpoint_dir, checkpoint_freq, as_json)
        if checkpoint_dir is not None:
            algorithm.save_to_path(checkpoint_dir)
            click.echo(f"checkpoint: {checkpoint_dir}", err=as_json)
    finally:
        algorithm.stop()
    if stop_reward is not None and not reached:
        raise click.ClickException(f"a mean return of {stop_reward:g} was not reached")


def _build(config: AlgorithmConfig) -> Algorithm:
    return config.build_algo()


def _until(
    algorithm: Algorithm, reward: float | None, timesteps: int | None, iterations: int | None, folder: Path | None, frequency: int | None, as_json: bool
) -> bool:
    """Whether the reward was reached."""
    if not as_json:
        click.echo(_HEAD)
    shown = 0.0
    try:
        while True:
            result = algorithm.train()
            mean, steps = result["env_runners"]["episode_return_mean"], result["num_env_steps_sampled_lifetime"]
            window = min(int(algorithm.algo_config.metrics_num_episodes_for_smoothing), 20)
            reached = reward is not None and result["env_runners"]["num_episodes_lifetime"] >= window and mean >= reward
            over = reached or (timesteps is not None and steps >= timesteps) or (iterations is not None and algorithm.training_iteration >= iterations)
            if as_json or over or time.monotonic() - shown >= _EVERY_S:
                click.echo(json.dumps(_facts(result)) if as_json else _line(result))
                shown = time.monotonic()
            if folder is not None and frequency is not None and algorithm.training_iteration % frequency == 0:
                algorithm.save_to_path(folder)
            if over:
                return reached
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return False


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    """The result as JSON can say it: numbers that are none are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): plain(one) for name, one in value.items()}
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if isinstance(value, (int, str, bool, type(None))) else str(value)

    facts: dict[str, Any] = plain(result)
    return facts


def _line(result: dict[str, Any]) -> str:
    runners, steps = result["env_runners"], result["num_env_steps_sampled_lifetime"]
    returns = "  ".join(f"{runners[name]:>{width}.1f}" for name, width in (("episode_return_mean", 11), ("episode_return_min", 8), ("episode_return_max", 8)))
    rate = runners["num_env_steps_sampled"] / max(1e-9, result["time_this_iter_s"])
    return f"{result['training_iteration']:>9}  {steps:>9}  {runners['num_episodes_lifetime']:>8}  {returns}  {rate:>8.0f}  {result['time_total_s']:>6.1f}s"


@main.command()
@click.argument("checkpoint", type=click.Path(file_okay=False, path_type=Path))
@click.option("--episodes", type=click.IntRange(1), default=10, show_default=True)
@click.option("--explore", is_flag=True, help="draw actions rather than take the best")
@click.option("--seed", type=click.IntRange(0), help="of the episodes; without it the checkpoint's settings'")
@click.option("--json", "as_json", is_flag=True)
@_plainly
def evaluate(checkpoint: Path, episodes: int, explore: bool, seed: int | None, as_json: bool) -> None:
    """Plays episodes with the policy of a CHECKPOINT. Unpickles it: only for checkpoints that you trust."""
    from . import checkpoints

    config: AlgorithmConfig = checkpoints.read(checkpoint, "config")
    config.evaluation(evaluation_duration=episodes, evaluation_duration_unit="episodes", evaluation_num_env_runners=0, evaluation_interval=None)
    config.evaluation(evaluation_parallel_to_training=False, evaluation_config={"explore": explore, **({} if seed is None else {"seed": seed})})
    config.update_from_dict({"num_env_runners": 0} | ({"num_learners": 0} if "num_learners" in config else {}))
    algorithm = _build(config)
    try:
        algorithm.restore_from_path(checkpoint)
        metrics = algorithm.evaluate()
    finally:
        algorithm.stop()
    runners = metrics["env_runners"]
    if as_json:
        click.echo(json.dumps(_facts(metrics)))
        return
    returns = f"mean {runners['episode_return_mean']:.1f}, least {runners['episode_return_min']:.1f}, greatest {runners['episode_return_max']:.1f}"
    click.echo(f"{runners['num_episodes']} episodes: return {returns}; length {runners['episode_len_mean']:.1f}")
