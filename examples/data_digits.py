"""scikit-learn's digits to Parquet and back, scaled, split, and fed to a PyTorch model as batches.

python examples/data_digits.py
python examples/data_digits.py --epochs 20
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import shoal
import shoal.data
import torch
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> None:
    """Images as tensors of 8 × 8, in several files."""
    digits = load_digits()
    rows = [{"image": image.astype(np.float32), "label": int(label)} for image, label in zip(digits.images, digits.target, strict=True)]
    shoal.data.from_items(rows, override_num_blocks=4).write_parquet(str(folder))


def scale(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": batch["image"] / 16, "label": batch["label"]}


def train(data: Any, epochs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only get in each other's way with layers so small
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for batch in data.iter_torch_batches(batch_size=64, local_shuffle_buffer_size=512, local_shuffle_seed=epoch):
            loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: torch.nn.Module, data: Any) -> float:
    with torch.no_grad():
        right = [model(batch["image"]).argmax(dim=1) == batch["label"] for batch in data.iter_torch_batches(batch_size=None)]
    return torch.cat(right).float().mean().item()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--epochs", type=int, default=15)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary, shoal.init(include_dashboard=False):
        write_digits(Path(temporary))
        digits = shoal.data.read_parquet(temporary)
        print(f"{digits.count()} images in {len(digits.input_files())} files\n{digits.schema()}")
        train_set, test_set = digits.map_batches(scale).train_test_split(0.2, shuffle=True, seed=1)
        print(f"accuracy on {test_set.count()} images that were not seen: {accuracy(train(train_set, given.epochs), test_set):.1%}")


if __name__ == "__main__":
    main()
