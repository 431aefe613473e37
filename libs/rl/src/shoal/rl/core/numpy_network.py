"""A network with gradients, and Adam, in numpy.

For a multi-layer perceptron and a minibatch of a few hundred rows the products take less time than what an automatic differentiation spends around them: this
takes a quarter of torch's time for a step, and a process needs no torch. It is held to torch's gradients by tests.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .networks import Floats, Layer, NetworkSpec

# What a forward pass leaves for the backward pass: the input of each layer, then the last output.
Tape = list[Floats]


class NumpyNetwork:
    """`theta` and `gradient` are flat; layers are views of them."""

    def __init__(self, spec: NetworkSpec, theta: Floats) -> None:
        self.spec = spec
        self.theta = np.array(theta, np.float32)
        self.gradient = np.zeros_like(self.theta)
        self.duelling = bool(spec.critic)
        self._actor, self._critic = self._views(spec.actor), self._views(spec.critic)
        self.widest = max(layer.inputs * layer.outputs for layer in (*spec.actor, *spec.critic))

    def _views(self, layers: tuple[Layer, ...]) -> list[tuple[Floats, Floats, Floats, Floats, str]]:
        return [(*layer.of(self.theta), *layer.of(self.gradient), layer.activation) for layer in layers]

    @staticmethod
    def _forward(layers: list[Any], x: Floats) -> Tape:
        tape = [x]
        for weight, bias, _, _, activation in layers:
            x = x @ weight.T
            x += bias
            if activation == "tanh":
                np.tanh(x, out=x)
            elif activation == "relu":
                np.maximum(x, 0.0, out=x)
            tape.append(x)
        return tape

    @staticmethod
    def _backward(layers: list[Any], tape: Tape, slope: Floats, wants_input: bool, adds: bool = True) -> Floats:
        """Adds the gradients of the layers, unless it should not; the slope by the input, where it is wanted."""
        for index in range(len(layers) - 1, -1, -1):
            weight, _, weight_gradient, bias_gradient, activation = layers[index]
            after = tape[index + 1]
            if activation == "tanh":
                slope = slope * (1.0 - after * after)
            elif activation == "relu":
                slope = slope * (after > 0)
            if adds:
                weight_gradient += slope.T @ tape[index]
                bias_gradient += slope.sum(axis=0)
            if index or wants_input:
                slope = slope @ weight
        return slope

    def _finish(self, outputs: Floats) -> Floats:
        offset = self.spec.log_std_offset
        if offset is None:
            return outputs
        log_std = self.theta[offset : self.spec.actor_size]
        return np.concatenate([outputs, np.broadcast_to(log_std, (len(outputs), len(log_std)))], axis=1)

    def critic(self, observations: Floats) -> Floats:
        """`[N, inputs]` to `[N]`."""
        return self._forward(self._critic, observations)[-1][:, 0]

    def both(self, observations: Floats) -> tuple[Floats, Floats | None, tuple[Tape, Tape, Tape]]:
        """Actor `[N, outputs]`, critic `[N]` where there is one, and what `backward` needs. Layers that they share run once."""
        shared = self.spec.shared
        encoder = self._forward(self._actor[:shared], observations)
        actor = self._forward(self._actor[shared:], encoder[-1])
        critic = self._forward(self._critic[shared:], encoder[-1]) if self._critic else []
        return self._finish(actor[-1]), critic[-1][:, 0] if critic else None, (encoder, actor, critic)

    def backward(self, tapes: tuple[Tape, Tape, Tape], outputs: Floats, values: Floats | None) -> None:
        """Adds to `gradient`. `outputs` `[N, outputs]` and `values` `[N]`: the slopes of the loss by what `both` gave."""
        encoder, actor, critic = tapes
        shared = self.spec.shared
        if self.spec.log_std_offset is not None:
            free = self.spec.outputs // 2
            self.gradient[self.spec.log_std_offset : self.spec.actor_size] += outputs[:, free:].sum(axis=0)
            outputs = outputs[:, :free]
        slope = self._backward(self._actor[shared:], actor, outputs, wants_input=shared > 0)
        if values is not None:
            from_critic = self._backward(self._critic[shared:], critic, values[:, None], wants_input=shared > 0)
            slope = slope + from_critic if shared else slope
        if shared:
            self._backward(self._actor[:shared], encoder, slope, wants_input=False)

    def actor_values(self, observations: Floats) -> Floats:
        """`[N]`, of an actor with one output."""
        return self._forward(self._actor, observations)[-1][:, 0]

    def input_slope(self, tapes: tuple[Tape, Tape, Tape], outputs: Floats) -> Floats:
        """`[N, inputs]`: the slope by the observations, given that by the outputs, for a network without a critic. Adds nothing to `gradient`."""
        return self._backward(self._actor, tapes[1], outputs, wants_input=True, adds=False)

    def action_values(self, observations: Floats) -> tuple[Floats, tuple[Tape, Tape, Tape]]:
        """`[N, actions]`: Q, with the duelling split of Wang et al. 2016 (arXiv:1511.06581) where there is a critic; and what `backward_values` needs."""
        outputs, values, tapes = self.both(observations)
        if values is None:
            return outputs, tapes
        return outputs - outputs.mean(axis=1, keepdims=True) + values[:, None], tapes

    def backward_values(self, tapes: tuple[Tape, Tape, Tape], slopes: Floats) -> None:
        """Adds to `gradient`; `slopes` `[N, actions]`: of the loss by Q."""
        if not self.duelling:
            self.backward(tapes, slopes, None)
            return
        self.backward(tapes, slopes - slopes.mean(axis=1, keepdims=True), slopes.sum(axis=1))

    def get(self) -> Floats:
        """A copy of all parameters."""
        return self.theta.copy()

    def set(self, theta: Floats) -> None:
        self.theta[:] = theta


class NumpyAdam:
    """Kingma and Ba 2015 (arXiv:1412.6980), over one vector, in place."""

    def __init__(self, theta: Floats, epsilon: float = 1e-8, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.theta, self.epsilon, self.beta1, self.beta2 = theta, epsilon, beta1, beta2
        self.mean, self.square, self._scratch = np.zeros_like(theta), np.zeros_like(theta), np.empty_like(theta)
        self.steps = 0

    def step(self, gradient: Floats, lr: float) -> None:
        self.steps += 1
        scratch = self._scratch
        self.mean *= self.beta1
        np.multiply(gradient, 1 - self.beta1, out=scratch)
        self.mean += scratch
        self.square *= self.beta2
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - self.beta2
        self.square += scratch
        correction = math.sqrt(1 - self.beta2**self.steps)
        np.sqrt(self.square, out=scratch)
        scratch += self.epsilon * correction
        np.divide(self.mean, scratch, out=scratch)
        scratch *= lr * correction / (1 - self.beta1**self.steps)
        self.theta -= scratch

    def get_state(self) -> dict[str, Any]:
        return {"mean": self.mean.copy(), "square": self.square.copy(), "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.mean[:], self.square[:], self.steps = state["mean"], state["square"], state["steps"]


def clip_gradient(gradient: Floats, spec: NetworkSpec, bound: float | None, by: str) -> None:
    """In place. `by`: `global_norm`, `norm` (of each parameter) or `value`."""
    if bound is None:
        return
    if by == "value":
        np.clip(gradient, -bound, bound, out=gradient)
        return
    for part in [gradient] if by == "global_norm" else spec.parameters(gradient):
        norm = math.sqrt(float(np.vdot(part, part)))
        if norm > bound:
            part *= bound / (norm + 1e-6)
