"""The learning half of PPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..core.advantages import generalized_advantages, next_values
from ..core.distributions import distribution
from ..core.learner import Learner, LearnerPlan
from ..core.networks import Floats
from ..env.fragment import Fragment
from ..settings import value_at

_REPORTED = ("total_loss", "policy_loss", "vf_loss", "vf_loss_unclipped", "entropy", "mean_kl_loss")


class PPOLearner(Learner):
    """Epochs of minibatches over one batch, with the clipped objective of Schulman et al. 2017 (arXiv:1707.06347) and its adaptive KL term."""

    def __init__(self, plan: LearnerPlan, rank: int = 0, world: int = 1) -> None:
        super().__init__(plan, rank, world)
        self.kl_coeff = float(self.settings["kl_coeff"])

    def _learn(self, batch: Fragment, timestep: int) -> tuple[dict[str, Any], Any]:
        rows, explained = self._rows(batch)
        # Ranks may hold a few rows more or less (resets take none), but must take the same number of steps.
        size = min(int(self.settings["minibatch_size"]), len(rows))
        steps = self.agree_least(max(1, len(rows) // size))
        size = min(size, len(rows) // steps) if self._grouped else size
        lr = value_at(self.settings["lr"], timestep)
        entropy_coeff = value_at(self.settings["entropy_coeff"], timestep)
        epochs = int(self.settings["num_epochs"])
        reported: list[torch.Tensor] = []
        for epoch in range(epochs):
            shuffled = rows[torch.from_numpy(self.rng.permutation(len(rows))).to(rows.device)] if self.settings["shuffle_batch_per_epoch"] else rows
            for step in range(steps):
                end = (step + 1) * size if step < steps - 1 or self._grouped else len(rows)
                # The remainder goes with the last minibatch rather than being a small one of its own with a noisy gradient.
                terms = self._gradient(shuffled[step * size : end], entropy_coeff)
                if epoch == epochs - 1:
                    reported.append(terms)
                self.apply(lr)
        means = torch.stack(reported).mean(dim=0).tolist()
        stats = self.average(dict(zip(_REPORTED, means, strict=True)) | {"vf_explained_var": explained})
        if self.settings["use_kl_loss"]:
            self._adapt(stats["mean_kl_loss"])
        return stats | {
            "curr_kl_coeff": self.kl_coeff,
            "curr_entropy_coeff": entropy_coeff,
            "default_optimizer_learning_rate": lr,
            "num_module_steps_trained": epochs * len(rows),
        }, None

    def _adapt(self, kl: float) -> None:
        """Section 4 of the paper: the penalty follows the divergence that it should hold."""
        target = float(self.settings["kl_target"])
        if kl > 2.0 * target:
            self.kl_coeff *= 1.5
        elif kl < 0.5 * target:
            self.kl_coeff *= 0.5

    def _rows(self, fragment: Fragment) -> tuple[torch.Tensor, float]:
        """Side by side, so that an epoch shuffles once and a minibatch is a slice: observation, old outputs, action, old logp, advantage, target."""
        steps, envs, inputs = fragment.observations.shape
        flat = fragment.observations.reshape(-1, inputs)
        outputs = fragment.outputs
        assert outputs is not None
        with torch.no_grad():
            values = self._values(fragment, flat)
            old = self.tensor(outputs.reshape(steps * envs, -1))
            actions = self.tensor(fragment.actions.reshape(steps * envs, -1).astype(np.float32))
            logp = distribution(old, self.plan.discrete, self.plan.spec.log_std_clip).logp(actions)
        here = values[: steps * envs].reshape(steps, envs)
        done = fragment.terminated | fragment.truncated
        following = next_values(fragment, here, values[steps * envs : steps * envs + envs], values[steps * envs + envs :])
        lambda_ = float(self.settings["lambda_"]) if self.settings["use_gae"] else 1.0
        advantages = generalized_advantages(fragment.rewards, here, following, done, float(self.settings["gamma"]), lambda_)
        targets = advantages + here
        played = fragment.played
        if not self.settings["use_critic"]:
            advantages = targets
        wanted = targets[played]
        variance = float(wanted.var())
        explained = 1.0 - float((wanted - here[played]).var()) / variance if variance > 0 else 0.0
        taken = advantages[played]
        advantages = (advantages - taken.mean()) / max(1e-4, float(taken.std()))
        packed = torch.cat(
            [self.tensor(flat), old, actions, logp.unsqueeze(1), self.tensor(advantages.reshape(-1, 1)), self.tensor(targets.reshape(-1, 1))], dim=1
        )
        if not played.all():
            packed = packed[self.tensor(played.reshape(-1))]
        return packed, max(-1.0, explained)

    def _values(self, fragment: Fragment, flat: Floats) -> Floats:
        """Of all observations, then of the last ones, then of the finals. Zeros without a critic."""
        rows = np.concatenate([flat, fragment.last_observations, fragment.final_observations])
        if not self.settings["use_critic"]:
            return np.zeros(len(rows), np.float32)
        values: Floats = self.network.critic(self.tensor(rows)).cpu().numpy()
        return values

    def _gradient(self, rows: torch.Tensor, entropy_coeff: float) -> torch.Tensor:
        """Adds the loss's gradient to the network's; the terms of the loss."""
        settings = self.settings
        inputs, outputs = self.plan.spec.actor[0].inputs, self.plan.spec.outputs
        observations, old = rows[:, :inputs], rows[:, inputs : inputs + outputs]
        actions, (logp, advantages, targets) = rows[:, inputs + outputs : -3], rows[:, -3:].unbind(1)
        if settings["use_critic"]:
            numbers, values = self.network.both(observations)
        else:
            numbers, values = self.network.actor(observations), None
        now = distribution(numbers, self.plan.discrete, self.plan.spec.log_std_clip)
        ratio = torch.exp(now.logp(actions) - logp)
        clip = settings["clip_param"]
        policy_loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
        entropy = now.entropy().mean()
        zero = torch.zeros((), device=rows.device)
        loss = policy_loss if entropy_coeff == 0 else policy_loss - entropy_coeff * entropy
        value_loss = unclipped = kl = zero
        if settings["use_kl_loss"]:
            kl = now.divergence_from(old).mean()
            loss = loss + self.kl_coeff * kl
        if values is not None:
            error = (values - targets) ** 2
            unclipped = error.mean()
            value_loss = error.clamp(max=settings["vf_clip_param"]).mean()
            loss = loss + settings["vf_loss_coeff"] * value_loss
        loss.backward()
        with torch.no_grad():
            return torch.stack([loss, policy_loss, value_loss, unclipped, entropy, kl])

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "kl_coeff": self.kl_coeff}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.kl_coeff = state["kl_coeff"]
