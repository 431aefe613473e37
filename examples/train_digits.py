"""Handwritten digits on two workers: PyTorch's DDP, checkpoints, and a run that goes on where it was stopped.

    python examples/train_digits.py [--workers 2] [--epochs 30] [--storage DIR] [--name NAME]

Needs shoal-train[torch] and scikit-learn. Gets more than 97 % of the test digits right. Kill it with Ctrl-C or worse and give the same --name again:
it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import shoal
import shoal.train
import torch
from shoal.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from shoal.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The 1,797 digits of 8 × 8 pixels that come with scikit-learn: training and test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=0.2, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = (torch.from_numpy(part) for part in parts)
    return TensorDataset(x_train.float(), y_train.long()), TensorDataset(x_test.float(), y_test.long())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    model.eval()
    with torch.no_grad():
        correct = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return correct


def train_loop(config: dict[str, Any]) -> None:
    """Runs in each worker."""
    world_size = shoal.train.get_context().get_world_size()
    torch.manual_seed(config["seed"])
    train_set, test_set = digits()
    # The batch is divided: with one worker or with many, each step sees as many digits.
    loader = prepare_data_loader(DataLoader(train_set, batch_size=config["batch_size"] // world_size, shuffle=True))
    model = prepare_model(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])

    first = 0
    checkpoint = shoal.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as where:
            state = torch.load(Path(where, "state.pt"), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1

    for epoch in range(first, config["epochs"]):
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * (1 + math.cos(math.pi * epoch / config["epochs"])) / 2
        if world_size > 1:
            loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        metrics = {"epoch": epoch, "loss": loss.item(), "accuracy": accuracy(model, test_set)}
        if shoal.train.get_context().get_world_rank() == 0:
            with tempfile.TemporaryDirectory() as where:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, Path(where, "state.pt"))
                shoal.train.report(metrics, checkpoint=Checkpoint.from_directory(where))
        else:
            shoal.train.report(metrics)


def train(workers: int = 2, epochs: int = 30, storage: str | None = None, name: str | None = None) -> Result:
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"epochs": epochs, "batch_size": 64, "lr": 3e-3, "seed": 0},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=name, storage_path=storage, failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy"),
        ),
    )  # fmt: skip
    return trainer.fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--storage", help="folder or URI for the results (default: ~/shoal_results)")
    parser.add_argument("--name", help="of the run; one that exists is gone on with")
    given = parser.parse_args()
    with shoal.init():
        result = train(given.workers, given.epochs, given.storage, given.name)
    for row in result.history:
        print(f"epoch {row['epoch']:3}  loss {row['loss']:.4f}  test accuracy {row['accuracy']:.2%}")
    print(f"the checkpoint is {result.checkpoint.path if result.checkpoint else None}")


if __name__ == "__main__":
    main()
