"""A network's vector of parameters in torch: with gradients, and as a module for users."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import Floats, Layer, NetworkSpec


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For layers this narrow the hand-over to other threads costs more than they save; the user's own setting comes back."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchNetwork(nn.Module):
    """`theta` and `gradient` are flat; every parameter is a view of the one and its gradient of the other, so that an optimiser's step is a few operations."""

    def __init__(self, spec: NetworkSpec, theta: Floats, device: str = "cpu", duelling: bool = False, q_values: bool = False) -> None:
        super().__init__()
        self.spec, self.duelling, self.q_values = spec, duelling, q_values
        self.theta = torch.from_numpy(np.array(theta, np.float32)).to(device)
        self.gradient = torch.zeros_like(self.theta)
        actor = [self._parameters_of(f"actor_{index}", layer) for index, layer in enumerate(spec.actor)]
        critic = actor[: spec.shared] + [self._parameters_of(f"critic_{index}", layer) for index, layer in enumerate(spec.critic) if index >= spec.shared]
        # In plain containers, since attributes of a module would be registered twice.
        self._chains: dict[str, list[tuple[nn.Parameter, nn.Parameter, str]]] = {"actor": actor, "critic": critic}
        offset = spec.log_std_offset
        self._free = [] if offset is None else [self._view("log_std", offset, (spec.outputs // 2,))]

    def _parameters_of(self, name: str, layer: Layer) -> tuple[nn.Parameter, nn.Parameter, str]:
        weight = self._view(f"{name}_weight", layer.offset, (layer.outputs, layer.inputs))
        return weight, self._view(f"{name}_bias", layer.end - layer.outputs, (layer.outputs,)), layer.activation

    def _view(self, name: str, offset: int, shape: tuple[int, ...]) -> nn.Parameter:
        end = offset + int(np.prod(shape))
        parameter = nn.Parameter(self.theta[offset:end].view(shape))
        parameter.grad = self.gradient[offset:end].view(shape)
        self.register_parameter(name, parameter)
        return parameter

    @staticmethod
    def _run(chain: list[tuple[nn.Parameter, nn.Parameter, str]], x: Tensor) -> Tensor:
        for weight, bias, activation in chain:
            x = functional.linear(x, weight, bias)
            if activation == "tanh":
                x = torch.tanh(x)
            elif activation == "relu":
                x = torch.relu(x)
        return x

    def _finish(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(log_std.expand(len(x), -1) for log_std in self._free)], dim=1) if self._free else x

    def actor(self, observations: Tensor) -> Tensor:
        """`[N, inputs]` to `[N, outputs]`."""
        return self._finish(self._run(self._chains["actor"], observations))

    def critic(self, observations: Tensor) -> Tensor:
        """`[N, inputs]` to `[N]`."""
        return self._run(self._chains["critic"], observations).squeeze(1)

    def both(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Actor and critic; layers that they share run once."""
        shared = self.spec.shared
        encoded = self._run(self._chains["actor"][:shared], observations)
        actor, critic = self._chains["actor"][shared:], self._chains["critic"][shared:]
        return self._finish(self._run(actor, encoded)), self._run(critic, encoded).squeeze(1)

    def action_values(self, observations: Tensor) -> Tensor:
        """`[N, actions]`: Q, with the duelling split of Wang et al. 2016 (arXiv:1511.06581) where there is one."""
        if not self.duelling:
            return self.actor(observations)
        advantages, value = self.both(observations)
        return advantages - advantages.mean(dim=1, keepdim=True) + value.unsqueeze(1)

    # -- what users call -------------------------------------------------------------------------------------

    def forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """`batch["obs"]`: `[N, inputs]` of float32; gives `action_dist_inputs` (logits, or means and log deviations), or `actions` for value networks."""
        with torch.no_grad():
            observations = torch.as_tensor(batch["obs"], dtype=torch.float32, device=self.theta.device).reshape(-1, self.spec.actor[0].inputs)
            if self.q_values:
                values = self.action_values(observations)
                return {"actions": values.argmax(dim=1), "qf_preds": values}
            return {"action_dist_inputs": self.actor(observations)}

    forward_exploration = forward_inference

    def compute_values(self, batch: dict[str, Any]) -> Tensor:
        """`[N]`: the critic's value of each observation."""
        with torch.no_grad():
            return self.critic(torch.as_tensor(batch["obs"], dtype=torch.float32, device=self.theta.device).reshape(-1, self.spec.actor[0].inputs))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.forward_inference(batch)

    # -- as one vector ---------------------------------------------------------------------------------------

    def get(self) -> Floats:
        """A copy of all parameters."""
        copied: Floats = self.theta.detach().cpu().numpy().copy()
        return copied

    def set(self, theta: Floats) -> None:
        with torch.no_grad():
            self.theta.copy_(torch.from_numpy(np.asarray(theta, np.float32)))
