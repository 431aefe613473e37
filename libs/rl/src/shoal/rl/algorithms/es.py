"""Evolution strategies: Salimans, Ho, Chen, Sidor, Sutskever 2017, arXiv:1703.03864."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..connectors.running_stats import RunningStats
from ..core.networks import Floats, Layer, NetworkSpec, build_spec
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..env.fragment import Episode
from ..env.runner import EnvRunner, RunnerPlan, Spaces
from ..env.runner_group import quota
from ..settings import NotProvided, Setting, integer, number, one_of
from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig

__all__ = ["ES", "ESConfig"]

_NO_GRADIENT = "evolution strategies take no gradient through the network"


class ESConfig(AlgorithmConfig):
    """Settings of evolution strategies.

    >>> ESConfig().environment("CartPole-v1").training(noise_stdev=0.1, stepsize=0.05, episodes_per_batch=64).episodes_per_batch
    64
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "noise_stdev": Setting("training", 0.02, number(above=0.0)),
        "stepsize": Setting("training", 0.01, number(above=0.0)),
        "l2_coeff": Setting("training", 0.005, number(0)),
        "episodes_per_batch": Setting("training", 1000, integer(2)),
        "return_proc_mode": Setting("training", "centered_rank", one_of("centered_rank", "centered_sign_rank", "centered", "normalized")),
        # What explores are the parameters.
        "explore": Setting("env_runners", False, lambda value: None if value is False else "must be False: what explores are the parameters, not the actions"),
        "observation_filter": Setting("env_runners", "MeanStdFilter", one_of("NoFilter", "MeanStdFilter")),
        "num_envs_per_env_runner": Setting("env_runners", 16, integer(1)),
    }
    WITHOUT: ClassVar[dict[str, str]] = {
        "lr": "its step is `stepsize`",
        "gamma": "returns are whole episodes', undiscounted",
        "grad_clip": _NO_GRADIENT,
        "grad_clip_by": _NO_GRADIENT,
        "train_batch_size_per_learner": "a batch is `episodes_per_batch` episodes",
        "num_learners": f"{_NO_GRADIENT}, so that there is nothing for learners to share; add env runners",
        "num_cpus_per_learner": _NO_GRADIENT,
        "num_gpus_per_learner": _NO_GRADIENT,
        "custom_resources_per_learner": _NO_GRADIENT,
        "rollout_fragment_length": "env runners play whole episodes",
    }

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or ES)

    def training(
        self,
        *,
        noise_stdev: Any = NotProvided,
        stepsize: Any = NotProvided,
        l2_coeff: Any = NotProvided,
        episodes_per_batch: Any = NotProvided,
        return_proc_mode: Any = NotProvided,
        **others: Any,
    ) -> ESConfig:
        """How the parameters move.

        Args:
            noise_stdev: deviation of the perturbations.
            stepsize: Adam's.
            l2_coeff: how much of the parameters is taken off with each step.
            episodes_per_batch: episodes for one step; two for each perturbation, one with it added and one with it taken away (mirrored sampling).
            return_proc_mode: what of the returns counts: their ranks from -0.5 to 0.5 (`centered_rank`), which of a pair is better (`centered_sign_rank`),
                the returns less their mean (`centered`), and that by their deviation (`normalized`).
        """
        own = {name: value for name, value in locals().items() if name in ESConfig.SETTINGS}
        super().training(**others)
        self._set("training", own, {})
        return self


def shaped(returns: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    """`[pairs, 2]` returns as what counts of them (rank shaping: Wierstra et al. 2014, arXiv:1106.4487).

    >>> shaped(np.array([[5.0, 1.0], [9.0, 100.0]]), "centered_rank").round(3).tolist()
    [[-0.167, -0.5], [0.167, 0.5]]
    """
    if mode == "centered_sign_rank":
        return np.sign(returns - returns[:, ::-1]) / 2.0
    if mode == "centered_rank":
        flat = returns.ravel()
        # Equal returns share their mean rank: their order must not decide.
        values, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
        if len(values) == 1:
            return np.zeros_like(returns)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        ranks = (first + (counts - 1) / 2.0)[inverse]
        return (ranks / (len(flat) - 1) - 0.5).reshape(returns.shape)
    centered = returns - returns.mean()
    return centered / max(1e-8, float(returns.std())) if mode == "normalized" else centered


def perturbation(seed: int, iteration: int, pair: int, size: int) -> Floats:
    """The same in every process: runners are told numbers, never parameters beyond the current ones."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, iteration, pair)))).standard_normal(size, dtype=np.float32)


class Population:
    """One network for each environment, run together: `[N, 1, inputs] @ [N, inputs, outputs]`."""

    def __init__(self, spec: NetworkSpec, thetas: Floats) -> None:
        self.clip = spec.log_std_clip
        self._layers = [self._batched(layer, thetas) for layer in spec.actor]

    @staticmethod
    def _batched(layer: Layer, thetas: Floats) -> tuple[Floats, Floats, str]:
        split = layer.offset + layer.inputs * layer.outputs
        weights = thetas[:, layer.offset : split].reshape(-1, layer.outputs, layer.inputs)
        return weights, thetas[:, split : layer.end], layer.activation

    def __call__(self, observations: Floats) -> Floats:
        x = observations[:, :, None]
        for weights, biases, activation in self._layers:
            x = weights @ x + biases[:, :, None]
            if activation == "tanh":
                x = np.tanh(x)
            elif activation == "relu":
                x = np.maximum(x, 0.0)
        return x[:, :, 0]


@dataclass(frozen=True)
class Generation:
    """What all runners need for one generation, beside the parameters."""

    seed: int
    number: int
    noise_stdev: float
    statistics: RunningStats | None
    timeout_s: float


def play_members(runner: EnvRunner, theta: Floats, members: list[tuple[int, int]], generation: Generation) -> tuple[list[Episode], RunningStats | None]:
    """One episode of each member (pair, sign), as many at a time as the runner has environments. In the order of the members."""
    fresh = RunningStats.empty(runner.spaces.observations.size) if generation.statistics is not None else None
    episodes: list[Episode] = []
    envs = runner.plan.num_envs
    for start in range(0, len(members), envs):
        episodes.extend(_play_some(runner, theta, members[start : start + envs], start, generation, fresh))
    return episodes, fresh


def _play_some(
    runner: EnvRunner, theta: Floats, members: list[tuple[int, int]], start: int, generation: Generation, fresh: RunningStats | None
) -> list[Episode]:
    envs, spec = runner.plan.num_envs, runner.spec
    thetas = np.repeat(theta[None, : spec.actor_size], envs, axis=0)
    for row, (pair, sign) in enumerate(members):
        thetas[row] += sign * generation.noise_stdev * perturbation(generation.seed, generation.number, pair, spec.actor_size)
    act = Population(spec, thetas)
    encode, actions = runner.spaces.observations.encode, runner.spaces.actions
    # The last number keeps these draws apart from those of the perturbations.
    raw = encode(runner.stream.reset(int(np.random.SeedSequence((generation.seed, generation.number, start, 1)).generate_state(1)[0]) >> 1))
    returns, lengths = np.zeros(envs), np.zeros(envs, np.int64)
    alive = np.arange(envs) < len(members)
    statistics, deadline = generation.statistics, time.monotonic() + generation.timeout_s
    while alive.any():
        runner.require_time(deadline, generation.timeout_s, int(lengths.max()))
        if fresh is not None:
            fresh.add(raw[alive])
        outputs = act(raw if statistics is None else statistics.normalize(raw))
        chosen = outputs.argmax(axis=1) if actions.discrete else outputs[:, : actions.size]
        result = runner.stream.step(actions.to_env(chosen))
        returns += np.where(alive, result.rewards, 0.0)
        lengths += alive
        alive = alive & ~(result.terminated | result.truncated)
        raw = encode(result.observations)
    return [Episode(row, float(returns[row]), int(lengths[row])) for row in range(len(members))]


def _network(model: DefaultModelConfig, spaces: Spaces) -> NetworkSpec:
    # Actions are the network's numbers themselves: one for each, no deviations.
    return build_spec(model, spaces.observations.size, spaces.actions.size, actor_gain=1.0)


def _policy(spaces: Spaces) -> str:
    return "categorical" if spaces.actions.discrete else "deterministic"


class ES(Algorithm):
    """Perturbs the parameters, plays whole episodes, and goes where the better ones were. Needs no gradients, and sends numbers rather than parameters."""

    config_class = ESConfig

    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        return RunnerPlan.of(config, partial(_network, config.get_model_config()), _policy)

    def start_learning(self) -> None:
        self._mean, self._square, self._steps = np.zeros_like(self.theta), np.zeros_like(self.theta), 0
        seed = self.algo_config.seed
        self._noise_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)

    def training_step(self) -> dict[str, Any]:
        config, group = self.algo_config, self.env_runner_group
        pairs = math.ceil(config.episodes_per_batch / 2)
        members = [(pair, sign) for pair in range(pairs) for sign in (1, -1)]
        started = time.perf_counter()
        common = Generation(self._noise_seed, self._steps, float(config.noise_stdev), self.statistics, float(config.sample_timeout_s))
        episodes: list[Episode] = []
        seen: list[RunningStats | None] = []
        for played, fresh in self._play(members, common) if group.local is None else [play_members(group.local, self.theta, members, common)]:
            episodes.extend(played)
            seen.append(fresh)
        between = time.perf_counter()
        self.add_episodes(episodes)
        self._sampled += sum(episode.length for episode in episodes)
        if self.statistics is not None:
            self.statistics = self.statistics.copy()
            for fresh in seen:
                if fresh is not None:
                    self.statistics.merge(fresh)
        returns = np.array([episode.total_reward for episode in episodes]).reshape(pairs, 2)
        reported = self._move(shaped(returns, config.return_proc_mode))
        self._trained = self._sampled
        self._timers["env_runner_sampling_timer"] += between - started
        self._timers["learner_update_timer"] += time.perf_counter() - between
        return reported

    def _play(self, members: list[tuple[int, int]], common: Generation) -> list[tuple[list[Episode], RunningStats | None]]:
        """Each runner plays its part; the parts are as many as runners now, in the order of the members."""
        import shoal

        group = self.env_runner_group
        group.wait_ready()
        bounds = np.cumsum([0, *quota(len(members) // 2, group.count)]) * 2
        numbers = sorted(group.pids)
        parts = {number: members[a:b] for number, a, b in zip(numbers, bounds[:-1], bounds[1:], strict=True)}
        theta = shoal.put(self.theta)
        answers = group.round(
            lambda actor, number: actor.apply.remote(play_members, theta, parts[number], common),
            common.timeout_s * (1 + len(members) // (group.count * group.plan.num_envs)),
            "their part of the episodes (sample_timeout_s; raise it or lower episodes_per_batch)",
        )
        missing = [member for number in numbers if number not in answers for member in parts[number]]
        ordered = [answers[number] for number in numbers if number in answers]
        if missing:  # a runner was lost and not replaced: its part is played by the others
            return self._in_order(members, parts, answers, self._play(missing, common))
        return ordered

    @staticmethod
    def _in_order(members: list[tuple[int, int]], parts: Any, answers: dict[int, Any], more: list[Any]) -> list[tuple[list[Episode], RunningStats | None]]:
        by_member: dict[tuple[int, int], Episode] = {}
        for runner, (episodes, _) in answers.items():
            by_member.update(zip(parts[runner], episodes, strict=True))
        rest = iter(episode for episodes, _ in more for episode in episodes)
        ordered = [by_member[member] if member in by_member else next(rest) for member in members]
        seen = [fresh for _, fresh in (*answers.values(), *more)]
        return [(ordered, None), *(([], fresh) for fresh in seen)]

    def _move(self, weights: NDArray[np.float64]) -> dict[str, Any]:
        """Adam (arXiv:1412.6980) along the estimate of the gradient, equation 1 of the paper."""
        config = self.algo_config
        stdev, rate = float(config.noise_stdev), float(config.stepsize)
        gradient = np.zeros(self.spec.actor_size, np.float64)
        for pair, (plus, minus) in enumerate(weights):
            if plus != minus:
                gradient += (plus - minus) * perturbation(self._noise_seed, self._steps, pair, self.spec.actor_size)
        gradient /= weights.size * stdev
        self._steps += 1
        ascent = gradient - float(config.l2_coeff) * self.theta
        self._mean += 0.1 * (ascent - self._mean)
        self._square += 0.001 * (ascent**2 - self._square)
        step = rate * math.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps) * self._mean / (np.sqrt(self._square) + 1e-8)
        self.theta = (self.theta + step).astype(np.float32)
        return {
            "grad_norm": float(np.linalg.norm(gradient)), "weights_norm": float(np.linalg.norm(self.theta)),
            "update_ratio": float(np.linalg.norm(step) / max(1e-8, float(np.linalg.norm(self.theta)))), "num_module_steps_trained": self._sampled,
        }  # fmt: skip

    def network(self) -> Any:
        from ..core.torch_network import TorchNetwork

        return TorchNetwork(self.spec, self.theta)

    def learning_state(self) -> dict[str, Any]:
        return {"es": {"mean": self._mean, "square": self._square, "steps": self._steps, "noise_seed": self._noise_seed}}

    def set_learning_state(self, parts: dict[str, Any]) -> None:
        own = parts["es"]
        self._mean, self._square = own["mean"].copy(), own["square"].copy()
        self._steps, self._noise_seed = own["steps"], own["noise_seed"]
