"""The learning half of PPO, and its gradient in numpy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from ..core.advantages import generalized_advantages, next_values
from ..core.blas import one_blas_thread
from ..core.learner import Learner, LearnerPlan
from ..core.networks import Floats
from ..core.numpy_distributions import distribution
from ..core.numpy_learner import NumpyLearner
from ..env.fragment import Fragment
from ..settings import value_at

REPORTED = ("total_loss", "policy_loss", "vf_loss", "vf_loss_unclipped", "entropy", "mean_kl_loss")


class PPOLearner(Learner):
    """Epochs of minibatches over one batch, with the clipped objective of Schulman et al. 2017 (arXiv:1707.06347) and its adaptive KL term."""

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.kl_coeff = float(self.settings["kl_coeff"])

    @abstractmethod
    def values_of(self, observations: Floats) -> Floats:
        """The critic's, `[N]`."""

    @abstractmethod
    def add_gradient(self, rows: Floats, entropy_coeff: float, report: bool) -> list[float]:
        """Adds the gradient of the loss over `rows` (see `_rows`) to the network's; the terms of the loss, where they are to be reported."""

    def learn(self, batch: Fragment, timestep: int) -> dict[str, Any]:
        settings = self.settings
        rows, explained = self._rows(batch)
        # Ranks may hold a few rows more or less (resets take none), but must take the same number of steps.
        size = min(int(settings["minibatch_size"]), len(rows))
        steps = self.agree_least(max(1, len(rows) // size))
        lr, entropy_coeff = value_at(settings["lr"], timestep), value_at(settings["entropy_coeff"], timestep)
        epochs = int(settings["num_epochs"])
        reported: list[list[float]] = []
        for epoch in range(epochs):
            shuffled = rows[self.rng.permutation(len(rows))] if settings["shuffle_batch_per_epoch"] else rows
            for step in range(steps):
                # The remainder goes with the last minibatch rather than being a small one of its own with a noisy gradient.
                end = (step + 1) * size if step < steps - 1 else len(rows)
                last = epoch == epochs - 1
                terms = self.add_gradient(shuffled[step * size : end], entropy_coeff, last)
                if last:
                    reported.append(terms)
                self.apply(lr)
        means = np.mean(reported, axis=0).tolist()
        stats = self.average(dict(zip(REPORTED, means, strict=True)) | {"vf_explained_var": explained})
        if settings["use_kl_loss"]:
            self._adapt(stats["mean_kl_loss"])
        return stats | {
            "curr_kl_coeff": self.kl_coeff,
            "curr_entropy_coeff": entropy_coeff,
            "default_optimizer_learning_rate": lr,
            "num_module_steps_trained": epochs * len(rows),
        }

    def _adapt(self, kl: float) -> None:
        """Section 4 of the paper: the penalty follows the divergence that it should hold."""
        target = float(self.settings["kl_target"])
        if kl > 2.0 * target:
            self.kl_coeff *= 1.5
        elif kl < 0.5 * target:
            self.kl_coeff *= 0.5

    def _rows(self, fragment: Fragment) -> tuple[Floats, float]:
        """Side by side, so that an epoch shuffles once and a minibatch is a slice: observation, old outputs, action, old logp, advantage, target.

        And how much of the targets' variance the critic explains."""
        steps, envs, inputs = fragment.observations.shape
        flat = fragment.observations.reshape(-1, inputs)
        assert fragment.outputs is not None
        old = fragment.outputs.reshape(steps * envs, -1)
        actions = fragment.actions.reshape(steps * envs, -1).astype(np.float32)
        logp = distribution(old, self.plan.discrete, self.plan.spec.log_std_clip).logp(actions)
        values = self._values(fragment, flat)
        here = values[: steps * envs].reshape(steps, envs)
        done = fragment.terminated | fragment.truncated
        following = next_values(fragment, here, values[steps * envs : steps * envs + envs], values[steps * envs + envs :])
        lambda_ = float(self.settings["lambda_"]) if self.settings["use_gae"] else 1.0
        advantages = generalized_advantages(fragment.rewards, here, following, done, float(self.settings["gamma"]), lambda_)
        targets = advantages + here
        played = fragment.played
        wanted = targets[played]
        variance = float(wanted.var())
        explained = 1.0 - float((wanted - here[played]).var()) / variance if variance > 0 else 0.0
        taken = advantages[played]
        advantages = (advantages - taken.mean()) / max(1e-4, float(taken.std()))
        columns = [flat, old, actions, logp[:, None], advantages.reshape(-1, 1), targets.reshape(-1, 1)]
        packed = np.concatenate(columns, axis=1).astype(np.float32, copy=False)
        return packed if played.all() else packed[played.reshape(-1)], max(-1.0, explained)

    def _values(self, fragment: Fragment, flat: Floats) -> Floats:
        """Of all observations, then of the last ones, then of the finals. Zeros without a critic."""
        rows = np.concatenate([flat, fragment.last_observations, fragment.final_observations])
        return self.values_of(rows) if self.settings["use_critic"] else np.zeros(len(rows), np.float32)

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "kl_coeff": self.kl_coeff}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.kl_coeff = state["kl_coeff"]


class NumpyPPOLearner(PPOLearner, NumpyLearner):
    def update(self, batch: Fragment, timestep: int) -> tuple[Floats, dict[str, Any], None]:
        with one_blas_thread(batch.rewards.size * self.network.widest):
            stats = self.learn(batch, timestep)
        return self.network.get(), stats, None

    def values_of(self, observations: Floats) -> Floats:
        return self.network.critic(observations)

    def add_gradient(self, rows: Floats, entropy_coeff: float, report: bool) -> list[float]:
        settings, count = self.settings, len(rows)
        inputs, outputs = self.plan.spec.actor[0].inputs, self.plan.spec.outputs
        old, actions = rows[:, inputs : inputs + outputs], rows[:, inputs + outputs : -3]
        logp, advantages, targets = rows[:, -3], rows[:, -2], rows[:, -1]
        numbers, values, tapes = self.network.both(rows[:, :inputs])
        now = distribution(numbers, self.plan.discrete, self.plan.spec.log_std_clip)
        ratio = np.exp(now.logp(actions) - logp)
        clip = float(settings["clip_param"])
        free, bounded = advantages * ratio, advantages * np.clip(ratio, 1 - clip, 1 + clip)
        # Where the bounded one is the lesser, it does not depend on the parameters.
        by_logp = (np.where(free <= bounded, free, 0.0) * (-1.0 / count)).astype(np.float32, copy=False)
        kl_coeff = self.kl_coeff if settings["use_kl_loss"] else 0.0
        slopes = now.slopes(actions, by_logp, -entropy_coeff / count, kl_coeff / count, old)
        by_value = squared = None
        if values is not None:
            error = values - targets
            squared = error * error
            weight = 2.0 * float(settings["vf_loss_coeff"]) / count
            by_value = np.where(squared <= settings["vf_clip_param"], error * weight, 0.0).astype(np.float32, copy=False)
        self.network.backward(tapes, slopes, by_value)
        if not report:
            return []
        policy_loss, entropy = -float(np.minimum(free, bounded).mean()), float(now.entropy().mean())
        kl = float(now.divergence_from(old).mean()) if settings["use_kl_loss"] else 0.0
        value_loss = float(np.minimum(squared, settings["vf_clip_param"]).mean()) if squared is not None else 0.0
        total = policy_loss - entropy_coeff * entropy + kl_coeff * kl + float(settings["vf_loss_coeff"]) * value_loss
        return [total, policy_loss, value_loss, float(squared.mean()) if squared is not None else 0.0, entropy, kl]
