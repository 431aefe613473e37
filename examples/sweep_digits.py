"""A small network for scikit-learn's digits, in numpy: what `shoal tune run examples/sweep.yaml` searches.

Each epoch is reported with a checkpoint, so that a trial goes on after a crash where it was. The images are loaded once, by the program that runs the
search, and lie in the object store for all trials.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from shoal import tune


def load() -> list[np.ndarray]:
    """Images of 64 numbers from 0 to 1, for training and for the test; then their digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    return list(train_test_split(digits.data / 16.0, digits.target, test_size=0.25, random_state=0))


class Network:
    """One hidden layer of rectified units, softmax, stochastic gradient descent with momentum."""

    def __init__(self, hidden: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = [rng.normal(0, 0.15, (64, hidden)), np.zeros(hidden), rng.normal(0, 0.15, (hidden, 10)), np.zeros(10)]
        self.speeds = [np.zeros_like(weight) for weight in self.weights]

    def scores(self, images: np.ndarray) -> np.ndarray:
        first, first_bias, second, second_bias = self.weights
        return np.maximum(images @ first + first_bias, 0) @ second + second_bias

    def step(self, images: np.ndarray, digits: np.ndarray, learning_rate: float, momentum: float) -> float:
        """One batch; its mean cross-entropy before the step."""
        first, first_bias, second, second_bias = self.weights
        hidden = np.maximum(images @ first + first_bias, 0)
        scores = hidden @ second + second_bias
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -np.log(shares[np.arange(len(digits)), digits] + 1e-12).mean()
        shares[np.arange(len(digits)), digits] -= 1
        shares /= len(digits)
        back = (shares @ second.T) * (hidden > 0)
        for weight, speed, gradient in zip(self.weights, self.speeds, (images.T @ back, back.sum(0), hidden.T @ shares, shares.sum(0)), strict=True):
            speed *= momentum
            speed -= learning_rate * gradient
            weight += speed
        return float(loss)


def trial(config: dict[str, Any], data: list[np.ndarray]) -> None:
    """Trains one network."""
    images, test_images, digits, test_digits = data
    network, start = Network(config["hidden"]), 0
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder, np.load(Path(folder, "network.npz")) as saved:
            network.weights = [saved[f"weight{index}"] for index in range(4)]
            network.speeds = [saved[f"speed{index}"] for index in range(4)]
            start = int(saved["epoch"])
    for epoch in range(start, config["epochs"]):
        order = np.random.default_rng(epoch).permutation(len(images))
        losses = [
            network.step(images[batch], digits[batch], config["learning_rate"], config["momentum"])
            for batch in np.array_split(order, max(1, len(order) // config["batch_size"]))
        ]
        accuracy = float((network.scores(test_images).argmax(axis=1) == test_digits).mean())
        with tempfile.TemporaryDirectory() as folder:
            arrays = {f"weight{index}": weight for index, weight in enumerate(network.weights)}
            arrays |= {f"speed{index}": speed for index, speed in enumerate(network.speeds)}
            np.savez(Path(folder, "network.npz"), epoch=epoch + 1, **arrays)
            tune.report({"accuracy": accuracy, "loss": float(np.mean(losses))}, checkpoint=tune.Checkpoint.from_directory(folder))


train = tune.with_parameters(trial, data=load())
