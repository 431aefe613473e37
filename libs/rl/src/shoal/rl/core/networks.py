"""Networks as one flat vector of parameters: what it means, how it begins, and its forward pass in numpy.

An env runner needs only the front of the vector (`actor`), and no torch: for a few rows and narrow layers numpy's pass takes a third of torch's time, and
a process that need not import torch starts in a tenth of the time. `TorchNetwork` (in `torch_network.py`) gives the same vector gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rl_module.default_model_config import DefaultModelConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """`x @ weight.T + bias`, then the activation. In the vector: weight `[outputs, inputs]` at `offset`, bias `[outputs]` behind it."""

    offset: int
    inputs: int
    outputs: int
    activation: str
    gain: float  # of the orthogonal matrix it begins with

    @property
    def end(self) -> int:
        return self.offset + (self.inputs + 1) * self.outputs

    def of(self, theta: Any) -> tuple[Any, Any]:
        """Weight and bias as views of the vector (numpy or torch)."""
        split = self.offset + self.inputs * self.outputs
        return theta[self.offset : split].reshape(self.outputs, self.inputs), theta[split : self.end]


@dataclass(frozen=True)
class NetworkSpec:
    """Which layers there are, in the order of the vector: encoder, actor head, [log_std], critic encoder, critic head.

    `actor`: from observation to the policy's numbers (logits, means and log deviations, advantages or values of actions).
    `critic`: to one number; empty where there is none. Its first `shared` layers are the actor's first.
    """

    actor: tuple[Layer, ...]
    critic: tuple[Layer, ...]
    shared: int
    outputs: int  # numbers that the actor gives, with log_std
    log_std_offset: int | None  # of free log deviations
    log_std_clip: float
    size: int

    @property
    def actor_size(self) -> int:
        """How much of the vector an env runner needs."""
        return self.actor[-1].end if self.log_std_offset is None else self.log_std_offset + self.outputs // 2

    def parameters(self, vector: Any) -> list[Any]:
        """Each parameter as a view of a vector (numpy or torch)."""
        views = [view for layer in (*self.actor, *self.critic[self.shared :]) for view in layer.of(vector)]
        return views if self.log_std_offset is None else [*views, vector[self.log_std_offset : self.actor_size]]

    def initial(self, rng: np.random.Generator) -> Floats:
        """Orthogonal weights, zero biases (Saxe et al. 2014, arXiv:1312.6120)."""
        theta = np.zeros(self.size, np.float32)
        for layer in (*self.actor, *self.critic[self.shared :]):
            weight, _ = layer.of(theta)
            weight[...] = layer.gain * _orthogonal(rng, layer.outputs, layer.inputs)
        return theta


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    matrix = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(matrix)
    q *= np.sign(np.diag(r))
    return q if rows >= columns else q.T


def build_spec(model: DefaultModelConfig, inputs: int, outputs: int, *, gaussian: bool = False, critic: bool = False, actor_gain: float = 0.01) -> NetworkSpec:
    """`outputs`: actions (Discrete), or numbers of one action (`gaussian`)."""
    offset = 0
    free = gaussian and model.free_log_std

    def chain(start: int, widths: list[tuple[int, str]], head: tuple[int, float] | None) -> tuple[tuple[Layer, ...], int]:
        nonlocal offset
        layers = []
        for width, activation in widths:
            layers.append(Layer(offset, start, width, activation, math.sqrt(2)))
            offset, start = layers[-1].end, width
        if head is not None:
            layers.append(Layer(offset, start, head[0], "linear", head[1]))
            offset, start = layers[-1].end, head[0]
        return tuple(layers), start

    encoder_widths = [(width, model.fcnet_activation) for width in model.fcnet_hiddens]
    head_widths = [(width, model.head_fcnet_activation) for width in model.head_fcnet_hiddens]
    heads = outputs * 2 if gaussian and not free else outputs
    encoder, encoded = chain(inputs, encoder_widths, None)
    head, _ = chain(encoded, head_widths, (heads, actor_gain))
    log_std_offset = offset if free else None
    if free:
        offset += outputs
    critic_layers: tuple[Layer, ...] = ()
    shared = 0
    if critic:
        if model.vf_share_layers:
            shared = len(encoder)
            critic_layers = encoder + chain(encoded, head_widths, (1, 1.0))[0]
        else:
            critic_layers = chain(inputs, encoder_widths + head_widths, (1, 1.0))[0]
    return NetworkSpec(encoder + head, critic_layers, shared, outputs * 2 if gaussian else outputs, log_std_offset, model.log_std_clip_param, offset)


class Actor:
    """The actor's forward pass over a vector of parameters, in numpy."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.theta = np.zeros(spec.actor_size, np.float32)
        self._layers = [(*layer.of(self.theta), layer.activation) for layer in spec.actor]
        self._transposed = [(weight.T, bias, activation) for weight, bias, activation in self._layers]

    def load(self, theta: Floats) -> None:
        """`theta`: at least the actor's part of the vector."""
        self.theta[:] = theta[: self.spec.actor_size]

    def __call__(self, observations: Floats) -> Floats:
        """`[N, inputs]` to `[N, outputs]`."""
        x = observations
        for weight, bias, activation in self._transposed:
            x = x @ weight
            x += bias
            if activation == "tanh":
                np.tanh(x, out=x)
            elif activation == "relu":
                np.maximum(x, 0.0, out=x)
        if self.spec.log_std_offset is not None:
            log_std = self.theta[self.spec.log_std_offset :]
            x = np.concatenate([x, np.broadcast_to(log_std, (len(x), len(log_std)))], axis=1)
        return x
