"""The gradient of PPO in torch."""

from __future__ import annotations

from typing import Any

import torch

from ..core.distributions import distribution
from ..core.networks import Floats
from ..core.torch_learner import TorchLearner
from ..core.torch_network import one_thread
from ..env.fragment import Fragment
from .ppo_learner import PPOLearner


class TorchPPOLearner(PPOLearner, TorchLearner):
    def update(self, batch: Fragment, timestep: int) -> tuple[Floats, dict[str, Any], None]:
        with one_thread():
            stats = self.learn(batch, timestep)
        return self.network.get(), stats, None

    def values_of(self, observations: Floats) -> Floats:
        with torch.no_grad():
            values: Floats = self.network.critic(self.tensor(observations)).cpu().numpy()
        return values

    def add_gradient(self, rows: Floats, entropy_coeff: float, report: bool) -> list[float]:
        settings = self.settings
        inputs, outputs = self.plan.spec.actor[0].inputs, self.plan.spec.outputs
        tensor = self.tensor(rows)
        observations, old = tensor[:, :inputs], tensor[:, inputs : inputs + outputs]
        actions, (logp, advantages, targets) = tensor[:, inputs + outputs : -3], tensor[:, -3:].unbind(1)
        if settings["use_critic"]:
            numbers, values = self.network.both(observations)
        else:
            numbers, values = self.network.actor(observations), None
        now = distribution(numbers, self.plan.discrete, self.plan.spec.log_std_clip)
        ratio = torch.exp(now.logp(actions) - logp)
        clip = settings["clip_param"]
        policy_loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
        entropy = now.entropy().mean()
        loss = policy_loss if entropy_coeff == 0 else policy_loss - entropy_coeff * entropy
        value_loss = unclipped = kl = torch.zeros((), device=self.device)
        if settings["use_kl_loss"]:
            kl = now.divergence_from(old).mean()
            loss = loss + self.kl_coeff * kl
        if values is not None:
            error = (values - targets) ** 2
            unclipped = error.mean()
            value_loss = error.clamp(max=settings["vf_clip_param"]).mean()
            loss = loss + settings["vf_loss_coeff"] * value_loss
        loss.backward()
        terms: list[float] = torch.stack([loss, policy_loss, value_loss, unclipped, entropy, kl]).detach().tolist() if report else []
        return terms
