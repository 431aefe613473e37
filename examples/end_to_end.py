"""From a file to an answer over HTTP: scikit-learn's digits are written as Parquet, read and prepared by data, a network is tuned by tune and trained by
train on two workers, served by serve, and asked.

    python examples/end_to_end.py [--epochs 20] [--samples 6] [--dir PLACE]

Needs shoal[data,train,tune,serve] and scikit-learn. Without --dir, what it writes goes with it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shoal
from shoal import data, serve, train, tune

PIXELS = 64
SHARE_TO_TEST = 0.2
SEED = 7


# -- data ----------------------------------------------------------------------------------------------------


def write_digits(directory: Path) -> int:
    """1,797 pictures of 8 × 8 grey values from 0 to 16, with the digit that each shows, in four files. Returns the number of rows."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.astype(np.float32).ravel()), PIXELS), "digit": pa.array(digits)})
    for i, start in enumerate(range(0, len(table), 450)):
        pq.write_table(table.slice(start, 450), directory / f"digits-{i}.parquet")
    return len(table)


def scaled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": np.stack(list(batch["pixels"])).astype(np.float32) / 16.0, "y": batch["digit"].astype(np.int64)}


def arrays(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Small enough to be looked at whole."""
    batches = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    return np.concatenate([batch["x"] for batch in batches]), np.concatenate([batch["y"] for batch in batches])


# -- the model -----------------------------------------------------------------------------------------------


def network(hidden: int) -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    import torch

    with torch.no_grad():
        return float((model(torch.tensor(x)).argmax(1).numpy() == y).mean())


# -- tune ----------------------------------------------------------------------------------------------------


def trial(config: dict[str, Any], x: np.ndarray, y: np.ndarray) -> None:
    """One configuration, on a part of the training rows, judged on the rest."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    cut = int(len(x) * 0.8)
    model = network(config["hidden"])
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    xs, ys = torch.tensor(x[:cut]), torch.tensor(y[:cut])
    for _ in range(config["epochs"]):
        for rows in torch.randperm(cut).split(64):
            loss = torch.nn.functional.cross_entropy(model(xs[rows]), ys[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tune.report({"accuracy": accuracy(model, x[cut:], y[cut:]), "loss": loss.item()})


def best_configuration(x: np.ndarray, y: np.ndarray, samples: int, directory: Path) -> tuple[dict[str, Any], float]:
    tuner = tune.Tuner(
        tune.with_parameters(trial, x=x, y=y),
        param_space={"lr": tune.loguniform(2e-3, 2e-2), "hidden": tune.choice([64, 128, 256]), "epochs": 8},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=samples,
            scheduler=tune.schedulers.ASHAScheduler(max_t=8, grace_period=2),
            # A seed of its own: what this example reaches shall not hang on the draw.
            search_alg=tune.search.BasicVariantGenerator(random_state=SEED),
        ),
        run_config=train.RunConfig(name="digits-tuned", storage_path=str(directory)),
    )
    best = tuner.fit().get_best_result()
    return best.config, best.metrics["accuracy"]


# -- train ---------------------------------------------------------------------------------------------------


def train_loop(config: dict[str, Any]) -> None:
    """What each of the workers runs: its own share of the rows, gradients averaged over all."""
    import torch
    from shoal.train.torch import prepare_model

    torch.manual_seed(SEED)
    model = prepare_model(network(config["hidden"]))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    rows = train.get_dataset_shard("train")
    for epoch in range(config["epochs"]):
        for batch in rows.iter_torch_batches(batch_size=32, local_shuffle_buffer_size=512, local_shuffle_seed=epoch, drop_last=True):
            loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        checkpoint = None
        with tempfile.TemporaryDirectory() as directory:
            if epoch + 1 == config["epochs"] and train.get_context().get_world_rank() == 0:
                plain = getattr(model, "module", model)
                torch.save({"hidden": config["hidden"], "state": plain.state_dict()}, Path(directory) / "model.pt")
                checkpoint = train.Checkpoint.from_directory(directory)
            train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)


def trained(config: dict[str, Any], dataset: data.Dataset, epochs: int, directory: Path) -> train.Result:
    from shoal.train.torch import TorchTrainer

    return TorchTrainer(
        train_loop,
        train_loop_config={**config, "epochs": epochs},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(name="digits-trained", storage_path=str(directory)),
        datasets={"train": dataset},
    ).fit()


def restored(checkpoint: train.Checkpoint) -> Any:
    import torch

    with checkpoint.as_directory() as directory:
        saved = torch.load(Path(directory) / "model.pt")
    model = network(saved["hidden"])
    model.load_state_dict(saved["state"])
    return model.eval()


# -- serve ---------------------------------------------------------------------------------------------------


@serve.deployment(num_replicas=1)
class Digits:
    """POST {"pixels": [64 numbers from 0 to 16]} is answered by {"digit": …, "confidence": …}."""

    def __init__(self, checkpoint: train.Checkpoint) -> None:
        self.model = restored(checkpoint)

    async def __call__(self, request: Any) -> dict[str, Any]:
        import torch

        pixels = torch.tensor((await request.json())["pixels"], dtype=torch.float32) / 16.0
        with torch.no_grad():
            chances = self.model(pixels).softmax(-1)
        return {"digit": int(chances.argmax()), "confidence": round(float(chances.max()), 3)}


def ask(url: str, pixels: np.ndarray) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps({"pixels": pixels.tolist()}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


# -- all of it -----------------------------------------------------------------------------------------------


def timed(what: str, do: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = do()
    print(f"{time.perf_counter() - start:6.2f} s  {what}", flush=True)
    return result


def main(directory: Path, epochs: int, samples: int, port: int) -> float:
    """Returns the accuracy on rows that neither tuning nor training has seen."""
    timed("a cluster", lambda: shoal.init(address="local", num_cpus=4))
    rows = timed("digits written as Parquet", lambda: write_digits(directory))

    dataset = data.read_parquet(str(directory)).map_batches(scaled).random_shuffle(seed=SEED)
    to_train, to_test = timed("read, scaled, shuffled and split by data", lambda: dataset.train_test_split(test_size=SHARE_TO_TEST))
    x, y = arrays(to_train)
    test_x, test_y = arrays(to_test)
    assert len(x) + len(test_x) == rows, "no row may be lost"

    config, found = timed(f"{samples} configurations tried by tune", lambda: best_configuration(x, y, samples, directory))
    print(f"          best: lr {config['lr']:.4f}, {config['hidden']} hidden units: {found:.1%} of the rows held back")

    result = timed(f"{epochs} epochs on 2 workers by train", lambda: trained({k: config[k] for k in ("lr", "hidden")}, to_train, epochs, directory))
    reached = accuracy(restored(result.checkpoint), test_x, test_y)
    print(f"          loss {result.metrics['loss']:.4f}; {reached:.1%} of {len(test_x)} rows never seen before are read right")

    serve.start(http_options={"port": port})
    timed("served", lambda: serve.run(Digits.bind(result.checkpoint), name="digits", route_prefix="/digits"))
    url = f"http://127.0.0.1:{port}/digits"
    picked = range(0, len(test_x), max(1, len(test_x) // 8))
    answers = timed(f"{len(picked)} pictures posted to {url}", lambda: [ask(url, test_x[i] * 16) for i in picked])
    for i, answer in zip(picked, answers, strict=True):
        print(f"          a {test_y[i]}: {answer}")
    serve.shutdown()
    shoal.shutdown()
    return reached


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--samples", type=int, default=6)
    options.add_argument("--port", type=int, default=8123)
    options.add_argument("--dir", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.dir or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        main(place, given.epochs, given.samples, given.port)
