"""The learning half of SAC, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.blas import one_blas_thread
from ..core.learner import LearnerPlan
from ..core.networks import Floats, build_spec
from ..core.numpy_learner import NumpyLearner
from ..core.numpy_network import NumpyAdam, NumpyNetwork, clip_gradient
from ..core.policies import SQUASHED_LOG_STD
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..replay.transitions import Transitions
from ..settings import value_at

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Keeps the logarithm of 1 - action^2 finite.
_TINY = 1e-6


@dataclass(frozen=True)
class SACPlan:
    """What the learner of SAC needs besides the plan of every learner: the shape of its critics."""

    model: DefaultModelConfig
    inputs: int
    actions: int


@dataclass
class Draw:
    """Actions drawn from the policy, and what their slopes need."""

    actions: Floats  # [B, A], in (-1, 1)
    logp: Floats  # [B]
    noise: Floats
    std: Floats
    inside: NDArray[np.bool_]  # where the log deviation was not cut
    tapes: Any


class SACLearner(NumpyLearner):
    """One step of critics, policy and temperature on a batch: Haarnoja et al. 2018, arXiv:1812.05905."""

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        settings = self.settings
        shape: SACPlan = settings["sac"]
        spec = build_spec(shape.model, shape.inputs + shape.actions, 1, actor_gain=1.0)
        draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(plan.seed, spawn_key=(1 << 24,))))
        self.critics = [NumpyNetwork(spec, spec.initial(draws)) for _ in range(2 if settings["twin_q"] else 1)]
        self.targets = [NumpyNetwork(spec, critic.theta) for critic in self.critics]
        self.critic_optimizers = [NumpyAdam(critic.theta) for critic in self.critics]
        self.log_alpha = np.array([math.log(float(settings["initial_alpha"]))], np.float32)
        self.alpha_optimizer = NumpyAdam(self.log_alpha)
        wanted = settings["target_entropy"]
        self.target_entropy = -float(shape.actions) if wanted == "auto" else float(wanted)
        self.trained = 0

    @property
    def alpha(self) -> float:
        return math.exp(float(self.log_alpha[0]))

    def update(self, batch: tuple[Transitions, NDArray[np.float32]], timestep: int) -> tuple[Floats, dict[str, Any], Floats]:
        rows, weights = batch
        widest = max(self.network.widest, self.critics[0].widest)
        with one_blas_thread(len(rows) * widest):
            errors, critic_loss, mean = self._learn_critics(rows, weights, timestep)
            policy_loss, entropy = self._learn_policy(rows.observations, timestep)
            for target, critic in zip(self.targets, self.critics, strict=True):
                target.theta += float(self.settings["tau"]) * (critic.theta - target.theta)
        self.trained += 1
        stats = {
            "qf_loss": critic_loss, "policy_loss": policy_loss, "alpha_value": self.alpha, "qf_mean": mean, "entropy": entropy,
            "td_error_mean": float(np.abs(errors).mean()), "num_module_steps_trained": len(rows), "num_gradient_updates_lifetime": self.trained,
        }  # fmt: skip
        return self.network.get(), stats, errors

    def _learn_critics(self, rows: Transitions, weights: Floats, timestep: int) -> tuple[Floats, float, float]:
        drawn = self.draw(rows.next_observations)
        following = np.concatenate([rows.next_observations, drawn.actions], axis=1)
        later = np.minimum.reduce([target.actor_values(following) for target in self.targets])
        wanted = rows.rewards + rows.discounts * (later - self.alpha * drawn.logp)
        here = np.concatenate([rows.observations, rows.actions], axis=1)
        lr = value_at(self.settings["critic_lr"], timestep)
        loss = mean = 0.0
        errors = np.zeros(len(rows), np.float32)
        for critic, optimizer in zip(self.critics, self.critic_optimizers, strict=True):
            values, _, tapes = critic.both(here)
            error = values[:, 0] - wanted
            critic.backward(tapes, (weights * error / len(rows))[:, None].astype(np.float32, copy=False), None)
            self._step(critic, optimizer, lr)
            loss += 0.5 * float((weights * error * error).mean())
            mean += float(values.mean()) / len(self.critics)
            errors = errors + np.abs(error) / len(self.critics)
        return errors, loss, mean

    def _learn_policy(self, observations: Floats, timestep: int) -> tuple[float, float]:
        drawn = self.draw(observations)
        slopes, loss = self.policy_slopes(observations, drawn)
        self.network.backward(drawn.tapes, slopes, None)
        self._step(self.network, self.optimizer, value_at(self.settings["actor_lr"], timestep))
        entropy = -float(drawn.logp.mean())
        self.alpha_optimizer.step(np.array([entropy - self.target_entropy], np.float32), value_at(self.settings["alpha_lr"], timestep))
        return loss, entropy

    def _step(self, network: NumpyNetwork, optimizer: NumpyAdam, lr: float) -> None:
        clip_gradient(network.gradient, network.spec, self.settings["grad_clip"], self.settings["grad_clip_by"])
        optimizer.step(network.gradient, lr)
        network.gradient[:] = 0.0

    def draw(self, observations: Floats) -> Draw:
        """An action for each row: the hyperbolic tangent of a normal draw (appendix C of the paper)."""
        outputs, _, tapes = self.network.both(observations)
        mean, raw = np.split(outputs, 2, axis=1)
        log_std = np.clip(raw, *SQUASHED_LOG_STD)
        std, noise = np.exp(log_std), self.rng.standard_normal(mean.shape, dtype=np.float32)
        actions = np.tanh(mean + std * noise)
        logp = (-0.5 * noise * noise - log_std - _HALF_LOG_2PI - np.log(1.0 - actions * actions + _TINY)).sum(axis=1)
        inside = (raw >= SQUASHED_LOG_STD[0]) & (raw <= SQUASHED_LOG_STD[1])
        return Draw(actions, logp, noise, std, inside, tapes)

    def policy_slopes(self, observations: Floats, drawn: Draw) -> tuple[Floats, float]:
        """`[B, 2A]`: of alpha * logp - least Q, by means and log deviations, with the noise held; and that loss."""
        pairs = np.concatenate([observations, drawn.actions], axis=1)
        passes = [critic.both(pairs) for critic in self.critics]
        values = np.stack([outputs[:, 0] for outputs, _, _ in passes])
        least = values.argmin(axis=0)
        by_action = np.zeros_like(drawn.actions)
        for index, (critic, (_, _, tapes)) in enumerate(zip(self.critics, passes, strict=True)):
            slope = critic.input_slope(tapes, (least == index).astype(np.float32)[:, None])
            by_action += slope[:, observations.shape[1] :]
        squeezed = 1.0 - drawn.actions * drawn.actions
        by_draw = self.alpha * 2.0 * drawn.actions * squeezed / (squeezed + _TINY) - by_action * squeezed
        by_log_std = (by_draw * drawn.std * drawn.noise - self.alpha) * drawn.inside
        slopes = np.concatenate([by_draw, by_log_std], axis=1) / len(observations)
        return slopes.astype(np.float32, copy=False), float((self.alpha * drawn.logp - values.min(axis=0)).mean())

    def get_state(self) -> dict[str, Any]:
        own = {
            "critics": [critic.get() for critic in self.critics], "targets": [target.get() for target in self.targets], "log_alpha": self.log_alpha.copy(),
            "critic_optimizers": [optimizer.get_state() for optimizer in self.critic_optimizers], "alpha_optimizer": self.alpha_optimizer.get_state(),
            "trained": self.trained,
        }  # fmt: skip
        return {**super().get_state(), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for networks, name in ((self.critics, "critics"), (self.targets, "targets")):
            for network, theta in zip(networks, state[name], strict=True):
                network.set(theta)
        for optimizer, saved in zip(self.critic_optimizers, state["critic_optimizers"], strict=True):
            optimizer.set_state(saved)
        self.alpha_optimizer.set_state(state["alpha_optimizer"])
        self.log_alpha[:] = state["log_alpha"]
        self.trained = state["trained"]
